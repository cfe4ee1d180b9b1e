/* libcapture: per-process network bytes, CPU, memory, descriptors and I/O on Linux.
 *
 * Two interfaces. The classic one, CaptureInit, CaptureUpdate and CaptureExit, keeps one session for the whole
 * program. The session interface, CaptureSession..., supports any number of sessions and has handlers with user data,
 * units of bytes and nanoseconds, and statistics.
 *
 * Threads: the library works on threads of its own, which block all signals. Callbacks run on the thread that called
 * the update, inside that call. No call takes more than 32 KB of the calling thread's stack, callbacks not counted.
 * Namespaces and privileges are those of the thread that opens a session. A session may be used from any thread, one
 * call at a time: a second call at the same time, also one made from a callback, returns CAPTURE_CODE_BUSY at once.
 * After a fork the child cannot use the parent's sessions (CAPTURE_CODE_FORKED), but may open its own.
 *
 * Descriptors: those of a session are in a table of its own. Children and programs that the host starts do not inherit
 * them, closefrom() does not close them, and RLIMIT_NOFILE counts them apart from the host's. Only the descriptor that
 * CaptureSessionDescriptor() returns is in the host's table.
 *
 * Errors: functions return 0 or one of CaptureCode; CaptureErrorText() then states what failed, on what, the
 * system's reason, and what would help.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef LIBCAPTURE_H
#define LIBCAPTURE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

// Size of `name`, `user`, `group` and `hash`, bytes, terminating NUL included.
#define CAPTURE_COMMAN_SIZE 128

// Size of `cmdline`, bytes, terminating NUL included.
#define CAPTURE_CMDLINE_SIZE 512

// Size that `errorbuf` must have, bytes, terminating NUL included.
#define CAPTURE_ERROR_SIZE 256

// Major version of this header. Programs compiled against it work with any library of the same major
// version.
#define CAPTURE_VERSION_MAJOR 1

// Minor version. Increases when something is added.
#define CAPTURE_VERSION_MINOR 0

// Patch version. Increases with every release that only fixes faults.
#define CAPTURE_VERSION_PATCH 0

// Return value of every function that succeeded.
#define CAPTURE_OK 0

// Bit of `valid`: the network namespace is known.
#define CAPTURE_FLOW_VALID_NAMESPACE 1

// Bit of `valid`: the time of the opening is known.
#define CAPTURE_FLOW_VALID_OPENED 2

// Bit of `valid`: the connection was established at a known time.
#define CAPTURE_FLOW_VALID_ESTABLISHED 4

// Bit of `valid`: the end that opened the flow is known.
#define CAPTURE_FLOW_VALID_ROLE 8

// Bit of `valid`: bytes, packets and the time of the latest packet are known.
#define CAPTURE_FLOW_VALID_TRAFFIC 16

// Bit of `valid`: the duration of connecting is known.
#define CAPTURE_FLOW_VALID_CONNECT_LATENCY 32

// Bit of `valid`: the kernel has measured the round-trip time.
#define CAPTURE_FLOW_VALID_SMOOTHED_RTT 64

// Bit of `valid`: the number of retransmitted segments is known.
#define CAPTURE_FLOW_VALID_RETRANSMITS 128

// Bit of `valid`: times from request to response are known; there may have been none yet.
#define CAPTURE_FLOW_VALID_RESPONSE 256

// Bit of `valid`: the duration of the flow is known.
#define CAPTURE_FLOW_VALID_DURATION 512

// Bit of `valid`: the reason of the flow's end is known.
#define CAPTURE_FLOW_VALID_REASON 1024

// Bit of `valid`: the error number is known.
#define CAPTURE_FLOW_VALID_ERROR 2048

// Bit of `valid`: the kernel's number of the TCP state is known.
#define CAPTURE_FLOW_VALID_TCP_STATE 4096

// Bit of `valid`: the socket's cookie is known.
#define CAPTURE_FLOW_VALID_COOKIE 8192

// Number of counts of response times in `CaptureConnections`.
#define CAPTURE_RESPONSE_BUCKETS 32

// Capture no packets. Network figures are then marked unavailable.
#define CAPTURE_DISABLE_NETWORK 1

// Read no memory figures.
#define CAPTURE_DISABLE_MEMORY 2

// Read no I/O figures.
#define CAPTURE_DISABLE_IO 4

// Do not count descriptors.
#define CAPTURE_DISABLE_DESCRIPTORS 8

// Read no command lines.
#define CAPTURE_DISABLE_COMMAND_LINE 16

// Load no eBPF programs. Owners are then looked up through sockets and descriptors alone.
#define CAPTURE_DISABLE_PROBES 32

// Read context switches even if this takes another read of `/proc` for each process.
#define CAPTURE_ENABLE_SWITCHES 1

// Report the control group of each process. This takes another read of `/proc` for each process unless eBPF
// programs sample the processes.
#define CAPTURE_ENABLE_CGROUPS 2

// Read the proportional share of memory of each process (`proportional_bytes`). With every update the kernel
// then visits each page of the process, which takes some 0.1 ms, and longer the more memory the process has.
#define CAPTURE_ENABLE_PROPORTIONAL 4

// Let an update in which processes have ended wait until their last packets are counted, for at most the
// read timeout and 100 ms. The same update then delivers these processes as ended. Those that started and
// ended since the last update can still come with the next one.
#define CAPTURE_ENABLE_WAIT_FOR_ENDED 8

// Look up owners for the flows of a savefile, among the processes and sockets that exist now. Without this bit
// the bytes of a savefile have no owner (`bytes_no_socket`): other processes may use the same ports by now.
#define CAPTURE_ENABLE_REPLAY_OWNERS 16

// Bit of `CaptureStats.socket_programs`: sockets are recorded when they are created and closed.
#define CAPTURE_PROGRAMS_SOCKETS 1

// Bit of `CaptureStats.socket_programs`: TCP connections are recorded when they open and close.
#define CAPTURE_PROGRAMS_CONNECTIONS 2

// Bit of `CaptureStats.socket_programs`: calls that send show which process uses a socket.
#define CAPTURE_PROGRAMS_SENDS 4

// Bit of `CaptureStats.socket_programs`: calls that receive show which process uses a socket.
#define CAPTURE_PROGRAMS_RECEIVES 8

// Bit of `CaptureStats.socket_programs`: packets are observed at their sockets.
#define CAPTURE_PROGRAMS_PACKETS 16

// Bit of `CaptureStats.socket_programs`: packets that do not come from the IP layer are observed, which are
// those of packet sockets and the kernel's own acknowledgements for connections that have ended.
#define CAPTURE_PROGRAMS_DIRECT_PACKETS 32

// Bit of `CaptureStats.socket_programs`: packets that arrive for connections that have ended are observed.
#define CAPTURE_PROGRAMS_LATE_PACKETS 64

// Bit of `valid`: CPU times, page faults, state, threads, parent and start time are known.
#define CAPTURE_VALID_CPU 1

// Bit of `valid`: memory figures are known.
#define CAPTURE_VALID_MEMORY 2

// Bit of `valid`: I/O figures are known.
#define CAPTURE_VALID_IO 4

// Bit of `valid`: the number of descriptors is known.
#define CAPTURE_VALID_DESCRIPTORS 8

// Bit of `valid`: the command line is known.
#define CAPTURE_VALID_COMMAND_LINE 16

// Bit of `valid`: user and group are known.
#define CAPTURE_VALID_USER 32

// Bit of `valid`: bytes and packets are known, because they are counted in the process's network namespace.
// Also set if some were counted for a socket of another namespace that the process holds.
#define CAPTURE_VALID_NETWORK 64

// Bit of `valid`: an earlier sample of the same process existed to compute the percentage from.
#define CAPTURE_VALID_CPU_PERCENT 128

// Bit of `valid`: flows are recorded where the process's bytes are counted.
#define CAPTURE_VALID_CONNECTIONS 256

// Bit of `valid`: context switches are known.
#define CAPTURE_VALID_SWITCHES 512

// Bit of `valid`: the control group is known.
#define CAPTURE_VALID_CGROUP 1024

// Bit of `valid`: `own_read_bytes` and `own_write_bytes`, the storage I/O of the process without its
// children, are known. eBPF programs always report them; `/proc` shows them until the process has waited for
// a child.
#define CAPTURE_VALID_OWN_BYTES 2048

// Bit of `valid`: `own_read_chars` and `own_write_chars`, the bytes of the process's own calls, are known.
// eBPF programs report them unless threads of the process have ended and the process has waited for
// children.
#define CAPTURE_VALID_OWN_CHARS 4096

// Bit of `valid`: the proportional share of memory is known.
#define CAPTURE_VALID_PROPORTIONAL 8192

// Method of waiting for packets. Accepted for compatibility; has no effect.
typedef enum LoopType {
    // select(2).
    SELECT,
    // epoll(7).
    EPOLL,
    // Neither.
    NONE,
} LoopType;

// State of the processes passed to a callback.
typedef enum CaptureAction {
    // They are alive; these are their current figures.
    ACTION_UPDATE,
    // They have ended; these are their last figures.
    ACTION_REMOVE,
} CaptureAction;

// Transport protocol of a packet.
typedef enum PacketType {
    // TCP.
    P_TCP,
    // UDP.
    P_UDP,
} PacketType;

// Severity of a line of the log.
typedef enum CaptureLogLevel {
    // As an option: the default, `CAPTURE_LOG_LEVEL_INFO`. No line has this level.
    CAPTURE_LOG_LEVEL_DEFAULT,
    // Something does not work.
    CAPTURE_LOG_LEVEL_ERROR,
    // Something works only in part.
    CAPTURE_LOG_LEVEL_WARN,
    // A notable event.
    CAPTURE_LOG_LEVEL_INFO,
    // Details for debugging.
    CAPTURE_LOG_LEVEL_DEBUG,
    // Full details for debugging.
    CAPTURE_LOG_LEVEL_TRACE,
    // As an option: log nothing. No line has this level.
    CAPTURE_LOG_LEVEL_OFF,
} CaptureLogLevel;

// Method of counting bytes.
typedef enum CaptureEngine {
    // Capture packets and look up the owner of each flow. The default.
    CAPTURE_ENGINE_PCAP,
    // Let the kernel count at each socket; no packet is captured. Requires CAP_BPF, CAP_PERFMON and
    // CAP_NET_ADMIN.
    CAPTURE_ENGINE_KERNEL,
    // As `CAPTURE_ENGINE_KERNEL` if that is possible and none of `devices`, `savefile`, `filter` and
    // `packet_bytes` is set; otherwise as `CAPTURE_ENGINE_PCAP`.
    CAPTURE_ENGINE_AUTO,
} CaptureEngine;

// Quality of a flow's owner.
typedef enum CaptureOwnerQuality {
    // No owner: it is still being looked up, or was not found.
    CAPTURE_OWNER_QUALITY_NONE,
    // The process is the only holder of the flow's socket.
    CAPTURE_OWNER_QUALITY_EXACT,
    // The process is one of several holders of the socket.
    CAPTURE_OWNER_QUALITY_SHARED,
    // The process's socket was found by a wildcard.
    CAPTURE_OWNER_QUALITY_GUESSED,
} CaptureOwnerQuality;

// State of a flow.
typedef enum CaptureFlowState {
    // Not known.
    CAPTURE_FLOW_STATE_UNKNOWN,
    // A TCP connection whose handshake is not complete; for other protocols, packets in one direction only.
    CAPTURE_FLOW_STATE_OPENING,
    // Data can pass both ways.
    CAPTURE_FLOW_STATE_OPEN,
    // One end has finished sending, or both have and the last record is still to be delivered.
    CAPTURE_FLOW_STATE_CLOSING,
    // The flow has ended, and this is its last record.
    CAPTURE_FLOW_STATE_ENDED,
} CaptureFlowState;

// The end that opened a flow.
typedef enum CaptureFlowRole {
    // Not known.
    CAPTURE_FLOW_ROLE_UNKNOWN,
    // This end sent the first packet.
    CAPTURE_FLOW_ROLE_OPENED,
    // The other end sent the first packet.
    CAPTURE_FLOW_ROLE_ACCEPTED,
} CaptureFlowRole;

// Reason of a flow's end.
typedef enum CaptureFlowReason {
    // Not known, or the protocol has no end: the flow expired after a long silence.
    CAPTURE_FLOW_REASON_UNKNOWN,
    // Both ends finished sending.
    CAPTURE_FLOW_REASON_ORDERLY,
    // The other end reset the connection.
    CAPTURE_FLOW_REASON_RESET,
    // The other end did not answer for too long. No packet states this: it is concluded from a socket that
    // disappeared when the kernel was due to retransmit.
    CAPTURE_FLOW_REASON_TIMED_OUT,
    // The other end refused the connection.
    CAPTURE_FLOW_REASON_REFUSED,
    // This end aborted the connection.
    CAPTURE_FLOW_REASON_ABORTED,
} CaptureFlowReason;

// State of a group of eBPF programs. If they are not active, the session continues with what it can read by
// other means, and the log gives details.
typedef enum CaptureProbeState {
    // Not requested.
    CAPTURE_PROBE_STATE_OFF,
    // Loaded and working.
    CAPTURE_PROBE_STATE_ACTIVE,
    // The library was built without them.
    CAPTURE_PROBE_STATE_NOT_BUILT,
    // The kernel does not describe its types (CONFIG_DEBUG_INFO_BTF).
    CAPTURE_PROBE_STATE_NO_TYPES,
    // A capability is missing, or the kernel is locked down.
    CAPTURE_PROBE_STATE_NOT_PERMITTED,
    // The kernel does not support something that the eBPF programs need.
    CAPTURE_PROBE_STATE_NOT_SUPPORTED,
    // Out of memory, or the limit of locked memory is reached (RLIMIT_MEMLOCK).
    CAPTURE_PROBE_STATE_NO_MEMORY,
    // There is no cgroup v2 hierarchy to attach to.
    CAPTURE_PROBE_STATE_NO_CGROUP,
    // The session is not in the initial PID namespace.
    CAPTURE_PROBE_STATE_PID_NAMESPACE,
    // No descriptor is left: the limit of the process (RLIMIT_NOFILE) or of the system is reached.
    CAPTURE_PROBE_STATE_NO_DESCRIPTOR,
} CaptureProbeState;

// The reason that a call failed. Functions return 0 for success. Numbers are never reused and never
// renumbered.
typedef enum CaptureCode {
    // No device to capture on.
    CAPTURE_CODE_NO_DEVICE = 1,
    // A device could not be opened.
    CAPTURE_CODE_OPEN_DEVICE = 2,
    // The filter expression does not compile.
    CAPTURE_CODE_COMPILE_FILTER = 3,
    // The filter could not be set on a device.
    CAPTURE_CODE_SET_FILTER = 4,
    // There is no open session.
    CAPTURE_CODE_NOT_INITIALISED = 5,
    // A directory could not be opened.
    CAPTURE_CODE_OPEN_DIRECTORY = 6,
    // Process sampling could not start.
    CAPTURE_CODE_PROCESS_INIT = 35,
    // A file of /proc is not in the expected format.
    CAPTURE_CODE_PROCESS_FORMAT = 36,
    // A file of /proc could not be opened.
    CAPTURE_CODE_PROCESS_OPEN = 37,
    // A directory of /proc could not be read.
    CAPTURE_CODE_PROCESS_OPEN_DIRECTORY = 38,
    // A packet was not understood.
    CAPTURE_CODE_PACKET_FORMAT = 41,
    // The address was not found.
    CAPTURE_CODE_ADDRESS_NOT_FOUND = 43,
    // The inode was not found.
    CAPTURE_CODE_INODE_NOT_FOUND = 44,
    // An argument is not valid.
    CAPTURE_CODE_INVALID_ARGUMENT = 100,
    // Another call on the same session is running, in this thread or in another one.
    CAPTURE_CODE_BUSY = 101,
    // The session belongs to another process: it was opened before a fork.
    CAPTURE_CODE_FORKED = 102,
    // The session is already open.
    CAPTURE_CODE_ALREADY_OPEN = 103,
    // The log file could not be opened.
    CAPTURE_CODE_LOG_FILE = 104,
    // The savefile could not be read.
    CAPTURE_CODE_SAVEFILE = 105,
    // A thread could not be started.
    CAPTURE_CODE_THREAD = 106,
    // The system refused a descriptor or another resource.
    CAPTURE_CODE_SYSTEM_RESOURCE = 107,
    // The session has failed and can only be closed.
    CAPTURE_CODE_SESSION_FAILED = 108,
    // A fault of the library itself.
    CAPTURE_CODE_INTERNAL = 109,
} CaptureCode;

// A session. It belongs to the process that opened it, not to a child forked from that process.
typedef struct CaptureSession CaptureSession;

// Options of `CaptureInit`. All zero is valid and means the defaults.
typedef struct CaptureInitt {
    // File that the log is appended to; NULL for none. As `log_file` of CaptureOptions.
    const char *logfile;
    // Capture read timeout, milliseconds, at most 60000; defaults to 100.
    int32_t ms;
    // Bytes kept of each packet, at most 262144; defaults to 128.
    int32_t snaplen;
    // Nonzero to put devices in promiscuous mode; defaults to 0.
    int32_t promise;
    // Filter expression, see pcap-filter(7); NULL for all packets.
    const char *fliter;
    // Buffer of CAPTURE_ERROR_SIZE bytes for error text; NULL for none.
    char *errorbuf;
    // One of LoopType; has no effect.
    enum LoopType loop;
} CaptureInitt;

// Figures of one process. Text is as the kernel reports it, and always NUL-terminated.
typedef struct Process_s {
    // Name, cut to at most 127 bytes, never inside a UTF-8 character.
    char name[CAPTURE_COMMAN_SIZE];
    // Arguments separated by spaces, cut to at most 511 bytes in the same way.
    char cmdline[CAPTURE_CMDLINE_SIZE];
    // Name of the effective user, or its number.
    char user[CAPTURE_COMMAN_SIZE];
    // Name of the effective group, or its number.
    char group[CAPTURE_COMMAN_SIZE];
    // Process id.
    pid_t pid;
    // Effective user id.
    uid_t uid;
    // Effective group id.
    gid_t gid;
    // Open descriptors.
    uint32_t fdCnt;
    // Resident set, kB.
    uint64_t memory;
    // Share of the whole machine's CPU time since the last update, 0-100; 0 on the first sample.
    double cpuPercent;
    // Share of the machine's memory, 0-100.
    double memPercent;
    // Bytes requested by read calls since the process started.
    uint64_t ioRead;
    // Bytes passed to write calls since the process started.
    uint64_t ioWrite;
    // Bytes received on the wire, link headers included, since the process was first seen.
    uint64_t recv;
    // Bytes sent on the wire, link headers included, since the process was first seen.
    uint64_t send;
} Process_s;

// Figures of one process.
typedef struct Process_s Process_t;

// Receives `*size` processes. Called inside `CaptureUpdate`, on its thread; the array is valid during the
// call.
typedef void (*ProcessInfoCallback)(enum CaptureAction action, const Process_t *processes, uint32_t *size);

// One captured TCP or UDP packet.
typedef struct Packet_s {
    // `source:port-destination:port` in the packet's own direction; IPv6 addresses in brackets.
    char hash[CAPTURE_COMMAN_SIZE];
    // Transport protocol.
    enum PacketType family;
    // The captured bytes, starting with the link header; valid during the callback. Their number is the
    // smaller of packetSize and snaplen.
    uint8_t *packet;
    // Length of the frame when it was captured, bytes. It exceeds the MTU if the frame is several packets on
    // the wire (GSO, TSO, GRO).
    uint32_t packetSize;
} Packet_s;

// One captured TCP or UDP packet.
typedef struct Packet_s Packet_t;

// Receives `*size` packets. Called inside `CaptureUpdate`, on its thread; the array is valid during the
// call.
typedef void (*PacketCallback)(const Packet_t *packets, uint32_t *size);

// Receives one line of the log. The text is NUL-terminated, has no line end and is valid during the call.
// Called only on the caller's thread, inside `CaptureSessionOpen`, `CaptureSessionUpdate` and
// `CaptureSessionClose`.
typedef void (*CaptureLogHandler)(void *user_data, enum CaptureLogLevel level, const char *text);

// Options of `CaptureSessionOpen`. Zero the structure, then set `size` to its size; any other field that is
// zero has its default.
typedef struct CaptureOptions {
    // sizeof(CaptureOptions).
    size_t size;
    // Devices to capture on, separated by commas. NULL, or `any` in the list, selects every usable device,
    // loopback included.
    const char *devices;
    // Savefile to read packets from, as fast as possible; NULL for live capture.
    const char *savefile;
    // Filter expression, see pcap-filter(7); NULL for all packets.
    const char *filter;
    // Addresses treated as this host's in addition to its own, separated by commas; NULL for none. Meant for
    // savefiles that were recorded on another host.
    const char *local_addresses;
    // Deliver only processes with one of these ids; NULL for all.
    const pid_t *pids;
    // Number of elements of `pids`.
    size_t pid_count;
    // Deliver only processes of one of these users, by name or number; NULL for all.
    const char *const *users;
    // Number of elements of `users`.
    size_t user_count;
    // Deliver only processes with one of these names; NULL for all. The kernel keeps 15 bytes of a name. A
    // longer name is compared with the file names of the executable, of the first argument and of the second
    // argument (that of a script), for processes whose name is the beginning of the longer name. The command
    // lines of these processes are then read even if `disable` excludes command lines.
    const char *const *names;
    // Number of elements of `names`.
    size_t name_count;
    // File that the log is appended to; NULL for none. It is a regular file, created if it does not exist,
    // or a character device. Symbolic links are followed, and opening never waits. If the name refers to
    // another file later, after a rotation of logs, that file is opened before the next line.
    const char *log_file;
    // Receives the log's lines; NULL for no handler.
    CaptureLogHandler log_handler;
    // Passed to `log_handler`.
    void *log_user_data;
    // The least severe level that is logged; defaults to `CAPTURE_LOG_LEVEL_INFO`.
    enum CaptureLogLevel log_level;
    // Work to leave out: CAPTURE_DISABLE_ bits.
    uint32_t disable;
    // 1 to put devices in promiscuous mode; defaults to 0.
    uint32_t promiscuous;
    // Bytes kept of each packet, at most 262144; defaults to 128.
    uint32_t snaplen;
    // Longest time for which the kernel gathers packets before it delivers them (read timeout),
    // milliseconds, at most 60000; defaults to 100.
    uint32_t timeout_ms;
    // Time since the last update after which the session's descriptor becomes readable, milliseconds; 0 for
    // never.
    uint32_t interval_ms;
    // Capture buffer of each device, bytes, 524288 to 1073741824; defaults to 8388608.
    uint64_t buffer_bytes;
    // Maximum number of flows held at once, up to 16777216. Defaults to 1000000. In a control group with a
    // memory limit it defaults to as many as fit into a quarter of the limit, but at least 2048.
    uint64_t flow_limit;
    // Maximum bytes of packets held for the packet handler, up to 1073741824; 0 keeps no packets.
    uint64_t packet_bytes;
    // Network namespaces to count in, in addition to that of the calling thread: "own" for none, "all", or
    // paths such as /run/netns/blue or /proc/1234/ns/net, separated by commas. NULL means none if packets
    // are captured. It means all if the kernel counts, because the kernel counts in every namespace anyway.
    // Processes in other namespaces do not have CAPTURE_VALID_NETWORK.
    //
    // To capture in another namespace, the session enters it, which requires CAP_SYS_ADMIN and
    // CAP_SYS_PTRACE. Each namespace takes five descriptors, and one for each device in it. The session
    // captures in at most 254 namespaces, and in at most one for every 16 descriptors that the process may
    // open (RLIMIT_NOFILE): 64 if that limit is 1024. Namespaces that "all" finds beyond that are left out
    // until others have disappeared; the log reports this once. A list of more paths is refused.
    const char *namespaces;
    // Method of counting bytes; defaults to `CAPTURE_ENGINE_PCAP`.
    enum CaptureEngine engine;
    // 1 to record flows, for the flow handler and for the `connections` of processes; defaults to 0. Takes
    // some 170 bytes more memory for each flow and, with live capture, a query of all TCP sockets with each
    // update.
    uint32_t flows;
    // Maximum number of records of ended flows held for the flow handler, up to 16777216, some 250 bytes
    // each. Defaults to 65536. In a control group with a memory limit it defaults to as many as fit into a
    // sixteenth of the limit, but at least 2048. Beyond the limit a new record replaces the oldest one.
    uint32_t ended_flow_limit;
    // Additional work: CAPTURE_ENABLE_ bits.
    uint32_t enable;
} CaptureOptions;

// Activity of the flows of one process since the process was first seen. The counts do not decrease when
// flows end.
typedef struct CaptureConnections {
    // TCP connections that the process began to open, failed ones included.
    uint64_t connects;
    // TCP connections opened by other ends to this process and established.
    uint64_t accepts;
    // TCP connections of either kind that the process closed or that broke off; each counts once.
    uint64_t closes;
    // Number of sends, on flows of every protocol: captured frames with payload. One frame may carry the
    // data of several calls, and several frames that of one call. With engine `kernel`: calls that sent, and
    // datagrams.
    uint64_t sends;
    // Number of receives, counted in the same way.
    uint64_t receives;
    // Histogram of the times from request to response on all flows of the process. Element 0 counts times
    // below 2 microseconds. Element n counts times of at least 2^n microseconds and less than twice that.
    // The last element also counts all longer times.
    uint64_t responses[CAPTURE_RESPONSE_BUCKETS];
} CaptureConnections;

// Figures of one process. Text is NUL-terminated and may contain any other byte. Pointers are valid during
// the callback. Later versions of the library may deliver larger structures: step through the array by
// `element_size`.
typedef struct CaptureProcess {
    // Known figures: CAPTURE_VALID_ bits. A figure that is not known is 0. Totals can become unknown for a
    // while and known again later. For a process that ends meanwhile, the last known totals are delivered.
    uint32_t valid;
    // Process id.
    pid_t pid;
    // Process id of the parent.
    pid_t parent;
    // Effective user id.
    uid_t uid;
    // Effective group id.
    gid_t gid;
    // Number of threads, including the main thread even if it has ended.
    uint32_t threads;
    // Open descriptors: entries in the table of the main thread, or of another thread if the main thread has
    // ended. Threads that have left this table (CLONE_FILES) have tables of their own, which are not
    // counted. If the figures come from `/proc` (see `sample_probes` in CaptureStats) on Linux 6.2 or later,
    // descriptor numbers that calls in progress have reserved count as well: one for each thread that waits
    // in accept(2), or that opens a FIFO or a file that does not answer.
    uint32_t descriptors;
    // State of the main thread: one of the letters R, S, D, Z, T, t, X, I; see proc_pid_stat(5). Z with more
    // than one thread means that the main thread has ended and others continue. Memory, descriptors and
    // command line are then those of one of these threads.
    uint32_t state;
    // Name.
    //
    // A process may execute a program or rename itself after an update and end before the next one. If eBPF
    // programs sample processes (`sample_probes` in CaptureStats), such a process is delivered with its last
    // name, unless some 2,000 other processes have changed theirs since. If the kernel reports process
    // events, it is delivered with its last command line and, without these eBPF programs, also with its
    // last name. The library receives these events with CAP_NET_ADMIN in the initial PID namespace and with
    // network figures, for at most 256 such changes in a quarter of a second. Otherwise the process is
    // delivered with the name and command line of the previous update.
    const char *name;
    // Length of the name, bytes.
    size_t name_length;
    // Arguments, each terminated by a NUL.
    const char *command_line;
    // Length of the arguments including their NULs, bytes; 0 for kernel threads.
    size_t command_line_length;
    // Name of the effective user, or its number.
    const char *user;
    // Name of the effective group, or its number.
    const char *group;
    // Start of the process, nanoseconds since the Unix epoch.
    uint64_t start_time_ns;
    // CPU time in user mode since the process started, nanoseconds.
    uint64_t cpu_user_ns;
    // CPU time in kernel mode since the process started, nanoseconds.
    uint64_t cpu_system_ns;
    // Share of the whole machine's CPU time since the last update, 0-100.
    double cpu_percent;
    // Resident set, bytes. Pages that several processes share count fully in each of them: sums over
    // processes can exceed the machine's memory.
    uint64_t resident_bytes;
    // Virtual memory, bytes.
    uint64_t virtual_bytes;
    // Resident share of the machine's memory, 0-100.
    double memory_percent;
    // Bytes requested by read calls since the process started. Like the kernel, this and the next three
    // fields include the I/O of children that the process has waited for, from the wait on: sums over
    // processes count it twice. `own_read_chars` and the three fields after it do not include it.
    uint64_t read_chars;
    // Bytes passed to write calls since the process started.
    uint64_t write_chars;
    // Bytes fetched from storage since the process started.
    uint64_t read_bytes;
    // Bytes sent to storage since the process started.
    uint64_t write_bytes;
    // Bytes sent on the wire, link headers included, since the process was first seen.
    uint64_t send_bytes;
    // Bytes received on the wire, link headers included, since the process was first seen.
    uint64_t receive_bytes;
    // Packets sent since the process was first seen.
    uint64_t send_packets;
    // Packets received since the process was first seen.
    uint64_t receive_packets;
    // Part of the sent and received bytes whose socket has several holders or was found by a wildcard.
    uint64_t uncertain_bytes;
    // Activity of the process's flows; NULL if flows are not recorded.
    const struct CaptureConnections *connections;
    // Page faults since the process started that needed no storage access.
    uint64_t minor_faults;
    // Page faults since the process started that needed storage access.
    uint64_t major_faults;
    // Number of times that the main thread gave up the CPU to wait, since it started.
    uint64_t voluntary_switches;
    // Number of times that the CPU was taken from the main thread, since it started.
    uint64_t involuntary_switches;
    // Path of the control group, see cgroups(7), in the hierarchy of version 2, as in the line `0::` of
    // `/proc/<pid>/cgroup`. If that hierarchy is not mounted and version 1 has one named `systemd`, it is
    // the path in that one. Begins with a slash and may contain any byte but NUL and newline; empty if it is
    // not known. For a removed group it is the path that the group had. The path is relative to the cgroup
    // namespace of the calling program.
    const char *cgroup;
    // Length of that path, bytes.
    size_t cgroup_length;
    // Part of the resident set that belongs to files or shared memory, which other processes may share,
    // bytes. The rest is private to the process, except for pages that it shares with its forks until one of
    // them writes. Known if memory figures are known.
    uint64_t shared_bytes;
    // Resident memory in which each page is divided among all processes that share it (PSS), bytes: sums
    // over processes are correct. Only with CAPTURE_ENABLE_PROPORTIONAL.
    uint64_t proportional_bytes;
    // Bytes requested by the process's own read calls, without those of children that it has waited for; see
    // CAPTURE_VALID_OWN_CHARS.
    uint64_t own_read_chars;
    // Bytes passed to the process's own write calls.
    uint64_t own_write_chars;
    // Bytes that the process itself has fetched from storage; see CAPTURE_VALID_OWN_BYTES. Up to 511 bytes
    // can be missing for each thread that has ended.
    uint64_t own_read_bytes;
    // Bytes that the process itself has sent to storage.
    uint64_t own_write_bytes;
} CaptureProcess;

// Receives `count` processes, `element_size` bytes apart. Called on the thread of the update.
typedef void (*CaptureProcessHandler)(void *user_data,
                                      enum CaptureAction action,
                                      const struct CaptureProcess *processes,
                                      size_t count,
                                      size_t element_size);

// One captured packet. Pointers are valid during the callback.
typedef struct CapturePacket {
    // Time of the capture, nanoseconds since the Unix epoch.
    uint64_t time_ns;
    // The captured bytes, starting with the link header.
    const uint8_t *data;
    // Number of captured bytes.
    uint32_t captured_length;
    // Length of the frame when it was captured, bytes. A frame captured before its segmentation or after a
    // merge (GSO, TSO, GRO) is one packet here, longer than the MTU, and counts as several packets in the
    // figures of processes and flows.
    uint32_t wire_length;
    // Source address, in network byte order; IPv4 addresses are mapped (::ffff:a.b.c.d).
    uint8_t source_address[16];
    // Destination address, in the same form.
    uint8_t destination_address[16];
    // Source port, in host byte order. For an ICMP echo it is the identifier, at the end that sends the
    // request. 0 if there is none.
    uint16_t source_port;
    // Destination port, in the same form.
    uint16_t destination_port;
    // IP protocol number: 6 for TCP, 17 for UDP.
    uint32_t protocol;
} CapturePacket;

// Receives `count` packets, `element_size` bytes apart. Called on the thread of the update.
typedef void (*CapturePacketHandler)(void *user_data,
                                     const struct CapturePacket *packets,
                                     size_t count,
                                     size_t element_size);

// One flow, seen from one of its ends. A flow between two processes of this host has two records. Times are
// in nanoseconds. Later versions of the library may deliver larger structures: step through the array by
// `element_size`.
typedef struct CaptureFlow {
    // Identifier of the flow, unique in the session and never reused.
    uint64_t id;
    // Known fields: CAPTURE_FLOW_VALID_ bits. A field that is not known is 0.
    uint32_t valid;
    // IP protocol number: 6 for TCP, 17 for UDP.
    uint32_t protocol;
    // Address of this end, in network byte order; IPv4 addresses are mapped (::ffff:a.b.c.d).
    uint8_t local_address[16];
    // Address of the other end, in the same form.
    uint8_t remote_address[16];
    // Port of this end, in host byte order. For an ICMP echo it is the identifier, at the end that sends the
    // request. 0 if there is none.
    uint16_t local_port;
    // Port of the other end, in the same form.
    uint16_t remote_port;
    // Quality of the owner.
    enum CaptureOwnerQuality owner_quality;
    // The process that owns this end of the flow; 0 if there is no owner.
    pid_t pid;
    // State of the flow.
    enum CaptureFlowState state;
    // Start of the process, since the Unix epoch. Together with the pid it identifies the process
    // permanently.
    uint64_t process_start_ns;
    // Inode number of the network namespace, see namespaces(7).
    uint64_t namespace_inode;
    // The socket's cookie, see SO_COOKIE in socket(7).
    uint64_t cookie;
    // The end that opened the flow.
    enum CaptureFlowRole role;
    // The kernel's number of the TCP state: 1 is established.
    uint32_t tcp_state;
    // Time of the opening, since the Unix epoch: the first SYN of a TCP connection, the first packet of any
    // other flow.
    uint64_t opened_ns;
    // Time at which the connection was connected or accepted, since the Unix epoch: the end of the
    // handshake.
    uint64_t established_ns;
    // Time of the latest packet, since the Unix epoch.
    uint64_t last_ns;
    // Bytes sent on the wire, link headers included, since the flow was first seen.
    uint64_t send_bytes;
    // Bytes received on the wire, link headers included, since the flow was first seen.
    uint64_t receive_bytes;
    // Packets sent since the flow was first seen.
    uint64_t send_packets;
    // Packets received since the flow was first seen.
    uint64_t receive_packets;
    // Time from the SYN to its answer, for a connection that this end opened.
    uint64_t connect_latency_ns;
    // The kernel's smoothed round-trip time, see tcp(7).
    uint64_t smoothed_rtt_ns;
    // Retransmitted TCP segments.
    uint64_t retransmits;
    // Number of times that data was received after data had been sent. If this end sends the requests, each
    // is a response to a request. If this end answers, the times are those that its peer takes until the
    // next request.
    uint64_t response_count;
    // Sum of the times from the last send before a receive to that receive.
    uint64_t response_sum_ns;
    // The shortest of these times.
    uint64_t response_minimum_ns;
    // The longest of these times.
    uint64_t response_maximum_ns;
    // Time from the opening to the end, or to now while the flow lasts.
    uint64_t duration_ns;
    // Reason of the flow's end.
    enum CaptureFlowReason reason;
    // The error number that the process saw or would have seen, see errno(3); 0 for an orderly end.
    int32_t error;
} CaptureFlow;

// Receives `count` flows, `element_size` bytes apart. Flows that have ended come with ACTION_REMOVE of
// CaptureAction, living ones with ACTION_UPDATE. Called on the thread of the update, as often as needed to
// deliver all flows, and not at all if there are none.
typedef void (*CaptureFlowHandler)(void *user_data,
                                   enum CaptureAction action,
                                   const struct CaptureFlow *flows,
                                   size_t count,
                                   size_t element_size);

// Handlers that receive the results of an update. Zero the structure, then set `size` to its size.
typedef struct CaptureHandlers {
    // sizeof(CaptureHandlers).
    size_t size;
    // Passed to the handlers.
    void *user_data;
    // Receives first the processes that have ended, if any, then the living ones; NULL for no handler.
    CaptureProcessHandler process;
    // Receives the packets; if NULL, the packets stay held.
    CapturePacketHandler packet;
    // Maximum number of packets to deliver; 0 for all that are held.
    uint64_t packet_limit;
    // Receives first the flows that ended a third of a second or more ago, then the living ones. It receives
    // the flows of all processes, also if only some processes are selected. If NULL, the ended flows stay
    // held.
    CaptureFlowHandler flow;
} CaptureHandlers;

// Statistics of what the session captured and lost. They cover the time since the session was opened unless
// a field says otherwise. An owner may be found late: the counters of bytes without an owner, by reason,
// then decrease.
typedef struct CaptureStats {
    // sizeof(CaptureStats), set by the caller.
    size_t size;
    // Frames captured.
    uint64_t frames;
    // Bytes of these frames, as captured.
    uint64_t frame_bytes;
    // Frames cut inside a required header: `snaplen` is too small.
    uint64_t undecoded_truncated;
    // Frames that contain no IP packet.
    uint64_t undecoded_not_ip;
    // Frames whose headers contradict themselves.
    uint64_t undecoded_malformed;
    // Frames lost because a capture buffer was full.
    uint64_t lost_in_kernel;
    // Frames lost by a device or its driver.
    uint64_t lost_in_device;
    // Packets lost because the caller did not fetch them in time.
    uint64_t lost_packets;
    // Lines of the log lost because they were not fetched in time or could not be written to the file.
    uint64_t lost_log_lines;
    // Devices that are currently captured on.
    uint64_t devices;
    // Flows currently held.
    uint64_t flows;
    // Flows that expired.
    uint64_t flows_expired;
    // Flows evicted because `flow_limit` was reached, or the limit of flows without an answer.
    uint64_t flows_evicted;
    // Flows currently waiting for their owner.
    uint64_t flows_waiting;
    // Bytes whose owner is the only holder of the flow's socket.
    uint64_t bytes_exact;
    // Bytes whose owner is one of several holders of the socket.
    uint64_t bytes_shared;
    // Bytes whose owner was found by a wildcard.
    uint64_t bytes_guessed;
    // Bytes whose owner is still being looked up.
    uint64_t bytes_pending;
    // Bytes of flows that are in no socket table: closed before they could be looked up, or answered by the
    // kernel. The bytes of a TCP connection that the other end opens are among them until its handshake is
    // complete.
    uint64_t bytes_no_socket;
    // Bytes of sockets that no process holds.
    uint64_t bytes_no_holder;
    // Bytes that match sockets of several processes, with nothing to distinguish them.
    uint64_t bytes_ambiguous;
    // Bytes of sockets whose holder could not be read because a capability is missing.
    uint64_t bytes_not_permitted;
    // Bytes of flows that appeared while too many others waited for their owner.
    uint64_t bytes_queue_full;
    // Bytes of later fragments whose first fragment was not captured.
    uint64_t bytes_fragment;
    // Bytes forwarded or overheard: neither end is in the network namespace where they were captured. This
    // includes packets in which this host has replaced one of the addresses with its own (masquerading,
    // published ports). With `namespaces` it also includes the packets that other namespaces send and
    // receive through this one; they are counted in the namespace of their ends as well.
    uint64_t bytes_not_local;
    // Bytes of messages that the kernel sends and answers itself, such as echo requests to this host and
    // their replies, and of protocols whose sockets cannot be looked up.
    uint64_t bytes_no_ports;
    // Bytes of processes that had already been reported as ended.
    uint64_t bytes_owner_ended;
    // Bytes whose owner is unknown because a file of /proc could not be read.
    uint64_t bytes_unreadable;
    // Processes whose figures could not be read or parsed.
    uint64_t processes_skipped;
    // Duration of the last update without its callbacks, nanoseconds.
    uint64_t update_ns;
    // Missing capabilities that would make more figures available, one bit for each number in capability.h:
    // bit 13 is CAP_NET_RAW.
    uint64_t missing_capabilities;
    // First packets of flows that were observed as they arrived, before the capture's batch. Their owner is
    // looked up early, while the socket exists. If there are too many, only some are looked up early, and the
    // others later.
    uint64_t early_lookup_packets;
    // Owners found by early lookups. A connection within the machine has one at each end.
    uint64_t early_lookup_found;
    // Flows whose socket no longer existed at the early lookup, or that never had one.
    uint64_t early_lookup_too_late;
    // Flows whose socket existed at the early lookup, but whose process was not among the candidates. Their
    // owner is looked up later.
    uint64_t early_lookup_not_found;
    // First packets without an early lookup because too many others were waiting.
    uint64_t early_lookup_queue_full;
    // Owners found by early lookups that were evicted for lack of space, possibly before they were used.
    uint64_t early_lookup_evicted;
    // TCP connections observed from their opening on that have ended and whose socket then stated how many
    // bytes it had carried. 0 if connections are not checked: with `devices`, a `filter` or a `savefile`,
    // and if the kernel does not permit it.
    uint64_t connections_checked;
    // Checked connections of which the capture had less than the socket had carried: packets were lost.
    uint64_t connections_incomplete;
    // Lower bound of the bytes that were missing from these connections. They are credited to the owner of
    // the connection a second or two after its end. They are contained in the other counters of bytes with
    // and without owners (in `bytes_owner_ended` if the process was reported as ended before), but not in
    // `frame_bytes`.
    uint64_t bytes_recovered;
    // Notices of closed connections that were lost because too many arrived at once. These connections were
    // not checked.
    uint64_t close_events_lost;
    // Devices that are currently being opened or closed in the background.
    uint64_t devices_pending;
    // Records of ended flows lost because the caller did not fetch them in time.
    uint64_t lost_flows;
    // Frames that engine `pcap` captured before their segmentation or after a merge (GSO, TSO, GRO). Each is
    // several packets on the wire.
    uint64_t offloaded_frames;
    // Number of packets that these frames are counted as. It is estimated from the MTU of the device, the
    // largest segment that both ends of a TCP connection accept, and the headers of the frame. It is exact
    // if segments are as large as these allow, and too low otherwise. The frames of a savefile are counted
    // as they are.
    uint64_t offloaded_packets;
    // Bytes of the headers that these packets have on the wire and the frames do not have. They are
    // contained in the counters of bytes with and without owners, but not in `frame_bytes`.
    uint64_t estimated_bytes;
    // The engine in use, `CAPTURE_ENGINE_PCAP` or `CAPTURE_ENGINE_KERNEL`.
    enum CaptureEngine engine;
    // State of the eBPF programs that report which process uses a socket and count its traffic.
    enum CaptureProbeState socket_probes;
    // State of the eBPF programs that sample all processes at once. Also `CAPTURE_PROBE_STATE_OFF` if at
    // most 64 processes are selected by pid. If they are active, all figures except command lines are
    // reported for every process, including those that /proc would hide.
    enum CaptureProbeState sample_probes;
    // Parts of the socket programs that are active, CAPTURE_PROGRAMS_ bits; 0 unless `socket_probes` is
    // `CAPTURE_PROBE_STATE_ACTIVE`. The log names each eBPF program that the kernel refuses, and the reason.
    uint32_t socket_programs;
    // Bytes, by the devices' own counters, that passed devices before the session captured on them, or until
    // they disappeared if it never did. This covers devices captured with engine `pcap` that appeared after
    // the session was opened, including those of network namespaces. These bytes are in no other counter. A
    // namespace that appeared and disappeared unobserved is not covered.
    uint64_t bytes_before_capture;
    // Time at which the last update began to sample the processes, in nanoseconds of CLOCK_MONOTONIC; 0
    // before the first update. A rate is the difference of two totals by the difference of these times.
    uint64_t sampled_ns;
    // The same time of the update before; 0 before the second update.
    uint64_t sampled_before_ns;
    // 1 once the savefile was read to its end and all of it is counted; otherwise 0.
    uint64_t replay_finished;
} CaptureStats;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Opens the program's session. It may be opened again after `CaptureExit`.
//
// A NULL config means the defaults. Either callback may be NULL; its data is then not gathered. If
// privileges are missing, the session opens with what it may read, and the log states what is missing. On
// failure the function returns one of CaptureCode, and `errorbuf`, unless NULL, receives the text. Fails
// with CAPTURE_CODE_INVALID_ARGUMENT if an option is not valid, and with CAPTURE_CODE_ALREADY_OPEN if the
// session is open.
//
// Requirements:
// `config` is NULL or points to a complete structure. Its strings are NULL or NUL-terminated. Its errorbuf
// is NULL or has room for CAPTURE_ERROR_SIZE bytes. The callbacks may be called until `CaptureExit` returns.
int32_t CaptureInit(const struct CaptureInitt *config,
                    ProcessInfoCallback process_callback,
                    PacketCallback packet_callback);

// Samples every process and runs the callbacks on the calling thread. First comes `ACTION_REMOVE`, once for
// each process that has ended, with its last figures. Then comes `ACTION_UPDATE`, once with all living
// processes. Then come the packets captured since the last update: at most `cnt` of them, or all that are
// held if `cnt` is -1.
//
// The update does not wait for packets that are still in a capture buffer. `ACTION_REMOVE` comes with the
// first update after a process's last packets were counted: the read timeout and some milliseconds after its
// end was found, at most the read timeout and 2 s. Until then the process is in no `ACTION_UPDATE`. For
// final figures, update once more before `CaptureExit`, after that time.
//
// A callback may throw a C++ exception. It passes through, and the next update delivers the rest. Reads of
// /proc that do not return are treated as in `CaptureSessionUpdate`; in this interface the figures of such a
// process are 0.
//
// Fails with CAPTURE_CODE_INVALID_ARGUMENT if `cnt` is less than -1, with CAPTURE_CODE_NOT_INITIALISED if no
// session is open, with CAPTURE_CODE_BUSY if another call runs, and with CAPTURE_CODE_FORKED in a process
// forked from the one that opened the session.
//
// Requirements:
// The callbacks that were passed to `CaptureInit` may still be called.
int32_t CaptureUpdate(int32_t cnt);

// Ends the capture, joins the library's threads and releases everything. No callback runs after the function
// has returned. Threads that wait in reads of /proc are treated as in `CaptureSessionClose`. Fails with
// CAPTURE_CODE_NOT_INITIALISED if no session is open, with CAPTURE_CODE_BUSY if another call runs, and with
// CAPTURE_CODE_FORKED in a process forked from the one that opened the session.
int32_t CaptureExit(void);

// Opens a session and stores it in `*session`, or stores NULL there on failure. NULL options mean the
// defaults.
//
// If privileges are missing, the session opens with what it may read. The log and `missing_capabilities` of
// CaptureStats state what would make the rest available. Close the session with `CaptureSessionClose`.
//
// Returns CAPTURE_OK or one of CaptureCode. Fails with CAPTURE_CODE_INVALID_ARGUMENT if `session` is NULL or
// an option is not valid.
//
// Requirements:
// `options` is NULL or a structure whose `size` is set and whose pointers are NULL or valid. `session` is
// writable or NULL; NULL is an error.
int32_t CaptureSessionOpen(const struct CaptureOptions *options, struct CaptureSession **session);

// Samples every process and runs the handlers on the calling thread. The order is: the log's lines, the
// processes that have ended, with their last figures, the living processes, the flows, the packets. NULL
// handlers only sample: the processes that have ended are then not reported at all, while ended flows and
// packets stay held.
//
// The update does not wait for packets that are still in a capture buffer. A process that has ended is
// delivered as ended once, with complete figures, by the first update after its last packets were counted:
// the read timeout and some milliseconds after its end was found, at most the read timeout and 2 s. Until
// then it is delivered neither as ended nor as living. For final figures, update once more before the
// session is closed. With `CAPTURE_ENABLE_WAIT_FOR_ENDED` the update waits for these packets instead. If flows are
// recorded, the update waits for the capture thread to deliver the living flows, a few milliseconds and at
// most 200 ms; if they are late, it delivers those of the previous update.
//
// A handler may throw a C++ exception, which passes through. longjmp(3) must not leave a handler: the
// session could never be closed.
//
// Other processes can keep reads of /proc from returning: a page fault on a dead file server locks a
// process's memory, and an exec that closes a file there locks its other figures. The update waits a quarter
// of a second for such a read when it encounters the read for the first time, and at most two seconds for all
// such reads of its samples. Then it continues without them. Figures that could not be read are not valid;
// if BPF iterators sample the processes, this concerns only the command line. A thread continues to wait.
// Such a process is read again one second after its read has returned, and after twice as long each further
// time, up to 300 s. At most 16 threads of a program wait, 8 of them for command lines and control groups.
// Beyond that, no such file of any process is read until one of these reads returns.
//
// Fails with CAPTURE_CODE_NOT_INITIALISED if `session` is NULL, with CAPTURE_CODE_INVALID_ARGUMENT if the
// `size` of `handlers` is not plausible or an unknown field is set, with CAPTURE_CODE_BUSY if another call
// on the session runs, and with CAPTURE_CODE_FORKED in a process forked from the opener. No handler runs
// then. Fails with CAPTURE_CODE_PROCESS_OPEN_DIRECTORY if /proc itself cannot be read, with
// CAPTURE_CODE_SAVEFILE, once, if the savefile broke off, and with CAPTURE_CODE_SESSION_FAILED, from then
// on, if a thread of the session has failed. The handlers still run in these cases.
//
// Requirements:
// `session` is open or NULL; NULL is an error. `handlers` is NULL or a structure whose `size` is set.
int32_t CaptureSessionUpdate(struct CaptureSession *session,
                             const struct CaptureHandlers *handlers);

// Passes the packets held so far to the packet handler, and the log's lines to the log handler, without sampling
// processes: between two updates, as often as packets are to be taken. The other handlers are not called.
//
// Fails with CAPTURE_CODE_NOT_INITIALISED if `session` is NULL, with CAPTURE_CODE_INVALID_ARGUMENT if
// `handlers` is NULL, its `size` is not plausible or an unknown field is set, with CAPTURE_CODE_BUSY if another
// call on the session runs, and with CAPTURE_CODE_FORKED in a process forked from the opener. No handler runs
// then.
//
// Requirements:
// `session` is open or NULL; NULL is an error. `handlers` is a structure whose `size` is set, or NULL; NULL is
// an error.
int32_t CaptureSessionPackets(struct CaptureSession *session,
                              const struct CaptureHandlers *handlers);

// Returns the session's descriptor, or -1 on failure. It is readable when packets are held, when
// `interval_ms` have passed since the last update, when a savefile has been read to its end, and when the
// session has failed: poll it, then update. The descriptor belongs to the session: do not read or close it.
//
// Fails if `session` is NULL, or in a process forked from the opener; `CaptureErrorText` has the reason.
//
// Requirements:
// `session` is NULL or open.
int32_t CaptureSessionDescriptor(const struct CaptureSession *session);

// Fills `*stats`, up to its `size`. May be called from any thread, also while an update runs.
//
// Fails with CAPTURE_CODE_NOT_INITIALISED if `session` is NULL, with CAPTURE_CODE_INVALID_ARGUMENT if
// `stats` is NULL or its `size` is not plausible, and with CAPTURE_CODE_FORKED in a process forked from the
// opener.
//
// Requirements:
// `session` is open or NULL; NULL is an error. `stats` has `size` writable bytes or is NULL; NULL is an
// error.
int32_t CaptureSessionStats(const struct CaptureSession *session, struct CaptureStats *stats);

// Ends the capture, joins the session's threads and releases everything; `session` is then invalid. Fails,
// without closing the session, with CAPTURE_CODE_FORKED in a process forked from the opener and with
// CAPTURE_CODE_BUSY while another call on the session runs. Fails with CAPTURE_CODE_NOT_INITIALISED if
// `session` is NULL.
//
// If a thread waits in a read of /proc that does not return, the call waits for it a quarter of a second and
// leaves it behind. When the read returns, the thread ends and releases what it holds: its memory, the
// descriptors that it was reading with, those that it found owners with, and the log file. The thread
// executes code of the library, which stays in memory even after dlclose(3).
//
// Requirements:
// `session` is open or NULL; NULL is an error.
int32_t CaptureSessionClose(struct CaptureSession *session);

// Returns the version of the loaded library: major * 65536 + minor * 256 + patch. May be called from any
// thread at any time.
uint32_t CaptureVersion(void);

// Returns a short description of a code. The string is never NULL and remains valid forever. May be called
// from any thread at any time.
const char *CaptureStrError(int32_t code);

// Returns the text of the last failure in the calling thread: what the call attempted, and what would help.
// Empty if no call has failed. Valid until the next failure in this thread or until the thread ends.
const char *CaptureErrorText(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* LIBCAPTURE_H */
