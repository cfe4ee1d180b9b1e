//! Flow records in replays: no byte is lost between them, and nothing depends on the running machine.

use super::machine;
use super::replay::{accounted, file, options, replay};
use capture::internals::config::Options;
use capture::internals::model::{FlowPhase, FlowRecord, FlowValidity, ProcId, Traffic, Unowned, Validity};
use capture::internals::session::Session;
use capture_test_support::frames::Wire;
use capture_test_support::savefile::{Format, Record, link_type, savefile};
use std::collections::{HashMap, HashSet};

/// Returns the packets of the fixture machine, repeated `rounds` times.
fn records(rounds: usize) -> Vec<Record> {
    let once = machine::records(Wire::Ethernet, &machine::packets());
    std::iter::repeat_n(once, rounds).flatten().collect()
}

fn recorded(
    records: &[Record],
    change: impl FnOnce(&mut Options),
) -> (Session, Vec<FlowRecord>, Vec<FlowRecord>) {
    let tree = machine::tree();
    let saved = file(&savefile(Format::Little, link_type(Wire::Ethernet), records));
    let mut given = Options { flows: true, ..options(saved.path(), &tree) };
    change(&mut given);
    let mut session = replay(given).unwrap();
    session.update().unwrap();
    let living: Vec<FlowRecord> = session.flows().copied().collect();
    let ended = session.take_ended_flows();
    (session, living, ended)
}

/// Returns all bytes that were counted in flows.
fn in_flows(session: &Session) -> u64 {
    let unowned = session.stats_reader().read().bytes.unowned;
    let without = [Unowned::Fragment, Unowned::NotLocal].map(|reason| unowned[reason as usize]);
    accounted(session) - without.iter().sum::<u64>()
}

#[test]
fn the_flows_of_a_process_have_all_of_its_bytes() {
    let (session, living, ended) = recorded(&records(3), |_| ());
    let mut by_owner: HashMap<Option<ProcId>, Traffic> = HashMap::new();
    for record in living.iter().chain(&ended) {
        *by_owner.entry(record.owner.map(|owner| owner.process)).or_default() += record.traffic;
        let unknown = FlowValidity::NAMESPACE | FlowValidity::COOKIE | FlowValidity::SMOOTHED_RTT;
        assert_eq!(record.valid.0 & unknown.0, 0, "no savefile tells that: {record:?}");
    }
    for process in session.processes() {
        assert!(process.valid.has(Validity::CONNECTIONS));
        let of_flows = by_owner.remove(&Some(process.sample.id)).unwrap_or_default();
        assert_eq!(of_flows, process.traffic, "{:?}", process.sample.id);
    }
    let rest: u64 = by_owner.values().map(Traffic::bytes).sum();
    assert_eq!(rest, session.stats_reader().read().bytes.unowned[Unowned::NoSocket as usize]);
}

#[test]
fn flows_that_make_room_for_others_are_told_with_all_their_bytes() {
    for limit in [1, 2, 5, 4_096] {
        let (session, living, ended) = recorded(&records(20), |given| given.flow_limit = Some(limit));
        let all: u64 = living.iter().chain(&ended).map(|record| record.traffic.bytes()).sum();
        assert_eq!(all, in_flows(&session), "with room for {limit}");
        assert!(living.len() <= limit);
        assert!(ended.iter().all(|record| record.phase == FlowPhase::Ended));
        assert!(living.iter().all(|record| record.phase != FlowPhase::Ended));
        let ids: HashSet<u64> = living.iter().chain(&ended).map(|record| record.id).collect();
        assert_eq!(ids.len(), living.len() + ended.len(), "each is told of once");
        let flows = session.stats_reader().read();
        assert_eq!((flows.flows, flows.lost_flows), (living.len() as u64, 0));
    }
}

#[test]
fn records_that_nobody_takes_are_lost_and_counted() {
    let change = |given: &mut Options| (given.flow_limit, given.ended_flow_limit) = (Some(1), Some(4));
    let (session, _, ended) = recorded(&records(20), change);
    let flows = session.stats_reader().read();
    assert_eq!(ended.len(), 4);
    assert!(flows.lost_flows > 0);
    assert!(flows.flows_evicted >= flows.lost_flows);
}
