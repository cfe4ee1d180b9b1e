//! Tests of the join of accounts and process records, on `/proc` fixtures.

use super::*;
use crate::kernel::{Fault, GivenName, Task, TaskSource};
use crate::model::{Identity, Owner, Quality, SampleSet, Traffic, Unowned};
use crate::proc::ProcRoot;
use capture_test_support::proc_tree::ProcTree;
use std::sync::Arc;

/// The capture's read timeout.
const TIMEOUT: Duration = Duration::from_secs(600);

/// The steps of an update.
struct Update {
    tree: ProcTree,
    sampler: Sampler,
    selection: Selection,
    ledger: Ledger,
    merge: AccountMerger,
}

impl Update {
    fn new(selection: Selection) -> Update {
        let tree = ProcTree::new();
        let root = ProcRoot::open(tree.path()).unwrap();
        let sampler = Sampler::new(root, SampleSet::ALL, selection.clone()).unwrap();
        Update { tree, sampler, selection, ledger: Ledger::default(), merge: AccountMerger::default() }
    }

    fn credit(&self, id: ProcId, bytes: u64) -> bool {
        let owner = Owner { process: id, quality: Quality::Guessed };
        let traffic = Traffic { receive_bytes: bytes, receive_packets: 1, ..Traffic::default() };
        self.ledger.lock().credit(&owner, traffic)
    }

    fn introduce(&self, id: ProcId, name: &str) {
        let identity = Identity { name: name.into(), ..Identity::default() };
        self.ledger.lock().set_identity(id, Arc::new(identity));
    }

    /// Runs the first half of an update. Returns true if any process is closing.
    fn collect(&mut self) -> bool {
        self.sampler.sample().unwrap();
        self.merge.collect(&self.ledger, &mut self.sampler, &self.selection);
        self.take_up_ended().is_some()
    }

    fn take_up_ended(&mut self) -> Option<Instant> {
        let Update { merge, sampler, ledger, selection, .. } = self;
        merge.take_up_ended(sampler, ledger, selection, &LatestIdentities::default(), Instant::now())
    }

    /// Runs the second half, with everything counted or nothing. Returns the processes delivered as removed.
    fn finish(&mut self, is_complete: bool) -> Vec<ProcessRecord> {
        let now = Instant::now();
        self.finish_at(is_complete.then_some(now), now)
    }

    /// Runs the second half with everything counted up to `complete`.
    fn finish_at(&mut self, complete: Option<Instant>, now: Instant) -> Vec<ProcessRecord> {
        let mut removed = Vec::new();
        self.merge.collect(&self.ledger, &mut self.sampler, &self.selection);
        self.merge.take_latest(&LatestIdentities::default(), now, &self.sampler);
        self.merge.take_final(complete, now, TIMEOUT, &self.ledger, &self.selection, &mut removed);
        removed
    }

    /// Runs a whole update that finds everything counted.
    fn update(&mut self) -> Vec<ProcessRecord> {
        self.collect();
        self.finish(true)
    }

    /// Returns the living processes with their received bytes.
    fn living(&self) -> Vec<(ProcId, u64)> {
        self.sampler.processes().map(|record| (record.sample.id, record.traffic.receive_bytes)).collect()
    }

    fn owner_ended(&self) -> u64 {
        self.ledger.lock().totals().unowned[Unowned::OwnerEnded as usize]
    }
}

fn id(pid: i32, start_ticks: u64) -> ProcId {
    ProcId { pid, start_ticks }
}

#[test]
fn a_process_that_came_and_went_is_delivered_once_with_its_name_and_bytes() {
    let mut update = Update::new(Selection::default());
    update.introduce(id(7, 1), "brief");
    assert!(update.credit(id(7, 1), 100));
    assert!(update.collect());
    assert!(update.merge.ended_since_sample());
    assert!(update.credit(id(7, 1), 20), "what comes before the end of the update counts");
    let removed = update.finish(true);
    assert_eq!(removed.len(), 1);
    assert_eq!((removed[0].sample.id, removed[0].identity.name.as_slice()), (id(7, 1), &b"brief"[..]));
    assert_eq!((removed[0].traffic.receive_bytes, removed[0].traffic.receive_packets), (120, 2));
    assert_eq!(removed[0].uncertain_bytes, 120);
    assert_eq!(removed[0].valid, Validity::NETWORK | Validity::USER);
    assert!(!update.credit(id(7, 1), 3));
    assert!(update.update().is_empty());
    assert_eq!(update.owner_ended(), 3);
}

#[test]
fn one_whose_name_nobody_read_says_so() {
    let mut update = Update::new(Selection::default());
    update.credit(id(7, 1), 100);
    let removed = update.update();
    assert_eq!((removed[0].valid, removed[0].identity.name.len()), (Validity::NETWORK, 0));
}

/// A connection may be reported before its bytes; the process's identity becomes known with the bytes.
#[test]
fn one_that_becomes_known_with_its_last_bytes_has_its_name_and_is_selected_by_it() {
    for wanted in ["brief", "other"] {
        let mut update = Update::new(Selection { names: vec![wanted.into()], ..Selection::default() });
        update.ledger.lock().connections(id(7, 1)).unwrap().connects += 1;
        assert!(update.collect());
        update.introduce(id(7, 1), "brief");
        update.credit(id(7, 1), 20);
        let removed = update.finish(true);
        let told: Vec<_> = removed
            .iter()
            .map(|record| {
                let connects = record.connections.as_ref().map(|connections| connections.connects);
                (&record.identity.name[..], record.traffic.receive_bytes, connects, record.valid)
            })
            .collect();
        let all = (&b"brief"[..], 20, Some(1), Validity::NETWORK | Validity::USER);
        assert_eq!(told, if wanted == "brief" { vec![all] } else { vec![] });
    }
}

/// A task source that reports this name for the processes 7 and 8. Process 8 started half a second after
/// boot.
#[derive(Debug)]
struct Renamed(&'static str);

impl TaskSource for Renamed {
    fn walk(&mut self, _each: &mut dyn FnMut(&Task<'_>)) -> Result<(), Fault> {
        Ok(())
    }

    fn given_name(&self, pid: u32) -> Option<GivenName> {
        let mut name = [0; 16];
        name[..self.0.len()].copy_from_slice(self.0.as_bytes());
        let start_ns = if pid == 7 { 0 } else { 500_000_000 };
        Some(GivenName { start_ns, name })
    }
}

#[test]
fn one_that_was_given_another_name_after_the_sample_has_that_but_not_its_predecessors() {
    let mut update = Update::new(Selection::default());
    update.sampler.take_from(Box::new(Renamed("late")));
    for pid in [7, 8] {
        update.introduce(id(pid, 0), "early");
        update.credit(id(pid, 0), 1);
    }
    let removed = update.update();
    let told: Vec<_> = removed.iter().map(|record| (record.sample.id, &record.identity.name[..])).collect();
    assert_eq!(told, [(id(7, 0), &b"late"[..]), (id(8, 0), &b"early"[..])]);
}

#[test]
fn a_process_is_held_back_for_its_last_bytes() {
    let mut update = Update::new(Selection::default());
    update.tree.process(7, "late", 1, &[]);
    update.credit(id(7, 1), 100);
    assert!(update.update().is_empty());
    assert_eq!(update.living(), [(id(7, 1), 100)]);
    update.tree.end(7);
    assert!(update.collect());
    assert!(!update.merge.ended_since_sample());
    let before = Instant::now() - Duration::from_secs(60);
    assert!(update.finish_at(Some(before), Instant::now()).is_empty(), "not everything has been counted");
    assert!(update.living().is_empty());
    assert!(update.credit(id(7, 1), 2));
    assert!(update.collect(), "it is still to be delivered");
    assert!(update.finish(false).is_empty(), "however many updates there are");
    assert!(update.credit(id(7, 1), 3));
    let removed = update.finish(true);
    assert_eq!(removed.len(), 1);
    assert_eq!((removed[0].traffic.receive_bytes, removed[0].identity.name.as_slice()), (105, &b"late"[..]));
    assert!(!update.credit(id(7, 1), 9));
    assert!(!update.collect());
    assert!(update.finish(true).is_empty());
    assert_eq!(update.owner_ended(), 9);
}

#[test]
fn a_process_is_not_held_back_for_ever() {
    let mut update = Update::new(Selection::default());
    update.tree.process(7, "late", 1, &[]);
    update.credit(id(7, 1), 100);
    update.update();
    update.tree.end(7);
    update.collect();
    let now = Instant::now();
    assert!(update.finish_at(None, now + TIMEOUT).is_empty());
    let removed = update.finish_at(None, now + TIMEOUT + MAX_HELD + Duration::from_secs(1));
    assert_eq!((removed.len(), removed[0].traffic.receive_bytes), (1, 100));
}

#[test]
fn what_has_ended_later_is_held_back_longer() {
    let mut update = Update::new(Selection::default());
    update.tree.process(7, "first", 1, &[]);
    update.tree.process(8, "second", 2, &[]);
    update.update();
    update.tree.end(7);
    update.collect();
    let between = Instant::now();
    update.tree.end(8);
    update.collect();
    let removed = update.finish_at(Some(between), between);
    assert_eq!((removed.len(), removed[0].sample.id), (1, id(7, 1)));
    assert_eq!(update.finish(true).len(), 1);
}

#[test]
fn a_pid_that_is_used_again_starts_from_zero() {
    let mut update = Update::new(Selection::default());
    update.tree.process(7, "old", 1, &[]);
    update.credit(id(7, 1), 100);
    update.update();
    update.tree.process(7, "new", 2, &[]);
    update.credit(id(7, 1), 5);
    update.credit(id(7, 2), 30);
    let removed = update.update();
    assert_eq!((removed.len(), removed[0].sample.id), (1, id(7, 1)));
    assert_eq!((removed[0].traffic.receive_bytes, removed[0].identity.name.as_slice()), (105, &b"old"[..]));
    assert_eq!(update.living(), [(id(7, 2), 30)]);
}

#[test]
fn bytes_of_a_process_that_is_younger_than_the_sample_wait_for_the_next_one() {
    let mut update = Update::new(Selection::default());
    update.sampler.sample().unwrap();
    update.tree.process(7, "young", 1, &[]);
    update.credit(id(7, 1), 100);
    update.merge.collect(&update.ledger, &mut update.sampler, &update.selection);
    assert!(update.take_up_ended().is_none(), "it lives");
    assert!(update.finish(true).is_empty());
    update.credit(id(7, 1), 1);
    assert!(update.update().is_empty());
    assert_eq!(update.living(), [(id(7, 1), 101)]);
}

#[test]
fn what_is_not_selected_is_not_delivered() {
    let selection = Selection { pids: vec![7], ..Selection::default() };
    let mut by_pid = Update::new(selection);
    by_pid.credit(id(8, 1), 1);
    by_pid.credit(id(7, 1), 2);
    let removed = by_pid.update();
    assert_eq!((removed.len(), removed[0].sample.id), (1, id(7, 1)));
    let selection = Selection { names: vec![b"this".to_vec()], ..Selection::default() };
    let mut by_name = Update::new(selection);
    for (pid, name) in [(7, "this"), (8, "that")] {
        by_name.introduce(id(pid, 1), name);
        by_name.credit(id(pid, 1), 1);
    }
    let removed = by_name.update();
    assert_eq!((removed.len(), removed[0].sample.id), (1, id(7, 1)));
    assert!(by_name.update().is_empty());
}

#[test]
fn a_process_removed_long_ago_is_not_removed_again() {
    let mut update = Update::new(Selection::default());
    let long_ago = Instant::now();
    update.ledger.lock().close(id(7, 5), long_ago);
    // Its record is released.
    update.ledger.lock().close(id(8, 6), long_ago + Duration::from_secs(3600));
    assert!(update.credit(id(7, 5), 100), "as far as the ledger knows");
    assert!(update.credit(id(7, 6), 30), "younger than all that were released");
    let removed = update.update();
    assert_eq!((removed.len(), removed[0].sample.id), (1, id(7, 6)));
    assert_eq!(update.owner_ended(), 100);
    assert!(!update.credit(id(7, 5), 1), "it is known again");
}

/// A sampled process that executes another program just before its end is delivered, even if processes that
/// started later were removed long before.
#[test]
fn one_that_samples_knew_is_delivered_however_old_it_is() {
    let mut update = Update::new(Selection { names: vec![b"late".to_vec()], ..Selection::default() });
    for pid in [7, 8] {
        update.tree.process(pid, "early", 0, &[]);
    }
    assert!(update.update().is_empty());
    // A walk that finds no process any more.
    update.sampler.take_from(Box::new(Renamed("late")));
    let long_ago = Instant::now();
    update.ledger.lock().close(id(9, 1), long_ago);
    update.ledger.lock().close(id(10, 2), long_ago + Duration::from_secs(3600));
    assert!(update.ledger.lock().was_released(id(7, 0)));
    for pid in [7, 8] {
        std::fs::remove_dir_all(update.tree.path().join(pid.to_string())).unwrap();
        update.credit(id(pid, 0), 20);
    }
    let removed = update.update();
    let told: Vec<_> = removed.iter().map(|record| (record.sample.id, &record.identity.name[..])).collect();
    assert_eq!(told, [(id(7, 0), &b"late"[..])]);
    assert_eq!(update.owner_ended(), 0);
}
