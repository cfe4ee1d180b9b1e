//! Sockets that change hands: received bytes are counted once, and credited to the process that reads them.

use crate::lab::{Host, Lab};
use crate::watching::{B, Done, Watch, count_all, options, truth, user, with_lab, without_offloads};
use capture::internals::config::Engine;

/// Bytes that wait on a socket as it changes hands: far more than a packet, so that a part that is counted
/// twice shows.
const BYTES: u64 = 2_000_000;
/// The tolerance of a process's share of a stream for each change of hands: estimates use whole packets.
const SLACK: u64 = 3_000;

/// Runs users of which the first reads `parent` percent of the data before the socket changes hands.
fn handed(lab: &Lab, watch: &mut Watch, numbers: &[(&str, u64)]) -> Vec<Done> {
    let _peer = user(lab, Host::B, "drain", &format!("{B}:7200"), &[("segment", 1448)]);
    let mut users = user(lab, Host::A, "handing", &format!("{B}:7200"), numbers);
    users.start();
    let done = watch.while_running(&mut users, "done");
    let truth = truth(lab);
    watch.until("all is counted once", |watch| watch.sums() == truth && truth.1 > BYTES);
    done
}

fn received_by_the_reader(is_tcp: bool, parent: u64, is_passed: bool) {
    with_lab(|lab| {
        without_offloads(lab);
        count_all(lab);
        let mut watch = Watch::new(lab, options(Engine::Kernel));
        let sockets = if is_passed { 4 } else { 1 };
        let numbers = [
            ("bytes", BYTES),
            ("sockets", sockets),
            ("tcp", is_tcp.into()),
            ("parent", parent),
            ("pass", is_passed.into()),
        ];
        let done = handed(lab, &mut watch, &numbers);
        assert_eq!(done.len(), 2, "{done:?}");
        // The bytes on the wire beyond the payload are divided in proportion to the payload.
        let payload: u64 = done.iter().map(|one| one.received).sum();
        assert_eq!(payload, sockets * BYTES);
        let truth = truth(lab).1;
        for one in done {
            let found = watch.traffic(one.pid).receive_bytes;
            let expected = one.received * truth / payload;
            println!("  {one:?}: {found}, expected {expected}");
            assert!(
                found.abs_diff(expected) <= sockets * SLACK + truth / 100,
                "{one:?}: {found}, expected {expected}"
            );
        }
    });
}

/// Regression: the parent and the child were both credited with all of it.
#[test]
fn a_child_reads_what_came_on_a_stream_root() {
    received_by_the_reader(true, 0, false);
}

#[test]
fn a_child_reads_what_came_as_datagrams_root() {
    received_by_the_reader(false, 0, false);
}

#[test]
fn parent_and_child_read_a_part_of_a_stream_each_root() {
    received_by_the_reader(true, 40, false);
}

#[test]
fn parent_and_child_read_some_datagrams_each_root() {
    received_by_the_reader(false, 40, false);
}

#[test]
fn a_stream_is_passed_on_root() {
    received_by_the_reader(true, 0, true);
    received_by_the_reader(true, 30, true);
}

#[test]
fn a_datagram_socket_is_passed_on_root() {
    received_by_the_reader(false, 0, true);
    received_by_the_reader(false, 30, true);
}

/// Checks two processes that request and read by turns on one socket while the session updates. Regression:
/// each change of the owner credited again what the previous change had credited.
fn ping_pong(is_tcp: bool, rounds: u64) {
    with_lab(|lab| {
        without_offloads(lab);
        count_all(lab);
        let mut watch = Watch::new(lab, options(Engine::Kernel));
        let _peer = user(lab, Host::B, "drain", &format!("{B}:7300"), &[]);
        let numbers = [("tcp", is_tcp.into()), ("rounds", rounds)];
        let mut users = user(lab, Host::A, "ping-pong", &format!("{B}:7300"), &numbers);
        users.start();
        let done = watch.while_running(&mut users, "done");
        let truth = truth(lab);
        watch.until("all is counted once", |watch| watch.sums() == truth);
        let payload: u64 = done.iter().map(|one| one.received).sum();
        assert_eq!(payload, rounds * 1_500);
        for one in done {
            let found = watch.traffic(one.pid);
            println!("  {one:?}: {found:?}");
            if !is_tcp {
                assert_eq!(found.send_bytes, one.datagrams(), "{one:?}");
            }
            let expected = one.received * truth.1 / payload;
            // The estimate assumes a packet of the average length for each.
            assert!(
                found.receive_bytes.abs_diff(expected) <= truth.1 / 20,
                "{one:?}: {found:?}, expected {expected}"
            );
        }
        // Nothing is reported twice, however long the socket is unused.
        for _ in 0..100 {
            watch.update();
        }
        assert_eq!(watch.sums(), truth);
    });
}

#[test]
fn two_processes_by_turns_on_a_stream_root() {
    ping_pong(true, 5_000);
}

#[test]
fn two_processes_by_turns_on_a_datagram_socket_root() {
    ping_pong(false, 5_000);
}
