//! Converts the kernel's record of a socket to the record of a flow.

use super::Clocks;
use super::records::*;
use crate::model::tcp_state::{CLOSE, CLOSE_WAIT, ESTABLISHED, SYN_RECV, SYN_SENT};
use crate::model::{
    Address, CloseReason, Connections, Endpoint, FlowPhase, FlowRecord, FlowValidity, Owner, Protocol,
    ResponseTimes, Role, Timestamp,
};

/// The part of a socket's record that was delivered to a session before.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Delivered {
    sends: u64,
    receives: u64,
    connects: u16,
    flags: u32,
    is_over: bool,
    /// Set if the last record of the flow was delivered.
    pub is_delivered: bool,
    /// The bytes and packets that had passed through the socket before the session was opened.
    pub before: Counts,
}

impl Delivered {
    /// Returns the state for a session that begins after `before` has passed through a socket and its user
    /// has made the calls in `record`. The session leaves both out.
    pub(super) fn from(record: Option<&SocketRecord>, before: Counts) -> Delivered {
        let mut delivered = Delivered { before, ..Delivered::default() };
        if let Some(record) = record {
            delivered.news(record);
            delivered.is_delivered = delivered.is_over;
        }
        delivered
    }

    /// Returns the socket's calls and events since the previous call of this function, and marks them as
    /// delivered.
    pub(super) fn news(&mut self, record: &SocketRecord) -> Connections {
        let is_accepted = record.flags & ACCEPTED != 0 && self.flags & ACCEPTED == 0;
        let closes = is_connection(record) && is_over(record) && !self.is_over;
        let news = Connections {
            connects: record.connects.wrapping_sub(self.connects).into(),
            accepts: is_accepted.into(),
            closes: closes.into(),
            sends: record.calls.sends.saturating_sub(self.sends),
            receives: record.calls.receives.saturating_sub(self.receives),
            ..Connections::default()
        };
        (self.sends, self.receives) = (record.calls.sends, record.calls.receives);
        (self.connects, self.flags) = (record.connects, record.flags);
        self.is_over = is_over(record);
        self.is_delivered &= self.is_over;
        news
    }
}

/// Returns true if a socket is one end of a flow. Listeners are not, nor are sockets that have not been used
/// yet.
pub(super) fn is_flow(record: &SocketRecord) -> bool {
    record.flags & LISTENER == 0
        && (record.flags & (CONNECTED | ACCEPTED) != 0
            || record.total != Counts::default()
            || has_peer(record))
}

/// Returns true if a flow is over: its socket has ended, or its connection has, although the process keeps
/// the socket.
pub(super) fn is_over(record: &SocketRecord) -> bool {
    record.flags & ENDED != 0 || is_connection(record) && record.state == CLOSE && record.ended_ns != 0
}

fn is_connection(record: &SocketRecord) -> bool {
    record.tuple.protocol == Protocol::TCP.0 && record.flags & (CONNECTED | ACCEPTED) != 0
}

fn has_peer(record: &SocketRecord) -> bool {
    record.tuple.remote_port != 0
}

/// Returns the flow record of the socket with this cookie, which is the flow's local end. `changed_ns` is the
/// time of the last change of its counts, in nanoseconds since boot.
pub(super) fn flow(
    cookie: u64,
    record: &SocketRecord,
    total: &Counts,
    owner: Option<Owner>,
    changed_ns: u64,
    clocks: Clocks,
) -> FlowRecord {
    let Clocks { now_ns, epoch_ns, .. } = clocks;
    let Tuple { local, remote, local_port, remote_port, protocol, netns, .. } = record.tuple;
    let end = |address: [u8; 16], port| Endpoint::new(Address::v6(address), port);
    let mut flow =
        FlowRecord::unknown(cookie, Protocol(protocol), end(local, local_port), end(remote, remote_port));
    let is_tcp = flow.protocol == Protocol::TCP;
    let is_over = is_over(record);
    let time = |since_boot| Timestamp(epoch_ns.saturating_add(since_boot));
    (flow.cookie, flow.owner, flow.traffic) = (cookie, owner, total.traffic());
    flow.namespace_inode = netns.into();
    flow.phase = phase(record, total, is_tcp);
    flow.valid =
        FlowValidity::NAMESPACE | FlowValidity::COOKIE | FlowValidity::TRAFFIC | FlowValidity::RESPONSE;
    flow.role = match record.flags {
        flags if flags & CONNECTED != 0 => Role::Opened,
        flags if flags & ACCEPTED != 0 => Role::Accepted,
        flags if is_tcp || flags & (HAS_ENDPOINTS | HELD) != HAS_ENDPOINTS => Role::Unknown,
        flags if flags & SENT_FIRST != 0 => Role::Opened,
        _ => Role::Accepted,
    };
    if flow.role != Role::Unknown {
        flow.valid |= FlowValidity::ROLE;
    }
    let opened_ns = if record.connecting_ns != 0 { record.connecting_ns } else { record.opened_ns };
    // `changed_ns` is the beginning of the reading that found a packet, and the socket may be younger than
    // that.
    flow.last = time(changed_ns.max(opened_ns).max(record.established_ns));
    if opened_ns != 0 {
        let until = if is_over { record.ended_ns } else { now_ns };
        (flow.opened, flow.duration_ns) = (time(opened_ns), until.saturating_sub(opened_ns));
        flow.valid |= FlowValidity::OPENED | FlowValidity::DURATION;
    }
    if record.established_ns != 0 {
        flow.established = time(record.established_ns);
        flow.valid |= FlowValidity::ESTABLISHED;
        if record.connecting_ns != 0 {
            flow.connect_latency_ns = record.established_ns.saturating_sub(record.connecting_ns);
            flow.valid |= FlowValidity::CONNECT_LATENCY;
        }
    }
    let Latency { count, sum_ns, min_ns, max_ns } = record.latency;
    flow.response = ResponseTimes { count, sum_ns, minimum_ns: min_ns, maximum_ns: max_ns };
    if is_tcp {
        (flow.tcp_state, flow.retransmits) = (record.state, record.retransmits.into());
        flow.valid |= FlowValidity::TCP_STATE | FlowValidity::RETRANSMITS;
        if record.smoothed_rtt_us != 0 {
            flow.smoothed_rtt_ns = u64::from(record.smoothed_rtt_us) * 1_000;
            flow.valid |= FlowValidity::SMOOTHED_RTT;
        }
        if is_over {
            (flow.reason, flow.errno) = (reason(record), record.error as i32);
            flow.valid |= FlowValidity::ERRNO;
            if flow.reason != CloseReason::Unknown {
                flow.valid |= FlowValidity::REASON;
            }
        }
    }
    flow
}

fn phase(record: &SocketRecord, total: &Counts, is_tcp: bool) -> FlowPhase {
    match record.state {
        _ if is_over(record) => FlowPhase::Ended,
        SYN_SENT | SYN_RECV if is_tcp => FlowPhase::Opening,
        ESTABLISHED if is_tcp => FlowPhase::Open,
        // The socket was held when the eBPF programs were loaded, or it is not connected yet.
        0 | CLOSE if is_tcp => FlowPhase::Unknown,
        _ if is_tcp => FlowPhase::Closing,
        _ if total.sent.bytes == 0 || total.received.bytes == 0 => FlowPhase::Opening,
        _ => FlowPhase::Open,
    }
}

fn reason(record: &SocketRecord) -> CloseReason {
    match (record.error as i32, record.last_state) {
        (libc::ECONNREFUSED, _) => CloseReason::Refused,
        (libc::ECONNRESET | libc::EPIPE, _) => CloseReason::Reset,
        (libc::ETIMEDOUT, _) => CloseReason::TimedOut,
        // The socket was destroyed from outside (ss -K), or its device disappeared.
        (libc::ECONNABORTED, _) => CloseReason::Aborted,
        // Neither end had finished, or only the remote end had: data was left unread, or lingering was
        // switched off.
        (0, ESTABLISHED | SYN_SENT | SYN_RECV | CLOSE_WAIT) => CloseReason::Aborted,
        (0, _) => CloseReason::Orderly,
        _ => CloseReason::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn record(flags: u32, state: u8, last_state: u8, error: u32) -> SocketRecord {
        let tuple = Tuple { protocol: 6, remote_port: 80, ..Tuple::default() };
        SocketRecord { flags, state, last_state, error, tuple, ..SocketRecord::default() }
    }

    #[test]
    fn reasons_follow_from_the_error_and_the_last_state() {
        for (last_state, error, expected) in [
            (9, 0, CloseReason::Orderly),
            (5, 0, CloseReason::Orderly),
            (1, 0, CloseReason::Aborted),
            (8, 0, CloseReason::Aborted),
            (1, libc::ECONNRESET, CloseReason::Reset),
            (2, libc::ECONNREFUSED, CloseReason::Refused),
            (2, libc::ETIMEDOUT, CloseReason::TimedOut),
            (1, libc::ECONNABORTED, CloseReason::Aborted),
            (1, libc::EHOSTUNREACH, CloseReason::Unknown),
        ] {
            let over = record(CONNECTED | ENDED, CLOSE, last_state, error as u32);
            assert_eq!(reason(&over), expected, "{last_state} {error}");
            let flow = flow(
                7,
                &over,
                &Counts::default(),
                None,
                0,
                Clocks { now_ns: 0, epoch_ns: 0, at: Instant::now() },
            );
            assert_eq!((flow.phase, flow.reason, flow.errno), (FlowPhase::Ended, expected, error));
            assert_eq!(flow.valid.has(FlowValidity::REASON), expected != CloseReason::Unknown);
        }
    }

    #[test]
    fn each_event_is_delivered_once() {
        let mut delivered = Delivered::default();
        let mut socket = record(CONNECTED, 1, 2, 0);
        (socket.calls.sends, socket.calls.receives, socket.connects) = (3, 2, 1);
        let news = delivered.news(&socket);
        assert_eq!([news.connects, news.accepts, news.closes, news.sends, news.receives], [1, 0, 0, 3, 2]);
        (socket.calls.sends, socket.connects, socket.flags) = (5, 4, CONNECTED | ENDED);
        let news = delivered.news(&socket);
        assert_eq!(
            [news.connects, news.accepts, news.closes, news.sends, news.receives],
            [3, 0, 1, 2, 0],
            "it connected again"
        );
        assert_eq!(delivered.news(&socket), Connections::default());
    }

    #[test]
    fn times_are_of_the_connection_and_not_of_its_socket() {
        let mut socket = record(CONNECTED, 1, 2, 0);
        (socket.opened_ns, socket.connecting_ns, socket.established_ns) = (100, 200, 250);
        let flow = flow(
            7,
            &socket,
            &Counts::default(),
            None,
            300,
            Clocks { now_ns: 400, epoch_ns: 1_000, at: Instant::now() },
        );
        assert_eq!(
            (flow.opened, flow.established, flow.last),
            (Timestamp(1_200), Timestamp(1_250), Timestamp(1_300))
        );
        assert_eq!((flow.connect_latency_ns, flow.duration_ns), (50, 200));
        assert!(flow.valid.has(FlowValidity::CONNECT_LATENCY | FlowValidity::DURATION));
        assert!(!is_flow(&record(LISTENER, 10, 7, 0)));
    }

    #[test]
    fn the_last_packet_is_not_before_the_connection() {
        let mut socket = record(CONNECTED, 1, 2, 0);
        (socket.opened_ns, socket.connecting_ns) = (100, 200);
        for (established_ns, changed_ns, last_ns) in
            [(0, 150, 200), (0, 0, 200), (250, 150, 250), (250, 300, 300)]
        {
            socket.established_ns = established_ns;
            let flow = flow(
                7,
                &socket,
                &Counts::default(),
                None,
                changed_ns,
                Clocks { now_ns: 150, epoch_ns: 1_000, at: Instant::now() },
            );
            assert_eq!(flow.last, Timestamp(1_000 + last_ns), "{established_ns} {changed_ns}");
        }
    }
}
