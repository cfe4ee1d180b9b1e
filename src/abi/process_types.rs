//! Structures and constants of processes in the session interface, in the layout that C sees.

use super::classic_types::CaptureAction;
use super::flow_types::CaptureConnections;
use crate::model::Validity;
use std::ffi::{c_char, c_void};

/// Bit of `valid`: CPU times, page faults, state, threads, parent and start time are known.
pub const CAPTURE_VALID_CPU: u32 = 1;
/// Bit of `valid`: memory figures are known.
pub const CAPTURE_VALID_MEMORY: u32 = 2;
/// Bit of `valid`: I/O figures are known.
pub const CAPTURE_VALID_IO: u32 = 4;
/// Bit of `valid`: the number of descriptors is known.
pub const CAPTURE_VALID_DESCRIPTORS: u32 = 8;
/// Bit of `valid`: the command line is known.
pub const CAPTURE_VALID_COMMAND_LINE: u32 = 16;
/// Bit of `valid`: user and group are known.
pub const CAPTURE_VALID_USER: u32 = 32;
/// Bit of `valid`: bytes and packets are known, because they are counted in the process's network namespace.
/// Also set if some were counted for a socket of another namespace that the process holds.
pub const CAPTURE_VALID_NETWORK: u32 = 64;
/// Bit of `valid`: an earlier sample of the same process existed to compute the percentage from.
pub const CAPTURE_VALID_CPU_PERCENT: u32 = 128;
/// Bit of `valid`: flows are recorded where the process's bytes are counted.
pub const CAPTURE_VALID_CONNECTIONS: u32 = 256;
/// Bit of `valid`: context switches are known.
pub const CAPTURE_VALID_SWITCHES: u32 = 512;
/// Bit of `valid`: the control group is known.
pub const CAPTURE_VALID_CGROUP: u32 = 1024;
/// Bit of `valid`: `own_read_bytes` and `own_write_bytes`, the storage I/O of the process without its
/// children, are known. eBPF programs always report them; `/proc` shows them until the process has waited for
/// a child.
pub const CAPTURE_VALID_OWN_BYTES: u32 = 2048;
/// Bit of `valid`: `own_read_chars` and `own_write_chars`, the bytes of the process's own calls, are known.
/// eBPF programs report them unless threads of the process have ended and the process has waited for
/// children.
pub const CAPTURE_VALID_OWN_CHARS: u32 = 4096;
/// Bit of `valid`: the proportional share of memory is known.
pub const CAPTURE_VALID_PROPORTIONAL: u32 = 8192;

/// Figures of one process. Text is NUL-terminated and may contain any other byte. Pointers are valid during
/// the callback. Later versions of the library may deliver larger structures: step through the array by
/// `element_size`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CaptureProcess {
    /// Known figures: CAPTURE_VALID_ bits. A figure that is not known is 0. Totals can become unknown for a
    /// while and known again later. For a process that ends meanwhile, the last known totals are delivered.
    pub valid: u32,
    /// Process id.
    pub pid: libc::pid_t,
    /// Process id of the parent.
    pub parent: libc::pid_t,
    /// Effective user id.
    pub uid: libc::uid_t,
    /// Effective group id.
    pub gid: libc::gid_t,
    /// Number of threads, including the main thread even if it has ended.
    pub threads: u32,
    /// Open descriptors: entries in the table of the main thread, or of another thread if the main thread has
    /// ended. Threads that have left this table (CLONE_FILES) have tables of their own, which are not
    /// counted. If the figures come from `/proc` (see `sample_probes` in CaptureStats) on Linux 6.2 or later,
    /// descriptor numbers that calls in progress have reserved count as well: one for each thread that waits
    /// in accept(2), or that opens a FIFO or a file that does not answer.
    pub descriptors: u32,
    /// State of the main thread: one of the letters R, S, D, Z, T, t, X, I; see proc_pid_stat(5). Z with more
    /// than one thread means that the main thread has ended and others continue. Memory, descriptors and
    /// command line are then those of one of these threads.
    pub state: u32,
    /// Name.
    ///
    /// A process may execute a program or rename itself after an update and end before the next one. If eBPF
    /// programs sample processes (`sample_probes` in CaptureStats), such a process is delivered with its last
    /// name, unless some 2,000 other processes have changed theirs since. If the kernel reports process
    /// events, it is delivered with its last command line and, without these eBPF programs, also with its
    /// last name. The library receives these events with CAP_NET_ADMIN in the initial PID namespace and with
    /// network figures, for at most 256 such changes in a quarter of a second. Otherwise the process is
    /// delivered with the name and command line of the previous update.
    pub name: *const c_char,
    /// Length of the name, bytes.
    pub name_length: usize,
    /// Arguments, each terminated by a NUL.
    pub command_line: *const c_char,
    /// Length of the arguments including their NULs, bytes; 0 for kernel threads.
    pub command_line_length: usize,
    /// Name of the effective user, or its number.
    pub user: *const c_char,
    /// Name of the effective group, or its number.
    pub group: *const c_char,
    /// Start of the process, nanoseconds since the Unix epoch.
    pub start_time_ns: u64,
    /// CPU time in user mode since the process started, nanoseconds.
    pub cpu_user_ns: u64,
    /// CPU time in kernel mode since the process started, nanoseconds.
    pub cpu_system_ns: u64,
    /// Share of the whole machine's CPU time since the last update, 0-100.
    pub cpu_percent: f64,
    /// Resident set, bytes. Pages that several processes share count fully in each of them: sums over
    /// processes can exceed the machine's memory.
    pub resident_bytes: u64,
    /// Virtual memory, bytes.
    pub virtual_bytes: u64,
    /// Resident share of the machine's memory, 0-100.
    pub memory_percent: f64,
    /// Bytes requested by read calls since the process started. Like the kernel, this and the next three
    /// fields include the I/O of children that the process has waited for, from the wait on: sums over
    /// processes count it twice. `own_read_chars` and the three fields after it do not include it.
    pub read_chars: u64,
    /// Bytes passed to write calls since the process started.
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
    /// Part of the sent and received bytes whose socket has several holders or was found by a wildcard.
    pub uncertain_bytes: u64,
    /// Activity of the process's flows; NULL if flows are not recorded.
    pub connections: *const CaptureConnections,
    /// Page faults since the process started that needed no storage access.
    pub minor_faults: u64,
    /// Page faults since the process started that needed storage access.
    pub major_faults: u64,
    /// Number of times that the main thread gave up the CPU to wait, since it started.
    pub voluntary_switches: u64,
    /// Number of times that the CPU was taken from the main thread, since it started.
    pub involuntary_switches: u64,
    /// Path of the control group, see cgroups(7), in the hierarchy of version 2, as in the line `0::` of
    /// `/proc/<pid>/cgroup`. If that hierarchy is not mounted and version 1 has one named `systemd`, it is
    /// the path in that one. Begins with a slash and may contain any byte but NUL and newline; empty if it is
    /// not known. For a removed group it is the path that the group had. The path is relative to the cgroup
    /// namespace of the calling program.
    pub cgroup: *const c_char,
    /// Length of that path, bytes.
    pub cgroup_length: usize,
    /// Part of the resident set that belongs to files or shared memory, which other processes may share,
    /// bytes. The rest is private to the process, except for pages that it shares with its forks until one of
    /// them writes. Known if memory figures are known.
    pub shared_bytes: u64,
    /// Resident memory in which each page is divided among all processes that share it (PSS), bytes: sums
    /// over processes are correct. Only with CAPTURE_ENABLE_PROPORTIONAL.
    pub proportional_bytes: u64,
    /// Bytes requested by the process's own read calls, without those of children that it has waited for; see
    /// CAPTURE_VALID_OWN_CHARS.
    pub own_read_chars: u64,
    /// Bytes passed to the process's own write calls.
    pub own_write_chars: u64,
    /// Bytes that the process itself has fetched from storage; see CAPTURE_VALID_OWN_BYTES. Up to 511 bytes
    /// can be missing for each thread that has ended.
    pub own_read_bytes: u64,
    /// Bytes that the process itself has sent to storage.
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

/// The bits in C are those of the model's process records.
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
