//! Per-process network bytes, CPU, memory, descriptors and I/O on Linux.
//!
//! A [`Session`] captures packets on devices, or counts bytes with eBPF programs in the kernel, and finds the
//! process that owns each flow. Each update joins these bytes with samples of `/proc`:
//!
//! ```
//! use capture::{Options, Session, Source};
//!
//! // Without `source`, packets are captured, which needs CAP_NET_RAW.
//! let mut session = Session::open(Options { source: Source::None, ..Options::default() })?;
//! session.update()?;
//! let own = session.processes().find(|record| record.sample.id.pid == std::process::id() as i32);
//! assert!(own.is_some_and(|record| record.sample.resident_bytes > 0));
//! # Ok::<(), capture::Error>(())
//! ```
//!
//! [`Options`] select what is counted and delivered, [`Stats`] count what was lost or could not be assigned.
//! C programs use the functions declared in `include/libcapture.h`, whose documentation describes the figures,
//! engines and limits; they are the same here.

mod abi;
mod blocking;
mod bounded;
mod capability;
mod config;
mod decode;
mod error;
mod flow;
mod kernel;
mod log;
mod model;
mod namespace;
mod netlink;
mod owner;
mod proc;
mod process;
mod session;
mod shared;
mod sync;
mod tap;
mod thread;

pub use config::{Engine, Options, Source};
pub use error::{Code, Error, Result};
pub use log::{LogLine, LogOptions};
pub use model::{
    Address, CloseReason, Connections, Direction, Endpoint, FlowPhase, FlowRecord, FlowValidity, Histogram,
    Identity, Owner, ProbeState, ProcId, ProcessRecord, ProcessSample, ProgramSet, Protocol, Quality,
    ResponseTimes, Role, SampleSet, Selection, Timestamp, Traffic, Undecoded, Unowned, Validity,
};
pub use namespace::NamespaceChoice;
pub use session::{PacketBatch, PacketEntry, Session, SessionFd, Stats, StatsReader, Units};
pub use tap::TapOptions;

/// The rooms of the crate, for its own tests and benchmarks. Nothing here is part of the interface.
#[doc(hidden)]
pub mod internals {
    pub mod abi {
        pub use crate::abi::*;
    }
    pub mod blocking {
        pub use crate::blocking::*;
    }
    pub mod config {
        pub use crate::config::*;
    }
    pub mod decode {
        pub use crate::decode::*;
    }
    pub mod error {
        pub use crate::error::*;
    }
    pub mod flow {
        pub use crate::flow::*;
    }
    pub mod kernel {
        pub use crate::kernel::*;
    }
    pub mod log {
        pub use crate::log::*;
    }
    pub mod model {
        pub use crate::model::*;
    }
    pub mod namespace {
        pub use crate::namespace::*;
    }
    pub mod netlink {
        pub use crate::netlink::*;
    }
    pub mod owner {
        pub use crate::owner::*;
    }
    pub mod proc {
        pub use crate::proc::*;
    }
    pub mod process {
        pub use crate::process::*;
    }
    pub mod session {
        pub use crate::session::*;
    }
    pub mod sync {
        pub use crate::sync::*;
    }
    pub mod tap {
        pub use crate::tap::*;
    }
    pub mod thread {
        pub use crate::thread::*;
    }
}
