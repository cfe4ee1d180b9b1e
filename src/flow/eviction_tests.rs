//! Tests of floods of unanswered flows.

use super::super::made_up::key;
use super::*;
use crate::model::{Protocol, TcpFlags};
use Direction::{Receive, Send};

const FLOWS: u32 = 200_000;

/// Unanswered flows, opened from here or from elsewhere, take at most 16 MiB and displace no other flows.
#[test]
fn unanswered_flows_of_every_kind_displace_themselves_only() {
    let kinds = [
        (Protocol::UDP, Send, TcpFlags(0), Receive),
        (Protocol::UDP, Receive, TcpFlags(0), Send),
        (Protocol::TCP, Send, TcpFlags::SYN, Receive),
        (Protocol::TCP, Receive, TcpFlags::SYN, Send),
    ];
    for (protocol, direction, flags, other) in kinds {
        let mut table = FlowTable::new(1_000_000).unwrap();
        let now = Timestamp(1_000_000_000);
        let answered = table.record(&key(Protocol::UDP, 1), Send, 60, TcpFlags(0), now);
        table.record(&key(Protocol::UDP, 1), Receive, 60, TcpFlags(0), now);
        let opposite = table.record(&key(Protocol::ICMP, 2), other, 60, TcpFlags(0), now);
        for number in 3..FLOWS {
            table.record(&key(protocol, number), direction, 60, flags, now);
        }
        assert!(table.get(answered).is_some() && table.get(opposite).is_some(), "{direction:?}");
        let held = table.stats().held as usize;
        assert!(
            held > 90_000 && held * (size_of::<Flow>() + PLACES_BYTES) <= UNANSWERED_BYTES + 1024,
            "{held}"
        );
        let mut bytes = 0;
        table.drain_departed(|one| bytes += one.pending.bytes());
        assert_eq!(bytes, 60 * table.stats().evicted, "nothing is lost");
    }
}

#[test]
fn datagrams_that_go_on_without_an_answer_stay() {
    let mut table = FlowTable::new(1_000_000).unwrap();
    let now = Timestamp(1_000_000_000);
    let log = table.record(&key(Protocol::UDP, 1), Send, 60, TcpFlags(0), now);
    for number in 2..FLOWS {
        table.record(&key(Protocol::UDP, 1), Send, 60, TcpFlags(0), now);
        table.record(&key(Protocol::UDP, number), Send, 60, TcpFlags(0), now);
    }
    assert!(table.get(log).is_some());
    let later = Timestamp(now.0 + UNANSWERED_IDLE);
    for number in FLOWS..2 * FLOWS {
        table.record(&key(Protocol::UDP, number), Send, 60, TcpFlags(0), later);
    }
    assert!(table.get(log).is_none(), "it has not gone on");
}

/// Answered flows leave the lists of unanswered flows, and the lists' memory stays in proportion to their
/// contents.
#[test]
fn lists_of_unanswered_flows_do_not_grow_with_those_answered() {
    let mut table = FlowTable::new(1_000_000).unwrap();
    let now = Timestamp(1_000_000_000);
    let silent = table.record(&key(Protocol::UDP, 1), Send, 60, TcpFlags(0), now);
    for number in 2..FLOWS {
        let flow = key(Protocol::UDP, number);
        table.record(&flow, Send, 60, TcpFlags(0), now);
        table.record(&flow, Receive, 60, TcpFlags(0), now);
    }
    let [sent, received] = &table.unanswered;
    assert!(sent.contains(&silent) && received.is_empty());
    assert!(sent.capacity() <= 2 * MIN_UNANSWERED_REVIEW, "{}", sent.capacity());
    assert_eq!((table.stats().held, table.stats().evicted), (u64::from(FLOWS) - 1, 0));
}
