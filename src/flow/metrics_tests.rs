//! Tests of the metrics of single flows, packet by packet.

use super::*;
use crate::model::Protocol;
use Direction::{Receive, Send};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const SYN_ACK: u8 = 0x12;
const FIN_ACK: u8 = 0x11;
const RST: u8 = 0x04;
const RST_ACK: u8 = 0x14;
/// An acknowledgement that carries data.
const DATA: u8 = 0x18;

/// Replays packets on a TCP flow, each at a time in milliseconds.
fn walk(packets: &[(u64, Direction, u8)]) -> FlowMetrics {
    let mut course: Option<(FlowState, FlowMetrics)> = None;
    for &(millisecond, direction, flags) in packets {
        let first = || FlowState::first(Protocol::TCP, direction, TcpFlags(flags));
        let (state, mut detail) = course.take().unwrap_or_else(|| (first(), FlowMetrics::new(first())));
        let state = state.next(direction, TcpFlags(flags));
        detail.observe(state, direction, TcpFlags(flags), flags == DATA, at(millisecond));
        course = Some((state, detail));
    }
    course.unwrap().1
}

fn at(millisecond: u64) -> Timestamp {
    Timestamp(1_000_000 * (1_000 + millisecond))
}

fn counts(detail: &mut FlowMetrics) -> [u64; 6] {
    let mut all = Connections::default();
    detail.take_counts(&mut all);
    [all.connects, all.accepts, all.closes, all.sends, all.receives, all.response.total()]
}

#[test]
fn a_client_asks_twice_and_closes() {
    let mut detail = walk(&[
        (0, Send, SYN),
        (20, Receive, SYN_ACK),
        (21, Send, ACK),
        (30, Send, DATA),
        (40, Send, DATA),
        (70, Receive, DATA),
        (75, Receive, DATA),
        (80, Send, DATA),
        (81, Receive, ACK),
        (90, Receive, DATA),
        (100, Send, FIN_ACK),
        (110, Receive, FIN_ACK),
        (111, Send, ACK),
    ]);
    assert_eq!((detail.role(), detail.saw_opening()), (Role::Opened, true));
    assert_eq!((detail.answered(), detail.established()), (Some(at(20)), Some(at(20))));
    assert_eq!(detail.end(), Some((at(110), CloseReason::Orderly)));
    let expected =
        ResponseTimes { count: 2, sum_ns: 40_000_000, minimum_ns: 10_000_000, maximum_ns: 30_000_000 };
    assert_eq!(detail.response(), expected, "from the last send to the first receive after it");
    let mut all = Connections::default();
    assert!(detail.has_counts());
    detail.take_counts(&mut all);
    assert_eq!([all.connects, all.accepts, all.closes, all.sends, all.receives], [1, 0, 1, 3, 3]);
    assert_eq!((all.response.0[13], all.response.0[14], all.response.total()), (1, 1, 2));
    assert!(!detail.has_counts());
    assert_eq!(counts(&mut detail), [0; 6], "taken once");
}

#[test]
fn a_server_accepts_when_the_handshake_is_done() {
    let mut half = walk(&[(0, Receive, SYN), (0, Send, SYN_ACK)]);
    assert_eq!((half.role(), half.established(), counts(&mut half)), (Role::Accepted, None, [0; 6]));
    let mut whole = walk(&[(0, Receive, SYN), (0, Send, SYN_ACK), (20, Receive, ACK), (25, Receive, DATA)]);
    assert_eq!((whole.answered(), whole.established()), (None, Some(at(20))));
    assert_eq!(counts(&mut whole), [0, 1, 0, 0, 1, 0], "what comes unasked is no response");
    let unseen = walk(&[(0, Receive, SYN_ACK), (1, Send, ACK)]);
    assert_eq!((unseen.role(), unseen.saw_opening()), (Role::Opened, false), "the SYN was missed");
    let mut closed = walk(&[(0, Receive, SYN), (0, Send, SYN_ACK), (1, Receive, ACK), (2, Receive, FIN_ACK)]);
    assert_eq!(
        (closed.end(), counts(&mut closed)),
        (None, [0, 1, 0, 0, 0, 0]),
        "only the other end has closed"
    );
}

#[test]
fn reasons_by_who_breaks_off_and_when() {
    let opened = [(0, Send, SYN), (1, Receive, SYN_ACK), (1, Send, ACK)];
    let with = |rest: &[(u64, Direction, u8)]| walk(&[&opened[..], rest].concat()).end();
    assert_eq!(walk(&[(0, Send, SYN), (5, Receive, RST)]).end(), Some((at(5), CloseReason::Refused)));
    assert_eq!(with(&[(5, Receive, RST)]), Some((at(5), CloseReason::Reset)));
    assert_eq!(with(&[(5, Send, RST_ACK)]), Some((at(5), CloseReason::Aborted)));
    assert_eq!(with(&[(5, Receive, FIN_ACK), (6, Receive, RST)]), Some((at(6), CloseReason::Reset)));
    let orderly = with(&[(5, Receive, FIN_ACK), (6, Send, FIN_ACK), (7, Receive, RST)]);
    assert_eq!(
        orderly,
        Some((at(6), CloseReason::Orderly)),
        "a reset after both ends have finished ends nothing"
    );
    assert_eq!(walk(&[(0, Send, ACK), (5, Receive, RST)]).end(), Some((at(5), CloseReason::Reset)));
}

#[test]
fn a_reset_that_may_be_the_kernels_has_no_reason() {
    let opened = [(0, Send, SYN), (1, Receive, SYN_ACK), (1, Send, ACK)];
    let reason = |packets: &[(u64, Direction, u8)]| walk(packets).end().unwrap().1;
    let with = |rest: &[(u64, Direction, u8)]| reason(&[&opened[..], rest].concat());
    // Even a few keep-alive probes remain unanswered.
    assert_eq!(with(&[(2, Send, ACK), (3, Send, ACK), (4, Send, RST_ACK)]), CloseReason::Unknown);
    let probed = [(2, Send, DATA), (3, Receive, ACK), (4, Send, ACK), (5, Send, RST_ACK)];
    assert_eq!(with(&probed), CloseReason::Unknown);
    // Data is sent without an answer, until the socket is gone and the other end returns.
    assert_eq!(with(&[(2, Send, DATA), (3, Send, DATA), (4, Send, RST_ACK)]), CloseReason::Unknown);
    assert_eq!(with(&[(2, Send, DATA), (9, Receive, FIN_ACK), (9, Send, RST)]), CloseReason::Unknown);
    // A process closes its socket and leaves data unread.
    assert_eq!(with(&[(2, Receive, DATA), (2, Send, ACK), (3, Send, RST_ACK)]), CloseReason::Aborted);
    assert_eq!(with(&[(2, Receive, DATA), (3, Send, RST_ACK)]), CloseReason::Aborted);
    // There is no listener, or the caller's packets were not seen.
    assert_eq!(reason(&[(0, Receive, SYN), (0, Send, RST_ACK)]), CloseReason::Unknown);
    assert_eq!(reason(&[(0, Receive, RST_ACK)]), CloseReason::Unknown);
    assert_eq!(reason(&[(0, Send, RST_ACK)]), CloseReason::Unknown);
}

#[test]
fn a_closing_counts_once_however_it_comes() {
    let mut reset =
        walk(&[(0, Send, SYN), (1, Receive, SYN_ACK), (1, Send, ACK), (2, Send, FIN_ACK), (3, Receive, RST)]);
    assert_eq!(counts(&mut reset), [1, 0, 1, 0, 0, 0]);
    reset.vanish(CloseReason::TimedOut, at(9));
    assert_eq!((counts(&mut reset), reset.end()), ([0; 6], Some((at(3), CloseReason::Reset))));
    let mut gone = walk(&[(0, Send, SYN)]);
    gone.vanish(CloseReason::TimedOut, at(9));
    assert_eq!((counts(&mut gone), gone.end()), ([1, 0, 1, 0, 0, 0], Some((at(9), CloseReason::TimedOut))));
}

#[test]
fn an_end_is_noticed_and_told_once() {
    let mut detail = walk(&[(0, Send, SYN)]);
    assert!(!detail.notice_end());
    detail.vanish(CloseReason::Unknown, at(1));
    assert!(detail.notice_end() && !detail.notice_end());
    assert!(!detail.is_told() && detail.tell() && !detail.tell() && detail.is_told());
}

#[test]
fn datagrams_have_a_role_and_responses_but_no_connection() {
    let mut detail = FlowMetrics::new(FlowState::SendOnly);
    detail.observe(FlowState::SendOnly, Send, TcpFlags(0), true, at(0));
    detail.observe(FlowState::TwoWay, Receive, TcpFlags(0), true, at(3));
    assert_eq!((detail.role(), detail.end(), detail.established()), (Role::Opened, None, None));
    assert_eq!((detail.response().minimum_ns, counts(&mut detail)), (3_000_000, [0, 0, 0, 1, 1, 1]));
    assert_eq!(FlowMetrics::new(FlowState::ReceiveOnly).role(), Role::Accepted);
    assert_eq!(FlowMetrics::new(FlowState::Midstream).role(), Role::Unknown);
}
