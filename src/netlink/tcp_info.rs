//! The sock_diag(7) attribute of a TCP connection: `struct tcp_info` of linux/tcp.h.

use super::message::{u32_at, u64_at};

/// The figures of one connection that the library uses. Bytes are those of the stream, without headers;
/// retransmitted bytes count once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcpInfo {
    /// The state's number ([`crate::model::tcp_state`]).
    pub state: u8,
    /// The number of retransmissions of the segment that is waiting for its acknowledgement now.
    pub retrying: u8,
    /// The time in microseconds that the kernel waits for an acknowledgement before it retransmits.
    pub timeout_us: u32,
    /// Smoothed round-trip time in microseconds; 0 before the first measurement.
    pub round_trip_us: u32,
    /// Segments retransmitted since the connection was opened.
    pub retransmits: u32,
    /// Bytes that the peer has acknowledged. The FIN counts as one more, and so does the SYN of the end that
    /// opened.
    pub acknowledged_bytes: u64,
    /// Bytes received in order; the peer's FIN counts as one more.
    pub received_bytes: u64,
}

impl TcpInfo {
    /// Parses a `struct tcp_info`. Returns `None` if the kernel does not supply all of the fields (before
    /// Linux 4.1).
    pub(super) fn parse(info: &[u8]) -> Option<TcpInfo> {
        Some(TcpInfo {
            state: *info.first()?,
            retrying: *info.get(2)?,
            timeout_us: u32_at(info, 8)?,
            round_trip_us: u32_at(info, 68)?,
            retransmits: u32_at(info, 100)?,
            acknowledged_bytes: u64_at(info, 120)?,
            received_bytes: u64_at(info, 128)?,
        })
    }
}
