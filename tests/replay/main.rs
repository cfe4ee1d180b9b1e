//! The whole way from a savefile to the figures of processes, on a made-up machine where all of them are known.

#![allow(clippy::unwrap_used, clippy::panic)] // How a test fails.

mod accounting;
mod by_tshark;
mod damage;
mod frames;
mod limits;
mod machine;
mod replay;
mod savefile;
mod tree;
