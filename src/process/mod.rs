//! Processes: sampling them from `/proc`, their identity, and rates between two samples of the same process.

mod root;

pub use root::{PidPath, ProcRoot, SystemFacts};
