//! The whole route from a savefile to the figures of processes, on a fixture machine where all of
//! them are known.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "so do tests fail")]

mod accounting;
mod by_tshark;
mod damage;
mod flows;
mod limits;
mod machine;
mod replay;
