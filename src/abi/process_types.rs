//! What the session interface tells of a process, laid out as C sees it.

use super::classic_types::CaptureAction;
use super::flow_types::CaptureConnections;
use crate::model::Validity;
use std::ffi::{c_char, c_void};

/// Set in `valid`: CPU times, page faults, state, threads, parent and start time are known.
pub const CAPTURE_VALID_CPU: u32 = 1;
/// Set in `valid`: memory figures are known.
pub const CAPTURE_VALID_MEMORY: u32 = 2;
/// Set in `valid`: I/O figures are known.
pub const CAPTURE_VALID_IO: u32 = 4;
/// Set in `valid`: the number of descriptors is known.
pub const CAPTURE_VALID_DESCRIPTORS: u32 = 8;
/// Set in `valid`: the command line is known.
pub const CAPTURE_VALID_COMMAND_LINE: u32 = 16;
/// Set in `valid`: user and group are known.
pub const CAPTURE_VALID_USER: u32 = 32;
/// Set in `valid`: bytes and packets are known, since they are counted in the network namespace that the process is in. Also
/// where some were counted of a socket that it holds of another namespace.
pub const CAPTURE_VALID_NETWORK: u32 = 64;
/// Set in `valid`: there was an earlier sample of the same process to compute the percentage from.
pub const CAPTURE_VALID_CPU_PERCENT: u32 = 128;
/// Set in `valid`: flows are recorded where its bytes are counted.
pub const CAPTURE_VALID_CONNECTIONS: u32 = 256;
/// Set in `valid`: context switches are known.
pub const CAPTURE_VALID_SWITCHES: u32 = 512;
/// Set in `valid`: the control group is known.
pub const CAPTURE_VALID_CGROUP: u32 = 1024;
/// Set in `valid`: bytes of storage are known of the process itself, without its children. Programs in the kernel tell them
/// always, `/proc` until the process has waited for a child.
pub const CAPTURE_VALID_OWN_BYTES: u32 = 2048;
/// Set in `valid`: so are bytes of calls. Programs in the kernel tell them unless threads of the process have ended and
/// children were waited for.
pub const CAPTURE_VALID_OWN_CHARS: u32 = 4096;
/// Set in `valid`: the proportional share of memory is known.
pub const CAPTURE_VALID_PROPORTIONAL: u32 = 8192;

/// Figures of one process. Text is NUL-terminated and may hold any other byte; pointers are valid during the
/// callback. Later versions of the library may hand over larger structures: step through the array by
/// `element_size`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CaptureProcess {
    /// Which figures are known: CAPTURE_VALID_ bits. A figure that is not known is 0. Figures that only grow can become
    /// unknown for a while, and known again; of a process that ends meanwhile the last that were known are delivered.
    pub valid: u32,
    /// Process id.
    pub pid: libc::pid_t,
    /// Parent's process id.
    pub parent: libc::pid_t,
    /// Effective user id.
    pub uid: libc::uid_t,
    /// Effective group id.
    pub gid: libc::gid_t,
    /// Number of threads, the main one included also when it has ended.
    pub threads: u32,
    /// Open descriptors: entries in the table of the main thread, or of another one if that has ended. Threads that have
    /// left this table (CLONE_FILES) have tables of their own, which are not counted. Where figures come from `/proc` (see
    /// `sample_probes` in CaptureStats) and Linux is 6.2 or later, numbers count too that calls in progress have reserved:
    /// one for each thread that waits in accept(2), or opens a FIFO or a file that does not answer.
    pub descriptors: u32,
    /// State of the main thread: one of the letters R, S, D, Z, T, t, X, I; see proc_pid_stat(5). Z with more than one thread
    /// means that the main thread has ended and others go on: memory, descriptors and command line are then read of one of
    /// these.
    pub state: u32,
    /// Name. A process that executes a program or renames itself after an update and ends before the next is delivered with
    /// its last name where programs in the kernel sample processes (`sample_probes` in CaptureStats), unless some 2,000
    /// others have changed theirs since. It has its last command line, and elsewhere also its last name, where the kernel
    /// tells of processes' events: to programs with CAP_NET_ADMIN in the first PID namespace, with network figures, for at
    /// most 256 such changes in a quarter of a second. Otherwise it has those of the former update.
    pub name: *const c_char,
    /// Length of the name, bytes.
    pub name_length: usize,
    /// Arguments, each ended by NUL.
    pub command_line: *const c_char,
    /// Length of the arguments with their NULs, bytes; 0 for kernel threads.
    pub command_line_length: usize,
    /// Name of the effective user, or its number.
    pub user: *const c_char,
    /// Name of the effective group, or its number.
    pub group: *const c_char,
    /// When the process started, nanoseconds since the Unix epoch.
    pub start_time_ns: u64,
    /// CPU time in user mode since the process started, nanoseconds.
    pub cpu_user_ns: u64,
    /// CPU time in kernel mode since the process started, nanoseconds.
    pub cpu_system_ns: u64,
    /// Share of the whole machine's CPU time since the last update, 0-100.
    pub cpu_percent: f64,
    /// Resident set, bytes. Pages that several processes share count fully in each: sums over processes can be larger than
    /// the machine's memory.
    pub resident_bytes: u64,
    /// Virtual memory, bytes.
    pub virtual_bytes: u64,
    /// Resident share of the machine's memory, 0-100.
    pub memory_percent: f64,
    /// Bytes asked for by read calls since the process started. Like the kernel, this and the next three count what children
    /// did that the process has waited for, as soon as it has: sums over processes count that twice. `own_read_chars` and
    /// the other three do not.
    pub read_chars: u64,
    /// Bytes handed to write calls since the process started.
    pub write_chars: u64,
    /// Bytes fetched from storage since the process started.
    pub read_bytes: u64,
    /// Bytes sent to storage since the process started.
    pub write_bytes: u64,
    /// Bytes sent on the wire, link headers included, since the process was first seen.
    pub send_bytes: u64,
    /// Bytes received on the wire, link headers included, since the process was first seen.
    pub receive_bytes: u64,
    /// Packets sent since the process was first seen.
    pub send_packets: u64,
    /// Packets received since the process was first seen.
    pub receive_packets: u64,
    /// Part of the bytes sent and received whose socket several processes hold, or which was found by a wildcard.
    pub uncertain_bytes: u64,
    /// What the flows of the process did; NULL where flows are not recorded.
    pub connections: *const CaptureConnections,
    /// Page faults since the process started that needed no storage.
    pub minor_faults: u64,
    /// Page faults since the process started that did.
    pub major_faults: u64,
    /// How often the main thread gave up the CPU to wait, since it started.
    pub voluntary_switches: u64,
    /// How often the CPU was taken from the main thread, since it started.
    pub involuntary_switches: u64,
    /// Path of the control group, see cgroups(7): in the hierarchy of version 2, as the line `0::` of `/proc/<pid>/cgroup`
    /// has it; where that hierarchy is not mounted and version 1 has one named `systemd`, in that. Begins with a slash
    /// and may hold any byte but NUL and newline; empty where it is not known. Of a group that was removed it is the path
    /// that it had. It is relative to the cgroup namespace of this program.
    pub cgroup: *const c_char,
    /// Length of that path, bytes.
    pub cgroup_length: usize,
    /// Part of the resident set that is of files or shared memory, which other processes may share, bytes. The rest is the
    /// process's alone, but for what it shares with forks of it until one of them writes. Known where memory is.
    pub shared_bytes: u64,
    /// Resident memory of which each page counts in parts for all processes that share it (PSS), bytes: sums over
    /// processes are right. Only with CAPTURE_MORE_PROPORTIONAL.
    pub proportional_bytes: u64,
    /// Bytes asked for by the process's own read calls, without those of children that it has waited for; see
    /// CAPTURE_VALID_OWN_CHARS.
    pub own_read_chars: u64,
    /// Bytes handed to its own write calls.
    pub own_write_chars: u64,
    /// Bytes that it has fetched from storage itself; see CAPTURE_VALID_OWN_BYTES. Of each thread that has ended up to 511
    /// bytes can be missing.
    pub own_read_bytes: u64,
    /// Bytes that it has sent to storage itself.
    pub own_write_bytes: u64,
}

/// Receives `count` processes, `element_size` bytes apart. Called on the thread of the update.
pub type CaptureProcessHandler = Option<
    unsafe extern "C-unwind" fn(
        user_data: *mut c_void,
        action: CaptureAction,
        processes: *const CaptureProcess,
        count: usize,
        element_size: usize,
    ),
>;

/// The bits of C are those of the records.
const _: () = {
    assert!(CAPTURE_VALID_CPU == Validity::CPU.0 && CAPTURE_VALID_MEMORY == Validity::MEMORY.0);
    assert!(CAPTURE_VALID_IO == Validity::IO.0 && CAPTURE_VALID_DESCRIPTORS == Validity::DESCRIPTORS.0);
    assert!(CAPTURE_VALID_COMMAND_LINE == Validity::COMMAND_LINE.0 && CAPTURE_VALID_USER == Validity::USER.0);
    assert!(CAPTURE_VALID_NETWORK == Validity::NETWORK.0);
    assert!(CAPTURE_VALID_CPU_PERCENT == Validity::CPU_PERCENT.0);
    assert!(CAPTURE_VALID_CONNECTIONS == Validity::CONNECTIONS.0);
    assert!(CAPTURE_VALID_OWN_BYTES == Validity::OWN_BYTES.0);
    assert!(CAPTURE_VALID_OWN_CHARS == Validity::OWN_CHARS.0);
    assert!(CAPTURE_VALID_PROPORTIONAL == Validity::PROPORTIONAL.0);
    assert!(CAPTURE_VALID_SWITCHES == Validity::SWITCHES.0 && CAPTURE_VALID_CGROUP == Validity::CGROUP.0);
};
