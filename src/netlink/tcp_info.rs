//! What the kernel tells of a TCP connection in a sock_diag(7) attribute: `struct tcp_info` of linux/tcp.h.

use super::message::{u32_at, u64_at};

/// The figures of one connection that are used here. Bytes are those of the stream, without headers; what was sent or
/// received again counts once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcpInfo {
    /// The state's number (include/net/tcp_states.h).
    pub state: u8,
    /// How often the segment that waits for its acknowledgement now was sent again.
    pub retrying: u8,
    /// How long the kernel waits for an acknowledgement before it sends again, microseconds.
    pub timeout_us: u32,
    /// Smoothed round-trip time, microseconds; 0 before the first measurement.
    pub round_trip_us: u32,
    /// Segments sent again since the connection was opened.
    pub retransmits: u32,
    /// Bytes that the peer has acknowledged; the FIN counts as one more, and so does the SYN of the end that opened.
    pub acknowledged_bytes: u64,
    /// Bytes received in order; the peer's FIN counts as one more.
    pub received_bytes: u64,
}

impl TcpInfo {
    /// `None` where the kernel gives less than all of them (before Linux 4.1).
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
