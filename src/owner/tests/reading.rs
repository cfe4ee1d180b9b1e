//! Tests of the reads of sources: their time, their cost, and their failures.

use crate::model::Quality::{Exact, Guessed};
use crate::model::{FlowKey, Namespace, Protocol, Unowned};
use crate::owner::Outcome::{Retry, Unowned as None};
use crate::owner::budget::tests::Costly;
use crate::owner::made_up::{ESTABLISHED, MS, NOW, OwnerTree, UNCONNECTED, key, owned, row};
use crate::owner::source::{CandidateSocket, Looked, Report, SocketSource, SourceStatus, Turn};
use crate::owner::{Budget, Finder, Query};
use std::fs;
use std::sync::atomic::Ordering;
use std::time::Instant;

fn flow() -> FlowKey {
    key(Protocol::TCP, "10.0.0.1:80", "10.0.0.9:5000")
}

fn tree() -> OwnerTree {
    let tree = OwnerTree::new();
    tree.process(20, 1, 200, &[1]);
    tree.table("tcp", &[row("10.0.0.1:80", "10.0.0.9:5000", ESTABLISHED, 1)]);
    tree
}

fn faults(finder: &Finder) -> Vec<&'static str> {
    let sources = finder.report().sources;
    sources.iter().filter(|source| source.fault.is_some()).map(|source| source.name).collect()
}

#[test]
fn a_batch_reads_each_table_and_all_descriptors_once() {
    let tree = tree();
    let mut finder = tree.finder();
    let missing = key(Protocol::TCP, "10.0.0.1:81", "10.0.0.9:5000");
    let mut queries: Vec<Query> =
        (0..50).map(|n| tree.query(if n % 2 == 0 { flow() } else { missing }, NOW)).collect();
    finder.find(&mut queries, tree.start);
    assert_eq!(queries[0].outcome, owned(20, 200, Exact));
    assert!(matches!(queries[1].outcome, Retry { .. }));
    let report = finder.report();
    assert_eq!((report.table_loads, report.full_scans), (2, 1), "tcp and tcp6");
    assert_eq!(report.sources.len(), 11);
}

#[test]
fn a_table_is_read_again_only_for_a_flow_that_it_is_too_old_for() {
    let tree = tree();
    let mut finder = tree.finder();
    let mut early = tree.query(flow(), NOW);
    finder.find(std::slice::from_mut(&mut early), tree.start + 10 * MS);
    assert_eq!(finder.report().table_loads, 1);
    let mut also_early = tree.query(flow(), 10 * MS);
    finder.find(std::slice::from_mut(&mut also_early), tree.start + 20 * MS);
    assert_eq!(also_early.outcome, owned(20, 200, Exact));
    assert_eq!(finder.report().table_loads, 1);
    let mut late = tree.query(flow(), 11 * MS);
    finder.find(std::slice::from_mut(&mut late), tree.start + 20 * MS);
    assert_eq!(finder.report().table_loads, 2);
}

#[test]
fn final_outcomes_are_left_alone() {
    let tree = tree();
    let mut finder = tree.finder();
    let mut query = tree.query(flow(), NOW);
    query.outcome = None(Unowned::Ambiguous);
    finder.find(std::slice::from_mut(&mut query), tree.start);
    assert_eq!(query.outcome, None(Unowned::Ambiguous));
    finder.find(&mut [], tree.start);
    assert_eq!(finder.report().table_loads, 0);
}

#[test]
fn without_budget_everything_waits_and_nothing_is_lost() {
    let tree = tree();
    let meter = Costly::new(10);
    let step = meter.step.clone();
    let mut finder = tree.finder_with(Budget::new(0.1, 15 * MS, Box::new(meter)));
    // The burst pays for one and a half rounds; the third has to wait for 5 ms at a tenth.
    assert_eq!(tree.at(&mut finder, flow(), NOW), owned(20, 200, Exact));
    assert_eq!(tree.at(&mut finder, flow(), MS), owned(20, 200, Exact));
    let loads = finder.report().table_loads;
    let late = tree.query(flow(), 2 * MS);
    let early = tree.query(flow(), MS);
    let lost = key(Protocol::UDP, "10.0.0.1:53", "10.0.0.9:5");
    let mut batch = [late, early, tree.query(lost, MS)];
    step.store(0, Ordering::Relaxed);
    finder.find(&mut batch, tree.start + 3 * MS);
    let [late, early, lost] = batch;
    let Retry { reason: Unowned::Pending, after } = late.outcome else { panic!("{late:?}") };
    assert!((46 * MS..48 * MS).contains(&after), "what 3 ms brought is taken off: {after:?}");
    assert_eq!(late.attempts(), 0, "it was not looked for in vain");
    assert_eq!(early.outcome, owned(20, 200, Exact), "what was read since is remembered");
    assert!(matches!(lost.outcome, Retry { reason: Unowned::Pending, .. }));
    assert_eq!(finder.report().table_loads, loads);
    finder.find(&mut batch, tree.start + 3 * MS + after);
    assert_eq!(batch[0].outcome, owned(20, 200, Exact));
    assert_eq!(finder.report().cpu_time, 20 * MS);
}

#[test]
fn an_unreadable_table_is_not_an_empty_one() {
    let tree = tree();
    // The table can be opened, but not read.
    fs::remove_file(tree.path("net/tcp6")).unwrap();
    fs::create_dir(tree.path("net/tcp6")).unwrap();
    let mut finder = tree.finder();
    assert_eq!(tree.at(&mut finder, flow(), NOW), owned(20, 200, Exact), "the other table has it");
    let other = key(Protocol::TCP, "10.0.0.1:81", "10.0.0.8:5000");
    let outcome = tree.at(&mut finder, other, MS);
    assert!(matches!(outcome, Retry { reason: Unowned::Unreadable, .. }), "{outcome:?}");
    assert_eq!(tree.last(other), None(Unowned::Unreadable));
    assert_eq!(faults(&finder), ["tcp6"]);
    fs::remove_dir(tree.path("net/tcp6")).unwrap();
    assert_eq!(tree.last(other), None(Unowned::NoSocket), "a protocol that does not exist has no sockets");
    assert!(matches!(tree.at(&mut finder, other, 2 * MS), Retry { reason: Unowned::NoSocket, .. }));
    assert!(faults(&finder).is_empty());
}

#[test]
fn no_tables_at_all_is_a_fault() {
    let tree = tree();
    fs::remove_dir_all(tree.path("net")).unwrap();
    let finder = tree.finder();
    assert_eq!(faults(&finder).len(), 10);
    let report = finder.report();
    let fault = report.sources[0].fault.as_ref().unwrap();
    assert!(fault.text.contains("net/tcp"), "{fault}");
    assert_eq!(tree.last(flow()), None(Unowned::Unreadable));
}

#[test]
fn tables_of_the_threads_namespace_come_first() {
    let tree = tree();
    fs::create_dir_all(tree.path("thread-self")).unwrap();
    fs::rename(tree.path("net"), tree.path("thread-self/net")).unwrap();
    fs::create_dir(tree.path("net")).unwrap();
    assert_eq!(tree.first(flow()), owned(20, 200, Exact));
}

#[test]
fn a_malformed_row_is_counted_and_the_rest_is_read() {
    let tree = tree();
    let text = fs::read_to_string(tree.path("net/tcp")).unwrap();
    let (heading, rows) = text.split_once('\n').unwrap();
    fs::write(tree.path("net/tcp"), format!("{heading}\n   0: garbage\n{rows}\n   1: 0100007F:1\n")).unwrap();
    let mut finder = tree.finder();
    assert_eq!(tree.at(&mut finder, flow(), NOW), owned(20, 200, Exact));
    assert_eq!(finder.report().malformed_rows, 2);
}

#[test]
fn a_table_longer_than_a_piece_is_read_whole() {
    let tree = OwnerTree::new();
    let inodes: Vec<u64> = (1..=3000).collect();
    tree.process(20, 1, 200, &inodes);
    let rows: Vec<_> = inodes
        .iter()
        .map(|n| row(&format!("10.0.0.1:{n}"), &format!("10.0.0.9:{}", n % 7 + 1), ESTABLISHED, *n))
        .collect();
    tree.table("tcp", &rows);
    let mut finder = tree.finder();
    let mut queries: Vec<Query> = rows
        .iter()
        .map(|row| FlowKey {
            local: row.local,
            remote: row.remote,
            protocol: Protocol::TCP,
            namespace: Namespace::HOME,
        })
        .map(|key| tree.query(key, NOW))
        .collect();
    finder.find(&mut queries, tree.start);
    assert!(queries.iter().all(|query| query.outcome == owned(20, 200, Exact)));
    fs::write(tree.path("net/tcp"), vec![b'x'; 200_000]).unwrap();
    assert!(matches!(tree.at(&mut finder, flow(), MS), Retry { .. }));
    assert!(finder.report().malformed_rows > 0);
}

#[test]
fn processes_that_cannot_be_read_leave_a_doubt() {
    let tree = tree();
    let lost = key(Protocol::UDP, "10.0.0.1:53", "10.0.0.9:5");
    tree.table("udp", &[row("0.0.0.0:53", "0.0.0.0:0", UNCONNECTED, 7)]);
    assert_eq!(tree.last(lost), None(Unowned::NoHolder));
    // Another error than a missing permission: the descriptor directory is not a directory.
    tree.process(30, 1, 300, &[]);
    fs::remove_dir_all(tree.path("30/fd")).unwrap();
    fs::write(tree.path("30/fd"), "").unwrap();
    assert_eq!(tree.last(lost), None(Unowned::Unreadable));
    assert_eq!(tree.first(flow()), owned(20, 200, Exact), "others are read all the same");
    tree.end(30);
    // Hidden processes: not even process 1 is listed.
    tree.end(1);
    assert_eq!(tree.last(lost), None(Unowned::NotPermitted));
    tree.process(40, 1, 400, &[7]);
    assert_eq!(tree.last(lost), owned(40, 400, Guessed));
}

#[test]
fn processes_may_vanish_or_make_no_sense() {
    let tree = tree();
    tree.process(30, 1, 300, &[1]);
    fs::remove_file(tree.path("30/stat")).unwrap();
    tree.process(31, 1, 310, &[1]);
    fs::write(tree.path("31/stat"), "31 (x").unwrap();
    fs::create_dir(tree.path("32")).unwrap();
    assert_eq!(tree.first(flow()), owned(20, 200, Exact));
}

fn home(finder: &mut Finder) -> &mut Vec<Box<dyn SocketSource>> {
    &mut finder.namespaces.get_mut(Namespace::HOME).unwrap().sockets
}

/// A source that always gives the same answer.
struct Always(Looked);

impl SocketSource for Always {
    fn look_up(
        &mut self,
        _: &FlowKey,
        _: Instant,
        _: &Turn<'_>,
        sockets: &mut Vec<CandidateSocket>,
    ) -> Looked {
        if let Looked::Found { .. } = self.0 {
            sockets.push(CandidateSocket { inode: 1, uid: 0 });
        }
        self.0
    }

    fn report(&self, report: &mut Report) {
        report.sources.push(SourceStatus { name: "always", fault: Option::None });
    }
}

#[test]
fn a_source_that_fails_passes_the_question_on() {
    let tree = tree();
    let lost = key(Protocol::TCP, "10.0.0.1:81", "10.0.0.8:5000");
    let mut finder = tree.finder();
    home(&mut finder).insert(0, Box::new(Always(Looked::Failed)));
    assert_eq!(tree.at(&mut finder, flow(), NOW), owned(20, 200, Exact));
    assert_eq!(finder.report().sources[0].name, "always");
    home(&mut finder)[0] = Box::new(Always(Looked::Missing));
    let mut queries = [tree.query(lost, MS), tree.query(flow(), MS)];
    for milliseconds in [1, 51] {
        finder.find(&mut queries, tree.start + MS * milliseconds);
        let is_open = |query: &Query| matches!(query.outcome, Retry { reason: Unowned::NoSocket, .. });
        assert!(queries.iter().all(is_open), "others that call that end may be yet to be seen");
    }
    finder.find(&mut queries, tree.start + MS * 301);
    assert!(matches!(queries[0].outcome, Retry { reason: Unowned::NoSocket, .. }));
    assert_eq!(queries[1].outcome, owned(20, 200, Guessed), "the only one to call that end");
    let found = Looked::Found { by: crate::owner::source::Match::Own, listener: Option::None };
    home(&mut finder)[0] = Box::new(Always(found));
    assert_eq!(tree.at(&mut finder, lost, 400 * MS), owned(20, 200, Exact));
}

#[test]
fn a_finder_may_be_moved_to_the_thread_that_uses_it() {
    let tree = tree();
    let mut finder = tree.finder();
    let mut query = tree.query(flow(), NOW);
    let now = tree.start;
    let outcome = std::thread::spawn(move || {
        finder.find(std::slice::from_mut(&mut query), now);
        query.outcome
    });
    assert_eq!(outcome.join().unwrap(), owned(20, 200, Exact));
}
