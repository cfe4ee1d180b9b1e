//! Tests of the table against naive models of it, and of single flows from their first packet to their end.

use super::made_up::{departed, fresh, key};
use super::*;
use crate::model::{
    Direction, FlowKey, Owner, ProcId, Protocol, Quality, TcpFlags, Timestamp, Traffic, Unowned,
};
use Direction::{Receive, Send};
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

const SECOND: u64 = 1_000_000_000;
const OWNER: Owner = Owner { process: ProcId { pid: 7, start_ticks: 70 }, quality: Quality::Exact };

fn udp(number: u32) -> FlowKey {
    key(Protocol::UDP, number)
}

fn seconds(seconds: u64) -> Timestamp {
    Timestamp(seconds * SECOND)
}

fn traffic(send_bytes: u64, send_packets: u64) -> Traffic {
    Traffic { send_bytes, send_packets, ..Traffic::default() }
}

#[test]
fn a_flood_of_openings_takes_16_mib_and_displaces_itself_only() {
    const OPENINGS: u32 = 300_000;
    let mut table = FlowTable::new(1_000_000).unwrap();
    let web = |number| key(Protocol::TCP, number);
    let open = table.record(&web(1), Receive, 60, TcpFlags::SYN, seconds(1));
    table.record(&web(1), Receive, 60, TcpFlags::ACK, seconds(1));
    assert_eq!(table.take_answered(), [open]);
    let datagrams = table.record(&udp(1), Receive, 60, TcpFlags(0), seconds(1));
    for number in 2..OPENINGS {
        table.record(&udp(1), Receive, 60, TcpFlags(0), seconds(1));
        table.record(&web(number), Receive, 60, TcpFlags::SYN, seconds(1));
    }
    assert!(table.get(open).is_some() && table.get(datagrams).is_some(), "neither is a part of the flood");
    assert!(table.find(&web(2)).is_none() && table.find(&web(OPENINGS - 1)).is_some(), "the oldest go first");
    let held = table.stats().held as usize;
    assert!(held > 50_000 && held * size_of::<Flow>() < 16 << 20, "{held}");
    assert_eq!(table.stats().held + table.stats().evicted, u64::from(OPENINGS));
    let bytes: u64 = departed(&mut table).iter().map(|one| one.pending.bytes()).sum();
    assert_eq!(bytes, 60 * table.stats().evicted, "nothing is lost");
}

#[test]
fn a_flow_is_handed_out_once_per_batch() {
    let mut table = FlowTable::new(10).unwrap();
    let id = table.record(&udp(1), Send, 100, TcpFlags(0), seconds(1));
    assert_eq!(table.record(&udp(1), Receive, 50, TcpFlags(0), seconds(2)), id);
    assert_eq!(table.find(&udp(1)), Some(id));
    assert_eq!(table.find(&udp(2)), None);

    let mut seen = Vec::new();
    table.drain_dirty(|id, flow, _| seen.push((id, flow.binding(), flow.pending())));
    let both = Traffic { receive_bytes: 50, receive_packets: 1, ..traffic(100, 1) };
    assert_eq!(seen, [(id, Binding::Unasked, both)]);
    assert_eq!(fresh(&mut table), [id]);
    assert_eq!(table.get(id).map(Flow::binding), Some(Binding::Asked));

    table.drain_dirty(|_, _, _| panic!("nothing was recorded"));
    assert_eq!(fresh(&mut table), []);
    assert_eq!(table.get(id).map(Flow::pending), Some(both), "what nobody took stays pending");
}

#[test]
fn a_flow_can_be_asked_about_again() {
    let mut table = FlowTable::new(10).unwrap();
    let id = table.record(&udp(1), Send, 1, TcpFlags(0), seconds(1));
    assert!(table.ask_again(id));
    assert_eq!(fresh(&mut table), [id], "listed once although it was already");
    table.get_mut(id).unwrap().bind(Err(Unowned::NoSocket));
    assert!(table.ask_again(id) && table.ask_again(id));
    table.get_mut(id).unwrap().bind(Ok(OWNER));
    assert_eq!(fresh(&mut table), [], "answered in the meantime");
    assert!(table.ask_again(id));
    assert_eq!(fresh(&mut table), [id]);
}

#[test]
fn a_late_answer_finds_no_flow_rather_than_another() {
    let mut table = FlowTable::new(1).unwrap();
    let old = table.record(&udp(1), Send, 100, TcpFlags(0), seconds(1));
    assert_eq!(fresh(&mut table), [old]);
    let new = table.record(&udp(2), Send, 7, TcpFlags(0), seconds(2));
    assert!(table.get(old).is_none() && table.get_mut(old).is_none() && !table.ask_again(old));
    assert_eq!(table.get(new).map(Flow::key), Some(&udp(2)));
    assert_eq!(table.find(&udp(1)), None);
    let gone = departed(&mut table);
    assert_eq!(gone.len(), 1);
    assert_eq!((gone[0].id, gone[0].binding, gone[0].pending), (old, Binding::Asked, traffic(100, 1)));
    table.sweep(Timestamp(u64::MAX), usize::MAX);
    assert!(table.get(new).is_none(), "nor does an answer to a flow whose slot is vacant");
}

#[test]
fn a_reused_port_is_another_flow() {
    const SYN: TcpFlags = TcpFlags::SYN;
    let web = key(Protocol::TCP, 1);
    let mut table = FlowTable::new(10).unwrap();
    let first = table.record(&web, Send, 60, SYN, seconds(1));
    assert_eq!(table.record(&web, Send, 60, SYN, seconds(2)), first, "a retransmission is not another flow");
    fresh(&mut table);
    table.get_mut(first).unwrap().bind(Ok(OWNER));
    table.record(&web, Receive, 54, TcpFlags::RST, seconds(3));

    let second = table.record(&web, Send, 60, SYN, seconds(4));
    assert_ne!(first, second);
    assert!(table.get(first).is_none());
    assert_eq!(table.record(&web, Send, 60, SYN, seconds(5)), second);
    assert_eq!(table.get(second).map(Flow::pending), Some(traffic(120, 2)));
    assert_eq!(table.get(second).map(Flow::first), Some(seconds(4)));
    assert_eq!(fresh(&mut table), [second]);
    let gone = departed(&mut table);
    assert_eq!(gone.len(), 1);
    assert_eq!((gone[0].key, gone[0].binding), (web, Binding::Owned(OWNER)));
    assert_eq!(gone[0].pending, Traffic { receive_bytes: 54, receive_packets: 1, ..traffic(120, 2) });
    assert_eq!((gone[0].first, gone[0].last), (seconds(1), seconds(3)));
    let stats = table.stats();
    assert_eq!((stats.inserted, stats.superseded, stats.held), (2, 1, 1));
}

#[test]
fn an_idle_flow_goes_when_its_time_is_over_and_not_before() {
    let mut table = FlowTable::new(10).unwrap();
    let one_way = table.record(&udp(1), Send, 1, TcpFlags(0), seconds(100));
    let two_way = table.record(&udp(2), Send, 1, TcpFlags(0), seconds(100));
    table.record(&udp(2), Receive, 1, TcpFlags(0), seconds(100));
    table.sweep(seconds(130), 10);
    assert_eq!(table.stats().held, 2);
    table.sweep(Timestamp(130 * SECOND + 1), 10);
    assert!(table.get(one_way).is_none() && table.get(two_way).is_some());
    assert_eq!(departed(&mut table).len(), 1);
    table.get_mut(two_way).unwrap().take_pending();
    table.sweep(seconds(221), 10);
    assert_eq!((table.stats().held, table.stats().expired), (0, 2));
    assert_eq!(departed(&mut table), [], "nothing was left to credit");
}

#[test]
fn the_sweep_goes_round_in_steps() {
    let mut table = FlowTable::new(10).unwrap();
    for number in 0..10 {
        table.record(&udp(number), Send, 1, TcpFlags(0), seconds(1));
    }
    for step in 1..=3 {
        table.sweep(seconds(100), 3);
        assert_eq!(table.stats().held, 10 - step * 3);
    }
    table.sweep(seconds(100), 3);
    assert_eq!(table.stats().held, 0);
    table.sweep(seconds(100), usize::MAX);
}

#[test]
fn a_clock_set_back_keeps_no_flow_for_ever() {
    let mut table = FlowTable::new(10).unwrap();
    table.record(&udp(1), Send, 1, TcpFlags(0), seconds(1_000_000));
    table.sweep(seconds(500), 10);
    table.sweep(seconds(529), 10);
    assert_eq!(table.stats().held, 1);
    table.sweep(seconds(531), 10);
    assert_eq!(table.stats().held, 0);
    let id = table.record(&udp(1), Send, 1, TcpFlags(0), seconds(600));
    table.record(&udp(1), Send, 1, TcpFlags(0), seconds(10));
    assert_eq!(table.get(id).map(Flow::last), Some(seconds(10)));
}

#[test]
fn what_has_ended_makes_room_first_then_what_was_never_answered() {
    let mut table = FlowTable::new(4).unwrap();
    let at = |table: &mut FlowTable, number, direction, flags, second| {
        table.record(&key(Protocol::TCP, number), direction, 1, flags, seconds(second))
    };
    at(&mut table, 1, Receive, TcpFlags::SYN, 1);
    let open = at(&mut table, 1, Receive, TcpFlags::ACK, 1);
    let older_flood = at(&mut table, 2, Receive, TcpFlags::SYN, 2);
    let flood = at(&mut table, 3, Receive, TcpFlags::SYN, 3);
    let ended = at(&mut table, 4, Receive, TcpFlags::RST, 9);

    at(&mut table, 5, Receive, TcpFlags::SYN, 10);
    assert!(table.get(ended).is_none() && table.get(older_flood).is_some());
    at(&mut table, 6, Receive, TcpFlags::SYN, 11);
    assert!(table.get(older_flood).is_none() && table.get(flood).is_some());
    for number in 7..100 {
        at(&mut table, number, Receive, TcpFlags::SYN, 12);
    }
    assert!(table.get(open).is_some(), "a flood displaces itself");
    let stats = table.stats();
    assert_eq!((stats.held, stats.limit, stats.inserted, stats.evicted, stats.expired), (4, 4, 99, 95, 0));

    at(&mut table, 100, Receive, TcpFlags::SYN, 12 + 7_441);
    assert_eq!(
        (table.stats().evicted, table.stats().expired),
        (95, 1),
        "an expired flow goes before any other"
    );
}

#[test]
fn a_flood_spares_the_connections_in_use() {
    let mut table = FlowTable::new(70).unwrap();
    let open: Vec<FlowId> =
        (0..60).map(|number| table.record(&udp(number), Send, 1, TcpFlags(0), seconds(1))).collect();
    for number in 0..60 {
        table.record(&udp(number), Receive, 1, TcpFlags(0), seconds(1));
    }
    for number in 60..5_000 {
        table.record(&udp(number), Receive, 1, TcpFlags(0), seconds(2));
    }
    assert!(open.iter().all(|&id| table.get(id).is_some()));
    assert_eq!(table.stats().evicted, 5_000 - 70);
}

#[test]
fn churn_of_ten_times_the_limit_loses_no_byte() {
    const LIMIT: u32 = 1_000;
    let mut table = FlowTable::new(LIMIT as usize).unwrap();
    let mut credited = Traffic::default();
    for number in 0..10 * LIMIT {
        table.record(&udp(number), Send, number, TcpFlags(0), Timestamp(u64::from(number)));
        if number % 100 == 99 {
            table.drain_departed(|gone| credited += gone.pending);
            assert!(table.stats().held <= u64::from(LIMIT));
        }
    }
    let stats = table.stats();
    assert_eq!((stats.held, stats.evicted, stats.expired), (1_000, 9_000, 0));
    assert_eq!(table.indexed(), LIMIT as usize);
    // Flows of equal worth leave roughly in the order of their age.
    assert!((0..5 * LIMIT).all(|number| table.find(&udp(number)).is_none()));
    table.sweep(Timestamp(u64::MAX), usize::MAX);
    table.drain_departed(|gone| credited += gone.pending);
    assert_eq!(credited, traffic((0..u64::from(10 * LIMIT)).sum(), u64::from(10 * LIMIT)));
    assert_eq!((table.stats().held, table.indexed()), (0, 0));
}

#[test]
fn more_packets_than_a_flow_can_keep_depart_from_it() {
    const MANY: u64 = u32::MAX as u64;
    let mut table = FlowTable::new(10).unwrap();
    let id = table.record(&udp(1), Send, 100, TcpFlags(0), seconds(1));
    table.get_mut(id).unwrap().fill_pending();
    assert_eq!(table.record(&udp(1), Receive, 9, TcpFlags(0), seconds(2)), id);
    let gone = departed(&mut table);
    assert_eq!(gone.len(), 1);
    assert_eq!((gone[0].id, gone[0].pending), (id, Traffic { receive_packets: MANY, ..traffic(100, 1) }));
    let flow = table.get(id).unwrap();
    assert_eq!(flow.pending(), Traffic { receive_bytes: 9, receive_packets: 1, ..Traffic::default() });
    assert_eq!(flow.totals().receive_packets, MANY + 1);
}

#[test]
fn limits_at_the_edges() {
    let mut table = FlowTable::new(0).unwrap();
    table.sweep(seconds(1), 10);
    for number in 0..3 {
        table.record(&udp(number), Send, 1, TcpFlags(0), seconds(1));
        assert_eq!((table.stats().held, table.stats().limit), (1, 1));
    }
    assert_eq!(departed(&mut table).len(), 2);
}

/// An operation on a table.
#[derive(Clone, Debug)]
enum Deed {
    Record { key: FlowKey, direction: Direction, wire_len: u32, flags: TcpFlags, now: Timestamp },
    DrainDirty { take: bool },
    DrainFresh { answer: bool },
    DrainDeparted,
    AskAgain { key: FlowKey },
    Sweep { now: Timestamp, slots: usize },
    Release { now: Timestamp, idle: u64 },
}

fn deeds(keys: u32, protocols: &'static [Protocol]) -> impl Strategy<Value = Deed> {
    let key = (0..keys, prop::sample::select(protocols)).prop_map(|(number, protocol)| key(protocol, number));
    let now = prop_oneof![(0..10_000u64).prop_map(seconds), any::<u64>().prop_map(Timestamp)];
    let flags = prop_oneof![prop::sample::select(vec![0x02, 0x12, 0x10, 0x11, 0x04]), any::<u8>()];
    let direction = prop::sample::select(vec![Send, Receive]);
    prop_oneof![
        12 => (key.clone(), direction, any::<u32>(), flags, now.clone()).prop_map(
            |(key, direction, wire_len, flags, now)| {
                Deed::Record { key, direction, wire_len, flags: TcpFlags(flags), now }
            }
        ),
        2 => any::<bool>().prop_map(|take| Deed::DrainDirty { take }),
        2 => any::<bool>().prop_map(|answer| Deed::DrainFresh { answer }),
        1 => Just(Deed::DrainDeparted),
        1 => key.prop_map(|key| Deed::AskAgain { key }),
        2 => (now.clone(), 0..12usize).prop_map(|(now, slots)| Deed::Sweep { now, slots }),
        2 => (now, 0..4 * SECOND).prop_map(|(now, idle)| Deed::Release { now, idle }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// After any sequence of operations, each key's bytes are complete, the lists name exactly the expected
    /// flows, and the limit holds.
    #[test]
    fn no_traffic_is_lost_and_no_list_is_wrong(
        limit in 0..9usize,
        deeds in prop::collection::vec(deeds(12, &[Protocol::TCP, Protocol::UDP]), 0..200),
    ) {
        let mut table = FlowTable::new(limit).unwrap();
        let mut recorded: HashMap<FlowKey, Traffic> = HashMap::new();
        let mut credited: HashMap<FlowKey, Traffic> = HashMap::new();
        let mut dirty: HashSet<FlowId> = HashSet::new();
        let mut unasked: HashSet<FlowId> = HashSet::new();
        let mut known: HashSet<FlowId> = HashSet::new();
        for deed in deeds {
            match deed {
                Deed::Record { key, direction, wire_len, flags, now } => {
                    recorded.entry(key).or_default().count(direction, wire_len);
                    let id = table.record(&key, direction, wire_len, flags, now);
                    dirty.insert(id);
                    let is_known_owner = table.get(id).is_some_and(|it| it.binding() == Binding::Owned(OWNER));
                    if known.insert(id) && !is_known_owner {
                        unasked.insert(id);
                    }
                    prop_assert_eq!(table.find(&key), Some(id));
                    prop_assert_eq!(table.get(id).map(|flow| (*flow.key(), flow.last())), Some((key, now)));
                }
                Deed::DrainDirty { take } => {
                    let mut seen = Vec::new();
                    table.drain_dirty(|id, flow, _| {
                        seen.push(id);
                        if take {
                            *credited.entry(*flow.key()).or_default() += flow.take_pending();
                        }
                    });
                    let expected: HashSet<FlowId> = dirty.drain().filter(|&id| table.get(id).is_some()).collect();
                    prop_assert_eq!(seen.len(), expected.len());
                    prop_assert_eq!(seen.into_iter().collect::<HashSet<_>>(), expected);
                }
                Deed::DrainFresh { answer } => {
                    let mut seen = Vec::new();
                    table.drain_fresh(|id, flow| {
                        seen.push(id);
                        if answer {
                            flow.bind(Ok(OWNER));
                        }
                    });
                    let expected: HashSet<FlowId> = unasked.drain().filter(|&id| table.get(id).is_some()).collect();
                    prop_assert_eq!(seen.len(), expected.len());
                    prop_assert_eq!(seen.into_iter().collect::<HashSet<_>>(), expected);
                }
                Deed::DrainDeparted => table.drain_departed(|gone| {
                    *credited.entry(gone.key).or_default() += gone.pending;
                }),
                Deed::AskAgain { key } => {
                    if let Some(id) = table.find(&key) {
                        prop_assert!(table.ask_again(id));
                        unasked.insert(id);
                    }
                }
                Deed::Sweep { now, slots } => table.sweep(now, slots),
                Deed::Release { now, idle } => table.release_ended(now, idle),
            }
            let stats = table.stats();
            prop_assert!(stats.held <= limit.max(1) as u64);
            prop_assert_eq!(stats.held, table.indexed() as u64);
            prop_assert_eq!(stats.inserted, stats.held + stats.expired + stats.evicted + stats.superseded);
            prop_assert_eq!(stats.inserted, known.len() as u64);
        }
        let mut add = |key: FlowKey, traffic: Traffic| *credited.entry(key).or_default() += traffic;
        table.drain_departed(|gone| add(gone.key, gone.pending));
        for &key in recorded.keys() {
            add(key, table.find(&key).and_then(|id| table.get(id)).map(Flow::pending).unwrap_or_default());
        }
        prop_assert_eq!(&credited, &recorded);
    }

    /// With room for all flows and a clock that only goes forward, the table agrees with a map.
    #[test]
    fn agrees_with_a_map(
        packets in prop::collection::vec((0..30u32, any::<bool>(), 1..2_000u32, 0..20u64), 0..300),
    ) {
        #[derive(Default)]
        struct Kept { totals: Traffic, first: u64, last: u64 }

        let mut table = FlowTable::new(30).unwrap();
        let mut map: HashMap<u32, Kept> = HashMap::new();
        let (mut now, mut left) = (0, 0);
        for (number, send, wire_len, pause) in packets {
            now += pause;
            table.sweep(seconds(now), usize::MAX);
            map.retain(|_, kept| {
                let two_way = kept.totals.send_packets > 0 && kept.totals.receive_packets > 0;
                let stays = now - kept.last <= if two_way { 120 } else { 30 };
                left += u64::from(!stays);
                stays
            });
            let direction = if send { Send } else { Receive };
            table.record(&udp(number), direction, wire_len, TcpFlags(0), seconds(now));
            let kept = map.entry(number).or_insert(Kept { first: now, ..Kept::default() });
            kept.totals.count(direction, wire_len);
            kept.last = now;
        }
        for (&number, kept) in &map {
            let flow = table.find(&udp(number)).and_then(|id| table.get(id));
            let found = flow.map(|flow| (flow.totals(), flow.first(), flow.last()));
            prop_assert_eq!(found, Some((kept.totals, seconds(kept.first), seconds(kept.last))));
        }
        prop_assert_eq!(table.stats().held, map.len() as u64);
        prop_assert_eq!(table.stats().expired, left);
    }
}
