//! The classic structures, their enumerations and constants, laid out as C sees them.

use std::ffi::c_char;
use std::mem::MaybeUninit;

/// Bytes of `name`, `user`, `group` and `hash`, ending NUL included.
pub const CAPTURE_COMMAN_SIZE: usize = 128;
/// Bytes of `cmdline`, ending NUL included.
pub const CAPTURE_CMDLINE_SIZE: usize = 512;
/// Room that `errorbuf` must have, ending NUL included.
pub const CAPTURE_ERROR_SIZE: usize = 256;

/// Version of this header. Programs compiled against it work with any library of the same major version.
pub const CAPTURE_VERSION_MAJOR: u32 = 1;
/// Grows when something is added.
pub const CAPTURE_VERSION_MINOR: u32 = 0;
/// Grows with every release that only mends.
pub const CAPTURE_VERSION_PATCH: u32 = 0;

/// What every function returns when it succeeded.
pub const CAPTURE_OK: i32 = 0;

/// How the library was to wait for packets. Accepted for compatibility; it changes nothing.
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

/// What is said of the processes handed to a callback.
#[allow(non_camel_case_types)]
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CaptureAction {
    /// They live; these are their figures now.
    ACTION_UPDATE,
    /// They have ended; these are their last figures.
    ACTION_REMOVE,
}

/// How `CaptureInit` is to capture. All zero is valid and means the defaults.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CaptureInitt {
    /// File that the log is appended to; NULL for none. As `log_file` of CaptureOptions.
    pub logfile: *const c_char,
    /// Capture read timeout, milliseconds, up to 60000; 0 for 100.
    pub ms: i32,
    /// Bytes kept of each packet, up to 262144; 0 for 128.
    pub snaplen: i32,
    /// Whether devices are put in promiscuous mode: 0 or not 0.
    pub promise: i32,
    /// Filter expression, see pcap-filter(7); NULL for all packets.
    pub fliter: *const c_char,
    /// NULL, or room for CAPTURE_ERROR_SIZE bytes of error text.
    pub errorbuf: *mut c_char,
    /// One of LoopType; changes nothing.
    pub r#loop: MaybeUninit<LoopType>,
}

/// Figures of one process. Text is as the kernel gave it, always NUL-terminated.
#[allow(non_camel_case_types, non_snake_case)]
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Process_s {
    /// Name; cut to 127 bytes, never inside a UTF-8 character.
    pub name: [c_char; CAPTURE_COMMAN_SIZE],
    /// Arguments separated by spaces; cut to 511 bytes in the same way.
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
    /// Bytes asked for by read calls since the process started.
    pub ioRead: u64,
    /// Bytes handed to write calls since the process started.
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
    /// The captured bytes from the link header on, the smaller of packetSize and snaplen; valid during the callback.
    pub packet: *mut u8,
    /// Length of the frame when it was captured, bytes: longer than the MTU where it is several packets on the wire (GSO,
    /// TSO, GRO).
    pub packetSize: u32,
}

/// One captured TCP or UDP packet.
#[allow(non_camel_case_types)]
pub type Packet_t = Packet_s;

/// Receives `*size` processes. Called inside `CaptureUpdate`, on its thread; the array is valid during the call.
pub type ProcessInfoCallback =
    Option<unsafe extern "C-unwind" fn(action: CaptureAction, processes: *const Process_t, size: *mut u32)>;

/// Receives `*size` packets. Called inside `CaptureUpdate`, on its thread; the array is valid during the call.
pub type PacketCallback = Option<unsafe extern "C-unwind" fn(packets: *const Packet_t, size: *mut u32)>;
