//! What users see of one flow from its opening to its end, and of all the flows of one process together.

use super::address::Endpoint;
use super::bits::bit_set;
use super::flow::Owner;
use super::frame::Timestamp;
use super::packet::Protocol;
use super::traffic::Traffic;

bit_set! {
    /// Which parts of a flow's record are known. A part whose bit is clear is 0, or the variant `Unknown`.
    FlowValidity {
        /// The inode number of the network namespace.
        NAMESPACE = 1;
        /// When the flow was opened.
        OPENED = 2;
        /// When the connection was established.
        ESTABLISHED = 4;
        /// Which end opened it.
        ROLE = 8;
        /// Bytes and packets each way, and the time of the latest packet.
        TRAFFIC = 16;
        /// How long connecting took.
        CONNECT_LATENCY = 32;
        /// The kernel's smoothed round-trip time.
        SMOOTHED_RTT = 64;
        /// How many segments were sent again.
        RETRANSMITS = 128;
        /// Times from request to response; known and 0 when there was no response yet.
        RESPONSE = 256;
        /// How long the flow has lasted.
        DURATION = 512;
        /// Why it ended.
        REASON = 1024;
        /// The error number that goes with the reason.
        ERRNO = 2048;
        /// The kernel's number of the TCP state.
        TCP_STATE = 4096;
        /// The socket's cookie.
        COOKIE = 8192;
    }
}

/// How far a flow has come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u32)]
pub enum FlowPhase {
    /// It cannot be told.
    #[default]
    Unknown = 0,
    /// A TCP connection whose handshake is not complete; of other protocols, packets one way only.
    Opening = 1,
    /// Data can pass both ways.
    Open = 2,
    /// One end has finished sending, or both have and the last record is yet to come.
    Closing = 3,
    /// It is over, and this is the last record of it.
    Ended = 4,
}

/// Which end opened a flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u32)]
pub enum Role {
    /// It cannot be told.
    #[default]
    Unknown = 0,
    /// This end sent the first packet.
    Opened = 1,
    /// The other end did, and this end accepted or answered.
    Accepted = 2,
}

/// Why a flow ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u32)]
pub enum CloseReason {
    /// It cannot be told, or the protocol has no end: it was silent for so long that it was let go.
    #[default]
    Unknown = 0,
    /// Both ends finished sending.
    Orderly = 1,
    /// The other end broke it off (`ECONNRESET`).
    Reset = 2,
    /// The other end did not answer for too long (`ETIMEDOUT`). No packet says so: it is concluded from a socket that went
    /// when the kernel would have sent again.
    TimedOut = 3,
    /// The other end refused to be connected to (`ECONNREFUSED`).
    Refused = 4,
    /// This end broke it off.
    Aborted = 5,
}

/// Times from a request to its response: from the last send before a receive to that receive.
///
/// Of an end that asks this is how long its peer and the way there and back took; of an end that answers, how long
/// its peer took to ask again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ResponseTimes {
    /// How many there were.
    pub count: u64,
    /// All of them together, nanoseconds.
    pub sum_ns: u64,
    /// The shortest, nanoseconds; 0 when there was none.
    pub minimum_ns: u64,
    /// The longest, nanoseconds.
    pub maximum_ns: u64,
}

impl ResponseTimes {
    /// Counts one.
    #[inline]
    pub fn count(&mut self, nanoseconds: u64) {
        let one =
            ResponseTimes { count: 1, sum_ns: nanoseconds, minimum_ns: nanoseconds, maximum_ns: nanoseconds };
        *self += one;
    }

    /// Their mean in nanoseconds, when there was any.
    pub fn mean_ns(&self) -> Option<u64> {
        self.sum_ns.checked_div(self.count)
    }
}

impl std::ops::AddAssign for ResponseTimes {
    #[inline]
    fn add_assign(&mut self, other: ResponseTimes) {
        if other.count == 0 {
            return;
        }
        self.minimum_ns = match self.count {
            0 => other.minimum_ns,
            _ => self.minimum_ns.min(other.minimum_ns),
        };
        self.maximum_ns = self.maximum_ns.max(other.maximum_ns);
        self.count += other.count;
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
    }
}

/// One flow, seen from one of its ends.
///
/// A flow between two processes of this host has two records, each the other's mirror.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowRecord {
    /// A number that no other flow of the session has or had; it tells connections apart that use the same endpoints
    /// one after the other.
    pub id: u64,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The endpoint on this host.
    pub local: Endpoint,
    /// The other endpoint, which may also be on this host.
    pub remote: Endpoint,
    /// The network namespace that the endpoints are of, by its inode number (namespaces(7)).
    pub namespace_inode: u64,
    /// The socket's cookie (`SO_COOKIE`, socket(7)).
    pub cookie: u64,
    /// The process that the local end belongs to, and how sure that is; `None` while it is being looked for, and
    /// when none was found.
    pub owner: Option<Owner>,
    /// How far it has come.
    pub phase: FlowPhase,
    /// The kernel's number of the TCP state (include/net/tcp_states.h): 1 is established.
    pub tcp_state: u8,
    /// Which end opened it.
    pub role: Role,
    /// When it was opened: at the first SYN of a TCP connection, at the first packet of any other flow.
    pub opened: Timestamp,
    /// When the connection was established, that is connected or accepted: at the end of the handshake.
    pub established: Timestamp,
    /// When the latest packet passed.
    pub last: Timestamp,
    /// Bytes on the wire, link headers included, and packets each way, since the flow was first seen.
    pub traffic: Traffic,
    /// From the SYN to its answer, of a connection that this end opened: nanoseconds.
    pub connect_latency_ns: u64,
    /// The kernel's smoothed round-trip time (`tcpi_rtt`, tcp(7)), nanoseconds.
    pub smoothed_rtt_ns: u64,
    /// TCP segments sent again (`tcpi_total_retrans`).
    pub retransmits: u64,
    /// Times from request to response.
    pub response: ResponseTimes,
    /// From its opening to its end, or, while it lasts, to the moment of the record: nanoseconds.
    pub duration_ns: u64,
    /// Why it ended.
    pub reason: CloseReason,
    /// The error number (errno(3)) that the process saw or would have seen; 0 for an orderly end.
    pub errno: i32,
    /// Which of these are known.
    pub valid: FlowValidity,
}

impl FlowRecord {
    /// A flow of which nothing is known but its number, its protocol and its endpoints.
    pub const fn unknown(id: u64, protocol: Protocol, local: Endpoint, remote: Endpoint) -> FlowRecord {
        FlowRecord {
            id,
            protocol,
            local,
            remote,
            namespace_inode: 0,
            cookie: 0,
            owner: None,
            phase: FlowPhase::Unknown,
            tcp_state: 0,
            role: Role::Unknown,
            opened: Timestamp(0),
            established: Timestamp(0),
            last: Timestamp(0),
            traffic: Traffic { send_bytes: 0, receive_bytes: 0, send_packets: 0, receive_packets: 0 },
            connect_latency_ns: 0,
            smoothed_rtt_ns: 0,
            retransmits: 0,
            response: ResponseTimes { count: 0, sum_ns: 0, minimum_ns: 0, maximum_ns: 0 },
            duration_ns: 0,
            reason: CloseReason::Unknown,
            errno: 0,
            valid: FlowValidity(0),
        }
    }
}

/// Counts of times by their length: the first counts those below 2 µs, number n those of at least 2^n µs and less
/// than twice that, the last also all that are longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Histogram(pub [u64; Histogram::BUCKETS]);

impl Histogram {
    /// How many counts there are. The last begins at 36 minutes.
    pub const BUCKETS: usize = 32;

    /// Counts one time.
    #[inline]
    pub fn count(&mut self, nanoseconds: u64) {
        self.0[Histogram::bucket(nanoseconds)] += 1;
    }

    /// Which count a time belongs to.
    #[inline]
    pub const fn bucket(nanoseconds: u64) -> usize {
        let bucket = match (nanoseconds / 1_000).checked_ilog2() {
            Some(bucket) => bucket as usize,
            None => 0,
        };
        if bucket < Histogram::BUCKETS { bucket } else { Histogram::BUCKETS - 1 }
    }

    /// How many times were counted.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl std::ops::AddAssign for Histogram {
    fn add_assign(&mut self, other: Histogram) {
        for (mine, others) in self.0.iter_mut().zip(other.0) {
            *mine += others;
        }
    }
}

/// What all the flows of a process did together, since the process was first seen; the ends of flows take nothing away.
///
/// Flows that have no owner yet are counted when one is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Connections {
    /// TCP connections that the process began to open, those that came to nothing included.
    pub connects: u64,
    /// TCP connections opened by others to the process and established.
    pub accepts: u64,
    /// TCP connections of either kind that this end has closed, with a FIN or an RST, or that broke off otherwise;
    /// each counts once.
    pub closes: u64,
    /// How often data was sent, on flows of every protocol: calls where the kernel tells of them, else packets with
    /// payload, of which one may carry several calls' data and one call's data may fill several.
    pub sends: u64,
    /// How often data was received, counted in the same way.
    pub receives: u64,
    /// Times from request to response on all its flows.
    pub response: Histogram,
}

impl std::ops::AddAssign for Connections {
    fn add_assign(&mut self, other: Connections) {
        self.connects += other.connects;
        self.accepts += other.accepts;
        self.closes += other.closes;
        self.sends += other.sends;
        self.receives += other.receives;
        self.response += other.response;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_times_from_its_power_of_two_to_twice_that() {
        assert_eq!([0, 999, 1_000, 1_999].map(Histogram::bucket), [0; 4]);
        for bucket in 1..Histogram::BUCKETS {
            let begins = (1_u64 << bucket) * 1_000;
            assert_eq!(Histogram::bucket(begins), bucket);
            assert_eq!(Histogram::bucket(begins - 1), bucket - 1);
        }
        assert_eq!(Histogram::bucket(u64::MAX), Histogram::BUCKETS - 1);
    }

    #[test]
    fn response_times_add_up() {
        let mut times = ResponseTimes::default();
        assert_eq!(times.mean_ns(), None);
        times.count(30);
        times.count(10);
        let mut both = ResponseTimes::default();
        both += times;
        both += ResponseTimes::default();
        both.count(50);
        let expected = ResponseTimes { count: 3, sum_ns: 90, minimum_ns: 10, maximum_ns: 50 };
        assert_eq!((both, both.mean_ns()), (expected, Some(30)));
    }

    #[test]
    fn counts_of_a_process_add_up() {
        let mut one = Connections {
            connects: 1,
            accepts: 2,
            closes: 3,
            sends: 4,
            receives: 5,
            ..Connections::default()
        };
        one.response.count(2_500);
        let mut sum = one;
        sum += one;
        assert_eq!([sum.connects, sum.accepts, sum.closes, sum.sends, sum.receives], [2, 4, 6, 8, 10]);
        assert_eq!((sum.response.0[1], sum.response.total()), (2, 2));
    }
}
