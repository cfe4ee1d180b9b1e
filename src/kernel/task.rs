//! The record of a process from a walk over all tasks (`probes/tasks.h` in Rust), and the source of such
//! walks.
//!
//! A walk reports every process with all of its figures, including those that `/proc` would hide from its
//! caller (`hidepid`, proc(5); the checks of ptrace(2) on `io`). A caller with CAP_BPF and CAP_PERFMON may
//! load eBPF programs that read the kernel's memory, and so may read all of that anyway. Command lines still
//! come from `/proc` and follow its rules.
//!
//! The figures are those of `/proc` since Linux 6.16. In earlier releases back to 6.2, the resident set in
//! `/proc` lagged by some pages for every processor, while that of a walk is exact. In older kernels, each
//! thread gathers some pages before they are added to a resident set that all processors share. There a walk
//! reports the same as `/proc`.

use super::Fault;
use std::fmt::Debug;

/// Figures that each thread has.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// CPU time in user mode as sampled by the tick, in nanoseconds.
    pub user_ns: u64,
    /// CPU time in kernel mode as sampled by the tick, in nanoseconds.
    pub system_ns: u64,
    /// CPU time as measured by the scheduler, in nanoseconds.
    pub runtime_ns: u64,
    /// Page faults that needed no storage.
    pub minor_faults: u64,
    /// Page faults that needed storage.
    pub major_faults: u64,
    /// Bytes requested by read calls.
    pub read_chars: u64,
    /// Bytes passed to write calls.
    pub write_chars: u64,
    /// Bytes fetched from storage.
    pub read_bytes: u64,
    /// Bytes sent to storage.
    pub write_bytes: u64,
}

impl Figures {
    /// Adds the figures of another thread.
    pub fn add(&mut self, other: &Figures) {
        self.user_ns = self.user_ns.wrapping_add(other.user_ns);
        self.system_ns = self.system_ns.wrapping_add(other.system_ns);
        self.runtime_ns = self.runtime_ns.wrapping_add(other.runtime_ns);
        self.minor_faults = self.minor_faults.wrapping_add(other.minor_faults);
        self.major_faults = self.major_faults.wrapping_add(other.major_faults);
        self.read_chars = self.read_chars.wrapping_add(other.read_chars);
        self.write_chars = self.write_chars.wrapping_add(other.write_chars);
        self.read_bytes = self.read_bytes.wrapping_add(other.read_bytes);
        self.write_bytes = self.write_bytes.wrapping_add(other.write_bytes);
    }
}

/// Value of `descriptors` for a process with more descriptors than the eBPF program counts.
pub const UNCOUNTED: u32 = u32::MAX;

/// A process as the kernel keeps it. Figures of groups that were not requested are 0.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RawProcess {
    /// The kind of this record.
    pub(crate) kind: u32,
    /// The process's number.
    pub pid: u32,
    /// The parent's number.
    pub parent: u32,
    /// The number of threads.
    pub threads: u32,
    /// A number that changes when a thread ends.
    pub(crate) sequence: u32,
    /// Set if `figures` are inconsistent because a thread ended while they were read.
    pub torn: u32,
    /// `task_struct.__state` of the main thread.
    pub state: u32,
    /// `task_struct.exit_state` of the main thread.
    pub exit_state: u32,
    /// The main thread's flags (`PF_*`).
    pub flags: u32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Number of open descriptors, or [`UNCOUNTED`].
    pub descriptors: u32,
    /// Start of the process, in nanoseconds since boot.
    pub start_ns: u64,
    /// A number that changes with every exec.
    pub image: u64,
    /// The sum over all threads, including those that have ended.
    pub figures: Figures,
    /// The CPU time in user mode that `/proc` reported last, in nanoseconds.
    pub reported_user_ns: u64,
    /// The CPU time in kernel mode that `/proc` reported last, in nanoseconds.
    pub reported_system_ns: u64,
    /// Number of times that the main thread gave up the CPU.
    pub voluntary_switches: u64,
    /// Number of times that the CPU was taken from the main thread.
    pub involuntary_switches: u64,
    /// Size of the address space; 0 without one.
    pub virtual_pages: u64,
    /// Resident set; exact since Linux 6.2.
    pub resident_pages: u64,
    /// The number of the process's group in the unified hierarchy.
    pub cgroup: u64,
    /// The inode of the main thread's network namespace; 0 once the thread has begun to exit.
    pub network_namespace: u32,
    /// Set if threads have ended and children were waited for: the I/O of both is in the same sums.
    pub has_mixed_io: u32,
    /// The part of `figures` that belongs to children that were waited for. For characters, it includes
    /// threads that have ended.
    pub children_read_chars: u64,
    /// Likewise.
    pub children_write_chars: u64,
    /// Likewise, but of children only.
    pub children_read_bytes: u64,
    /// Likewise.
    pub children_write_bytes: u64,
    /// The part of the resident set that belongs to files or shared memory.
    pub shared_pages: u64,
    /// The name, terminated by NUL if it is shorter than the array; empty for kernel threads.
    pub name: [u8; 16],
}

/// A process that a walk has reached, with its name.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    /// The figures.
    pub raw: &'a RawProcess,
    /// The name as `/proc/<pid>/stat` reports it.
    pub name: &'a [u8],
    /// The source of the paths of control groups, if there is one.
    pub cgroups: Option<&'a dyn CgroupPaths>,
}

/// A source of the paths of control groups in the unified hierarchy by their numbers.
pub trait CgroupPaths: Debug {
    /// Returns the path of the group with this number as the kernel reports it to this process, or `None` if
    /// it is unknown.
    fn path(&self, number: u64) -> Option<Vec<u8>>;
}

/// A source of the figures of all processes at once.
pub trait TaskSource: Debug + Send {
    /// Calls `each` for every process, in no particular order. A process that ends or starts during the walk
    /// may be included or not. A process whose main thread changes its number, by an exec of another thread,
    /// may be left out.
    ///
    /// # Errors
    /// Fails with the reason if the walk could not start or broke off. The processes that were reported
    /// before remain valid.
    fn walk(&mut self, each: &mut dyn FnMut(&Task<'_>)) -> Result<(), Fault>;

    /// Returns the last name that the process with this number was given while names were recorded, by
    /// executing a program or otherwise. Returns `None` if it was given none, if names of other processes
    /// have displaced it, or if names are not recorded.
    fn given_name(&self, pid: u32) -> Option<GivenName>;
}

/// A name that a process was given.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GivenName {
    /// The start of the process, in nanoseconds since boot.
    pub start_ns: u64,
    /// The name, terminated by NUL.
    pub(crate) name: [u8; 16],
}

impl GivenName {
    /// Returns the name up to the first NUL.
    pub fn name(&self) -> &[u8] {
        self.name.split(|&byte| byte == 0).next().unwrap_or_default()
    }
}
