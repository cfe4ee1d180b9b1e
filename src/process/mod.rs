//! Processes: sampling from `/proc`, identities, and rates between two samples of the same process.
//!
//! A [`Sampler`] keeps a record of every process from its start to its end. Other rooms that need a single
//! process at once use [`proc_id`] and an [`IdentityReader`]. Nothing here depends on packets, and no process
//! that is odd, forbidden or gone makes a sample fail.

mod cgroup;
mod identity;
mod machine;
mod plan;
mod reader;
mod reading;
mod sampler;
mod stand_in;
mod table;
mod task;
mod updater;
mod users;

pub use cgroup::{has_groups, told_by_kernel};
pub use identity::{COMMAND_LINE_LIMIT, IdentityReader};
pub use machine::{Machine, ticks_to_ns};
pub use reading::proc_id;
pub use sampler::Sampler;
pub use users::unknown_users;
