//! Flows.

mod fragments;
pub use fragments::FragmentTable;
