//! Sessions: the only place that starts threads, and where bytes meet process samples.
//!
//! The threads of a [`Session`] have a descriptor table of their own ([`crate::thread`]). The *capture* reads frames, counts
//! them in flows and credits the flows' bytes to their owners in the ledger, batch by batch. The *resolver* beside it finds
//! out who the owners are. An update, for which the caller waits, samples the processes, adds what the ledger holds, and
//! leaves the result for the caller. What reads `/proc` runs where it can be left behind ([`crate::blocking`]).

mod again;
mod barrier;
mod capture;
mod completion;
mod counting;
mod ended;
mod first;
mod flows;
mod governor;
mod introduce;
mod kernel_owners;
mod latest;
mod ledger;
mod limits;
mod locality;
mod looped;
mod memory;
mod merge;
mod packets;
mod paths;
mod pipeline;
mod poll;
mod privilege;
mod probes;
mod resolver;
mod session;
mod settle;
mod stats;
mod steps;
mod supervision;

#[cfg(test)]
#[path = "../../tests/replay/frames.rs"]
mod frames;
#[cfg(test)]
#[allow(dead_code, reason = "the tests of whole replays use every format")]
#[path = "../../tests/replay/savefile.rs"]
mod savefile;
#[cfg(test)]
#[path = "../../tests/replay/tree.rs"]
mod tree;

pub use crate::thread::catch_quietly;
pub use packets::{PacketBatch, PacketEntry};
pub use poll::SessionDescriptor;
pub use session::{Session, Units};
pub use stats::{Stats, StatsReader};
