//! Structures, enumerations and constants of flows in the session interface, in the layout that C sees.

use super::classic_types::CaptureAction;
use crate::model::{FlowValidity, Histogram};
use std::ffi::c_void;

/// Bit of `valid`: the network namespace is known.
pub const CAPTURE_FLOW_VALID_NAMESPACE: u32 = 1;
/// Bit of `valid`: the time of the opening is known.
pub const CAPTURE_FLOW_VALID_OPENED: u32 = 2;
/// Bit of `valid`: the connection was established at a known time.
pub const CAPTURE_FLOW_VALID_ESTABLISHED: u32 = 4;
/// Bit of `valid`: the end that opened the flow is known.
pub const CAPTURE_FLOW_VALID_ROLE: u32 = 8;
/// Bit of `valid`: bytes, packets and the time of the latest packet are known.
pub const CAPTURE_FLOW_VALID_TRAFFIC: u32 = 16;
/// Bit of `valid`: the duration of connecting is known.
pub const CAPTURE_FLOW_VALID_CONNECT_LATENCY: u32 = 32;
/// Bit of `valid`: the kernel has measured the round-trip time.
pub const CAPTURE_FLOW_VALID_SMOOTHED_RTT: u32 = 64;
/// Bit of `valid`: the number of retransmitted segments is known.
pub const CAPTURE_FLOW_VALID_RETRANSMITS: u32 = 128;
/// Bit of `valid`: times from request to response are known; there may have been none yet.
pub const CAPTURE_FLOW_VALID_RESPONSE: u32 = 256;
/// Bit of `valid`: the duration of the flow is known.
pub const CAPTURE_FLOW_VALID_DURATION: u32 = 512;
/// Bit of `valid`: the reason of the flow's end is known.
pub const CAPTURE_FLOW_VALID_REASON: u32 = 1024;
/// Bit of `valid`: the error number is known.
pub const CAPTURE_FLOW_VALID_ERROR: u32 = 2048;
/// Bit of `valid`: the kernel's number of the TCP state is known.
pub const CAPTURE_FLOW_VALID_TCP_STATE: u32 = 4096;
/// Bit of `valid`: the socket's cookie is known.
pub const CAPTURE_FLOW_VALID_COOKIE: u32 = 8192;

/// Number of counts of response times in `CaptureConnections`.
pub const CAPTURE_RESPONSE_BUCKETS: usize = 32;

/// Quality of a flow's owner.
/// cbindgen:prefix-with-name
/// cbindgen:rename-all=ScreamingSnakeCase
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CaptureOwnerQuality {
    /// No owner: it is still being looked up, or was not found.
    None,
    /// The process is the only holder of the flow's socket.
    Exact,
    /// The process is one of several holders of the socket.
    Shared,
    /// The process's socket was found by a wildcard.
    Guessed,
}

/// State of a flow.
/// cbindgen:prefix-with-name
/// cbindgen:rename-all=ScreamingSnakeCase
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CaptureFlowState {
    /// Not known.
    Unknown,
    /// A TCP connection whose handshake is not complete; for other protocols, packets in one direction only.
    Opening,
    /// Data can pass both ways.
    Open,
    /// One end has finished sending, or both have and the last record is still to be delivered.
    Closing,
    /// The flow has ended, and this is its last record.
    Ended,
}

/// The end that opened a flow.
/// cbindgen:prefix-with-name
/// cbindgen:rename-all=ScreamingSnakeCase
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CaptureFlowRole {
    /// Not known.
    Unknown,
    /// This end sent the first packet.
    Opened,
    /// The other end sent the first packet.
    Accepted,
}

/// Reason of a flow's end.
/// cbindgen:prefix-with-name
/// cbindgen:rename-all=ScreamingSnakeCase
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CaptureFlowReason {
    /// Not known, or the protocol has no end: the flow expired after a long silence.
    Unknown,
    /// Both ends finished sending.
    Orderly,
    /// The other end reset the connection.
    Reset,
    /// The other end did not answer for too long. No packet states this: it is concluded from a socket that
    /// disappeared when the kernel was due to retransmit.
    TimedOut,
    /// The other end refused the connection.
    Refused,
    /// This end aborted the connection.
    Aborted,
}

/// Activity of the flows of one process since the process was first seen. The counts do not decrease when
/// flows end.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CaptureConnections {
    /// TCP connections that the process began to open, failed ones included.
    pub connects: u64,
    /// TCP connections opened by other ends to this process and established.
    pub accepts: u64,
    /// TCP connections of either kind that the process closed or that broke off; each counts once.
    pub closes: u64,
    /// Number of sends, on flows of every protocol: captured frames with payload. One frame may carry the
    /// data of several calls, and several frames that of one call. With engine `kernel`: calls that sent, and
    /// datagrams.
    pub sends: u64,
    /// Number of receives, counted in the same way.
    pub receives: u64,
    /// Histogram of the times from request to response on all flows of the process. Element 0 counts times
    /// below 2 microseconds. Element n counts times of at least 2^n microseconds and less than twice that.
    /// The last element also counts all longer times.
    pub responses: [u64; CAPTURE_RESPONSE_BUCKETS],
}

/// One flow, seen from one of its ends. A flow between two processes of this host has two records. Times are
/// in nanoseconds. Later versions of the library may deliver larger structures: step through the array by
/// `element_size`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CaptureFlow {
    /// Identifier of the flow, unique in the session and never reused.
    pub id: u64,
    /// Known fields: CAPTURE_FLOW_VALID_ bits. A field that is not known is 0.
    pub valid: u32,
    /// IP protocol number: 6 for TCP, 17 for UDP.
    pub protocol: u32,
    /// Address of this end, in network byte order; IPv4 addresses are mapped (::ffff:a.b.c.d).
    pub local_address: [u8; 16],
    /// Address of the other end, in the same form.
    pub remote_address: [u8; 16],
    /// Port of this end, in host byte order. For an ICMP echo it is the identifier, at the end that sends the
    /// request. 0 if there is none.
    pub local_port: u16,
    /// Port of the other end, in the same form.
    pub remote_port: u16,
    /// Quality of the owner.
    pub owner_quality: CaptureOwnerQuality,
    /// The process that owns this end of the flow; 0 if there is no owner.
    pub pid: libc::pid_t,
    /// State of the flow.
    pub state: CaptureFlowState,
    /// Start of the process, since the Unix epoch. Together with the pid it identifies the process
    /// permanently.
    pub process_start_ns: u64,
    /// Inode number of the network namespace, see namespaces(7).
    pub namespace_inode: u64,
    /// The socket's cookie, see SO_COOKIE in socket(7).
    pub cookie: u64,
    /// The end that opened the flow.
    pub role: CaptureFlowRole,
    /// The kernel's number of the TCP state: 1 is established.
    pub tcp_state: u32,
    /// Time of the opening, since the Unix epoch: the first SYN of a TCP connection, the first packet of any
    /// other flow.
    pub opened_ns: u64,
    /// Time at which the connection was connected or accepted, since the Unix epoch: the end of the
    /// handshake.
    pub established_ns: u64,
    /// Time of the latest packet, since the Unix epoch.
    pub last_ns: u64,
    /// Bytes sent on the wire, link headers included, since the flow was first seen.
    pub send_bytes: u64,
    /// Bytes received on the wire, link headers included, since the flow was first seen.
    pub receive_bytes: u64,
    /// Packets sent since the flow was first seen.
    pub send_packets: u64,
    /// Packets received since the flow was first seen.
    pub receive_packets: u64,
    /// Time from the SYN to its answer, for a connection that this end opened.
    pub connect_latency_ns: u64,
    /// The kernel's smoothed round-trip time, see tcp(7).
    pub smoothed_rtt_ns: u64,
    /// Retransmitted TCP segments.
    pub retransmits: u64,
    /// Number of times that data was received after data had been sent. If this end sends the requests, each
    /// is a response to a request. If this end answers, the times are those that its peer takes until the
    /// next request.
    pub response_count: u64,
    /// Sum of the times from the last send before a receive to that receive.
    pub response_sum_ns: u64,
    /// The shortest of these times.
    pub response_minimum_ns: u64,
    /// The longest of these times.
    pub response_maximum_ns: u64,
    /// Time from the opening to the end, or to now while the flow lasts.
    pub duration_ns: u64,
    /// Reason of the flow's end.
    pub reason: CaptureFlowReason,
    /// The error number that the process saw or would have seen, see errno(3); 0 for an orderly end.
    pub error: i32,
}

/// Receives `count` flows, `element_size` bytes apart. Flows that have ended come with ACTION_REMOVE of
/// CaptureAction, living ones with ACTION_UPDATE. Called on the thread of the update, as often as needed to
/// deliver all flows, and not at all if there are none.
pub type CaptureFlowHandler = Option<
    unsafe extern "C-unwind" fn(
        user_data: *mut c_void,
        action: CaptureAction,
        flows: *const CaptureFlow,
        count: usize,
        element_size: usize,
    ),
>;

/// The bits in C are those of the model's flow records.
const _: () = {
    use FlowValidity as V;
    assert!(CAPTURE_FLOW_VALID_NAMESPACE == V::NAMESPACE.0 && CAPTURE_FLOW_VALID_OPENED == V::OPENED.0);
    assert!(CAPTURE_FLOW_VALID_ESTABLISHED == V::ESTABLISHED.0 && CAPTURE_FLOW_VALID_ROLE == V::ROLE.0);
    assert!(
        CAPTURE_FLOW_VALID_TRAFFIC == V::TRAFFIC.0
            && CAPTURE_FLOW_VALID_CONNECT_LATENCY == V::CONNECT_LATENCY.0
    );
    assert!(
        CAPTURE_FLOW_VALID_SMOOTHED_RTT == V::SMOOTHED_RTT.0
            && CAPTURE_FLOW_VALID_RETRANSMITS == V::RETRANSMITS.0
    );
    assert!(CAPTURE_FLOW_VALID_RESPONSE == V::RESPONSE.0 && CAPTURE_FLOW_VALID_DURATION == V::DURATION.0);
    assert!(CAPTURE_FLOW_VALID_REASON == V::REASON.0 && CAPTURE_FLOW_VALID_ERROR == V::ERRNO.0);
    assert!(CAPTURE_FLOW_VALID_TCP_STATE == V::TCP_STATE.0 && CAPTURE_FLOW_VALID_COOKIE == V::COOKIE.0);
    assert!(CAPTURE_RESPONSE_BUCKETS == Histogram::BUCKETS);
};
