//! Tests of flows while the clock is set: they leave when they have been idle too long, independently of the
//! clock's changes meanwhile.

use super::super::made_up::{departed, fresh, key};
use super::*;
use crate::flow::{Binding, FlowId};
use crate::model::{Direction, Owner, ProcId, Protocol, Quality, TcpFlags};

const SECOND: u64 = 1_000_000_000;
const HOUR: i64 = 3_600_000_000_000;
const OWNER: Owner = Owner { process: ProcId { pid: 7, start_ticks: 70 }, quality: Quality::Exact };

/// The time after `seconds`, on a clock that was set by `steps` nanoseconds in total.
fn at(seconds: u64, steps: i64) -> Timestamp {
    Timestamp((1_000_000 + seconds) * SECOND).moved(steps)
}

fn udp(table: &mut FlowTable, number: u32, now: Timestamp) -> FlowId {
    table.record(&key(Protocol::UDP, number), Direction::Send, 100, TcpFlags::default(), now)
}

#[test]
fn a_clock_set_forward_makes_no_flow_older() {
    let mut table = FlowTable::new(10).unwrap();
    let old = udp(&mut table, 1, at(0, 0));
    let before = udp(&mut table, 2, at(20, 0));
    // Captured after the clock was set, before the table was informed.
    let after = udp(&mut table, 3, at(20, 3 * HOUR));
    table.step_clock(3 * HOUR, at(21, 3 * HOUR));
    table.sweep(at(21, 3 * HOUR), 10);
    assert_eq!((table.stats().held, departed(&mut table).len()), (3, 0));
    table.sweep(at(31, 3 * HOUR), 10);
    assert!(table.get(old).is_none() && table.get(before).is_some(), "30 s have passed");
    table.sweep(at(52, 3 * HOUR), 10);
    assert!(table.get(before).is_none() && table.get(after).is_none());
}

#[test]
fn a_clock_set_back_makes_no_flow_older_either() {
    let mut table = FlowTable::new(10).unwrap();
    udp(&mut table, 1, at(0, 0));
    let after = udp(&mut table, 2, at(5, -HOUR));
    table.step_clock(-HOUR, at(6, -HOUR));
    table.sweep(at(35, -HOUR), 10);
    assert_eq!(table.stats().held, 2);
    table.sweep(at(37, -HOUR), 10);
    assert!(table.get(after).is_none() && table.stats().held == 0);
}

#[test]
fn a_connection_that_has_ended_is_released_by_the_time_that_has_passed() {
    for step in [3 * HOUR, -HOUR, 300_000_000, -300_000_000] {
        let mut table = FlowTable::new(10).unwrap();
        let key = key(Protocol::TCP, 1);
        let end = TcpFlags(0x11);
        let packets =
            [(Direction::Receive, TcpFlags::SYN), (Direction::Receive, end), (Direction::Send, end)];
        for (direction, flags) in packets {
            table.record(&key, direction, 60, flags, at(0, 0));
        }
        table.drain_fresh(|_, flow| flow.bind(Ok(OWNER)));
        table.step_clock(step, at(1, step));
        table.release_ended(at(1, step), 2 * SECOND);
        assert_eq!(table.stats().held, 1, "{step}");
        table.release_ended(at(4, step), 2 * SECOND);
        assert_eq!(table.stats().held, 0, "{step}");
        // The owner is still known for late packets, even if the clock is set then.
        table.step_clock(-step, at(5, 0));
        table.release_ended(at(5, 0), 2 * SECOND);
        let late = table.record(&key, Direction::Receive, 60, end, at(6, 0));
        assert_eq!(table.get(late).map(|flow| flow.binding()), Some(Binding::Owned(OWNER)), "{step}");
        assert_eq!(fresh(&mut table), [], "{step}");
    }
}
