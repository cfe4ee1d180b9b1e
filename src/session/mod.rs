//! Sessions: the only room that starts a session's threads, and the place where bytes are joined to process
//! samples.
//!
//! The threads of a [`Session`] have a descriptor table of their own ([`crate::thread`]). A frame goes
//! through `pipeline`, which counts it in a flow and credits the flow's bytes in the ledger of `accounting`;
//! `lookup` resolves the owner of the flow beside it. With engine `kernel`, `kernel_counters` fills the
//! ledger instead. An update, for which the caller waits, samples the processes, joins the ledger's accounts
//! to them, takes the records of `flows`, and delivers the result. Reads of `/proc` run on threads that can
//! be abandoned ([`crate::blocking`]).

mod accounting;
mod core;
mod flows;
mod handle;
mod kernel_counters;
mod limits;
mod lookup;
mod memory;
mod opening;
mod pipeline;
mod probes;
mod room;
mod session_fd;
mod stats;
mod supervision;
mod threads;
mod units;

pub use crate::thread::catch_quietly;
pub use handle::Session;
pub use pipeline::{PacketBatch, PacketEntry};
pub use session_fd::SessionFd;
pub use stats::{Stats, StatsReader};
pub use units::Units;
