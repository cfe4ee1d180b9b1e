//! Tests of a single flow: its counters, its owner and its reports.

use super::*;
use crate::model::{Address, Endpoint, Namespace, Protocol};

fn flow() -> Flow {
    let end = Endpoint::new(Address::v4([10, 0, 0, 1]), 53);
    let key = FlowKey { local: end, remote: end, protocol: Protocol::UDP, namespace: Namespace::HOME };
    Flow::new(key, FlowState::SendOnly, Timestamp(5), 1)
}

#[test]
fn unowned_bytes_are_reported_once() {
    let mut flow = flow();
    let now = Timestamp::default();
    flow.count(Direction::Send, 100.into(), TcpFlags::default(), now).unwrap();
    assert_eq!((flow.report_pending(), flow.report_pending()), (100, 0));
    flow.bind(Err(Unowned::NoSocket));
    flow.count(Direction::Receive, 50.into(), TcpFlags::default(), now).unwrap();
    assert_eq!((flow.reported(), flow.report_pending(), flow.reported()), (100, 50, 150));
    let process = ProcId { pid: 7, start_ticks: 9 };
    flow.bind(Ok(Owner { process, quality: Quality::Exact }));
    assert_eq!((flow.reported(), flow.report_pending()), (0, 0));
    assert_eq!(flow.binding(), Binding::Owned(Owner { process, quality: Quality::Exact }));
    assert_eq!(flow.take_pending().bytes(), 150);
    flow.set_asked(false);
    assert_eq!(flow.reported(), 0, "the start of a former owner is not taken for bytes");
}

#[test]
fn every_binding_is_kept_as_it_was_given() {
    let process = ProcId { pid: i32::MAX, start_ticks: u64::MAX };
    let owners = [Quality::Exact, Quality::Shared, Quality::Guessed]
        .map(|quality| (Ok(Owner { process, quality }), Binding::Owned(Owner { process, quality })));
    let reasons = REASONS.map(|reason| (Err(reason), Binding::Unowned(reason)));
    for (answer, binding) in owners.into_iter().chain(reasons) {
        for dirty in [false, true] {
            let mut flow = flow();
            if dirty {
                flow.set_dirty();
            }
            flow.bind(answer);
            assert_eq!(flow.binding(), binding);
            assert_eq!(flow.clear_dirty(), dirty);
            assert_eq!(flow.binding(), binding);
            flow.set_asked(true);
            assert_eq!(flow.binding(), Binding::Asked);
            flow.set_asked(false);
            assert_eq!(flow.binding(), Binding::Unasked);
        }
    }
}

#[test]
fn the_tables_follow_the_numbers() {
    for (number, quality) in QUALITIES.into_iter().enumerate() {
        assert_eq!(quality as usize, number);
    }
    for (number, reason) in REASONS.into_iter().enumerate() {
        assert_eq!(reason as usize, number);
    }
    assert!(usize::from(OwnerBits::UNOWNED) + Unowned::COUNT <= usize::from(OwnerBits::LOOK));
}

#[test]
fn looks_disturb_nothing_else() {
    let mut flow = flow();
    flow.set_dirty();
    for looks in [0, 3, 1, 2] {
        flow.set_looks(looks);
        flow.bind(Err(Unowned::Unreadable));
        assert_eq!((flow.looks(), flow.binding()), (looks, Binding::Unowned(Unowned::Unreadable)));
    }
    flow.set_looks(200);
    assert_eq!(flow.looks(), 3);
    assert!(flow.clear_dirty() && !flow.take_whole());
}

#[test]
fn taken_traffic_stays_in_the_totals() {
    let mut flow = flow();
    flow.count(Direction::Send, 100.into(), TcpFlags(0), Timestamp(6)).unwrap();
    flow.count(Direction::Receive, 40.into(), TcpFlags(0), Timestamp(7)).unwrap();
    let all = Traffic { send_bytes: 100, receive_bytes: 40, send_packets: 1, receive_packets: 1 };
    assert_eq!((flow.pending(), flow.totals()), (all, all));
    assert_eq!(flow.take_pending(), all);
    assert_eq!((flow.pending(), flow.totals()), (Traffic::default(), all));
    assert_eq!((flow.first(), flow.last(), flow.state()), (Timestamp(5), Timestamp(7), FlowState::TwoWay));
}

/// Returns a TCP flow that has counted these packets.
fn connection(packets: &[(Direction, u8)]) -> Flow {
    let key = FlowKey { protocol: Protocol::TCP, ..*flow().key() };
    let (direction, flags) = packets[0];
    let state = FlowState::first(Protocol::TCP, direction, TcpFlags(flags));
    let mut flow = Flow::new(key, state, Timestamp(5), 1);
    for &(direction, flags) in packets {
        flow.count(direction, 100.into(), TcpFlags(flags), Timestamp(6)).unwrap();
    }
    flow
}

#[test]
fn a_connection_is_whole_once_and_only_from_its_opening_on() {
    use Direction::{Receive, Send};
    let opened = [(Send, 0x02), (Receive, 0x12), (Send, 0x10), (Send, 0x11), (Receive, 0x11)];
    let mut whole = connection(&opened);
    whole.set_dirty();
    whole.bind(Err(Unowned::NoHolder));
    assert!(whole.take_whole());
    assert!(!whole.take_whole(), "asked before");
    assert_eq!((whole.binding(), whole.clear_dirty()), (Binding::Unowned(Unowned::NoHolder), true));
    assert!(connection(&opened[1..]).take_whole(), "the answer to the SYN begins it, too");
    assert!(!connection(&opened[2..]).take_whole(), "from the middle on");
    assert!(!connection(&opened[..1]).take_whole(), "one way only");
    let with_fragment = [&opened[..3], &[(Send, 0)]].concat();
    assert!(!connection(&with_fragment).take_whole());
    assert!(!flow().take_whole());
}

#[test]
fn packets_beyond_the_counter_are_refused_whole() {
    let mut flow = flow();
    flow.fill_pending();
    flow.count(Direction::Send, 1.into(), TcpFlags(0), Timestamp(6)).unwrap();
    let before = flow.pending();
    assert!(flow.count(Direction::Receive, 9.into(), TcpFlags(0), Timestamp(7)).is_err());
    assert_eq!((flow.pending(), flow.last()), (before, Timestamp(6)));
    flow.take_pending();
    flow.count(Direction::Receive, 9.into(), TcpFlags(0), Timestamp(7)).unwrap();
    assert_eq!(flow.pending().receive_bytes, 9);
    assert_eq!(flow.totals().receive_packets, u64::from(u32::MAX) + 1);
}

#[test]
fn a_latest_packet_in_the_future_is_pulled_back() {
    let mut flow = flow();
    flow.last = Timestamp(1_000);
    assert_eq!(flow.idle(Timestamp(10)), 0);
    flow.mend_clock(0, Timestamp(10));
    assert_eq!(flow.idle(Timestamp(30)), 20);
    flow.mend_clock(0, Timestamp(30));
    assert_eq!(flow.last(), Timestamp(10));
}
