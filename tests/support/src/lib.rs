//! Testing support that the test binaries, the benchmarks, the test programs and the library's own unit tests
//! share. It does not use the library, so that unit tests can use it.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::new_without_default,
    reason = "helpers of tests explain themselves, and fail loudly, as tests do"
)]

pub mod children;
pub mod commands;
pub mod counters;
pub mod frames;
pub mod group;
pub mod kernel_programs;
pub mod lab;
pub mod namespaces;
pub mod proc_tree;
pub mod programs;
pub mod requirements;
pub mod savefile;
mod wire;
