//! The structures, enumerations and constants of flows in the session interface, laid out as C sees them.

use super::classic_types::CaptureAction;
use crate::model::{FlowValidity, Histogram};
use std::ffi::c_void;

/// Set in `valid`: the network namespace is known.
pub const CAPTURE_FLOW_VALID_NAMESPACE: u32 = 1;
/// Set in `valid`: the time of the opening is known.
pub const CAPTURE_FLOW_VALID_OPENED: u32 = 2;
/// Set in `valid`: the connection was established, and it is known when.
pub const CAPTURE_FLOW_VALID_ESTABLISHED: u32 = 4;
/// Set in `valid`: it is known which end opened the flow.
pub const CAPTURE_FLOW_VALID_ROLE: u32 = 8;
/// Set in `valid`: bytes, packets and the time of the latest packet are known.
pub const CAPTURE_FLOW_VALID_TRAFFIC: u32 = 16;
/// Set in `valid`: it is known how long connecting took.
pub const CAPTURE_FLOW_VALID_CONNECT_LATENCY: u32 = 32;
/// Set in `valid`: the kernel has measured the round-trip time.
pub const CAPTURE_FLOW_VALID_SMOOTHED_RTT: u32 = 64;
/// Set in `valid`: it is known how much was sent again.
pub const CAPTURE_FLOW_VALID_RETRANSMITS: u32 = 128;
/// Set in `valid`: times from request to response are known; there may have been none yet.
pub const CAPTURE_FLOW_VALID_RESPONSE: u32 = 256;
/// Set in `valid`: it is known how long the flow has lasted.
pub const CAPTURE_FLOW_VALID_DURATION: u32 = 512;
/// Set in `valid`: it is known why the flow ended.
pub const CAPTURE_FLOW_VALID_REASON: u32 = 1024;
/// Set in `valid`: the error number is known.
pub const CAPTURE_FLOW_VALID_ERROR: u32 = 2048;
/// Set in `valid`: the kernel's number of the TCP state is known.
pub const CAPTURE_FLOW_VALID_TCP_STATE: u32 = 4096;
/// Set in `valid`: the socket's cookie is known.
pub const CAPTURE_FLOW_VALID_COOKIE: u32 = 8192;

/// Counts of response times in `CaptureConnections`.
pub const CAPTURE_RESPONSE_BUCKETS: usize = 32;

/// How sure the owner of a flow is.
/// cbindgen:prefix-with-name
/// cbindgen:rename-all=ScreamingSnakeCase
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CaptureFlowOwner {
    /// There is none: it is being looked for, or was not found.
    None,
    /// The process is the one holder of the flow's socket.
    Exact,
    /// It is one of several holders of the socket.
    Shared,
    /// Its socket was found by a wildcard.
    Guessed,
}

/// How far a flow has come.
/// cbindgen:prefix-with-name
/// cbindgen:rename-all=ScreamingSnakeCase
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CaptureFlowState {
    /// It cannot be told.
    Unknown,
    /// A TCP connection whose handshake is not complete; of other protocols, packets one way only.
    Opening,
    /// Data can pass both ways.
    Open,
    /// One end has finished sending, or both have and the last record is yet to come.
    Closing,
    /// It is over, and this is the last record of it.
    Ended,
}

/// Which end opened a flow.
/// cbindgen:prefix-with-name
/// cbindgen:rename-all=ScreamingSnakeCase
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CaptureFlowRole {
    /// It cannot be told.
    Unknown,
    /// This end sent the first packet.
    Opened,
    /// The other end did.
    Accepted,
}

/// Why a flow ended.
/// cbindgen:prefix-with-name
/// cbindgen:rename-all=ScreamingSnakeCase
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CaptureFlowReason {
    /// It cannot be told, or the protocol has no end: the flow was silent for so long that it was let go.
    Unknown,
    /// Both ends finished sending.
    Orderly,
    /// The other end broke it off.
    Reset,
    /// The other end did not answer for too long. No packet says so: it is concluded from a socket that went when the
    /// kernel would have sent again.
    TimedOut,
    /// The other end refused to be connected to.
    Refused,
    /// This end broke it off.
    Aborted,
}

/// What the flows of one process did since it was first seen. The ends of flows take nothing away.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CaptureConnections {
    /// TCP connections that it began to open, those that came to nothing included.
    pub connects: u64,
    /// TCP connections opened by others to it and established.
    pub accepts: u64,
    /// TCP connections of either kind that it closed or that broke off; each counts once.
    pub closes: u64,
    /// How often data was sent, on flows of every protocol: captured frames with payload, of which one may carry the
    /// data of several calls, and several that of one call. With engine `kernel` calls that sent, and datagrams.
    pub sends: u64,
    /// How often data was received, counted in the same way.
    pub receives: u64,
    /// Times from request to response on all its flows, counted by their length: the first those below 2 microseconds,
    /// number n those of at least 2^n microseconds and less than twice that, the last also all that are longer.
    pub responses: [u64; CAPTURE_RESPONSE_BUCKETS],
}

/// One flow, seen from one of its ends: a flow between two processes of this host has two records. Times are in
/// nanoseconds. Later versions of the library may hand over larger structures: step through the array by
/// `element_size`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CaptureFlow {
    /// A number that no other flow of the session has or had.
    pub id: u64,
    /// Which of the following are known: CAPTURE_FLOW_VALID_ bits. What is not known is 0.
    pub valid: u32,
    /// IP protocol number: 6 for TCP, 17 for UDP.
    pub protocol: u32,
    /// Address of this end, in network byte order; IPv4 addresses are mapped (::ffff:a.b.c.d).
    pub local_address: [u8; 16],
    /// Address of the other end.
    pub remote_address: [u8; 16],
    /// Port of this end, in host byte order; the identifier of an ICMP echo at the end that asks; 0 where there is none.
    pub local_port: u16,
    /// Port of the other end.
    pub remote_port: u16,
    /// How sure the owner is.
    pub owner: CaptureFlowOwner,
    /// The process that this end belongs to; 0 where there is no owner.
    pub pid: libc::pid_t,
    /// How far the flow has come.
    pub state: CaptureFlowState,
    /// When the process started, since the Unix epoch: with the pid it names the process for good.
    pub process_start_ns: u64,
    /// Inode number of the network namespace, see namespaces(7).
    pub namespace_inode: u64,
    /// The socket's cookie, see SO_COOKIE in socket(7).
    pub cookie: u64,
    /// Which end opened the flow.
    pub role: CaptureFlowRole,
    /// The kernel's number of the TCP state: 1 is established.
    pub tcp_state: u32,
    /// When it was opened, since the Unix epoch: the first SYN of a TCP connection, the first packet of any other flow.
    pub opened_ns: u64,
    /// When the connection was connected or accepted, since the Unix epoch: the end of the handshake.
    pub established_ns: u64,
    /// When the latest packet passed, since the Unix epoch.
    pub last_ns: u64,
    /// Bytes sent on the wire, link headers included, since the flow was first seen.
    pub send_bytes: u64,
    /// Bytes received on the wire, link headers included, since the flow was first seen.
    pub receive_bytes: u64,
    /// Packets sent since the flow was first seen.
    pub send_packets: u64,
    /// Packets received since the flow was first seen.
    pub receive_packets: u64,
    /// From the SYN to its answer, of a connection that this end opened.
    pub connect_latency_ns: u64,
    /// The kernel's smoothed round-trip time, see tcp(7).
    pub smoothed_rtt_ns: u64,
    /// TCP segments sent again.
    pub retransmits: u64,
    /// How often data was received after data had been sent: a response to a request, where this end asks. Where it
    /// answers, the times are those that its peer takes to ask again.
    pub response_count: u64,
    /// Times from the last send before a receive to that receive, all together.
    pub response_sum_ns: u64,
    /// The shortest of these.
    pub response_minimum_ns: u64,
    /// The longest of these.
    pub response_maximum_ns: u64,
    /// From the opening to the end, or to now while the flow lasts.
    pub duration_ns: u64,
    /// Why it ended.
    pub reason: CaptureFlowReason,
    /// The error number that the process saw or would have seen, see errno(3); 0 for an orderly end.
    pub error: i32,
}

/// Receives `count` flows, `element_size` bytes apart: those that have ended with CaptureAction's ACTION_REMOVE, those
/// that live with ACTION_UPDATE. Called on the thread of the update, as often as it takes to hand over all of them, and
/// not at all when there are none.
pub type CaptureFlowHandler = Option<
    unsafe extern "C-unwind" fn(
        user_data: *mut c_void,
        action: CaptureAction,
        flows: *const CaptureFlow,
        count: usize,
        element_size: usize,
    ),
>;

/// The bits of C are those of the records.
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
