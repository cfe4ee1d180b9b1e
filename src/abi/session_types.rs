//! Structures, enumerations and constants of the session interface, in the layout that C sees.

use super::flow_types::CaptureFlowHandler;
use super::process_types::CaptureProcessHandler;
use crate::model::{ProbeState, ProgramSet};
use std::ffi::{c_char, c_void};
use std::mem::MaybeUninit;

/// Capture no packets. Network figures are then marked unavailable.
pub const CAPTURE_DISABLE_NETWORK: u32 = 1;
/// Read no memory figures.
pub const CAPTURE_DISABLE_MEMORY: u32 = 2;
/// Read no I/O figures.
pub const CAPTURE_DISABLE_IO: u32 = 4;
/// Do not count descriptors.
pub const CAPTURE_DISABLE_DESCRIPTORS: u32 = 8;
/// Read no command lines.
pub const CAPTURE_DISABLE_COMMAND_LINE: u32 = 16;
/// Load no eBPF programs. Owners are then looked up through sockets and descriptors alone.
pub const CAPTURE_DISABLE_PROBES: u32 = 32;

/// Read context switches even if this takes another read of `/proc` for each process.
pub const CAPTURE_ENABLE_SWITCHES: u32 = 1;
/// Report the control group of each process. This takes another read of `/proc` for each process unless eBPF
/// programs sample the processes.
pub const CAPTURE_ENABLE_CGROUPS: u32 = 2;
/// Read the proportional share of memory of each process (`proportional_bytes`). With every update the kernel
/// then visits each page of the process, which takes some 0.1 ms, and longer the more memory the process has.
pub const CAPTURE_ENABLE_PROPORTIONAL: u32 = 4;
/// Let an update in which processes have ended wait until their last packets are counted, for at most the
/// read timeout and 100 ms. The same update then delivers these processes as ended. Those that started and
/// ended since the last update can still come with the next one.
pub const CAPTURE_ENABLE_WAIT_FOR_ENDED: u32 = 8;
/// Look up owners for the flows of a savefile, among the processes and sockets that exist now. Without this bit
/// the bytes of a savefile have no owner (`bytes_no_socket`): other processes may use the same ports by now.
pub const CAPTURE_ENABLE_REPLAY_OWNERS: u32 = 16;

/// Bit of `CaptureStats.socket_programs`: sockets are recorded when they are created and closed.
pub const CAPTURE_PROGRAMS_SOCKETS: u32 = 1;
/// Bit of `CaptureStats.socket_programs`: TCP connections are recorded when they open and close.
pub const CAPTURE_PROGRAMS_CONNECTIONS: u32 = 2;
/// Bit of `CaptureStats.socket_programs`: calls that send show which process uses a socket.
pub const CAPTURE_PROGRAMS_SENDS: u32 = 4;
/// Bit of `CaptureStats.socket_programs`: calls that receive show which process uses a socket.
pub const CAPTURE_PROGRAMS_RECEIVES: u32 = 8;
/// Bit of `CaptureStats.socket_programs`: packets are observed at their sockets.
pub const CAPTURE_PROGRAMS_PACKETS: u32 = 16;
/// Bit of `CaptureStats.socket_programs`: packets that do not come from the IP layer are observed, which are
/// those of packet sockets and the kernel's own acknowledgements for connections that have ended.
pub const CAPTURE_PROGRAMS_DIRECT_PACKETS: u32 = 32;
/// Bit of `CaptureStats.socket_programs`: packets that arrive for connections that have ended are observed.
pub const CAPTURE_PROGRAMS_LATE_PACKETS: u32 = 64;

/// Severity of a line of the log.
/// cbindgen:prefix-with-name
/// cbindgen:rename-all=ScreamingSnakeCase
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CaptureLogLevel {
    /// As an option: the default, `CAPTURE_LOG_LEVEL_INFO`. No line has this level.
    Default,
    /// Something does not work.
    Error,
    /// Something works only in part.
    Warn,
    /// A notable event.
    Info,
    /// Details for debugging.
    Debug,
    /// Full details for debugging.
    Trace,
    /// As an option: log nothing. No line has this level.
    Off,
}

/// Method of counting bytes.
/// cbindgen:prefix-with-name
/// cbindgen:rename-all=ScreamingSnakeCase
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CaptureEngine {
    /// Capture packets and look up the owner of each flow. The default.
    #[default]
    Pcap,
    /// Let the kernel count at each socket; no packet is captured. Requires CAP_BPF, CAP_PERFMON and
    /// CAP_NET_ADMIN.
    Kernel,
    /// As `CAPTURE_ENGINE_KERNEL` if that is possible and none of `devices`, `savefile`, `filter` and
    /// `packet_bytes` is set; otherwise as `CAPTURE_ENGINE_PCAP`.
    Auto,
}

/// State of a group of eBPF programs. If they are not active, the session continues with what it can read by
/// other means, and the log gives details.
/// cbindgen:prefix-with-name
/// cbindgen:rename-all=ScreamingSnakeCase
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CaptureProbeState {
    /// Not requested.
    #[default]
    Off,
    /// Loaded and working.
    Active,
    /// The library was built without them.
    NotBuilt,
    /// The kernel does not describe its types (CONFIG_DEBUG_INFO_BTF).
    NoTypes,
    /// A capability is missing, or the kernel is locked down.
    NotPermitted,
    /// The kernel does not support something that the eBPF programs need.
    NotSupported,
    /// Out of memory, or the limit of locked memory is reached (RLIMIT_MEMLOCK).
    NoMemory,
    /// There is no cgroup v2 hierarchy to attach to.
    NoCgroup,
    /// The session is not in the initial PID namespace.
    PidNamespace,
    /// No descriptor is left: the limit of the process (RLIMIT_NOFILE) or of the system is reached.
    NoDescriptor,
}

/// Receives one line of the log. The text is NUL-terminated, has no line end and is valid during the call.
/// Called only on the caller's thread, inside `CaptureSessionOpen`, `CaptureSessionUpdate` and
/// `CaptureSessionClose`.
pub type CaptureLogHandler =
    Option<unsafe extern "C-unwind" fn(user_data: *mut c_void, level: CaptureLogLevel, text: *const c_char)>;

/// Options of `CaptureSessionOpen`. Zero the structure, then set `size` to its size; any other field that is
/// zero has its default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CaptureOptions {
    /// sizeof(CaptureOptions).
    pub size: usize,
    /// Devices to capture on, separated by commas. NULL, or `any` in the list, selects every usable device,
    /// loopback included.
    pub devices: *const c_char,
    /// Savefile to read packets from, as fast as possible; NULL for live capture.
    pub savefile: *const c_char,
    /// Filter expression, see pcap-filter(7); NULL for all packets.
    pub filter: *const c_char,
    /// Addresses treated as this host's in addition to its own, separated by commas; NULL for none. Meant for
    /// savefiles that were recorded on another host.
    pub local_addresses: *const c_char,
    /// Deliver only processes with one of these ids; NULL for all.
    pub pids: *const libc::pid_t,
    /// Number of elements of `pids`.
    pub pid_count: usize,
    /// Deliver only processes of one of these users, by name or number; NULL for all.
    pub users: *const *const c_char,
    /// Number of elements of `users`.
    pub user_count: usize,
    /// Deliver only processes with one of these names; NULL for all. The kernel keeps 15 bytes of a name. A
    /// longer name is compared with the file names of the executable, of the first argument and of the second
    /// argument (that of a script), for processes whose name is the beginning of the longer name. The command
    /// lines of these processes are then read even if `disable` excludes command lines.
    pub names: *const *const c_char,
    /// Number of elements of `names`.
    pub name_count: usize,
    /// File that the log is appended to; NULL for none. It is a regular file, created if it does not exist,
    /// or a character device. Symbolic links are followed, and opening never waits. If the name refers to
    /// another file later, after a rotation of logs, that file is opened before the next line.
    pub log_file: *const c_char,
    /// Receives the log's lines; NULL for no handler.
    pub log_handler: CaptureLogHandler,
    /// Passed to `log_handler`.
    pub log_user_data: *mut c_void,
    /// The least severe level that is logged; defaults to `CAPTURE_LOG_LEVEL_INFO`.
    pub log_level: MaybeUninit<CaptureLogLevel>,
    /// Work to leave out: CAPTURE_DISABLE_ bits.
    pub disable: u32,
    /// 1 to put devices in promiscuous mode; defaults to 0.
    pub promiscuous: u32,
    /// Bytes kept of each packet, at most 262144; defaults to 128.
    pub snaplen: u32,
    /// Longest time for which the kernel gathers packets before it delivers them (read timeout),
    /// milliseconds, at most 60000; defaults to 100.
    pub timeout_ms: u32,
    /// Time since the last update after which the session's descriptor becomes readable, milliseconds; 0 for
    /// never.
    pub interval_ms: u32,
    /// Capture buffer of each device, bytes, 524288 to 1073741824; defaults to 8388608.
    pub buffer_bytes: u64,
    /// Maximum number of flows held at once, up to 16777216. Defaults to 1000000. In a control group with a
    /// memory limit it defaults to as many as fit into a quarter of the limit, but at least 2048.
    pub flow_limit: u64,
    /// Maximum bytes of packets held for the packet handler, up to 1073741824; 0 keeps no packets.
    pub packet_bytes: u64,
    /// Network namespaces to count in, in addition to that of the calling thread: "own" for none, "all", or
    /// paths such as /run/netns/blue or /proc/1234/ns/net, separated by commas. NULL means none if packets
    /// are captured. It means all if the kernel counts, because the kernel counts in every namespace anyway.
    /// Processes in other namespaces do not have CAPTURE_VALID_NETWORK.
    ///
    /// To capture in another namespace, the session enters it, which requires CAP_SYS_ADMIN and
    /// CAP_SYS_PTRACE. Each namespace takes five descriptors, and one for each device in it. The session
    /// captures in at most 254 namespaces, and in at most one for every 16 descriptors that the process may
    /// open (RLIMIT_NOFILE): 64 if that limit is 1024. Namespaces that "all" finds beyond that are left out
    /// until others have disappeared; the log reports this once. A list of more paths is refused.
    pub namespaces: *const c_char,
    /// Method of counting bytes; defaults to `CAPTURE_ENGINE_PCAP`.
    pub engine: MaybeUninit<CaptureEngine>,
    /// 1 to record flows, for the flow handler and for the `connections` of processes; defaults to 0. Takes
    /// some 170 bytes more memory for each flow and, with live capture, a query of all TCP sockets with each
    /// update.
    pub flows: u32,
    /// Maximum number of records of ended flows held for the flow handler, up to 16777216, some 250 bytes
    /// each. Defaults to 65536. In a control group with a memory limit it defaults to as many as fit into a
    /// sixteenth of the limit, but at least 2048. Beyond the limit a new record replaces the oldest one.
    pub ended_flow_limit: u32,
    /// Additional work: CAPTURE_ENABLE_ bits.
    pub enable: u32,
}

/// One captured packet. Pointers are valid during the callback.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CapturePacket {
    /// Time of the capture, nanoseconds since the Unix epoch.
    pub time_ns: u64,
    /// The captured bytes, starting with the link header.
    pub data: *const u8,
    /// Number of captured bytes.
    pub captured_length: u32,
    /// Length of the frame when it was captured, bytes. A frame captured before its segmentation or after a
    /// merge (GSO, TSO, GRO) is one packet here, longer than the MTU, and counts as several packets in the
    /// figures of processes and flows.
    pub wire_length: u32,
    /// Source address, in network byte order; IPv4 addresses are mapped (::ffff:a.b.c.d).
    pub source_address: [u8; 16],
    /// Destination address, in the same form.
    pub destination_address: [u8; 16],
    /// Source port, in host byte order. For an ICMP echo it is the identifier, at the end that sends the
    /// request. 0 if there is none.
    pub source_port: u16,
    /// Destination port, in the same form.
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

/// Handlers that receive the results of an update. Zero the structure, then set `size` to its size.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CaptureHandlers {
    /// sizeof(CaptureHandlers).
    pub size: usize,
    /// Passed to the handlers.
    pub user_data: *mut c_void,
    /// Receives first the processes that have ended, if any, then the living ones; NULL for no handler.
    pub process: CaptureProcessHandler,
    /// Receives the packets; if NULL, the packets stay held.
    pub packet: CapturePacketHandler,
    /// Maximum number of packets to deliver; 0 for all that are held.
    pub packet_limit: u64,
    /// Receives first the flows that ended a third of a second or more ago, then the living ones. It receives
    /// the flows of all processes, also if only some processes are selected. If NULL, the ended flows stay
    /// held.
    pub flow: CaptureFlowHandler,
}

/// Statistics of what the session captured and lost. They cover the time since the session was opened unless
/// a field says otherwise. An owner may be found late: the counters of bytes without an owner, by reason,
/// then decrease.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct CaptureStats {
    /// sizeof(CaptureStats), set by the caller.
    pub size: usize,
    /// Frames captured.
    pub frames: u64,
    /// Bytes of these frames, as captured.
    pub frame_bytes: u64,
    /// Frames cut inside a required header: `snaplen` is too small.
    pub undecoded_truncated: u64,
    /// Frames that contain no IP packet.
    pub undecoded_not_ip: u64,
    /// Frames whose headers contradict themselves.
    pub undecoded_malformed: u64,
    /// Frames lost because a capture buffer was full.
    pub lost_in_kernel: u64,
    /// Frames lost by a device or its driver.
    pub lost_in_device: u64,
    /// Packets lost because the caller did not fetch them in time.
    pub lost_packets: u64,
    /// Lines of the log lost because they were not fetched in time or could not be written to the file.
    pub lost_log_lines: u64,
    /// Devices that are currently captured on.
    pub devices: u64,
    /// Flows currently held.
    pub flows: u64,
    /// Flows that expired.
    pub flows_expired: u64,
    /// Flows evicted because `flow_limit` was reached, or the limit of flows without an answer.
    pub flows_evicted: u64,
    /// Flows currently waiting for their owner.
    pub flows_waiting: u64,
    /// Bytes whose owner is the only holder of the flow's socket.
    pub bytes_exact: u64,
    /// Bytes whose owner is one of several holders of the socket.
    pub bytes_shared: u64,
    /// Bytes whose owner was found by a wildcard.
    pub bytes_guessed: u64,
    /// Bytes whose owner is still being looked up.
    pub bytes_pending: u64,
    /// Bytes of flows that are in no socket table: closed before they could be looked up, or answered by the
    /// kernel. The bytes of a TCP connection that the other end opens are among them until its handshake is
    /// complete.
    pub bytes_no_socket: u64,
    /// Bytes of sockets that no process holds.
    pub bytes_no_holder: u64,
    /// Bytes that match sockets of several processes, with nothing to distinguish them.
    pub bytes_ambiguous: u64,
    /// Bytes of sockets whose holder could not be read because a capability is missing.
    pub bytes_not_permitted: u64,
    /// Bytes of flows that appeared while too many others waited for their owner.
    pub bytes_queue_full: u64,
    /// Bytes of later fragments whose first fragment was not captured.
    pub bytes_fragment: u64,
    /// Bytes forwarded or overheard: neither end is in the network namespace where they were captured. This
    /// includes packets in which this host has replaced one of the addresses with its own (masquerading,
    /// published ports). With `namespaces` it also includes the packets that other namespaces send and
    /// receive through this one; they are counted in the namespace of their ends as well.
    pub bytes_not_local: u64,
    /// Bytes of messages that the kernel sends and answers itself, such as echo requests to this host and
    /// their replies, and of protocols whose sockets cannot be looked up.
    pub bytes_no_ports: u64,
    /// Bytes of processes that had already been reported as ended.
    pub bytes_owner_ended: u64,
    /// Bytes whose owner is unknown because a file of /proc could not be read.
    pub bytes_unreadable: u64,
    /// Processes whose figures could not be read or parsed.
    pub processes_skipped: u64,
    /// Duration of the last update without its callbacks, nanoseconds.
    pub update_ns: u64,
    /// Missing capabilities that would make more figures available, one bit for each number in capability.h:
    /// bit 13 is CAP_NET_RAW.
    pub missing_capabilities: u64,
    /// First packets of flows that were observed as they arrived, before the capture's batch. Their owner is
    /// looked up early, while the socket exists. If there are too many, only some are looked up early, and the
    /// others later.
    pub early_lookup_packets: u64,
    /// Owners found by early lookups. A connection within the machine has one at each end.
    pub early_lookup_found: u64,
    /// Flows whose socket no longer existed at the early lookup, or that never had one.
    pub early_lookup_too_late: u64,
    /// Flows whose socket existed at the early lookup, but whose process was not among the candidates. Their
    /// owner is looked up later.
    pub early_lookup_not_found: u64,
    /// First packets without an early lookup because too many others were waiting.
    pub early_lookup_queue_full: u64,
    /// Owners found by early lookups that were evicted for lack of space, possibly before they were used.
    pub early_lookup_evicted: u64,
    /// TCP connections observed from their opening on that have ended and whose socket then stated how many
    /// bytes it had carried. 0 if connections are not checked: with `devices`, a `filter` or a `savefile`,
    /// and if the kernel does not permit it.
    pub connections_checked: u64,
    /// Checked connections of which the capture had less than the socket had carried: packets were lost.
    pub connections_incomplete: u64,
    /// Lower bound of the bytes that were missing from these connections. They are credited to the owner of
    /// the connection a second or two after its end. They are contained in the other counters of bytes with
    /// and without owners (in `bytes_owner_ended` if the process was reported as ended before), but not in
    /// `frame_bytes`.
    pub bytes_recovered: u64,
    /// Notices of closed connections that were lost because too many arrived at once. These connections were
    /// not checked.
    pub close_events_lost: u64,
    /// Devices that are currently being opened or closed in the background.
    pub devices_pending: u64,
    /// Records of ended flows lost because the caller did not fetch them in time.
    pub lost_flows: u64,
    /// Frames that engine `pcap` captured before their segmentation or after a merge (GSO, TSO, GRO). Each is
    /// several packets on the wire.
    pub offloaded_frames: u64,
    /// Number of packets that these frames are counted as. It is estimated from the MTU of the device, the
    /// largest segment that both ends of a TCP connection accept, and the headers of the frame. It is exact
    /// if segments are as large as these allow, and too low otherwise. The frames of a savefile are counted
    /// as they are.
    pub offloaded_packets: u64,
    /// Bytes of the headers that these packets have on the wire and the frames do not have. They are
    /// contained in the counters of bytes with and without owners, but not in `frame_bytes`.
    pub estimated_bytes: u64,
    /// The engine in use, `CAPTURE_ENGINE_PCAP` or `CAPTURE_ENGINE_KERNEL`.
    pub engine: CaptureEngine,
    /// State of the eBPF programs that report which process uses a socket and count its traffic.
    pub socket_probes: CaptureProbeState,
    /// State of the eBPF programs that sample all processes at once. Also `CAPTURE_PROBE_STATE_OFF` if at
    /// most 64 processes are selected by pid. If they are active, all figures except command lines are
    /// reported for every process, including those that /proc would hide.
    pub sample_probes: CaptureProbeState,
    /// Parts of the socket programs that are active, CAPTURE_PROGRAMS_ bits; 0 unless `socket_probes` is
    /// `CAPTURE_PROBE_STATE_ACTIVE`. The log names each eBPF program that the kernel refuses, and the reason.
    pub socket_programs: u32,
    /// Bytes, by the devices' own counters, that passed devices before the session captured on them, or until
    /// they disappeared if it never did. This covers devices captured with engine `pcap` that appeared after
    /// the session was opened, including those of network namespaces. These bytes are in no other counter. A
    /// namespace that appeared and disappeared unobserved is not covered.
    pub bytes_before_capture: u64,
    /// Time at which the last update began to sample the processes, in nanoseconds of CLOCK_MONOTONIC; 0
    /// before the first update. A rate is the difference of two totals by the difference of these times.
    pub sampled_ns: u64,
    /// The same time of the update before; 0 before the second update.
    pub sampled_before_ns: u64,
    /// 1 once the savefile was read to its end and all of it is counted; otherwise 0.
    pub replay_finished: u64,
}

/// The states in C have the numbers of the model's states.
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
