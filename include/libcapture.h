/* libcapture: per-process network bytes, CPU, memory, descriptors and I/O on Linux.
 *
 * Two interfaces. The classic one, CaptureInit, CaptureUpdate and CaptureExit, keeps one session for the whole
 * program. The session interface, CaptureSession..., has as many as you like, with handlers that take user data,
 * natural units (bytes, nanoseconds) and statistics.
 *
 * Threads: the library works on threads of its own, which block all signals. Callbacks run on the thread that called
 * the update, inside that call. No call takes more than 32 KB of the calling thread's stack, callbacks not counted.
 * Namespaces and privileges are those of the thread that opens a session. A session may be used from any thread, one call at a time: a
 * second call at the same time, also one made from a callback, returns CAPTURE_CODE_BUSY at once. After a fork
 * the child cannot use the parent's sessions (CAPTURE_CODE_FORKED), but may open its own.
 *
 * Descriptors: those of a session are in a table of its own. Children and programs that the host starts do not inherit
 * them, closefrom() does not close them, and RLIMIT_NOFILE counts them apart from the host's. Only the descriptor that
 * CaptureSessionDescriptor() returns is in the host's table.
 *
 * Errors: functions return 0 or one of CaptureCode; CaptureErrorText() then says what was tried and what would
 * help.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef LIBCAPTURE_H
#define LIBCAPTURE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

// Bytes of `name`, `user`, `group` and `hash`, ending NUL included.
#define CAPTURE_COMMAN_SIZE 128

// Bytes of `cmdline`, ending NUL included.
#define CAPTURE_CMDLINE_SIZE 512

// Room that `errorbuf` must have, ending NUL included.
#define CAPTURE_ERROR_SIZE 256

// Version of this header. Programs compiled against it work with any library of the same major version.
#define CAPTURE_VERSION_MAJOR 1

// Grows when something is added.
#define CAPTURE_VERSION_MINOR 0

// Grows with every release that only mends.
#define CAPTURE_VERSION_PATCH 0

// What every function returns when it succeeded.
#define CAPTURE_OK 0

// Set in `valid`: the network namespace is known.
#define CAPTURE_FLOW_VALID_NAMESPACE 1

// Set in `valid`: the time of the opening is known.
#define CAPTURE_FLOW_VALID_OPENED 2

// Set in `valid`: the connection was established, and it is known when.
#define CAPTURE_FLOW_VALID_ESTABLISHED 4

// Set in `valid`: it is known which end opened the flow.
#define CAPTURE_FLOW_VALID_ROLE 8

// Set in `valid`: bytes, packets and the time of the latest packet are known.
#define CAPTURE_FLOW_VALID_TRAFFIC 16

// Set in `valid`: it is known how long connecting took.
#define CAPTURE_FLOW_VALID_CONNECT_LATENCY 32

// Set in `valid`: the kernel has measured the round-trip time.
#define CAPTURE_FLOW_VALID_SMOOTHED_RTT 64

// Set in `valid`: it is known how much was sent again.
#define CAPTURE_FLOW_VALID_RETRANSMITS 128

// Set in `valid`: times from request to response are known; there may have been none yet.
#define CAPTURE_FLOW_VALID_RESPONSE 256

// Set in `valid`: it is known how long the flow has lasted.
#define CAPTURE_FLOW_VALID_DURATION 512

// Set in `valid`: it is known why the flow ended.
#define CAPTURE_FLOW_VALID_REASON 1024

// Set in `valid`: the error number is known.
#define CAPTURE_FLOW_VALID_ERROR 2048

// Set in `valid`: the kernel's number of the TCP state is known.
#define CAPTURE_FLOW_VALID_TCP_STATE 4096

// Set in `valid`: the socket's cookie is known.
#define CAPTURE_FLOW_VALID_COOKIE 8192

// Counts of response times in `CaptureConnections`.
#define CAPTURE_RESPONSE_BUCKETS 32

// Do not capture packets; network figures are then marked unavailable.
#define CAPTURE_SKIP_NETWORK 1

// Do not read memory figures.
#define CAPTURE_SKIP_MEMORY 2

// Do not read I/O figures.
#define CAPTURE_SKIP_IO 4

// Do not count descriptors.
#define CAPTURE_SKIP_DESCRIPTORS 8

// Do not read command lines.
#define CAPTURE_SKIP_COMMAND_LINE 16

// Load no programs into the kernel; owners are then looked for in sockets and descriptors alone.
#define CAPTURE_SKIP_PROBES 32

// Read context switches also where that takes another read of `/proc` for each process.
#define CAPTURE_MORE_SWITCHES 1

// Tell the control group of each process, which takes another read of `/proc` for each unless programs in the kernel
// sample.
#define CAPTURE_MORE_CGROUPS 2

// Read the proportional share of memory of each process (`proportional_bytes`), for which the kernel looks at each of its
// pages with every update: some 0.1 ms, and more the more memory it has.
#define CAPTURE_MORE_PROPORTIONAL 4

// Wait in an update in which processes have ended until their last packets were counted, no longer than the read timeout
// and 100 ms, so that they are delivered as ended by the same update.
#define CAPTURE_MORE_WAITING 8

// In `CaptureStats.socket_programs`: sockets are recorded as they are created and closed.
#define CAPTURE_PROGRAMS_SOCKETS 1

// In `CaptureStats.socket_programs`: TCP connections are recorded as they open and close.
#define CAPTURE_PROGRAMS_CONNECTIONS 2

// In `CaptureStats.socket_programs`: calls that send show which process uses a socket.
#define CAPTURE_PROGRAMS_SENDS 4

// In `CaptureStats.socket_programs`: so do calls that receive.
#define CAPTURE_PROGRAMS_RECEIVES 8

// In `CaptureStats.socket_programs`: packets are seen at their sockets.
#define CAPTURE_PROGRAMS_PACKETS 16

// In `CaptureStats.socket_programs`: packets are seen that do not come from the IP layer, those of packet sockets and
// the kernel's own acknowledgements for connections that have ended.
#define CAPTURE_PROGRAMS_DIRECT_PACKETS 32

// In `CaptureStats.socket_programs`: packets are seen that arrive for connections that have ended.
#define CAPTURE_PROGRAMS_LATE_PACKETS 64

// Set in `valid`: CPU times, page faults, state, threads, parent and start time are known.
#define CAPTURE_VALID_CPU 1

// Set in `valid`: memory figures are known.
#define CAPTURE_VALID_MEMORY 2

// Set in `valid`: I/O figures are known.
#define CAPTURE_VALID_IO 4

// Set in `valid`: the number of descriptors is known.
#define CAPTURE_VALID_DESCRIPTORS 8

// Set in `valid`: the command line is known.
#define CAPTURE_VALID_COMMAND_LINE 16

// Set in `valid`: user and group are known.
#define CAPTURE_VALID_USER 32

// Set in `valid`: bytes and packets are known, since they are counted in the network namespace that the process is in. Also
// where some were counted of a socket that it holds of another namespace.
#define CAPTURE_VALID_NETWORK 64

// Set in `valid`: there was an earlier sample of the same process to compute the percentage from.
#define CAPTURE_VALID_CPU_PERCENT 128

// Set in `valid`: flows are recorded where its bytes are counted.
#define CAPTURE_VALID_CONNECTIONS 256

// Set in `valid`: context switches are known.
#define CAPTURE_VALID_SWITCHES 512

// Set in `valid`: the control group is known.
#define CAPTURE_VALID_CGROUP 1024

// Set in `valid`: bytes of storage are known of the process itself, without its children. Programs in the kernel tell them
// always, `/proc` until the process has waited for a child.
#define CAPTURE_VALID_OWN_BYTES 2048

// Set in `valid`: so are bytes of calls. Programs in the kernel tell them unless threads of the process have ended and
// children were waited for.
#define CAPTURE_VALID_OWN_CHARS 4096

// Set in `valid`: the proportional share of memory is known.
#define CAPTURE_VALID_PROPORTIONAL 8192

// How the library was to wait for packets. Accepted for compatibility; it changes nothing.
typedef enum LoopType {
    // select(2).
    SELECT,
    // epoll(7).
    EPOLL,
    // Neither.
    NONE,
} LoopType;

// What is said of the processes handed to a callback.
typedef enum CaptureAction {
    // They live; these are their figures now.
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

// How important a line of the log is.
typedef enum CaptureLogLevel {
    // As an option: the default, which is `CAPTURE_LOG_LEVEL_INFO`. No line has it.
    CAPTURE_LOG_LEVEL_DEFAULT,
    // Something does not work.
    CAPTURE_LOG_LEVEL_ERROR,
    // Something works only in part.
    CAPTURE_LOG_LEVEL_WARN,
    // Something of note happened.
    CAPTURE_LOG_LEVEL_INFO,
    // For finding faults.
    CAPTURE_LOG_LEVEL_DEBUG,
    // For finding faults, in great detail.
    CAPTURE_LOG_LEVEL_TRACE,
    // As an option: nothing is logged. No line has it.
    CAPTURE_LOG_LEVEL_OFF,
} CaptureLogLevel;

// How bytes are counted.
typedef enum CaptureEngine {
    // Packets are captured and each flow's owner is looked for. The default.
    CAPTURE_ENGINE_PCAP,
    // The kernel counts at each socket; no packet is captured. Takes CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN.
    CAPTURE_ENGINE_KERNEL,
    // As `CAPTURE_ENGINE_KERNEL` where that is possible and `devices`, `savefile`, `filter` and `packet_bytes` are not
    // set, else as `CAPTURE_ENGINE_PCAP`.
    CAPTURE_ENGINE_AUTO,
} CaptureEngine;

// How sure the owner of a flow is.
typedef enum CaptureFlowOwner {
    // There is none: it is being looked for, or was not found.
    CAPTURE_FLOW_OWNER_NONE,
    // The process is the one holder of the flow's socket.
    CAPTURE_FLOW_OWNER_EXACT,
    // It is one of several holders of the socket.
    CAPTURE_FLOW_OWNER_SHARED,
    // Its socket was found by a wildcard.
    CAPTURE_FLOW_OWNER_GUESSED,
} CaptureFlowOwner;

// How far a flow has come.
typedef enum CaptureFlowState {
    // It cannot be told.
    CAPTURE_FLOW_STATE_UNKNOWN,
    // A TCP connection whose handshake is not complete; of other protocols, packets one way only.
    CAPTURE_FLOW_STATE_OPENING,
    // Data can pass both ways.
    CAPTURE_FLOW_STATE_OPEN,
    // One end has finished sending, or both have and the last record is yet to come.
    CAPTURE_FLOW_STATE_CLOSING,
    // It is over, and this is the last record of it.
    CAPTURE_FLOW_STATE_ENDED,
} CaptureFlowState;

// Which end opened a flow.
typedef enum CaptureFlowRole {
    // It cannot be told.
    CAPTURE_FLOW_ROLE_UNKNOWN,
    // This end sent the first packet.
    CAPTURE_FLOW_ROLE_OPENED,
    // The other end did.
    CAPTURE_FLOW_ROLE_ACCEPTED,
} CaptureFlowRole;

// Why a flow ended.
typedef enum CaptureFlowReason {
    // It cannot be told, or the protocol has no end: the flow was silent for so long that it was let go.
    CAPTURE_FLOW_REASON_UNKNOWN,
    // Both ends finished sending.
    CAPTURE_FLOW_REASON_ORDERLY,
    // The other end broke it off.
    CAPTURE_FLOW_REASON_RESET,
    // The other end did not answer for too long. No packet says so: it is concluded from a socket that went when the
    // kernel would have sent again.
    CAPTURE_FLOW_REASON_TIMED_OUT,
    // The other end refused to be connected to.
    CAPTURE_FLOW_REASON_REFUSED,
    // This end broke it off.
    CAPTURE_FLOW_REASON_ABORTED,
} CaptureFlowReason;

// What has become of a group of programs in the kernel. Where they are not at work the session goes on with what it
// can read otherwise, and the log says more.
typedef enum CaptureProbeState {
    // Not asked for.
    CAPTURE_PROBE_STATE_OFF,
    // At work.
    CAPTURE_PROBE_STATE_ACTIVE,
    // The library was built without them.
    CAPTURE_PROBE_STATE_NOT_BUILT,
    // The kernel does not describe its types (CONFIG_DEBUG_INFO_BTF).
    CAPTURE_PROBE_STATE_NO_TYPES,
    // A capability is missing, or the kernel is locked down.
    CAPTURE_PROBE_STATE_NOT_PERMITTED,
    // The kernel does not know something that the programs need.
    CAPTURE_PROBE_STATE_NOT_SUPPORTED,
    // Out of memory, or the limit of locked memory is reached (RLIMIT_MEMLOCK).
    CAPTURE_PROBE_STATE_NO_MEMORY,
    // There is no cgroup v2 hierarchy to attach to.
    CAPTURE_PROBE_STATE_NO_CGROUP,
    // The session sees another PID namespace than the first one.
    CAPTURE_PROBE_STATE_PID_NAMESPACE,
    // No descriptor is left: the limit of the process (RLIMIT_NOFILE) or of the system is reached.
    CAPTURE_PROBE_STATE_NO_DESCRIPTOR,
} CaptureProbeState;

// Why a call failed. Functions return 0 for success. Numbers are never reused and never renumbered.
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

// A session. It belongs to the process that opened it, not to a process forked from that one.
typedef struct CaptureSession CaptureSession;

// How `CaptureInit` is to capture. All zero is valid and means the defaults.
typedef struct CaptureInitt {
    // File that the log is appended to; NULL for none. As `log_file` of CaptureOptions.
    const char *logfile;
    // Capture read timeout, milliseconds, up to 60000; 0 for 100.
    int32_t ms;
    // Bytes kept of each packet, up to 262144; 0 for 128.
    int32_t snaplen;
    // Whether devices are put in promiscuous mode: 0 or not 0.
    int32_t promise;
    // Filter expression, see pcap-filter(7); NULL for all packets.
    const char *fliter;
    // NULL, or room for CAPTURE_ERROR_SIZE bytes of error text.
    char *errorbuf;
    // One of LoopType; changes nothing.
    enum LoopType loop;
} CaptureInitt;

// Figures of one process. Text is as the kernel gave it, always NUL-terminated.
typedef struct Process_s {
    // Name; cut to 127 bytes, never inside a UTF-8 character.
    char name[CAPTURE_COMMAN_SIZE];
    // Arguments separated by spaces; cut to 511 bytes in the same way.
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
    // Bytes asked for by read calls since the process started.
    uint64_t ioRead;
    // Bytes handed to write calls since the process started.
    uint64_t ioWrite;
    // Bytes received on the wire, link headers included, since the process was first seen.
    uint64_t recv;
    // Bytes sent on the wire, link headers included, since the process was first seen.
    uint64_t send;
} Process_s;

// Figures of one process.
typedef struct Process_s Process_t;

// Receives `*size` processes. Called inside `CaptureUpdate`, on its thread; the array is valid during the call.
typedef void (*ProcessInfoCallback)(enum CaptureAction action, const Process_t *processes, uint32_t *size);

// One captured TCP or UDP packet.
typedef struct Packet_s {
    // `source:port-destination:port` in the packet's own direction; IPv6 addresses in brackets.
    char hash[CAPTURE_COMMAN_SIZE];
    // Transport protocol.
    enum PacketType family;
    // The captured bytes from the link header on, the smaller of packetSize and snaplen; valid during the callback.
    uint8_t *packet;
    // Length of the frame when it was captured, bytes: longer than the MTU where it is several packets on the wire (GSO,
    // TSO, GRO).
    uint32_t packetSize;
} Packet_s;

// One captured TCP or UDP packet.
typedef struct Packet_s Packet_t;

// Receives `*size` packets. Called inside `CaptureUpdate`, on its thread; the array is valid during the call.
typedef void (*PacketCallback)(const Packet_t *packets, uint32_t *size);

// Receives one line of the log, NUL-terminated and without a line end, valid during the call. Called on the
// caller's thread only, inside `CaptureSessionOpen`, `CaptureSessionUpdate` and `CaptureSessionClose`.
typedef void (*CaptureLogHandler)(void *user_data, enum CaptureLogLevel level, const char *text);

// How `CaptureSessionOpen` is to monitor. Zero the structure, then set `size` to its size; every other zero
// means the default.
typedef struct CaptureOptions {
    // sizeof(CaptureOptions).
    size_t size;
    // Devices to capture on, separated by commas; NULL, or `any` among them, for every usable one, loopback included.
    const char *devices;
    // A savefile to read packets from instead, as fast as possible; NULL for live capture.
    const char *savefile;
    // Filter expression, see pcap-filter(7); NULL for all packets.
    const char *filter;
    // Addresses taken as this host's besides its own, separated by commas; NULL for none. For savefiles that
    // were recorded on another host.
    const char *local_addresses;
    // Deliver only processes with one of these ids; NULL for all.
    const pid_t *pids;
    // Number of ids.
    size_t pid_count;
    // Deliver only processes of one of these users, by name or number; NULL for all.
    const char *const *users;
    // Number of users.
    size_t user_count;
    // Deliver only processes with one of these names; NULL for all. The kernel keeps 15 bytes of a name: a longer one is
    // compared with the names of the program's file, of its first argument and of its second one (that of a script), of
    // processes whose name is its beginning; their command lines are then read even if they are to be skipped.
    const char *const *names;
    // Number of names.
    size_t name_count;
    // File that the log is appended to; NULL for none. A regular file, made if there is none, or a character device;
    // symbolic links are followed, and nothing is waited for. When the name is another file, after a rotation of logs, that
    // is opened before the next line.
    const char *log_file;
    // Receives the log's lines; NULL for nobody.
    CaptureLogHandler log_handler;
    // Handed to `log_handler`.
    void *log_user_data;
    // The least important level that is logged.
    enum CaptureLogLevel log_level;
    // What not to do: CAPTURE_SKIP_ bits.
    uint32_t skip;
    // 1 to put devices in promiscuous mode.
    uint32_t promiscuous;
    // Bytes kept of each packet, up to 262144; 0 for 128.
    uint32_t snaplen;
    // Longest time the kernel gathers packets before handing them over, milliseconds, up to 60000; 0 for 100.
    uint32_t timeout_ms;
    // The session's descriptor becomes readable when this many milliseconds have passed since the last update;
    // 0 for never.
    uint32_t interval_ms;
    // Capture buffer of each device, bytes, 524288 to 1073741824; 0 for 8388608.
    uint64_t buffer_bytes;
    // Most flows held at once, up to 16777216; 0 for 1000000, or in a control group whose memory is limited for as many as
    // take a quarter of it, at least 2048.
    uint64_t flow_limit;
    // Most bytes of packets held for the packet handler, up to 1073741824; 0 keeps no packets.
    uint64_t packet_bytes;
    // Network namespaces to count in besides that of the calling thread: "own" for none, "all", or paths such as
    // /run/netns/blue or /proc/1234/ns/net, separated by commas; NULL for none where packets are captured, and for all
    // where the kernel counts, which it does in each of them anyway. Processes in others have no CAPTURE_VALID_NETWORK.
    // To capture in others, they are entered, which takes CAP_SYS_ADMIN and CAP_SYS_PTRACE. Each takes five
    // descriptors, and one for each device in it. At most 254 are captured in, and
    // no more than one for every 16 descriptors that the process may open (RLIMIT_NOFILE): 64 where that is 1024.
    // What "all" finds on top is left out until others have gone, which the log says once; more paths are refused.
    const char *namespaces;
    // How bytes are counted.
    enum CaptureEngine engine;
    // 1 to record flows, for the flow handler and for the `connections` of processes. Costs some 170 bytes of memory
    // more for each flow, and with live capture a look at all TCP sockets with each update.
    uint32_t flows;
    // Most records of ended flows held for the flow handler, up to 16777216, some 250 bytes each; 0 for 65536, or in a
    // control group whose memory is limited for as many as take a sixteenth of it, at least 2048. What comes on top takes
    // the place of the oldest.
    uint32_t ended_flow_limit;
    // What to do besides: CAPTURE_MORE_ bits.
    uint32_t more;
} CaptureOptions;

// What the flows of one process did since it was first seen. The ends of flows take nothing away.
typedef struct CaptureConnections {
    // TCP connections that it began to open, those that came to nothing included.
    uint64_t connects;
    // TCP connections opened by others to it and established.
    uint64_t accepts;
    // TCP connections of either kind that it closed or that broke off; each counts once.
    uint64_t closes;
    // How often data was sent, on flows of every protocol: captured frames with payload, of which one may carry the
    // data of several calls, and several that of one call. With engine `kernel` calls that sent, and datagrams.
    uint64_t sends;
    // How often data was received, counted in the same way.
    uint64_t receives;
    // Times from request to response on all its flows, counted by their length: the first those below 2 microseconds,
    // number n those of at least 2^n microseconds and less than twice that, the last also all that are longer.
    uint64_t responses[CAPTURE_RESPONSE_BUCKETS];
} CaptureConnections;

// Figures of one process. Text is NUL-terminated and may hold any other byte; pointers are valid during the
// callback. Later versions of the library may hand over larger structures: step through the array by
// `element_size`.
typedef struct CaptureProcess {
    // Which figures are known: CAPTURE_VALID_ bits. A figure that is not known is 0. Figures that only grow can become
    // unknown for a while, and known again; of a process that ends meanwhile the last that were known are delivered.
    uint32_t valid;
    // Process id.
    pid_t pid;
    // Parent's process id.
    pid_t parent;
    // Effective user id.
    uid_t uid;
    // Effective group id.
    gid_t gid;
    // Number of threads, the main one included also when it has ended.
    uint32_t threads;
    // Open descriptors: entries in the table of the main thread, or of another one if that has ended. Threads that have
    // left this table (CLONE_FILES) have tables of their own, which are not counted. Where figures come from `/proc` (see
    // `sample_probes` in CaptureStats) and Linux is 6.2 or later, numbers count too that calls in progress have reserved:
    // one for each thread that waits in accept(2), or opens a FIFO or a file that does not answer.
    uint32_t descriptors;
    // State of the main thread: one of the letters R, S, D, Z, T, t, X, I; see proc_pid_stat(5). Z with more than one thread
    // means that the main thread has ended and others go on: memory, descriptors and command line are then read of one of
    // these.
    uint32_t state;
    // Name. A process that executes a program or renames itself after an update and ends before the next is delivered with
    // its last name where programs in the kernel sample processes (`sample_probes` in CaptureStats), unless some 2,000
    // others have changed theirs since. It has its last command line, and elsewhere also its last name, where the kernel
    // tells of processes' events: to programs with CAP_NET_ADMIN in the first PID namespace, with network figures, for at
    // most 256 such changes in a quarter of a second. Otherwise it has those of the former update.
    const char *name;
    // Length of the name, bytes.
    size_t name_length;
    // Arguments, each ended by NUL.
    const char *command_line;
    // Length of the arguments with their NULs, bytes; 0 for kernel threads.
    size_t command_line_length;
    // Name of the effective user, or its number.
    const char *user;
    // Name of the effective group, or its number.
    const char *group;
    // When the process started, nanoseconds since the Unix epoch.
    uint64_t start_time_ns;
    // CPU time in user mode since the process started, nanoseconds.
    uint64_t cpu_user_ns;
    // CPU time in kernel mode since the process started, nanoseconds.
    uint64_t cpu_system_ns;
    // Share of the whole machine's CPU time since the last update, 0-100.
    double cpu_percent;
    // Resident set, bytes. Pages that several processes share count fully in each: sums over processes can be larger than
    // the machine's memory.
    uint64_t resident_bytes;
    // Virtual memory, bytes.
    uint64_t virtual_bytes;
    // Resident share of the machine's memory, 0-100.
    double memory_percent;
    // Bytes asked for by read calls since the process started. Like the kernel, this and the next three count what children
    // did that the process has waited for, as soon as it has: sums over processes count that twice. `own_read_chars` and
    // the other three do not.
    uint64_t read_chars;
    // Bytes handed to write calls since the process started.
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
    // Part of the bytes sent and received whose socket several processes hold, or which was found by a wildcard.
    uint64_t uncertain_bytes;
    // What the flows of the process did; NULL where flows are not recorded.
    const struct CaptureConnections *connections;
    // Page faults since the process started that needed no storage.
    uint64_t minor_faults;
    // Page faults since the process started that did.
    uint64_t major_faults;
    // How often the main thread gave up the CPU to wait, since it started.
    uint64_t voluntary_switches;
    // How often the CPU was taken from the main thread, since it started.
    uint64_t involuntary_switches;
    // Path of the control group, see cgroups(7): in the hierarchy of version 2, as the line `0::` of `/proc/<pid>/cgroup`
    // has it; where that hierarchy is not mounted and version 1 has one named `systemd`, in that. Begins with a slash
    // and may hold any byte but NUL and newline; empty where it is not known. Of a group that was removed it is the path
    // that it had. It is relative to the cgroup namespace of this program.
    const char *cgroup;
    // Length of that path, bytes.
    size_t cgroup_length;
    // Part of the resident set that is of files or shared memory, which other processes may share, bytes. The rest is the
    // process's alone, but for what it shares with forks of it until one of them writes. Known where memory is.
    uint64_t shared_bytes;
    // Resident memory of which each page counts in parts for all processes that share it (PSS), bytes: sums over
    // processes are right. Only with CAPTURE_MORE_PROPORTIONAL.
    uint64_t proportional_bytes;
    // Bytes asked for by the process's own read calls, without those of children that it has waited for; see
    // CAPTURE_VALID_OWN_CHARS.
    uint64_t own_read_chars;
    // Bytes handed to its own write calls.
    uint64_t own_write_chars;
    // Bytes that it has fetched from storage itself; see CAPTURE_VALID_OWN_BYTES. Of each thread that has ended up to 511
    // bytes can be missing.
    uint64_t own_read_bytes;
    // Bytes that it has sent to storage itself.
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
    // When it was captured, nanoseconds since the Unix epoch.
    uint64_t time_ns;
    // The captured bytes, from the link header on.
    const uint8_t *data;
    // Number of captured bytes.
    uint32_t captured_length;
    // Length of the frame when it was captured, bytes. A frame captured before its segmentation or after a merge (GSO,
    // TSO, GRO) is one packet here, longer than the MTU, and counts as several in the figures of processes and flows.
    uint32_t wire_length;
    // Where it comes from, in network byte order; IPv4 addresses are mapped (::ffff:a.b.c.d).
    uint8_t source_address[16];
    // Where it goes.
    uint8_t destination_address[16];
    // Port it comes from, in host byte order; the identifier of an ICMP echo at the end that asks; 0 where there is
    // none.
    uint16_t source_port;
    // Port it goes to.
    uint16_t destination_port;
    // IP protocol number: 6 for TCP, 17 for UDP.
    uint32_t protocol;
} CapturePacket;

// Receives `count` packets, `element_size` bytes apart. Called on the thread of the update.
typedef void (*CapturePacketHandler)(void *user_data,
                                     const struct CapturePacket *packets,
                                     size_t count,
                                     size_t element_size);

// One flow, seen from one of its ends: a flow between two processes of this host has two records. Times are in
// nanoseconds. Later versions of the library may hand over larger structures: step through the array by
// `element_size`.
typedef struct CaptureFlow {
    // A number that no other flow of the session has or had.
    uint64_t id;
    // Which of the following are known: CAPTURE_FLOW_VALID_ bits. What is not known is 0.
    uint32_t valid;
    // IP protocol number: 6 for TCP, 17 for UDP.
    uint32_t protocol;
    // Address of this end, in network byte order; IPv4 addresses are mapped (::ffff:a.b.c.d).
    uint8_t local_address[16];
    // Address of the other end.
    uint8_t remote_address[16];
    // Port of this end, in host byte order; the identifier of an ICMP echo at the end that asks; 0 where there is none.
    uint16_t local_port;
    // Port of the other end.
    uint16_t remote_port;
    // How sure the owner is.
    enum CaptureFlowOwner owner;
    // The process that this end belongs to; 0 where there is no owner.
    pid_t pid;
    // How far the flow has come.
    enum CaptureFlowState state;
    // When the process started, since the Unix epoch: with the pid it names the process for good.
    uint64_t process_start_ns;
    // Inode number of the network namespace, see namespaces(7).
    uint64_t namespace_inode;
    // The socket's cookie, see SO_COOKIE in socket(7).
    uint64_t cookie;
    // Which end opened the flow.
    enum CaptureFlowRole role;
    // The kernel's number of the TCP state: 1 is established.
    uint32_t tcp_state;
    // When it was opened, since the Unix epoch: the first SYN of a TCP connection, the first packet of any other flow.
    uint64_t opened_ns;
    // When the connection was connected or accepted, since the Unix epoch: the end of the handshake.
    uint64_t established_ns;
    // When the latest packet passed, since the Unix epoch.
    uint64_t last_ns;
    // Bytes sent on the wire, link headers included, since the flow was first seen.
    uint64_t send_bytes;
    // Bytes received on the wire, link headers included, since the flow was first seen.
    uint64_t receive_bytes;
    // Packets sent since the flow was first seen.
    uint64_t send_packets;
    // Packets received since the flow was first seen.
    uint64_t receive_packets;
    // From the SYN to its answer, of a connection that this end opened.
    uint64_t connect_latency_ns;
    // The kernel's smoothed round-trip time, see tcp(7).
    uint64_t smoothed_rtt_ns;
    // TCP segments sent again.
    uint64_t retransmits;
    // How often data was received after data had been sent: a response to a request, where this end asks. Where it
    // answers, the times are those that its peer takes to ask again.
    uint64_t response_count;
    // Times from the last send before a receive to that receive, all together.
    uint64_t response_sum_ns;
    // The shortest of these.
    uint64_t response_minimum_ns;
    // The longest of these.
    uint64_t response_maximum_ns;
    // From the opening to the end, or to now while the flow lasts.
    uint64_t duration_ns;
    // Why it ended.
    enum CaptureFlowReason reason;
    // The error number that the process saw or would have seen, see errno(3); 0 for an orderly end.
    int32_t error;
} CaptureFlow;

// Receives `count` flows, `element_size` bytes apart: those that have ended with CaptureAction's ACTION_REMOVE, those
// that live with ACTION_UPDATE. Called on the thread of the update, as often as it takes to hand over all of them, and
// not at all when there are none.
typedef void (*CaptureFlowHandler)(void *user_data,
                                   enum CaptureAction action,
                                   const struct CaptureFlow *flows,
                                   size_t count,
                                   size_t element_size);

// Who receives what an update finds. Zero the structure, then set `size` to its size.
typedef struct CaptureHandlers {
    // sizeof(CaptureHandlers).
    size_t size;
    // Handed to the handlers.
    void *user_data;
    // First receives the processes that ended, if any, then those that live; NULL for nobody.
    CaptureProcessHandler process;
    // Receives the packets; NULL leaves them where they are.
    CapturePacketHandler packet;
    // Most packets to hand over; 0 for all that are held.
    uint64_t packet_limit;
    // First receives the flows that ended, a third of a second or more ago, then those that live, of all processes,
    // whichever are selected; NULL leaves those that ended where they are.
    CaptureFlowHandler flow;
} CaptureHandlers;

// What the session saw and what it lost, since it was opened unless it says otherwise. An owner may be found late: the
// bytes without one, by their reasons, fall again then.
typedef struct CaptureStats {
    // sizeof(CaptureStats), set by the caller.
    size_t size;
    // Frames seen.
    uint64_t frames;
    // Bytes of these frames, as captured.
    uint64_t frame_bytes;
    // Frames cut inside a header that was needed: `snaplen` is too small.
    uint64_t undecoded_truncated;
    // Frames that hold no IP packet.
    uint64_t undecoded_not_ip;
    // Frames whose headers contradict themselves.
    uint64_t undecoded_malformed;
    // Frames lost because a capture buffer was full.
    uint64_t lost_in_kernel;
    // Frames lost by a device or its driver.
    uint64_t lost_in_device;
    // Packets lost because nobody took them in time.
    uint64_t lost_packets;
    // Lines of the log lost because they were not taken in time, or could not be written to the file.
    uint64_t lost_log_lines;
    // Devices being captured now.
    uint64_t devices;
    // Flows held now.
    uint64_t flows;
    // Flows that ended by age.
    uint64_t flows_expired;
    // Flows that made room for new ones because `flow_limit` was reached, or the limit of those that nobody has answered.
    uint64_t flows_evicted;
    // Flows waiting for their owner now.
    uint64_t flows_waiting;
    // Bytes whose owner is the one holder of the flow's socket.
    uint64_t bytes_exact;
    // Bytes whose owner is one of several holders of the socket.
    uint64_t bytes_shared;
    // Bytes whose owner was found by a wildcard.
    uint64_t bytes_guessed;
    // Bytes whose owner is still being looked for.
    uint64_t bytes_pending;
    // Bytes of flows that no socket table shows: closed before they could be seen, or answered by the kernel. Those of a
    // TCP connection that the other end opens are among them until its handshake is complete.
    uint64_t bytes_no_socket;
    // Bytes of sockets that no process holds.
    uint64_t bytes_no_holder;
    // Bytes that match sockets of several processes with nothing to tell them apart.
    uint64_t bytes_ambiguous;
    // Bytes of sockets whose holder could not be read for want of a capability.
    uint64_t bytes_not_permitted;
    // Bytes of flows that came while too many others waited for their owner.
    uint64_t bytes_queue_full;
    // Bytes of later fragments whose first fragment was not seen.
    uint64_t bytes_fragment;
    // Bytes forwarded or overheard: neither end is in the network namespace where they were seen, also where this host
    // has put an address of its own in place of one of them (masquerading, published ports). With `namespaces` that
    // is also what those send and receive by way of this one, besides being counted where it has its ends.
    uint64_t bytes_not_local;
    // Bytes of messages that the kernel sends and answers itself, such as echo requests to this host and their replies,
    // and of protocols whose sockets cannot be looked up.
    uint64_t bytes_no_ports;
    // Bytes of processes that had already been reported as ended.
    uint64_t bytes_owner_ended;
    // Bytes whose owner could not be told because a file of /proc could not be read.
    uint64_t bytes_unreadable;
    // Processes whose figures could not be read or understood.
    uint64_t processes_skipped;
    // Time that the last update took, its callbacks excluded, nanoseconds.
    uint64_t update_ns;
    // Capabilities that would bring more, one bit for each number in capability.h: bit 13 is CAP_NET_RAW.
    uint64_t missing_capabilities;
    // First packets of flows that were seen as they came, before the capture's batch: their owner is then looked for
    // while the socket lives. When there are too many only a part is, and the rest is left to a later search.
    uint64_t first_packets;
    // Owners found so; a connection within the machine has one at each end.
    uint64_t first_found;
    // Flows whose socket was gone already, or that never had one.
    uint64_t first_too_late;
    // Flows whose socket was there, but not its process where it was likely to be; they are searched for later.
    uint64_t first_not_found;
    // First packets not looked at because too many others were waiting.
    uint64_t first_crowded_out;
    // Owners found at first packets that were forgotten, for want of room, maybe before they were asked for.
    uint64_t first_forgotten;
    // TCP connections seen from their opening on that have ended and whose socket then told how many bytes it had
    // carried. 0 when connections are not checked: with `devices`, a `filter` or a `savefile`, and where the kernel
    // does not permit it.
    uint64_t connections_checked;
    // Those of which the capture had seen less than the socket had carried: packets were lost.
    uint64_t connections_short;
    // Bytes that were missing of these, at the least. They are credited to the owner of the connection a second or two
    // after its end, and are contained in the other figures of bytes with and without owners (`bytes_owner_ended` when
    // the process was reported as ended before), but not in `frame_bytes`.
    uint64_t bytes_completed;
    // Ends of connections that were not told of because too many came at once; these were not checked.
    uint64_t ends_lost;
    // Devices being opened or closed now, beside the capture.
    uint64_t devices_pending;
    // Records of ended flows lost because nobody took them in time.
    uint64_t lost_flows;
    // Frames that engine `pcap` captured before their segmentation or after a merge (GSO, TSO, GRO): each is several
    // packets on the wire.
    uint64_t offloaded_frames;
    // The packets that these frames are counted as. They are estimated from the MTU of the device, the largest segment
    // that both ends of a TCP connection accept, and the headers of the frame: exact where segments are as large as
    // these allow, otherwise too few. The frames of a savefile are counted as they are.
    uint64_t offloaded_packets;
    // Bytes of the headers that these packets have on the wire and the frames do not. They are contained in the figures
    // of bytes with and without owners, but not in `frame_bytes`.
    uint64_t estimated_bytes;
    // The engine at work, `CAPTURE_ENGINE_PCAP` or `CAPTURE_ENGINE_KERNEL`.
    enum CaptureEngine engine;
    // The programs that tell who uses a socket and count what goes through it.
    enum CaptureProbeState socket_probes;
    // The programs that sample all processes at once; off also where at most 64 processes are looked for by pid.
    // With them everything but command lines is told of every process, also what /proc would hide.
    enum CaptureProbeState sample_probes;
    // The parts of the former that are at work, `CAPTURE_PROGRAMS_…`; 0 unless `socket_probes` is
    // `CAPTURE_PROBE_STATE_ACTIVE`. The log names each program that the kernel refuses, and its reason.
    uint32_t socket_programs;
    // Bytes, as the devices themselves count them, that passed devices before these were captured on, or until they were
    // gone where they never were: of devices, also those of network namespaces, that have come since the session was opened
    // and are captured with engine `pcap`. They are in no other figure; a namespace that came and went unseen is not among
    // them.
    uint64_t bytes_before_capture;
} CaptureStats;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Opens the program's session. After `CaptureExit` it may be opened again.
//
// A NULL config means the defaults; either callback may be NULL, and what it would receive is then not gathered.
// Where privileges are missing the session opens with what may be read, and the log says what is missing. On
// failure one of CaptureCode is returned and `errorbuf`, if there is one, holds the text.
//
// Requirements:
// `config` is NULL or points to a whole structure; its strings are NULL or NUL-terminated; its errorbuf is NULL
// or has room for CAPTURE_ERROR_SIZE bytes. The callbacks may be called until `CaptureExit` returns.
int32_t CaptureInit(const struct CaptureInitt *config,
                    ProcessInfoCallback process_callback,
                    PacketCallback packet_callback);

// Samples every process and runs the callbacks, on the calling thread: first `ACTION_REMOVE` once for each process
// that has ended, with its last figures; then `ACTION_UPDATE` once with every process that lives; then the packets
// captured since the last update, at most `cnt` of them, -1 for all that are held.
//
// It does not wait for packets that are still in a capture buffer: `ACTION_REMOVE` comes with the first update after a
// process's last packets were counted, which is the read timeout and some milliseconds after its end was found, at most
// the read timeout and 2 s. A process whose removal is outstanding is in no `ACTION_UPDATE`. So for final figures update
// once more before `CaptureExit`, that much later. A callback may throw a C++ exception; it passes through, and what was
// not delivered comes with the next update. Reads of /proc that do not return are treated as in `CaptureSessionUpdate`: in
// this interface the figures of such a process are 0.
//
// Requirements:
// The callbacks that `CaptureInit` was given may still be called.
int32_t CaptureUpdate(int32_t cnt);

// Ends the capture, joins the library's threads and releases everything. No callback runs after it has returned. Threads
// that wait in reads of /proc are treated as in `CaptureSessionClose`.
int32_t CaptureExit(void);

// Opens a session and stores it in `*session`, which is NULL on failure. NULL options mean the defaults.
//
// Where privileges are missing the session opens with what may be read; the log and `missing_capabilities` of the
// statistics say what would bring the rest. Close it with `CaptureSessionClose`.
//
// Requirements:
// `options` is NULL or a structure whose `size` is set and whose pointers are NULL or valid; `session` is NULL,
// which is an error, or may be written to.
int32_t CaptureSessionOpen(const struct CaptureOptions *options,
                           struct CaptureSession **session);

// Samples every process and runs the handlers, on the calling thread: first the log's lines, then the processes
// that ended, with their last figures, then those that live, then the flows and the packets. NULL handlers only
// sample: the processes that ended are then told to nobody, flows that ended and packets stay.
//
// It does not wait for packets that are still in a capture buffer. A process that has ended is delivered as such once,
// complete, by the first update after its last packets were counted: the read timeout and some milliseconds after its end
// was found, at most the read timeout and 2 s. Until then it is delivered neither as ended nor as living; so for final
// figures update once more before the session is closed. With `CAPTURE_MORE_WAITING` the update waits for them instead.
// Where flows are recorded it waits until the capture has shown them, a few milliseconds and at most 200. A handler may
// throw a C++ exception; it passes through. longjmp(3) must not leave a handler: the session could never be closed.
//
// Other processes can keep reads of /proc from returning: a page fault on a dead file server locks a process's memory, an
// exec that closes a file there its other figures. The update waits a quarter of a second for such a read when it meets it
// for the first time, and at most two seconds for all such reads of its samples; then it goes on without them. What could
// not be read is not valid; where walks over the kernel's tasks are made, only the command line. A thread waits on, and
// such a process is read again one second after its read has returned, two seconds the next time, up to 300. At most 16
// threads of a program wait, 8 of them for command lines and control groups; beyond that, no such file of any process is
// read until one of these reads returns.
//
// Requirements:
// `session` is NULL, which is an error, or open; `handlers` is NULL or a structure whose `size` is set.
int32_t CaptureSessionUpdate(struct CaptureSession *session,
                             const struct CaptureHandlers *handlers);

// The session's descriptor, or -1. It is readable when packets are held, when `interval_ms` have passed since the
// last update, when a savefile has been read to its end, and when the session has failed: poll it, then update.
// It belongs to the session: do not read it, do not close it.
//
// Requirements:
// `session` is NULL or open.
int32_t CaptureSessionDescriptor(const struct CaptureSession *session);

// Fills `*stats` as far as its `size` says. May be called from any thread, also while an update runs.
//
// Requirements:
// `session` is NULL, which is an error, or open; `stats` is NULL, which is an error, or has `size` writable bytes.
int32_t CaptureSessionStats(const struct CaptureSession *session,
                            struct CaptureStats *stats);

// Ends the capture, joins the session's threads and releases everything; `session` is then invalid. In a process
// forked from the opener, and while another call on the session runs, it only returns an error.
//
// A thread that waits in a read of /proc which does not return is waited for a quarter of a second and left behind. When
// the read returns it releases what it holds and ends: a thread's memory, the descriptors it was reading by, those by which
// it found owners, and the log file. It executes code of the library, which stays in memory also after dlclose(3).
//
// Requirements:
// `session` is NULL, which is an error, or open.
int32_t CaptureSessionClose(struct CaptureSession *session);

// Version of the library that is loaded: major * 65536 + minor * 256 + patch. Any thread, at any time.
uint32_t CaptureVersion(void);

// What a code means, in a few words; never NULL, valid for ever. Any thread, at any time.
const char *CaptureStrError(int32_t code);

// What the last call that failed in this thread had tried, and what would help; empty when none has failed. Valid
// until the next failure in this thread or its end.
const char *CaptureErrorText(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* LIBCAPTURE_H */
