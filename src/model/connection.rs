//! The record of one flow from its opening to its end, and the counts over all flows of one process.

use super::address::Endpoint;
use super::bits::bit_set;
use super::flow::Owner;
use super::frame::Timestamp;
use super::packet::Protocol;
use super::traffic::Traffic;

bit_set! {
    /// The parts of a flow record that are known. A part whose bit is clear is 0, or the variant `Unknown`.
    FlowValidity {
        /// The inode number of the network namespace.
        NAMESPACE = 1;
        /// The time at which the flow was opened.
        OPENED = 2;
        /// The time at which the connection was established.
        ESTABLISHED = 4;
        /// The end that opened the flow.
        ROLE = 8;
        /// Bytes and packets in each direction, and the time of the latest packet.
        TRAFFIC = 16;
        /// The time that connecting took.
        CONNECT_LATENCY = 32;
        /// The kernel's smoothed round-trip time.
        SMOOTHED_RTT = 64;
        /// The number of retransmitted segments.
        RETRANSMITS = 128;
        /// Times from request to response. They are known and 0 if there has been no response yet.
        RESPONSE = 256;
        /// The duration of the flow.
        DURATION = 512;
        /// The reason for its end.
        REASON = 1024;
        /// The error number that belongs to the reason.
        ERRNO = 2048;
        /// The kernel's number of the TCP state.
        TCP_STATE = 4096;
        /// The socket's cookie.
        COOKIE = 8192;
    }
}

/// The phase of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u32)]
pub enum FlowPhase {
    /// The phase is unknown.
    #[default]
    Unknown = 0,
    /// A TCP connection whose handshake is not complete. For other protocols: packets in one direction only.
    Opening = 1,
    /// Data can pass in both directions.
    Open = 2,
    /// One end has finished sending, or both ends have and the last record is still to be delivered.
    Closing = 3,
    /// The flow has ended, and this is its last record.
    Ended = 4,
}

/// The role of this end in opening a flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u32)]
pub enum Role {
    /// The role is unknown.
    #[default]
    Unknown = 0,
    /// This end sent the first packet.
    Opened = 1,
    /// The other end sent the first packet, and this end accepted or answered.
    Accepted = 2,
}

/// The reason for the end of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u32)]
pub enum CloseReason {
    /// The reason is unknown, or the protocol has no end and the flow expired because it was silent for too
    /// long.
    #[default]
    Unknown = 0,
    /// Both ends finished sending.
    Orderly = 1,
    /// The other end reset the connection (`ECONNRESET`).
    Reset = 2,
    /// The other end did not answer for too long (`ETIMEDOUT`). No packet shows this. It is inferred from a
    /// socket that disappeared when the kernel would have retransmitted.
    TimedOut = 3,
    /// The other end refused the connection (`ECONNREFUSED`).
    Refused = 4,
    /// This end aborted the connection.
    Aborted = 5,
}

/// Times from a request to its response: from the last send before a receive to that receive.
///
/// At a requesting end, this is the time that its peer and the round trip took. At a responding end, it is
/// the time that its peer took until its next request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ResponseTimes {
    /// The number of times.
    pub count: u64,
    /// Their sum, in nanoseconds.
    pub sum_ns: u64,
    /// The shortest one, in nanoseconds; 0 if there is none.
    pub minimum_ns: u64,
    /// The longest one, in nanoseconds.
    pub maximum_ns: u64,
}

impl ResponseTimes {
    /// Adds one time.
    #[inline]
    pub fn count(&mut self, nanoseconds: u64) {
        let one =
            ResponseTimes { count: 1, sum_ns: nanoseconds, minimum_ns: nanoseconds, maximum_ns: nanoseconds };
        *self += one;
    }

    /// Returns their mean in nanoseconds, or `None` if there are none.
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
    /// A number that is unique among all flows of the session. It distinguishes successive connections that
    /// use the same endpoints.
    pub id: u64,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The endpoint on this host.
    pub local: Endpoint,
    /// The other endpoint, which may also be on this host.
    pub remote: Endpoint,
    /// The network namespace of the endpoints, by its inode number (namespaces(7)).
    pub namespace_inode: u64,
    /// The socket's cookie (`SO_COOKIE`, socket(7)).
    pub cookie: u64,
    /// The process that the local end belongs to, and the quality of that result. `None` while the lookup is
    /// pending, and if it found no owner.
    pub owner: Option<Owner>,
    /// Its phase.
    pub phase: FlowPhase,
    /// The kernel's number of the TCP state (include/net/tcp_states.h): 1 is established.
    pub tcp_state: u8,
    /// The end that opened it.
    pub role: Role,
    /// The time at which it was opened: the first SYN of a TCP connection, or the first packet of any other
    /// flow.
    pub opened: Timestamp,
    /// The time at which the connection was established (connected or accepted): the end of the handshake.
    pub established: Timestamp,
    /// The time of the latest packet.
    pub last: Timestamp,
    /// Bytes on the wire, link headers included, and packets in each direction, since the flow was first
    /// seen.
    pub traffic: Traffic,
    /// The time from the SYN to its answer, for a connection that this end opened, in nanoseconds.
    pub connect_latency_ns: u64,
    /// The kernel's smoothed round-trip time (`tcpi_rtt`, tcp(7)), in nanoseconds.
    pub smoothed_rtt_ns: u64,
    /// The number of retransmitted TCP segments (`tcpi_total_retrans`).
    pub retransmits: u64,
    /// Times from request to response.
    pub response: ResponseTimes,
    /// The time from its opening to its end or, if it has not ended, to the moment of the record, in
    /// nanoseconds.
    pub duration_ns: u64,
    /// The reason for its end.
    pub reason: CloseReason,
    /// The error number (errno(3)) that the process saw or would have seen. It is 0 for an orderly end.
    pub errno: i32,
    /// The fields that are known.
    pub valid: FlowValidity,
}

impl FlowRecord {
    /// Returns a record in which only the number, the protocol and the endpoints are known.
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

/// Counts of times by their length. The first bucket counts times below 2 µs, bucket n those from 2^n µs to
/// less than twice that. The last bucket also counts all longer times.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Histogram(pub [u64; Histogram::BUCKETS]);

impl Histogram {
    /// The number of buckets. The last one begins at 36 minutes.
    pub const BUCKETS: usize = 32;

    /// Counts one time.
    #[inline]
    pub fn count(&mut self, nanoseconds: u64) {
        self.0[Histogram::bucket(nanoseconds)] += 1;
    }

    /// Returns the bucket that a time belongs to.
    #[inline]
    pub const fn bucket(nanoseconds: u64) -> usize {
        let bucket = match (nanoseconds / 1_000).checked_ilog2() {
            Some(bucket) => bucket as usize,
            None => 0,
        };
        if bucket < Histogram::BUCKETS { bucket } else { Histogram::BUCKETS - 1 }
    }

    /// Returns the number of times that were counted.
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

/// Counts over all flows of a process since the process was first seen. The counts of a flow remain after it
/// has ended.
///
/// Flows without an owner are counted once their owner is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Connections {
    /// TCP connections that the process began to open, including failed attempts.
    pub connects: u64,
    /// TCP connections that remote ends opened to the process and that were established.
    pub accepts: u64,
    /// TCP connections of both kinds that this end closed with a FIN or an RST, or that were terminated
    /// otherwise. Each one counts once.
    pub closes: u64,
    /// The number of sends, on flows of every protocol. These are calls if the kernel reports calls, else
    /// packets with payload. One packet may carry the data of several calls, and the data of one call may
    /// fill several packets.
    pub sends: u64,
    /// The number of receives, counted in the same way.
    pub receives: u64,
    /// Times from request to response on all flows of the process.
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
