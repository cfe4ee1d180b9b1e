//! Tests of connections that have ended: the time at which they leave the table, and the owner of their late
//! packets.

use super::super::made_up::{departed, fresh};
use super::*;
use crate::model::{Address, Direction, Endpoint, Namespace, ProcId, Quality};
use Direction::{Receive, Send};

const SECOND: u64 = 1_000_000_000;
const IDLE: u64 = 2 * SECOND;
const OWNER: Owner = Owner { process: ProcId { pid: 7, start_ticks: 70 }, quality: Quality::Shared };
const SYN: TcpFlags = TcpFlags::SYN;
const SYN_ACK: TcpFlags = TcpFlags(0x12);
const ACK: TcpFlags = TcpFlags::ACK;
const FIN_ACK: TcpFlags = TcpFlags(0x11);

fn at(milliseconds: u64) -> Timestamp {
    Timestamp(1_000 * SECOND + milliseconds * 1_000_000)
}

fn key(port: u16) -> FlowKey {
    FlowKey {
        local: Endpoint::new(Address::v4([10, 0, 0, 1]), 80),
        remote: Endpoint::new(Address::v4([10, 0, 0, 2]), port),
        protocol: Protocol::TCP,
        namespace: Namespace::HOME,
    }
}

/// Records a connection from its opening to its end, and answers the lookup of its owner.
fn course(table: &mut FlowTable, port: u16, milliseconds: u64, answer: Result<Owner, Unowned>) -> FlowId {
    let now = at(milliseconds);
    let packets = [(Receive, SYN), (Send, SYN_ACK), (Receive, ACK), (Receive, FIN_ACK), (Send, FIN_ACK)];
    let ids = packets.map(|(direction, flags)| table.record(&key(port), direction, 60, flags, now));
    table.drain_fresh(|_, flow| flow.bind(answer));
    table.drain_dirty(|_, flow, _| _ = flow.take_pending());
    ids[4]
}

#[test]
fn late_packets_go_to_the_owner_of_a_connection_that_has_left() {
    let mut table = FlowTable::new(10).unwrap();
    let id = course(&mut table, 1, 0, Ok(OWNER));
    table.release_ended(at(1_999), IDLE);
    assert!(table.get(id).is_some());
    table.release_ended(at(2_000), IDLE);
    assert_eq!((table.stats().held, table.stats().expired, table.indexed()), (0, 1, 0));
    assert_eq!(departed(&mut table), [], "all of it was credited");

    // Its FIN is repeated and acknowledged again, and once more at the end of TIME_WAIT.
    for late in [3_000, 61_000] {
        let restored = table.record(&key(1), Receive, 54, FIN_ACK, at(late));
        assert_eq!(table.record(&key(1), Send, 54, ACK, at(late)), restored);
        let flow = table.get(restored).unwrap();
        assert_eq!((flow.binding(), flow.state()), (Binding::Owned(OWNER), FlowState::Closed));
        assert_eq!(fresh(&mut table), [], "nobody is asked");
        let mut bytes = 0;
        table.drain_dirty(|_, flow, _| bytes += flow.take_pending().bytes());
        assert_eq!(bytes, 108);
        table.release_ended(at(late + 2_000), IDLE);
        assert_eq!(table.stats().held, 0);
    }
    table.release_ended(at(200_000), IDLE);
    table.record(&key(1), Receive, 54, FIN_ACK, at(200_000));
    assert_eq!(fresh(&mut table).len(), 1, "by then it may be anything");
}

#[test]
fn another_connection_between_the_same_endpoints_has_nothing_of_the_one_before() {
    let mut table = FlowTable::new(10).unwrap();
    course(&mut table, 1, 0, Ok(OWNER));
    table.release_ended(at(2_000), IDLE);
    let id = table.record(&key(1), Receive, 60, SYN, at(2_100));
    assert_eq!((table.get(id).unwrap().binding(), fresh(&mut table)), (Binding::Unasked, vec![id]));
    // The same holds if it has ended without an owner.
    let id = course(&mut table, 1, 2_200, Err(Unowned::NoHolder));
    table.get_mut(id).unwrap().bind(Err(Unowned::NoHolder));
    table.release_ended(at(5_000), IDLE);
    let id = table.record(&key(1), Receive, 60, FIN_ACK, at(5_000));
    assert_eq!(fresh(&mut table), [id]);
    let other = FlowKey { namespace: Namespace(1), ..key(2) };
    course(&mut table, 2, 5_000, Ok(OWNER));
    table.release_ended(at(8_000), IDLE);
    let id = table.record(&other, Receive, 60, FIN_ACK, at(8_000));
    assert_eq!(fresh(&mut table), [id], "it is another namespace's");
}

#[test]
fn what_is_not_done_with_stays() {
    let mut table = FlowTable::new(10).unwrap();
    let busy = course(&mut table, 1, 0, Ok(OWNER));
    let unanswered = course(&mut table, 2, 0, Err(Unowned::QueueFull));
    let done = course(&mut table, 3, 0, Err(Unowned::NoSocket));
    for late in [1_000, 2_500, 4_000] {
        table.record(&key(1), Receive, 54, FIN_ACK, at(late));
        table.release_ended(at(late), IDLE);
    }
    assert!(table.get(done).is_none() && table.get(busy).is_some());
    table.release_ended(at(9_000), IDLE);
    assert!(table.get(busy).is_none() && table.get(unanswered).is_some());
    table.get_mut(unanswered).unwrap().bind(Ok(OWNER));
    table.release_ended(at(12_000), IDLE);
    assert_eq!((table.stats().held, table.ended.len()), (0, 0));
}

#[test]
fn a_flow_is_reported_before_it_leaves_and_not_again() {
    let mut table = FlowTable::new(10).unwrap();
    table.keep_details().unwrap();
    let id = course(&mut table, 1, 0, Ok(OWNER));
    table.release_ended(at(3_000), IDLE);
    assert!(table.detail_mut(id).unwrap().1.tell(), "its last record is yet to be made");
    table.release_ended(at(6_000), IDLE);
    assert_eq!(table.stats().held, 0);
    let restored = table.record(&key(1), Send, 54, FIN_ACK, at(7_000));
    table.observe(restored, Send, FIN_ACK, false, at(7_000));
    let (_, detail) = table.detail_mut(restored).unwrap();
    assert!(detail.is_told() && !detail.has_counts() && !detail.notice_end());
    departed(&mut table);
    table.release_ended(at(10_000), IDLE);
    let gone = departed(&mut table);
    assert_eq!((gone.len(), gone[0].binding, gone[0].pending.bytes()), (1, Binding::Owned(OWNER), 54));
    assert_eq!(gone[0].detail, None);
}

#[test]
fn a_clock_that_was_set_back_keeps_nothing_for_ever() {
    let mut table = FlowTable::new(10).unwrap();
    course(&mut table, 1, 100_000, Ok(OWNER));
    table.release_ended(at(0), IDLE);
    table.sweep(at(0), 10);
    table.release_ended(at(1_000), IDLE);
    assert_eq!(table.stats().held, 1);
    table.release_ended(at(2_000), IDLE);
    assert_eq!((table.stats().held, table.ended.len()), (0, 0));
}
