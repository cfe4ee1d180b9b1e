//! What a walk over all tasks tells of a process: `probes/tasks.h` in Rust, and whoever can make such a walk.
//!
//! A walk tells of every process and all of its figures, whatever `/proc` would hide from its caller (`hidepid`,
//! proc(5); the checks of ptrace(2) on `io`): who may load programs that read the kernel's memory, with CAP_BPF and
//! CAP_PERFMON, may read all of that anyway. Command lines still come from `/proc` and by its rules.
//!
//! The figures are those of `/proc` of Linux 6.16 and later. Before, and back to 6.2, its resident set lagged by some
//! pages for every processor, while that of a walk is exact. Older kernels let each thread gather some pages before
//! they are added to a resident set that all processors share; there a walk tells what `/proc` tells.

use super::Fault;
use std::fmt::Debug;

/// Figures that every thread has of its own.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// CPU time in user mode as sampled by the tick, nanoseconds.
    pub user_ns: u64,
    /// CPU time in kernel mode as sampled by the tick, nanoseconds.
    pub system_ns: u64,
    /// CPU time as measured by the scheduler, nanoseconds.
    pub runtime_ns: u64,
    /// Page faults that needed no storage.
    pub minor_faults: u64,
    /// Page faults that did.
    pub major_faults: u64,
    /// Bytes asked for by read calls.
    pub read_chars: u64,
    /// Bytes handed to write calls.
    pub write_chars: u64,
    /// Bytes fetched from storage.
    pub read_bytes: u64,
    /// Bytes sent to storage.
    pub write_bytes: u64,
}

impl Figures {
    /// Adds those of another thread.
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

/// In place of a number of descriptors: the kernel's program does not count as many.
pub const UNCOUNTED: u32 = u32::MAX;

/// A process as the kernel keeps it. Figures of groups that were not asked for are 0.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RawProcess {
    /// What kind of record this is.
    pub(crate) kind: u32,
    /// Its number.
    pub pid: u32,
    /// Its parent's number.
    pub parent: u32,
    /// Number of threads.
    pub threads: u32,
    /// Changes when a thread ends.
    pub(crate) sequence: u32,
    /// Whether `figures` do not belong together, since a thread ended while they were read.
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
    /// Open descriptors, or [`UNCOUNTED`].
    pub descriptors: u32,
    /// Start, nanoseconds since boot.
    pub start_ns: u64,
    /// Another number after every exec.
    pub image: u64,
    /// The sum over all threads, also those that have ended.
    pub figures: Figures,
    /// The CPU time in user mode that `/proc` told last, nanoseconds.
    pub told_user_ns: u64,
    /// The CPU time in kernel mode that `/proc` told last, nanoseconds.
    pub told_system_ns: u64,
    /// How often the main thread gave up the CPU.
    pub voluntary_switches: u64,
    /// How often it was taken from it.
    pub involuntary_switches: u64,
    /// Size of the address space; 0 without one.
    pub virtual_pages: u64,
    /// Resident set; exact from Linux 6.2 on.
    pub resident_pages: u64,
    /// The number of its group in the unified hierarchy.
    pub cgroup: u64,
    /// The inode of the main thread's network namespace; 0 when it has begun to exit.
    pub network_namespace: u32,
    /// Whether threads have ended and children were waited for: what both have read and written stands together.
    pub has_mixed_io: u32,
    /// The part of `figures` that is of children that were waited for; of characters also that of threads that have
    /// ended.
    pub children_read_chars: u64,
    /// Likewise.
    pub children_write_chars: u64,
    /// Likewise, of children alone.
    pub children_read_bytes: u64,
    /// Likewise.
    pub children_write_bytes: u64,
    /// The part of the resident set that is of files or shared memory.
    pub shared_pages: u64,
    /// The name, ended by NUL where it is shorter; empty for threads of the kernel.
    pub name: [u8; 16],
}

/// A process that a walk has come to, with its name.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    /// The figures.
    pub raw: &'a RawProcess,
    /// The name as `/proc/<pid>/stat` tells it.
    pub name: &'a [u8],
    /// Who knows the path of its control group, if anybody does.
    pub cgroups: Option<&'a dyn CgroupPaths>,
}

/// Who knows the paths of groups in the unified hierarchy by their numbers.
pub trait CgroupPaths: Debug {
    /// The path of the group with this number as the kernel tells it to this process; `None` when it is not known.
    fn path(&self, number: u64) -> Option<Vec<u8>>;
}

/// Who can tell the figures of all processes at once.
pub trait TaskSource: Debug + Send {
    /// Calls `each` with every process there is, in no certain order. One that ends or starts during the walk may be
    /// among them or not; one whose main thread changes its number, by an exec of another thread, may be left out.
    ///
    /// # Errors
    /// Why the walk could not be made or broke off. Processes told before it stay told.
    fn walk(&mut self, each: &mut dyn FnMut(&Task<'_>)) -> Result<(), Fault>;

    /// The last name that the process with this number was given while names are recorded, by executing a program or
    /// otherwise. `None` if it was given none, if others have displaced it since, or if names are not recorded.
    fn given_name(&self, pid: u32) -> Option<GivenName>;
}

/// A name that a process was given.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GivenName {
    /// The start of the process, nanoseconds since boot.
    pub start_ns: u64,
    /// The name, ended by NUL.
    pub(crate) name: [u8; 16],
}

impl GivenName {
    /// The name.
    pub fn name(&self) -> &[u8] {
        self.name.split(|&byte| byte == 0).next().unwrap_or_default()
    }
}
