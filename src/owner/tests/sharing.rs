//! Tests of the choice among a socket's holders, and of the search for them.

use crate::model::Quality::{Exact, Guessed, Shared};
use crate::model::tcp_state::LISTEN;
use crate::model::{FlowKey, Protocol, Unowned};
use crate::owner::Outcome::{Retry, Unowned as None};
use crate::owner::SocketRow;
use crate::owner::made_up::{ESTABLISHED, MS, NOW, OwnerTree, UNCONNECTED, key, owned, row};
use std::fs;
use std::os::unix::fs::symlink;

/// Returns the flow whose socket has inode `n`.
fn flow(n: u64) -> FlowKey {
    key(Protocol::TCP, &format!("10.0.0.1:{n}"), "10.0.0.9:5000")
}

/// Creates a tree with connections of inodes 1 to 9.
fn tree() -> OwnerTree {
    let tree = OwnerTree::new();
    let rows: Vec<SocketRow> =
        (1..10).map(|n| row(&format!("10.0.0.1:{n}"), "10.0.0.9:5000", ESTABLISHED, n)).collect();
    tree.table("tcp", &rows);
    tree
}

#[test]
fn the_youngest_holder_that_is_not_init_is_chosen() {
    let tree = tree();
    tree.process(20, 1, 500, &[1, 2]);
    tree.process(30, 20, 400, &[1]);
    assert_eq!(tree.first(flow(1)), owned(20, 500, Shared), "by start time, not by pid");
    tree.process(40, 20, 500, &[1]);
    assert_eq!(tree.first(flow(1)), owned(40, 500, Shared), "the higher pid of equally old ones");
    tree.end(1);
    tree.process(1, 0, 900, &[2, 3]);
    assert_eq!(tree.first(flow(2)), owned(20, 500, Shared), "not process 1, young as it may be");
    assert_eq!(tree.first(flow(3)), owned(1, 900, Exact), "unless nobody else holds it");
}

#[test]
fn socket_activation_leaves_the_service_its_listener() {
    let tree = tree();
    tree.table("tcp", &[row("0.0.0.0:80", "0.0.0.0:0", LISTEN, 1)]);
    tree.end(1);
    tree.process(1, 0, 1, &[1]);
    tree.process(20, 1, 500, &[1]);
    assert_eq!(tree.last(key(Protocol::TCP, "10.0.0.1:80", "10.0.0.9:5")), owned(20, 500, Guessed));
}

#[test]
fn a_child_forked_since_is_seen_although_the_parent_is_known() {
    let tree = tree();
    tree.process(20, 1, 200, &[1]);
    let mut finder = tree.finder();
    assert_eq!(tree.at(&mut finder, flow(1), NOW), owned(20, 200, Exact));
    tree.process(30, 20, 300, &[1]);
    assert_eq!(tree.at(&mut finder, flow(1), MS), owned(30, 300, Shared));
    assert_eq!(finder.report().full_scans, 1);
}

#[test]
fn the_parent_of_a_new_holder_is_looked_at_too() {
    let tree = tree();
    tree.process(20, 1, 200, &[]);
    tree.process(21, 1, 201, &[1]);
    let mut finder = tree.finder();
    assert_eq!(tree.at(&mut finder, flow(1), NOW), owned(21, 201, Exact));
    tree.end(20);
    tree.process(20, 1, 200, &[2]);
    tree.process(30, 20, 300, &[2]);
    assert_eq!(tree.at(&mut finder, flow(2), MS), owned(30, 300, Shared));
    assert_eq!(finder.report().full_scans, 1);
}

#[test]
fn a_reused_pid_is_another_process() {
    let tree = tree();
    tree.process(20, 1, 200, &[1]);
    let mut finder = tree.finder();
    assert_eq!(tree.at(&mut finder, flow(1), NOW), owned(20, 200, Exact));
    tree.end(20);
    tree.process(20, 1, 900, &[2]);
    assert_eq!(tree.at(&mut finder, flow(2), MS), owned(20, 900, Exact));
    assert!(matches!(tree.at(&mut finder, flow(1), 2 * MS), Retry { reason: Unowned::NoHolder, .. }));
}

#[test]
fn holders_of_dead_processes_are_dropped() {
    let tree = tree();
    tree.process(20, 1, 200, &[1]);
    tree.process(30, 20, 300, &[1]);
    let mut finder = tree.finder();
    assert_eq!(tree.at(&mut finder, flow(1), NOW), owned(30, 300, Shared));
    tree.process(40, 1, 400, &[2, 3]);
    assert_eq!(tree.at(&mut finder, flow(2), MS), owned(40, 400, Exact));
    assert_eq!(finder.report().remembered_holders, 4);
    tree.end(30);
    tree.end(40);
    assert_eq!(tree.at(&mut finder, flow(1), 2 * MS), owned(20, 200, Exact));
    assert_eq!(finder.report().remembered_holders, 1);
    assert_eq!(finder.report().full_scans, 1);
}

#[test]
fn a_descriptor_that_moved_is_found_again() {
    let tree = tree();
    tree.process(20, 1, 200, &[1]);
    let mut finder = tree.finder();
    assert_eq!(tree.at(&mut finder, flow(1), NOW), owned(20, 200, Exact));
    fs::rename(tree.path("20/fd/3"), tree.path("20/fd/33")).unwrap();
    symlink("socket:[2]", tree.path("20/fd/3")).unwrap();
    assert_eq!(tree.at(&mut finder, flow(1), MS), owned(20, 200, Exact));
}

#[test]
fn what_is_known_costs_no_scan_and_what_is_likely_no_full_one() {
    let tree = tree();
    for pid in 100..200 {
        tree.process(pid, 1, 50, &[]);
    }
    tree.process(20, 1, 200, &[1, 2]);
    let mut finder = tree.finder();
    assert_eq!(tree.at(&mut finder, flow(1), NOW), owned(20, 200, Exact));
    let scanned = finder.report().scanned_processes;
    assert_eq!(tree.at(&mut finder, flow(2), MS), owned(20, 200, Exact));
    assert_eq!(finder.report().scanned_processes, scanned, "learned by the first scan");
    // A new socket of a process that recently owned a flow.
    symlink("socket:[3]", tree.path("20/fd/9")).unwrap();
    assert_eq!(tree.at(&mut finder, flow(3), 2 * MS), owned(20, 200, Exact));
    assert_eq!(finder.report().scanned_processes, scanned + 1);
    // A socket opened by a process that had none when it started.
    tree.process(30, 1, 300, &[]);
    assert!(matches!(tree.at(&mut finder, flow(4), 3 * MS), Retry { .. }));
    let full = finder.report().full_scans;
    symlink("socket:[5]", tree.path("30/fd/9")).unwrap();
    assert_eq!(tree.at(&mut finder, flow(5), 9000 * MS), owned(30, 300, Exact));
    assert_eq!(finder.report().full_scans, full);
    // A socket opened by a process that is neither young nor has owned a flow.
    symlink("socket:[6]", tree.path("150/fd/9")).unwrap();
    assert_eq!(tree.at(&mut finder, flow(6), 20_000 * MS), owned(150, 50, Exact));
    assert_eq!(finder.report().full_scans, full + 1);
}

#[test]
fn the_holder_of_the_listener_is_likely_to_have_accepted() {
    let tree = tree();
    let connection = row("10.0.0.1:80", "10.0.0.9:5000", ESTABLISHED, 8);
    tree.table("tcp", &[row("0.0.0.0:80", "0.0.0.0:0", LISTEN, 7), connection]);
    tree.process(20, 1, 200, &[7]);
    tree.process(21, 1, 200, &[9]);
    tree.table("udp", &[row("0.0.0.0:53", "0.0.0.0:0", UNCONNECTED, 9)]);
    let mut finder = tree.finder();
    let other = key(Protocol::UDP, "10.0.0.1:53", "10.0.0.9:5");
    assert_eq!(tree.at(&mut finder, other, NOW), owned(21, 200, Guessed));
    symlink("socket:[8]", tree.path("20/fd/9")).unwrap();
    let accepted = key(Protocol::TCP, "10.0.0.1:80", "10.0.0.9:5000");
    assert_eq!(tree.at(&mut finder, accepted, MS), owned(20, 200, Exact));
    assert_eq!(finder.report().full_scans, 1);
}

#[test]
fn owners_of_other_users_sockets_are_not_likely() {
    let tree = tree();
    let of_user = |port: u16, uid, inode| SocketRow {
        uid,
        ..row(&format!("10.0.0.1:{port}"), "10.0.0.9:5000", 1, inode)
    };
    tree.table("tcp", &[of_user(1, 7, 1), of_user(2, 7, 2), of_user(3, 8, 3)]);
    tree.process(20, 1, 200, &[1]);
    tree.process(30, 1, 300, &[3]);
    let mut finder = tree.finder();
    tree.at(&mut finder, flow(1), NOW);
    tree.at(&mut finder, flow(3), NOW);
    let scanned = finder.report().scanned_processes;
    symlink("socket:[2]", tree.path("20/fd/9")).unwrap();
    assert_eq!(tree.at(&mut finder, flow(2), MS), owned(20, 200, Exact));
    assert_eq!(finder.report().scanned_processes, scanned + 1, "not process 30");
}

#[test]
fn a_row_shown_twice_is_one_socket() {
    let tree = tree();
    let connection = row("10.0.0.1:1", "10.0.0.9:5000", ESTABLISHED, 1);
    tree.table("tcp", &[connection, connection]);
    tree.process(20, 1, 200, &[1]);
    tree.process(30, 20, 300, &[1]);
    assert_eq!(tree.first(flow(1)), owned(30, 300, Shared));
}

#[test]
fn of_one_socket_in_a_batch_the_latest_flow_says_how_new_its_holders_must_be() {
    let tree = tree();
    tree.table("udp", &[row("0.0.0.0:53", "0.0.0.0:0", UNCONNECTED, 1)]);
    tree.process(20, 1, 200, &[1]);
    let dns = |port: u16| key(Protocol::UDP, "10.0.0.1:53", &format!("10.0.0.9:{port}"));
    let mut finder = tree.finder();
    assert_eq!(tree.at(&mut finder, dns(1), 5 * MS), owned(20, 200, Guessed));
    tree.process(30, 20, 300, &[1]);
    let mut batch = [tree.query(dns(1), 5 * MS), tree.query(dns(2), 9 * MS), tree.query(dns(3), 5 * MS)];
    finder.find(&mut batch, tree.start + 9 * MS);
    assert!(batch.iter().all(|query| query.outcome == owned(30, 300, Shared)), "{batch:?}");
}

#[test]
fn a_socket_without_holder_is_not_looked_for_everywhere_again_and_again() {
    let tree = tree();
    tree.process(20, 1, 200, &[1]);
    let mut finder = tree.finder();
    for n in 0..20 {
        let outcome = tree.at(&mut finder, flow(2), n * 400 * MS);
        assert!(matches!(outcome, Retry { reason: Unowned::NoHolder, .. }));
    }
    assert_eq!(finder.report().full_scans, 1);
    symlink("socket:[2]", tree.path("20/fd/9")).unwrap();
    assert_eq!(tree.at(&mut finder, flow(2), 10_001 * MS), owned(20, 200, Exact));
    assert_eq!(tree.last(flow(3)), None(Unowned::NoHolder));
}
