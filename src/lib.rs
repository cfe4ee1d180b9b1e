//! Per-process network bytes, CPU, memory, descriptors and I/O on Linux, as a library.
//!
//! Packets are captured on devices or read from savefiles and decoded to flows, and the local end of each
//! flow is matched to the process that holds its socket. Each update joins the bytes with samples of `/proc`.
//! C programs use the functions declared in `include/libcapture.h`. Rust programs use the session of the
//! `session` module.

pub mod abi;
pub mod blocking;
mod bounded;
mod capability;
pub mod config;
pub mod decode;
pub mod error;
pub mod flow;
pub mod kernel;
pub mod log;
pub mod model;
pub mod namespace;
pub mod netlink;
pub mod owner;
pub mod proc;
pub mod process;
pub mod session;
mod shared;
pub mod sync;
pub mod tap;
pub mod thread;
