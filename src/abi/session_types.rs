//! The structures of the session interface, their enumerations and constants, laid out as C sees them.

use super::flow_types::CaptureFlowHandler;
use super::process_types::CaptureProcessHandler;
use crate::model::{ProbeState, ProgramSet};
use std::ffi::{c_char, c_void};
use std::mem::MaybeUninit;

/// Do not capture packets; network figures are then marked unavailable.
pub const CAPTURE_SKIP_NETWORK: u32 = 1;
/// Do not read memory figures.
pub const CAPTURE_SKIP_MEMORY: u32 = 2;
/// Do not read I/O figures.
pub const CAPTURE_SKIP_IO: u32 = 4;
/// Do not count descriptors.
pub const CAPTURE_SKIP_DESCRIPTORS: u32 = 8;
/// Do not read command lines.
pub const CAPTURE_SKIP_COMMAND_LINE: u32 = 16;
/// Load no programs into the kernel; owners are then looked for in sockets and descriptors alone.
pub const CAPTURE_SKIP_PROBES: u32 = 32;

/// Read context switches also where that takes another read of `/proc` for each process.
pub const CAPTURE_MORE_SWITCHES: u32 = 1;
/// Tell the control group of each process, which takes another read of `/proc` for each unless programs in the kernel
/// sample.
pub const CAPTURE_MORE_CGROUPS: u32 = 2;
/// Read the proportional share of memory of each process (`proportional_bytes`), for which the kernel looks at each of its
/// pages with every update: some 0.1 ms, and more the more memory it has.
pub const CAPTURE_MORE_PROPORTIONAL: u32 = 4;
/// Wait in an update in which processes have ended until their last packets were counted, no longer than the read timeout
/// and 100 ms, so that they are delivered as ended by the same update.
pub const CAPTURE_MORE_WAITING: u32 = 8;

/// In `CaptureStats.socket_programs`: sockets are recorded as they are created and closed.
pub const CAPTURE_PROGRAMS_SOCKETS: u32 = 1;
/// In `CaptureStats.socket_programs`: TCP connections are recorded as they open and close.
pub const CAPTURE_PROGRAMS_CONNECTIONS: u32 = 2;
/// In `CaptureStats.socket_programs`: calls that send show which process uses a socket.
pub const CAPTURE_PROGRAMS_SENDS: u32 = 4;
/// In `CaptureStats.socket_programs`: so do calls that receive.
pub const CAPTURE_PROGRAMS_RECEIVES: u32 = 8;
/// In `CaptureStats.socket_programs`: packets are seen at their sockets.
pub const CAPTURE_PROGRAMS_PACKETS: u32 = 16;
/// In `CaptureStats.socket_programs`: packets are seen that do not come from the IP layer, those of packet sockets and
/// the kernel's own acknowledgements for connections that have ended.
pub const CAPTURE_PROGRAMS_DIRECT_PACKETS: u32 = 32;
/// In `CaptureStats.socket_programs`: packets are seen that arrive for connections that have ended.
pub const CAPTURE_PROGRAMS_LATE_PACKETS: u32 = 64;

/// How important a line of the log is.
/// cbindgen:prefix-with-name
/// cbindgen:rename-all=ScreamingSnakeCase
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CaptureLogLevel {
    /// As an option: the default, which is `CAPTURE_LOG_LEVEL_INFO`. No line has it.
    Default,
    /// Something does not work.
    Error,
    /// Something works only in part.
    Warn,
    /// Something of note happened.
    Info,
    /// For finding faults.
    Debug,
    /// For finding faults, in great detail.
    Trace,
    /// As an option: nothing is logged. No line has it.
    Off,
}

/// How bytes are counted.
/// cbindgen:prefix-with-name
/// cbindgen:rename-all=ScreamingSnakeCase
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CaptureEngine {
    /// Packets are captured and each flow's owner is looked for. The default.
    #[default]
    Pcap,
    /// The kernel counts at each socket; no packet is captured. Takes CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN.
    Kernel,
    /// As `CAPTURE_ENGINE_KERNEL` where that is possible and `devices`, `savefile`, `filter` and `packet_bytes` are not
    /// set, else as `CAPTURE_ENGINE_PCAP`.
    Auto,
}

/// What has become of a group of programs in the kernel. Where they are not at work the session goes on with what it
/// can read otherwise, and the log says more.
/// cbindgen:prefix-with-name
/// cbindgen:rename-all=ScreamingSnakeCase
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CaptureProbeState {
    /// Not asked for.
    #[default]
    Off,
    /// At work.
    Active,
    /// The library was built without them.
    NotBuilt,
    /// The kernel does not describe its types (CONFIG_DEBUG_INFO_BTF).
    NoTypes,
    /// A capability is missing, or the kernel is locked down.
    NotPermitted,
    /// The kernel does not know something that the programs need.
    NotSupported,
    /// Out of memory, or the limit of locked memory is reached (RLIMIT_MEMLOCK).
    NoMemory,
    /// There is no cgroup v2 hierarchy to attach to.
    NoCgroup,
    /// The session sees another PID namespace than the first one.
    PidNamespace,
    /// No descriptor is left: the limit of the process (RLIMIT_NOFILE) or of the system is reached.
    NoDescriptor,
}

/// Receives one line of the log, NUL-terminated and without a line end, valid during the call. Called on the
/// caller's thread only, inside `CaptureSessionOpen`, `CaptureSessionUpdate` and `CaptureSessionClose`.
pub type CaptureLogHandler =
    Option<unsafe extern "C-unwind" fn(user_data: *mut c_void, level: CaptureLogLevel, text: *const c_char)>;

/// How `CaptureSessionOpen` is to monitor. Zero the structure, then set `size` to its size; every other zero
/// means the default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CaptureOptions {
    /// sizeof(CaptureOptions).
    pub size: usize,
    /// Devices to capture on, separated by commas; NULL, or `any` among them, for every usable one, loopback included.
    pub devices: *const c_char,
    /// A savefile to read packets from instead, as fast as possible; NULL for live capture.
    pub savefile: *const c_char,
    /// Filter expression, see pcap-filter(7); NULL for all packets.
    pub filter: *const c_char,
    /// Addresses taken as this host's besides its own, separated by commas; NULL for none. For savefiles that
    /// were recorded on another host.
    pub local_addresses: *const c_char,
    /// Deliver only processes with one of these ids; NULL for all.
    pub pids: *const libc::pid_t,
    /// Number of ids.
    pub pid_count: usize,
    /// Deliver only processes of one of these users, by name or number; NULL for all.
    pub users: *const *const c_char,
    /// Number of users.
    pub user_count: usize,
    /// Deliver only processes with one of these names; NULL for all. The kernel keeps 15 bytes of a name: a longer one is
    /// compared with the names of the program's file, of its first argument and of its second one (that of a script), of
    /// processes whose name is its beginning; their command lines are then read even if they are to be skipped.
    pub names: *const *const c_char,
    /// Number of names.
    pub name_count: usize,
    /// File that the log is appended to; NULL for none. A regular file, made if there is none, or a character device;
    /// symbolic links are followed, and nothing is waited for. When the name is another file, after a rotation of logs, that
    /// is opened before the next line.
    pub log_file: *const c_char,
    /// Receives the log's lines; NULL for nobody.
    pub log_handler: CaptureLogHandler,
    /// Handed to `log_handler`.
    pub log_user_data: *mut c_void,
    /// The least important level that is logged.
    pub log_level: MaybeUninit<CaptureLogLevel>,
    /// What not to do: CAPTURE_SKIP_ bits.
    pub skip: u32,
    /// 1 to put devices in promiscuous mode.
    pub promiscuous: u32,
    /// Bytes kept of each packet, up to 262144; 0 for 128.
    pub snaplen: u32,
    /// Longest time the kernel gathers packets before handing them over, milliseconds, up to 60000; 0 for 100.
    pub timeout_ms: u32,
    /// The session's descriptor becomes readable when this many milliseconds have passed since the last update;
    /// 0 for never.
    pub interval_ms: u32,
    /// Capture buffer of each device, bytes, 524288 to 1073741824; 0 for 8388608.
    pub buffer_bytes: u64,
    /// Most flows held at once, up to 16777216; 0 for 1000000, or in a control group whose memory is limited for as many as
    /// take a quarter of it, at least 2048.
    pub flow_limit: u64,
    /// Most bytes of packets held for the packet handler, up to 1073741824; 0 keeps no packets.
    pub packet_bytes: u64,
    /// Network namespaces to count in besides that of the calling thread: "own" for none, "all", or paths such as
    /// /run/netns/blue or /proc/1234/ns/net, separated by commas; NULL for none where packets are captured, and for all
    /// where the kernel counts, which it does in each of them anyway. Processes in others have no CAPTURE_VALID_NETWORK.
    /// To capture in others, they are entered, which takes CAP_SYS_ADMIN and CAP_SYS_PTRACE. Each takes five
    /// descriptors, and one for each device in it. At most 254 are captured in, and
    /// no more than one for every 16 descriptors that the process may open (RLIMIT_NOFILE): 64 where that is 1024.
    /// What "all" finds on top is left out until others have gone, which the log says once; more paths are refused.
    pub namespaces: *const c_char,
    /// How bytes are counted.
    pub engine: MaybeUninit<CaptureEngine>,
    /// 1 to record flows, for the flow handler and for the `connections` of processes. Costs some 170 bytes of memory
    /// more for each flow, and with live capture a look at all TCP sockets with each update.
    pub flows: u32,
    /// Most records of ended flows held for the flow handler, up to 16777216, some 250 bytes each; 0 for 65536, or in a
    /// control group whose memory is limited for as many as take a sixteenth of it, at least 2048. What comes on top takes
    /// the place of the oldest.
    pub ended_flow_limit: u32,
    /// What to do besides: CAPTURE_MORE_ bits.
    pub more: u32,
}

/// One captured packet. Pointers are valid during the callback.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CapturePacket {
    /// When it was captured, nanoseconds since the Unix epoch.
    pub time_ns: u64,
    /// The captured bytes, from the link header on.
    pub data: *const u8,
    /// Number of captured bytes.
    pub captured_length: u32,
    /// Length of the frame when it was captured, bytes. A frame captured before its segmentation or after a merge (GSO,
    /// TSO, GRO) is one packet here, longer than the MTU, and counts as several in the figures of processes and flows.
    pub wire_length: u32,
    /// Where it comes from, in network byte order; IPv4 addresses are mapped (::ffff:a.b.c.d).
    pub source_address: [u8; 16],
    /// Where it goes.
    pub destination_address: [u8; 16],
    /// Port it comes from, in host byte order; the identifier of an ICMP echo at the end that asks; 0 where there is
    /// none.
    pub source_port: u16,
    /// Port it goes to.
    pub destination_port: u16,
    /// IP protocol number: 6 for TCP, 17 for UDP.
    pub protocol: u32,
}

/// Receives `count` packets, `element_size` bytes apart. Called on the thread of the update.
pub type CapturePacketHandler = Option<
    unsafe extern "C-unwind" fn(
        user_data: *mut c_void,
        packets: *const CapturePacket,
        count: usize,
        element_size: usize,
    ),
>;

/// Who receives what an update finds. Zero the structure, then set `size` to its size.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CaptureHandlers {
    /// sizeof(CaptureHandlers).
    pub size: usize,
    /// Handed to the handlers.
    pub user_data: *mut c_void,
    /// First receives the processes that ended, if any, then those that live; NULL for nobody.
    pub process: CaptureProcessHandler,
    /// Receives the packets; NULL leaves them where they are.
    pub packet: CapturePacketHandler,
    /// Most packets to hand over; 0 for all that are held.
    pub packet_limit: u64,
    /// First receives the flows that ended, a third of a second or more ago, then those that live, of all processes,
    /// whichever are selected; NULL leaves those that ended where they are.
    pub flow: CaptureFlowHandler,
}

/// What the session saw and what it lost, since it was opened unless it says otherwise. An owner may be found late: the
/// bytes without one, by their reasons, fall again then.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct CaptureStats {
    /// sizeof(CaptureStats), set by the caller.
    pub size: usize,
    /// Frames seen.
    pub frames: u64,
    /// Bytes of these frames, as captured.
    pub frame_bytes: u64,
    /// Frames cut inside a header that was needed: `snaplen` is too small.
    pub undecoded_truncated: u64,
    /// Frames that hold no IP packet.
    pub undecoded_not_ip: u64,
    /// Frames whose headers contradict themselves.
    pub undecoded_malformed: u64,
    /// Frames lost because a capture buffer was full.
    pub lost_in_kernel: u64,
    /// Frames lost by a device or its driver.
    pub lost_in_device: u64,
    /// Packets lost because nobody took them in time.
    pub lost_packets: u64,
    /// Lines of the log lost because they were not taken in time, or could not be written to the file.
    pub lost_log_lines: u64,
    /// Devices being captured now.
    pub devices: u64,
    /// Flows held now.
    pub flows: u64,
    /// Flows that ended by age.
    pub flows_expired: u64,
    /// Flows that made room for new ones because `flow_limit` was reached, or the limit of those that nobody has answered.
    pub flows_evicted: u64,
    /// Flows waiting for their owner now.
    pub flows_waiting: u64,
    /// Bytes whose owner is the one holder of the flow's socket.
    pub bytes_exact: u64,
    /// Bytes whose owner is one of several holders of the socket.
    pub bytes_shared: u64,
    /// Bytes whose owner was found by a wildcard.
    pub bytes_guessed: u64,
    /// Bytes whose owner is still being looked for.
    pub bytes_pending: u64,
    /// Bytes of flows that no socket table shows: closed before they could be seen, or answered by the kernel. Those of a
    /// TCP connection that the other end opens are among them until its handshake is complete.
    pub bytes_no_socket: u64,
    /// Bytes of sockets that no process holds.
    pub bytes_no_holder: u64,
    /// Bytes that match sockets of several processes with nothing to tell them apart.
    pub bytes_ambiguous: u64,
    /// Bytes of sockets whose holder could not be read for want of a capability.
    pub bytes_not_permitted: u64,
    /// Bytes of flows that came while too many others waited for their owner.
    pub bytes_queue_full: u64,
    /// Bytes of later fragments whose first fragment was not seen.
    pub bytes_fragment: u64,
    /// Bytes forwarded or overheard: neither end is in the network namespace where they were seen, also where this host
    /// has put an address of its own in place of one of them (masquerading, published ports). With `namespaces` that
    /// is also what those send and receive by way of this one, besides being counted where it has its ends.
    pub bytes_not_local: u64,
    /// Bytes of messages that the kernel sends and answers itself, such as echo requests to this host and their replies,
    /// and of protocols whose sockets cannot be looked up.
    pub bytes_no_ports: u64,
    /// Bytes of processes that had already been reported as ended.
    pub bytes_owner_ended: u64,
    /// Bytes whose owner could not be told because a file of /proc could not be read.
    pub bytes_unreadable: u64,
    /// Processes whose figures could not be read or understood.
    pub processes_skipped: u64,
    /// Time that the last update took, its callbacks excluded, nanoseconds.
    pub update_ns: u64,
    /// Capabilities that would bring more, one bit for each number in capability.h: bit 13 is CAP_NET_RAW.
    pub missing_capabilities: u64,
    /// First packets of flows that were seen as they came, before the capture's batch: their owner is then looked for
    /// while the socket lives. When there are too many only a part is, and the rest is left to a later search.
    pub first_packets: u64,
    /// Owners found so; a connection within the machine has one at each end.
    pub first_found: u64,
    /// Flows whose socket was gone already, or that never had one.
    pub first_too_late: u64,
    /// Flows whose socket was there, but not its process where it was likely to be; they are searched for later.
    pub first_not_found: u64,
    /// First packets not looked at because too many others were waiting.
    pub first_crowded_out: u64,
    /// Owners found at first packets that were forgotten, for want of room, maybe before they were asked for.
    pub first_forgotten: u64,
    /// TCP connections seen from their opening on that have ended and whose socket then told how many bytes it had
    /// carried. 0 when connections are not checked: with `devices`, a `filter` or a `savefile`, and where the kernel
    /// does not permit it.
    pub connections_checked: u64,
    /// Those of which the capture had seen less than the socket had carried: packets were lost.
    pub connections_short: u64,
    /// Bytes that were missing of these, at the least. They are credited to the owner of the connection a second or two
    /// after its end, and are contained in the other figures of bytes with and without owners (`bytes_owner_ended` when
    /// the process was reported as ended before), but not in `frame_bytes`.
    pub bytes_completed: u64,
    /// Ends of connections that were not told of because too many came at once; these were not checked.
    pub ends_lost: u64,
    /// Devices being opened or closed now, beside the capture.
    pub devices_pending: u64,
    /// Records of ended flows lost because nobody took them in time.
    pub lost_flows: u64,
    /// Frames that engine `pcap` captured before their segmentation or after a merge (GSO, TSO, GRO): each is several
    /// packets on the wire.
    pub offloaded_frames: u64,
    /// The packets that these frames are counted as. They are estimated from the MTU of the device, the largest segment
    /// that both ends of a TCP connection accept, and the headers of the frame: exact where segments are as large as
    /// these allow, otherwise too few. The frames of a savefile are counted as they are.
    pub offloaded_packets: u64,
    /// Bytes of the headers that these packets have on the wire and the frames do not. They are contained in the figures
    /// of bytes with and without owners, but not in `frame_bytes`.
    pub estimated_bytes: u64,
    /// The engine at work, `CAPTURE_ENGINE_PCAP` or `CAPTURE_ENGINE_KERNEL`.
    pub engine: CaptureEngine,
    /// The programs that tell who uses a socket and count what goes through it.
    pub socket_probes: CaptureProbeState,
    /// The programs that sample all processes at once; off also where at most 64 processes are looked for by pid.
    /// With them everything but command lines is told of every process, also what /proc would hide.
    pub sample_probes: CaptureProbeState,
    /// The parts of the former that are at work, `CAPTURE_PROGRAMS_…`; 0 unless `socket_probes` is
    /// `CAPTURE_PROBE_STATE_ACTIVE`. The log names each program that the kernel refuses, and its reason.
    pub socket_programs: u32,
    /// Bytes, as the devices themselves count them, that passed devices before these were captured on, or until they were
    /// gone where they never were: of devices, also those of network namespaces, that have come since the session was opened
    /// and are captured with engine `pcap`. They are in no other figure; a namespace that came and went unseen is not among
    /// them.
    pub bytes_before_capture: u64,
}

/// The states of C are those of the probes.
const _: () = {
    assert!(CaptureProbeState::Active as u32 == ProbeState::Active as u32);
    assert!(CaptureProbeState::PidNamespace as u32 == ProbeState::PidNamespace as u32);
    assert!(CAPTURE_PROGRAMS_SOCKETS == ProgramSet::SOCKETS.0);
    assert!(CAPTURE_PROGRAMS_CONNECTIONS == ProgramSet::CONNECTIONS.0);
    assert!(CAPTURE_PROGRAMS_SENDS == ProgramSet::SENDS.0);
    assert!(CAPTURE_PROGRAMS_RECEIVES == ProgramSet::RECEIVES.0);
    assert!(CAPTURE_PROGRAMS_PACKETS == ProgramSet::PACKETS.0);
    assert!(CAPTURE_PROGRAMS_DIRECT_PACKETS == ProgramSet::DIRECT_PACKETS.0);
    assert!(CAPTURE_PROGRAMS_LATE_PACKETS == ProgramSet::LATE_PACKETS.0);
};
