//! Flows: a bounded table that counts each flow's bytes until its owner is known, and lets flows go in time.
//!
//! The table belongs to one thread, the one that reads packets. It takes no lock, makes no system call, and its
//! cost per packet does not depend on how many flows it holds. It does not look for owners and does not retry:
//! it says which flows are to be asked about and keeps what was answered.

mod detail;
mod entry;
mod eviction;
mod fragments;
mod index;
mod late;
mod offload;
mod release;
mod state;
mod step;
mod table;

#[cfg(test)]
mod made_up;
#[cfg(test)]
mod model_tests;

pub use detail::Detail;
pub use entry::{Binding, Departed, Flow, FlowId};
pub use fragments::FragmentTable;
pub use state::FlowState;
pub use table::{FlowStats, FlowTable};
