//! Flows: a bounded table that counts each flow's bytes until its owner is known, and evicts and expires
//! flows.
//!
//! The table belongs to one thread, the capture thread. It takes no lock, makes no system call, and its cost
//! per packet does not depend on the number of flows. It does not look up owners and does not retry: it hands
//! out the flows to be looked up and keeps the answers.

mod entry;
mod eviction;
mod fragments;
mod index;
mod late;
mod metrics;
mod offload;
mod release;
mod state;
mod step;
mod table;

#[cfg(test)]
mod made_up;
#[cfg(test)]
mod model_tests;

pub use entry::{Binding, Departed, Flow, FlowId};
pub use fragments::FragmentTable;
pub use metrics::FlowMetrics;
pub use state::FlowState;
pub use table::{FlowStats, FlowTable};
