//! Programs in the kernel (BPF): who uses which socket, what goes through it, and samples of all processes at once.
//!
//! Everything here is optional. Each object is loaded by itself; where one cannot be, [`Fault`] says why, and the
//! session goes on with what it can read otherwise. Programs, maps and links live exactly as long as the
//! descriptors that hold them: nothing is pinned, so that the end of the process, however it comes, ends them too.

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

/// What the socket probes are loaded for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wants {
    /// To tell whose the flows of captured packets are.
    Owners,
    /// To count bytes at each socket.
    Bytes,
}

/// What a reading gives out.
pub enum Credit<'a> {
    /// Bytes of this owner, about whom the kernel knows so much: the names of user and group are not in it.
    Owned(Owner, &'a dyn Fn() -> Identity, Traffic),
    /// Bytes of nobody.
    Unowned(Unowned, Traffic),
    /// What a process has done with its sockets, and how long it waited for answers.
    Connections(ProcId, Connections),
    /// A flow: one that lives, or the last record of one that has ended.
    Flow(FlowRecord),
}

/// Who uses a socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The process, and how sure that is.
    pub owner: Owner,
    /// What the kernel's record says of it: its name and ids, when it last began to use the socket. The command line and
    /// the names of user and group are not in it.
    pub identity: Identity,
    /// What the process has to do with the socket.
    pub claim: Claim,
}

/// What a process has to do with a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// It was the last to use it.
    User,
    /// It listens where the connection came in; whoever takes the connection over has not used it yet.
    Listener,
    /// It created the socket, and nobody has used it since; another may have it by now.
    Creator,
}

/// Why probes are not at work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// In a word.
    pub state: ProbeState,
    /// In full, for the log.
    pub text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Fault {}

/// Who tells the figures of all processes at once, of the groups in `what`: the program in the kernel, if it can be
/// loaded.
///
/// # Errors
/// Why it cannot.
pub fn load_tasks(what: SampleSet) -> Result<Box<dyn TaskSource>, Fault> {
    #[cfg(feature = "ebpf")]
    return Ok(Box::new(Tasks::load(what)?));
    #[cfg(not(feature = "ebpf"))]
    {
        let text = format!("the library was built without the programs that would tell {what:?}");
        Err(Fault { state: ProbeState::NotBuilt, text })
    }
}
