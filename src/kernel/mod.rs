//! eBPF programs: the owner of each socket, the bytes that pass through it, and samples of all processes at
//! once.
//!
//! Everything here is optional. Each object is loaded by itself. If a load fails, [`Fault`] states the
//! reason, and the session continues with its other sources. eBPF programs, maps and links live exactly as
//! long as the descriptors that hold them. Nothing is pinned, so that they end with the process, however it
//! ends.

#[cfg(feature = "ebpf")]
mod accounts;
#[cfg(feature = "ebpf")]
mod batch;
#[cfg(feature = "ebpf")]
mod btf;
#[cfg(feature = "ebpf")]
mod cgroup_root;
#[cfg(feature = "ebpf")]
mod cgroups;
mod clocks;
#[cfg(not(feature = "ebpf"))]
mod disabled;
#[cfg(feature = "ebpf")]
mod drain;
#[cfg(feature = "ebpf")]
mod flow;
#[cfg(feature = "ebpf")]
mod given_names;
#[cfg(feature = "ebpf")]
mod load;
#[cfg(feature = "ebpf")]
mod object;
#[cfg(feature = "ebpf")]
mod owners;
#[cfg(feature = "ebpf")]
mod page_buffer;
#[cfg(feature = "ebpf")]
mod periods;
#[cfg(feature = "ebpf")]
mod permission;
#[cfg(feature = "ebpf")]
mod program;
#[cfg(feature = "ebpf")]
mod records;
#[cfg(feature = "ebpf")]
mod socket_set;
#[cfg(feature = "ebpf")]
mod sockets;
#[cfg(feature = "ebpf")]
mod subscriber;
#[cfg(feature = "ebpf")]
mod sweep;
#[cfg(feature = "ebpf")]
mod syscall;
mod task;
#[cfg(feature = "ebpf")]
mod tasks;
#[cfg(feature = "ebpf")]
mod traffic;
#[cfg(feature = "ebpf")]
mod types;

#[cfg(not(feature = "ebpf"))]
pub use disabled::{Counters, Owners, Sockets};
#[cfg(feature = "ebpf")]
pub use owners::Owners;
#[cfg(feature = "ebpf")]
pub use sockets::Sockets;
#[cfg(feature = "ebpf")]
use tasks::Tasks;
#[cfg(feature = "ebpf")]
pub use traffic::Counters;

pub use clocks::Clocks;
pub use task::{CgroupPaths, Figures, GivenName, RawProcess, Task, TaskSource, UNCOUNTED};

#[cfg(feature = "ebpf")]
use crate::shared;

use crate::model::{
    Connections, FlowRecord, Identity, Owner, ProbeState, ProcId, SampleSet, Traffic, Unowned,
};
use std::fmt;

/// The purpose that the socket eBPF programs are loaded for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wants {
    /// Lookups of the owners of captured packets' flows.
    Owners,
    /// Counts of bytes at each socket.
    Bytes,
}

/// An item that a reading reports.
pub enum Credit<'a> {
    /// Bytes of this owner, with the kernel's record of its identity, which lacks the names of user and
    /// group.
    Owned(Owner, &'a dyn Fn() -> Identity, Traffic),
    /// Bytes without an owner.
    Unowned(Unowned, Traffic),
    /// A process's calls on its sockets, and the times that it waited for answers.
    Connections(ProcId, Connections),
    /// A living flow, or the last record of one that has ended.
    Flow(FlowRecord),
}

/// The owner of a socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The process, and the quality of the result.
    pub owner: Owner,
    /// The identity in the kernel's record: its name and ids when it last began to use the socket. The
    /// command line and the names of user and group are missing.
    pub identity: Identity,
    /// The relation of the process to the socket.
    pub claim: Claim,
}

/// The relation of a process to a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// The process was the last to use the socket.
    User,
    /// The process listens where the connection came in. The process that takes the connection over has not
    /// used it yet.
    Listener,
    /// The process created the socket, and no process has used it since. Another process may hold it by now.
    Creator,
}

/// The reason why eBPF programs are unavailable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The reason in one word.
    pub state: ProbeState,
    /// The full reason, for the log.
    pub text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Fault {}

/// Loads the BPF iterator over all tasks, which reports the groups of figures in `what` for all processes at
/// once.
///
/// # Errors
/// Fails with the reason if it cannot be loaded.
pub fn load_tasks(what: SampleSet) -> Result<Box<dyn TaskSource>, Fault> {
    #[cfg(feature = "ebpf")]
    return Ok(Box::new(Tasks::load(what)?));
    #[cfg(not(feature = "ebpf"))]
    {
        let text = format!("the library was built without the eBPF programs that sample {what:?}");
        Err(Fault { state: ProbeState::NotBuilt, text })
    }
}
