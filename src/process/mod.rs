//! Processes: sampling them from `/proc`, their identity, and rates between two samples of the same process.
//!
//! A [`Sampler`] keeps a record of every process from its start to its end. What other rooms need of one process
//! at once, they get from [`proc_id`] and an [`IdentityReader`]. Nothing here knows of packets, and no process that
//! is odd, forbidden or gone fails a sample.

mod cgroup;
mod identity;
mod machine;
mod parse;
mod plan;
mod reader;
mod reading;
mod sampler;
mod stand_in;
mod table;
mod task;
mod updater;
mod users;

pub use cgroup::told_by_kernel;
pub use identity::{COMMAND_LINE_LIMIT, IdentityReader};
pub use machine::{Machine, ticks_to_ns};
pub use reading::proc_id;
pub use sampler::Sampler;
