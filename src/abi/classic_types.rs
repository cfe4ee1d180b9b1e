//! Structures, enumerations and constants of the classic interface, in the layout that C sees.

use std::ffi::c_char;
use std::mem::MaybeUninit;

/// Size of `name`, `user`, `group` and `hash`, bytes, terminating NUL included.
pub const CAPTURE_COMMAN_SIZE: usize = 128;
/// Size of `cmdline`, bytes, terminating NUL included.
pub const CAPTURE_CMDLINE_SIZE: usize = 512;
/// Size that `errorbuf` must have, bytes, terminating NUL included.
pub const CAPTURE_ERROR_SIZE: usize = 256;

/// Major version of this header. Programs compiled against it work with any library of the same major
/// version.
pub const CAPTURE_VERSION_MAJOR: u32 = 1;
/// Minor version. Increases when something is added.
pub const CAPTURE_VERSION_MINOR: u32 = 0;
/// Patch version. Increases with every release that only fixes faults.
pub const CAPTURE_VERSION_PATCH: u32 = 0;

/// Return value of every function that succeeded.
pub const CAPTURE_OK: i32 = 0;

/// Method of waiting for packets. Accepted for compatibility; has no effect.
#[allow(clippy::upper_case_acronyms)]
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoopType {
    /// select(2).
    SELECT,
    /// epoll(7).
    EPOLL,
    /// Neither.
    NONE,
}

/// Transport protocol of a packet.
#[allow(non_camel_case_types)]
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PacketType {
    /// TCP.
    P_TCP,
    /// UDP.
    P_UDP,
}

/// State of the processes passed to a callback.
#[allow(non_camel_case_types)]
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CaptureAction {
    /// They are alive; these are their current figures.
    ACTION_UPDATE,
    /// They have ended; these are their last figures.
    ACTION_REMOVE,
}

/// Options of `CaptureInit`. All zero is valid and means the defaults.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CaptureInitt {
    /// File that the log is appended to; NULL for none. As `log_file` of CaptureOptions.
    pub logfile: *const c_char,
    /// Capture read timeout, milliseconds, at most 60000; defaults to 100.
    pub ms: i32,
    /// Bytes kept of each packet, at most 262144; defaults to 128.
    pub snaplen: i32,
    /// Nonzero to put devices in promiscuous mode; defaults to 0.
    pub promise: i32,
    /// Filter expression, see pcap-filter(7); NULL for all packets.
    pub fliter: *const c_char,
    /// Buffer of CAPTURE_ERROR_SIZE bytes for error text; NULL for none.
    pub errorbuf: *mut c_char,
    /// One of LoopType; has no effect.
    pub r#loop: MaybeUninit<LoopType>,
}

/// Figures of one process. Text is as the kernel reports it, and always NUL-terminated.
#[allow(non_camel_case_types, non_snake_case)]
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Process_s {
    /// Name, cut to at most 127 bytes, never inside a UTF-8 character.
    pub name: [c_char; CAPTURE_COMMAN_SIZE],
    /// Arguments separated by spaces, cut to at most 511 bytes in the same way.
    pub cmdline: [c_char; CAPTURE_CMDLINE_SIZE],
    /// Name of the effective user, or its number.
    pub user: [c_char; CAPTURE_COMMAN_SIZE],
    /// Name of the effective group, or its number.
    pub group: [c_char; CAPTURE_COMMAN_SIZE],
    /// Process id.
    pub pid: libc::pid_t,
    /// Effective user id.
    pub uid: libc::uid_t,
    /// Effective group id.
    pub gid: libc::gid_t,
    /// Open descriptors.
    pub fdCnt: u32,
    /// Resident set, kB.
    pub memory: u64,
    /// Share of the whole machine's CPU time since the last update, 0-100; 0 on the first sample.
    pub cpuPercent: f64,
    /// Share of the machine's memory, 0-100.
    pub memPercent: f64,
    /// Bytes requested by read calls since the process started.
    pub ioRead: u64,
    /// Bytes passed to write calls since the process started.
    pub ioWrite: u64,
    /// Bytes received on the wire, link headers included, since the process was first seen.
    pub recv: u64,
    /// Bytes sent on the wire, link headers included, since the process was first seen.
    pub send: u64,
}

/// Figures of one process.
#[allow(non_camel_case_types)]
pub type Process_t = Process_s;

/// One captured TCP or UDP packet.
#[allow(non_camel_case_types, non_snake_case)]
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Packet_s {
    /// `source:port-destination:port` in the packet's own direction; IPv6 addresses in brackets.
    pub hash: [c_char; CAPTURE_COMMAN_SIZE],
    /// Transport protocol.
    pub family: PacketType,
    /// The captured bytes, starting with the link header; valid during the callback. Their number is the
    /// smaller of packetSize and snaplen.
    pub packet: *mut u8,
    /// Length of the frame when it was captured, bytes. It exceeds the MTU if the frame is several packets on
    /// the wire (GSO, TSO, GRO).
    pub packetSize: u32,
}

/// One captured TCP or UDP packet.
#[allow(non_camel_case_types)]
pub type Packet_t = Packet_s;

/// Receives `*size` processes. Called inside `CaptureUpdate`, on its thread; the array is valid during the
/// call.
pub type ProcessInfoCallback =
    Option<unsafe extern "C-unwind" fn(action: CaptureAction, processes: *const Process_t, size: *mut u32)>;

/// Receives `*size` packets. Called inside `CaptureUpdate`, on its thread; the array is valid during the
/// call.
pub type PacketCallback = Option<unsafe extern "C-unwind" fn(packets: *const Packet_t, size: *mut u32)>;
