//! The identity of a process over time.

/// A process. A pid alone is reused, but a pid together with its start time is not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ProcId {
    /// The process id (thread group id).
    pub pid: i32,
    /// Clock ticks from boot to the start of the process (`starttime`, proc_pid_stat(5)).
    pub start_ticks: u64,
}
