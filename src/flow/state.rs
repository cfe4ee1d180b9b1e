//! The state of a flow as its packets show it, and its idle timeout in that state.
//!
//! A state depends on flags and directions only, not on sequence numbers. It decides how long a flow is kept
//! and whether a SYN begins another connection, never whether bytes are counted.

use crate::model::{Direction, Protocol, TcpFlags};

/// The state of a flow. The TCP states are those of RFC 9293, 3.3.2, as far as an observer at the local end
/// can distinguish them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum FlowState {
    /// Not TCP; packets were only sent so far.
    SendOnly,
    /// Not TCP; packets were only received so far.
    ReceiveOnly,
    /// Not TCP; packets went both ways.
    TwoWay,
    /// TCP: the local end opened, the handshake is not complete.
    SynSent,
    /// TCP: the other end opened, the handshake is not complete.
    SynReceived,
    /// TCP: the complete handshake was seen.
    Established,
    /// TCP: seen from the middle on; the handshake was missed.
    Midstream,
    /// TCP: the local end has finished sending, the other has not.
    FinSent,
    /// TCP: the other end has finished sending, the local end has not.
    FinReceived,
    /// TCP: both ends have finished sending.
    Closed,
    /// TCP: aborted.
    Reset,
}

const NANOSECONDS: u64 = 1_000_000_000;

impl FlowState {
    /// Returns the state of a flow whose first packet is this one.
    pub(super) fn first(protocol: Protocol, direction: Direction, flags: TcpFlags) -> FlowState {
        use Direction::{Receive, Send};
        if protocol != Protocol::TCP {
            return match direction {
                Send => FlowState::SendOnly,
                Receive => FlowState::ReceiveOnly,
            };
        }
        if flags.has(TcpFlags::RST) {
            return FlowState::Reset;
        }
        if flags.has(TcpFlags::SYN) {
            // The end that opens sends a SYN, and the end that accepts sends a SYN with ACK.
            return match (direction, flags.has(TcpFlags::ACK)) {
                (Send, false) | (Receive, true) => FlowState::SynSent,
                (Receive, false) | (Send, true) => FlowState::SynReceived,
            };
        }
        match (flags.has(TcpFlags::FIN), direction) {
            (false, _) => FlowState::Midstream,
            (true, Send) => FlowState::FinSent,
            (true, Receive) => FlowState::FinReceived,
        }
    }

    /// Returns the state after one more packet.
    pub(super) fn next(self, direction: Direction, flags: TcpFlags) -> FlowState {
        use FlowState as S;
        match (self, direction) {
            (S::SendOnly, Direction::Receive) | (S::ReceiveOnly, Direction::Send) => return S::TwoWay,
            (S::SendOnly | S::ReceiveOnly | S::TwoWay, _) => return self,
            _ => {}
        }
        if flags.has(TcpFlags::RST) {
            // Both FINs say more than the RST that often follows them: the connection ended in order, and its
            // retransmissions may still arrive.
            return if self == S::Closed { S::Closed } else { S::Reset };
        }
        if flags.has(TcpFlags::FIN) {
            return match (self, direction) {
                (S::Closed | S::Reset, _) => self,
                (S::FinReceived, Direction::Send) | (S::FinSent, Direction::Receive) => S::Closed,
                (_, Direction::Send) => S::FinSent,
                (_, Direction::Receive) => S::FinReceived,
            };
        }
        // An end that answers a SYN without sending a SYN of its own has seen the complete handshake.
        let acknowledges = flags.has(TcpFlags::ACK) && !flags.has(TcpFlags::SYN);
        match self {
            S::SynSent | S::SynReceived if acknowledges => S::Established,
            _ => self,
        }
    }

    /// Returns true if this packet, on a flow in this state, begins another connection between the same
    /// endpoints.
    ///
    /// This is so only if the packet can mean nothing else. A SYN on a connection that is opening or open may
    /// be a retransmission (RFC 9293, 3.10.7.4). A SYN with ACK belongs to another connection only if its
    /// sender had finished sending: an end that has sent a FIN is past the handshake and does not repeat its
    /// SYN.
    #[inline]
    pub(super) fn is_superseded_by(self, direction: Direction, flags: TcpFlags) -> bool {
        flags.has(TcpFlags::SYN) && !flags.has(TcpFlags::RST) && self.yields_to_syn(direction, flags)
    }

    fn yields_to_syn(self, direction: Direction, flags: TcpFlags) -> bool {
        use FlowState as S;
        if flags.has(TcpFlags::ACK) {
            return match direction {
                Direction::Send => matches!(self, S::FinSent | S::Closed),
                Direction::Receive => matches!(self, S::FinReceived | S::Closed),
            };
        }
        // The handshake of a connection seen from the middle on is long past, so this SYN belongs to another
        // one.
        matches!(self, S::Midstream | S::FinSent | S::FinReceived | S::Closed | S::Reset)
    }

    /// Returns the time for which a flow in this state is kept after its latest packet, nanoseconds.
    ///
    /// These are the defaults of Linux's connection tracking
    /// (Documentation/networking/nf_conntrack-sysctl.rst), with two exceptions. An idle TCP connection is
    /// kept for 2 hours 4 minutes, which outlasts the default keep-alive (RFC 5382, REQ-5), and not for 5
    /// days: evicting it costs no more than another lookup of its owner. A closed one is kept for 60 s, the
    /// length of Linux's TIME_WAIT (`TCP_TIMEWAIT_LEN`, include/net/tcp.h).
    pub(super) fn timeout(self, protocol: Protocol) -> u64 {
        let seconds = match (self, protocol) {
            (FlowState::SynSent, _) => 120,
            (FlowState::SynReceived, _) => 60,
            (FlowState::Established, _) => 7_440,
            (FlowState::Midstream, _) => 300,
            (FlowState::FinSent | FlowState::FinReceived, _) => 120,
            (FlowState::Closed, _) => 60,
            (FlowState::Reset, _) => 10,
            (_, Protocol::ICMP | Protocol::ICMPV6) => 30,
            (FlowState::TwoWay, Protocol::UDP | Protocol::UDPLITE) => 120,
            (_, Protocol::UDP | Protocol::UDPLITE) => 30,
            _ => 600,
        };
        seconds * NANOSECONDS
    }

    /// TCP: returns true if all further packets are repetitions.
    pub fn is_over(self) -> bool {
        matches!(self, FlowState::Closed | FlowState::Reset)
    }

    /// Returns true if both ends have taken part, so that the flow is more than an attempt of one of them. A
    /// refused attempt is not answered; neither is a reset connection, because it has ended in the same
    /// state.
    pub fn is_answered(self) -> bool {
        self == FlowState::Closed || self.worth() == FlowState::IN_USE
    }

    /// The worth of flows in use, the highest.
    pub(super) const IN_USE: u8 = 3;

    /// Returns the worth of a flow in this state; a full table evicts the flows of the lowest worth first. It
    /// is at least 1.
    ///
    /// Ended flows are evicted first, then flows that were never answered, so that a flood of such flows
    /// displaces itself and not the connections in use. Connection tracking spares the same ones
    /// (`early_drop`, nf_conntrack_core.c).
    pub(super) fn worth(self) -> u8 {
        match self {
            FlowState::Closed | FlowState::Reset => 1,
            FlowState::SendOnly | FlowState::ReceiveOnly | FlowState::SynSent | FlowState::SynReceived => 2,
            FlowState::TwoWay
            | FlowState::Established
            | FlowState::Midstream
            | FlowState::FinSent
            | FlowState::FinReceived => FlowState::IN_USE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Receive, Send};
    use FlowState as S;

    const SYN: TcpFlags = TcpFlags::SYN;
    const ACK: TcpFlags = TcpFlags::ACK;
    const SYN_ACK: TcpFlags = TcpFlags(0x12);
    const FIN_ACK: TcpFlags = TcpFlags(0x11);
    const RST: TcpFlags = TcpFlags::RST;
    const RST_ACK: TcpFlags = TcpFlags(0x14);

    /// Replays a connection packet by packet; `true` marks a packet that must begin another one.
    fn walk(steps: &[(Direction, TcpFlags, S, bool)]) {
        let mut state = None;
        for (number, &(direction, flags, expected, supersedes)) in steps.iter().enumerate() {
            let superseded = state.is_some_and(|state: S| state.is_superseded_by(direction, flags));
            assert_eq!(superseded, supersedes, "superseding at step {number} from {state:?}");
            let next = match state {
                Some(state) if !superseded => S::next(state, direction, flags),
                _ => S::first(Protocol::TCP, direction, flags),
            };
            assert_eq!(next, expected, "state at step {number} from {state:?}");
            state = Some(next);
        }
    }

    #[test]
    fn a_client_opens_and_closes() {
        walk(&[
            (Send, SYN, S::SynSent, false),
            (Send, SYN, S::SynSent, false),
            (Receive, SYN_ACK, S::SynSent, false),
            (Receive, SYN_ACK, S::SynSent, false),
            (Send, ACK, S::Established, false),
            (Send, ACK, S::Established, false),
            (Send, SYN, S::Established, false),
            (Receive, SYN_ACK, S::Established, false),
            (Send, FIN_ACK, S::FinSent, false),
            (Send, FIN_ACK, S::FinSent, false),
            (Receive, ACK, S::FinSent, false),
            (Receive, FIN_ACK, S::Closed, false),
            (Send, ACK, S::Closed, false),
            (Receive, FIN_ACK, S::Closed, false),
            (Send, RST, S::Closed, false),
            (Send, SYN, S::SynSent, true),
            (Send, SYN, S::SynSent, false),
        ]);
    }

    #[test]
    fn a_server_is_opened_and_closes_last() {
        walk(&[
            (Receive, SYN, S::SynReceived, false),
            (Receive, SYN, S::SynReceived, false),
            (Send, SYN_ACK, S::SynReceived, false),
            (Receive, ACK, S::Established, false),
            (Receive, FIN_ACK, S::FinReceived, false),
            (Send, ACK, S::FinReceived, false),
            (Send, FIN_ACK, S::Closed, false),
            (Receive, ACK, S::Closed, false),
            (Receive, SYN, S::SynReceived, true),
        ]);
    }

    #[test]
    fn a_refused_connection_may_be_tried_again() {
        walk(&[
            (Send, SYN, S::SynSent, false),
            (Receive, RST_ACK, S::Reset, false),
            (Send, SYN, S::SynSent, true),
            (Receive, RST_ACK, S::Reset, false),
            // The reset may have been lost on its way to a server that repeats its answer.
            (Receive, SYN_ACK, S::Reset, false),
        ]);
    }

    #[test]
    fn a_missed_syn_is_made_up_for_by_its_answer() {
        walk(&[(Receive, SYN_ACK, S::SynSent, false), (Send, ACK, S::Established, false)]);
        walk(&[(Send, SYN_ACK, S::SynReceived, false), (Receive, ACK, S::Established, false)]);
        walk(&[
            (Send, ACK, S::Midstream, false),
            (Receive, FIN_ACK, S::FinReceived, false),
            // The local end had not finished: this may still be a repeated answer to the first SYN.
            (Send, SYN_ACK, S::FinReceived, false),
            (Receive, SYN_ACK, S::SynSent, true),
        ]);
        walk(&[
            (Send, FIN_ACK, S::FinSent, false),
            (Receive, SYN_ACK, S::FinSent, false),
            (Send, SYN_ACK, S::SynReceived, true),
        ]);
    }

    #[test]
    fn a_syn_after_half_a_connection_is_another_one() {
        walk(&[(Receive, ACK, S::Midstream, false), (Send, SYN, S::SynSent, true)]);
        walk(&[
            (Receive, FIN_ACK, S::FinReceived, false),
            (Send, ACK, S::FinReceived, false),
            (Receive, SYN, S::SynReceived, true),
        ]);
        walk(&[
            (Send, RST, S::Reset, false),
            (Send, ACK, S::Reset, false),
            (Receive, FIN_ACK, S::Reset, false),
        ]);
    }

    #[test]
    fn other_protocols_only_know_directions() {
        let all = TcpFlags(0xff);
        for flags in [TcpFlags(0), all] {
            assert_eq!(S::first(Protocol::UDP, Send, flags), S::SendOnly);
            assert_eq!(S::first(Protocol::ICMP, Receive, flags), S::ReceiveOnly);
            assert_eq!(S::SendOnly.next(Send, flags), S::SendOnly);
            assert_eq!(S::SendOnly.next(Receive, flags), S::TwoWay);
            assert_eq!(S::ReceiveOnly.next(Receive, flags), S::ReceiveOnly);
            assert_eq!(S::ReceiveOnly.next(Send, flags), S::TwoWay);
            assert_eq!(S::TwoWay.next(Send, flags), S::TwoWay);
        }
        for state in [S::SendOnly, S::ReceiveOnly, S::TwoWay] {
            assert!(!state.is_superseded_by(Send, SYN) && !state.is_superseded_by(Receive, SYN_ACK));
        }
    }

    #[test]
    fn timeouts_are_the_documented_ones() {
        let table = [
            (S::SynSent, Protocol::TCP, 120),
            (S::SynReceived, Protocol::TCP, 60),
            (S::Established, Protocol::TCP, 7_440),
            (S::Midstream, Protocol::TCP, 300),
            (S::FinSent, Protocol::TCP, 120),
            (S::FinReceived, Protocol::TCP, 120),
            (S::Closed, Protocol::TCP, 60),
            (S::Reset, Protocol::TCP, 10),
            (S::SendOnly, Protocol::UDP, 30),
            (S::ReceiveOnly, Protocol::UDPLITE, 30),
            (S::TwoWay, Protocol::UDP, 120),
            (S::TwoWay, Protocol::ICMP, 30),
            (S::SendOnly, Protocol::ICMPV6, 30),
            (S::TwoWay, Protocol::SCTP, 600),
            (S::ReceiveOnly, Protocol(47), 600),
        ];
        for (state, protocol, seconds) in table {
            assert_eq!(state.timeout(protocol), seconds * 1_000_000_000, "{state:?} {protocol:?}");
        }
    }
}
