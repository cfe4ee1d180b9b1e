//! Tests of the match between sockets and flows.

use crate::model::Quality::{Exact, Guessed, Shared};
use crate::model::tcp_state::{LISTEN, SYN_RECV, TIME_WAIT};
use crate::model::{Protocol, Unowned};
use crate::owner::Outcome::{Retry, Unowned as None};
use crate::owner::SocketRow;
use crate::owner::made_up::{ESTABLISHED, MS, NOW, OwnerTree, UNCONNECTED, key, owned, row};

/// Creates a tree in which process 10·n holds socket n, and started at 100·n.
fn tree(sockets: u64) -> OwnerTree {
    let tree = OwnerTree::new();
    for n in 1..=sockets {
        tree.process(10 * n as i32, 1, 100 * n, &[n]);
    }
    tree
}

#[test]
fn a_connection_is_its_own_rows_and_no_others() {
    let tree = tree(3);
    tree.table(
        "tcp",
        &[
            row("10.0.0.1:80", "0.0.0.0:0", LISTEN, 1),
            row("10.0.0.1:80", "10.0.0.9:5000", ESTABLISHED, 2),
            row("10.0.0.1:80", "10.0.0.8:5000", ESTABLISHED, 3),
        ],
    );
    assert_eq!(tree.first(key(Protocol::TCP, "10.0.0.1:80", "10.0.0.9:5000")), owned(20, 200, Exact));
    assert_eq!(tree.first(key(Protocol::TCP, "10.0.0.1:80", "10.0.0.8:5000")), owned(30, 300, Exact));
    assert!(matches!(tree.first(key(Protocol::TCP, "10.0.0.2:80", "10.0.0.9:5000")), Retry { .. }));
    assert_eq!(
        tree.last(key(Protocol::UDP, "10.0.0.1:80", "10.0.0.9:5000")),
        None(Unowned::NoSocket),
        "only tables of the protocol count"
    );
}

#[test]
fn an_ipv4_connection_of_an_ipv6_socket() {
    let tree = tree(2);
    tree.table(
        "tcp6",
        &[
            row("[::]:80", "[::]:0", LISTEN, 1),
            row("[::ffff:10.0.0.1]:80", "[::ffff:10.0.0.9]:5000", ESTABLISHED, 2),
        ],
    );
    assert_eq!(tree.first(key(Protocol::TCP, "10.0.0.1:80", "10.0.0.9:5000")), owned(20, 200, Exact));
    assert_eq!(tree.last(key(Protocol::TCP, "10.0.0.1:80", "10.0.0.9:5001")), owned(10, 100, Guessed));
}

#[test]
fn a_row_without_inode_owns_nothing_until_it_is_accepted() {
    for state in [ESTABLISHED, SYN_RECV] {
        let tree = tree(2);
        let flow = key(Protocol::TCP, "10.0.0.1:80", "10.0.0.9:5000");
        let listener = row("0.0.0.0:80", "0.0.0.0:0", LISTEN, 1);
        tree.table("tcp", &[listener, row("10.0.0.1:80", "10.0.0.9:5000", state, 0)]);
        let mut finder = tree.finder();
        let mut query = tree.query(flow, NOW);
        finder.find(std::slice::from_mut(&mut query), tree.start);
        assert_eq!(query.outcome, Retry { reason: Unowned::NoSocket, after: 50 * MS });
        tree.table("tcp", &[listener, row("10.0.0.1:80", "10.0.0.9:5000", ESTABLISHED, 2)]);
        finder.find(std::slice::from_mut(&mut query), tree.start + 49 * MS);
        assert!(matches!(query.outcome, Retry { .. }), "not due yet");
        finder.find(std::slice::from_mut(&mut query), tree.start + 50 * MS);
        assert_eq!(query.outcome, owned(20, 200, Exact));
    }
}

#[test]
fn what_stays_without_inode_is_the_listeners_in_the_end() {
    let tree = tree(1);
    let server = key(Protocol::TCP, "10.0.0.1:80", "10.0.0.9:5000");
    let client = key(Protocol::TCP, "10.0.0.1:81", "10.0.0.9:5000");
    tree.table(
        "tcp",
        &[
            row("0.0.0.0:80", "0.0.0.0:0", LISTEN, 1),
            row("10.0.0.1:80", "10.0.0.9:5000", TIME_WAIT, 0),
            row("10.0.0.1:81", "10.0.0.9:5000", TIME_WAIT, 0),
        ],
    );
    let mut finder = tree.finder();
    let mut query = tree.query(server, NOW);
    let mut now = tree.start;
    for wait in [50, 250, 1000] {
        finder.find(std::slice::from_mut(&mut query), now);
        assert_eq!(query.outcome, Retry { reason: Unowned::NoSocket, after: wait * MS });
        now += wait * MS;
    }
    finder.find(std::slice::from_mut(&mut query), now);
    assert_eq!(query.outcome, owned(10, 100, Guessed));
    assert_eq!(tree.last(client), None(Unowned::NoSocket));
}

#[test]
fn a_listener_of_several_processes_is_shared() {
    let tree = tree(2);
    tree.process(30, 20, 300, &[2]);
    let rows = [row("0.0.0.0:80", "0.0.0.0:0", LISTEN, 1), row("0.0.0.0:81", "0.0.0.0:0", LISTEN, 2)];
    tree.table("tcp", &rows);
    assert_eq!(tree.last(key(Protocol::TCP, "10.0.0.1:80", "10.0.0.9:5000")), owned(10, 100, Guessed));
    assert_eq!(tree.last(key(Protocol::TCP, "10.0.0.1:81", "10.0.0.9:5000")), owned(30, 300, Shared));
}

#[test]
fn an_unconnected_socket_is_found_by_its_local_end() {
    for (protocol, v4, v6) in [(Protocol::UDP, "udp", "udp6"), (Protocol::UDPLITE, "udplite", "udplite6")] {
        let tree = tree(6);
        tree.table(
            v4,
            &[
                row("0.0.0.0:53", "0.0.0.0:0", UNCONNECTED, 1),
                row("10.0.0.1:53", "0.0.0.0:0", UNCONNECTED, 2),
                row("10.0.0.1:53", "10.0.0.9:7", ESTABLISHED, 3),
            ],
        );
        tree.table(v6, &[row("[::]:53", "[::]:0", UNCONNECTED, 4), row("[::]:54", "[::]:0", UNCONNECTED, 5)]);
        let ask = |local, remote| tree.first(key(protocol, local, remote));
        assert_eq!(ask("10.0.0.1:53", "10.0.0.9:7"), owned(30, 300, Exact), "the connected one");
        assert_eq!(ask("10.0.0.1:53", "10.0.0.9:8"), owned(20, 200, Guessed), "not connected to others");
        assert_eq!(ask("10.0.0.2:53", "10.0.0.9:7"), owned(10, 100, Guessed), "IPv4 before dual stack");
        assert_eq!(ask("[2001:db8::1]:53", "[2001:db8::2]:7"), owned(40, 400, Guessed));
        assert_eq!(ask("10.0.0.2:54", "10.0.0.9:7"), owned(50, 500, Guessed), "dual stack");
        assert!(matches!(ask("10.0.0.2:55", "10.0.0.9:7"), Retry { reason: Unowned::NoSocket, .. }));
    }
}

#[test]
fn a_socket_connected_to_another_peer_does_not_match() {
    let tree = tree(1);
    tree.table("udp", &[row("10.0.0.1:5353", "10.0.0.9:53", ESTABLISHED, 1)]);
    assert_eq!(tree.last(key(Protocol::UDP, "10.0.0.1:5353", "10.0.0.8:53")), None(Unowned::NoSocket));
}

#[test]
fn a_mapped_address_in_the_ipv6_table_is_specific() {
    let tree = tree(2);
    tree.table("udp", &[row("0.0.0.0:53", "0.0.0.0:0", UNCONNECTED, 1)]);
    tree.table("udp6", &[row("[::ffff:10.0.0.1]:53", "[::]:0", UNCONNECTED, 2)]);
    assert_eq!(tree.first(key(Protocol::UDP, "10.0.0.1:53", "10.0.0.9:7")), owned(20, 200, Guessed));
}

#[test]
fn several_sockets_of_one_port_are_an_owner_only_if_one_process_has_them() {
    let tree = tree(2);
    let flow = key(Protocol::UDP, "10.0.0.1:443", "10.0.0.9:7");
    let reuse = |inode| row("0.0.0.0:443", "0.0.0.0:0", UNCONNECTED, inode);
    tree.table("udp", &[reuse(1), reuse(2)]);
    assert_eq!(tree.first(flow), None(Unowned::Ambiguous));
    tree.process(30, 1, 300, &[3, 4]);
    tree.table("udp", &[reuse(3), reuse(4)]);
    assert_eq!(tree.first(flow), owned(30, 300, Guessed));
    // The workers all inherited all the sockets: choosing the youngest would be an invention.
    tree.process(31, 30, 301, &[3, 4]);
    assert_eq!(tree.first(flow), None(Unowned::Ambiguous));
    // A socket without a known holder may belong to any process.
    tree.table("udp", &[reuse(1), reuse(99)]);
    assert_eq!(tree.last(flow), None(Unowned::NoHolder));
}

#[test]
fn a_crowd_is_not_told_apart() {
    let tree = OwnerTree::new();
    let inodes: Vec<u64> = (1..=500).collect();
    tree.process(10, 1, 100, &inodes);
    let rows: Vec<SocketRow> =
        inodes.iter().map(|inode| row("0.0.0.0:443", "0.0.0.0:0", UNCONNECTED, *inode)).collect();
    let flow = key(Protocol::UDP, "10.0.0.1:443", "10.0.0.9:7");
    tree.table("udp", &rows);
    assert_eq!(tree.first(flow), None(Unowned::Ambiguous));
    tree.table("udp", &rows[..127]);
    assert_eq!(tree.first(flow), owned(10, 100, Guessed));
}

#[test]
fn one_unconnected_socket_of_several_processes_is_shared() {
    let tree = tree(1);
    tree.process(30, 10, 300, &[1]);
    tree.table("udp", &[row("0.0.0.0:53", "0.0.0.0:0", UNCONNECTED, 1)]);
    assert_eq!(tree.first(key(Protocol::UDP, "10.0.0.1:53", "10.0.0.9:7")), owned(30, 300, Shared));
}

#[test]
fn a_group_is_received_by_every_socket_of_the_port() {
    let tree = tree(3);
    let flow = key(Protocol::UDP, "224.0.0.251:5353", "10.0.0.9:5353");
    let wildcard = row("0.0.0.0:5353", "0.0.0.0:0", UNCONNECTED, 1);
    let group = row("224.0.0.251:5353", "0.0.0.0:0", UNCONNECTED, 2);
    let other_group = row("224.0.0.252:5353", "0.0.0.0:0", UNCONNECTED, 3);
    tree.table("udp", &[wildcard, other_group]);
    assert_eq!(tree.first(flow), owned(10, 100, Guessed));
    tree.table("udp", &[group, other_group]);
    assert_eq!(tree.first(flow), owned(20, 200, Guessed));
    tree.table("udp", &[wildcard, group]);
    assert_eq!(tree.first(flow), owned(20, 200, Shared), "both receive it: the youngest process");
    tree.table("udp", &[wildcard]);
    tree.table("udp6", &[row("[::]:5353", "[::]:0", UNCONNECTED, 2)]);
    assert_eq!(tree.first(flow), owned(20, 200, Shared));
}

#[test]
fn broadcast_is_received_by_the_port() {
    let tree = tree(1);
    tree.table("udp", &[row("0.0.0.0:68", "0.0.0.0:0", UNCONNECTED, 1)]);
    for local in ["255.255.255.255:68", "10.0.0.255:68"] {
        assert_eq!(tree.first(key(Protocol::UDP, local, "10.0.0.9:67")), owned(10, 100, Guessed));
    }
}

#[test]
fn a_socket_bound_to_a_group_sends_from_the_hosts_address() {
    let tree = tree(2);
    let flow = key(Protocol::UDP, "10.0.0.1:5353", "224.0.0.251:5353");
    let group = row("224.0.0.251:5353", "0.0.0.0:0", UNCONNECTED, 1);
    tree.table("udp", &[group]);
    assert_eq!(tree.first(flow), owned(10, 100, Guessed));
    tree.table("udp", &[group, row("0.0.0.0:5353", "0.0.0.0:0", UNCONNECTED, 2)]);
    assert_eq!(tree.first(flow), owned(20, 200, Guessed));
}

#[test]
fn an_echo_has_its_identifier_for_a_port_at_the_end_that_asks() {
    let tree = tree(4);
    tree.table(
        "icmp",
        &[row("0.0.0.0:77", "0.0.0.0:0", UNCONNECTED, 1), row("10.0.0.1:78", "10.0.0.9:0", ESTABLISHED, 2)],
    );
    tree.table("icmp6", &[row("[::]:77", "[::]:0", UNCONNECTED, 3)]);
    let ask = |protocol, local, remote| tree.first(key(protocol, local, remote));
    assert_eq!(ask(Protocol::ICMP, "10.0.0.1:77", "10.0.0.9:0"), owned(10, 100, Guessed));
    assert_eq!(ask(Protocol::ICMP, "10.0.0.1:78", "10.0.0.9:0"), owned(20, 200, Exact));
    assert_eq!(ask(Protocol::ICMPV6, "[fe80::1]:77", "[fe80::2]:0"), owned(30, 300, Guessed));
    assert_eq!(ask(Protocol::ICMP, "10.0.0.1:0", "10.0.0.9:0"), None(Unowned::NoPorts), "not an echo");
    assert!(matches!(ask(Protocol::ICMP, "10.0.0.1:79", "10.0.0.9:0"), Retry { .. }));
    tree.table("raw", &[row("0.0.0.0:1", "0.0.0.0:0", UNCONNECTED, 4)]);
    assert_eq!(ask(Protocol::ICMP, "10.0.0.1:79", "10.0.0.9:0"), owned(40, 400, Guessed), "ping as root");
    let answer = ask(Protocol::ICMP, "10.0.0.1:0", "10.0.0.9:79");
    assert_eq!(answer, None(Unowned::NoPorts), "the kernel answers, whoever holds a raw socket");
    assert_eq!(ask(Protocol::ICMP, "10.0.0.1:77", "10.0.0.9:0"), owned(10, 100, Guessed));
}

#[test]
fn raw_sockets_are_found_by_protocol() {
    let tree = tree(3);
    const OSPF: Protocol = Protocol(89);
    let raw = |inode| row("0.0.0.0:89", "0.0.0.0:0", UNCONNECTED, inode);
    let ask = |remote| tree.first(key(OSPF, "10.0.0.1:0", remote));
    assert_eq!(ask("10.0.0.9:0"), None(Unowned::NoPorts));
    tree.table("raw", &[raw(1), row("10.0.0.1:89", "10.0.0.8:0", ESTABLISHED, 2)]);
    assert_eq!(ask("10.0.0.9:0"), owned(10, 100, Guessed));
    assert_eq!(ask("10.0.0.8:0"), None(Unowned::Ambiguous), "both receive it");
    tree.table("raw", &[raw(1), raw(3)]);
    assert_eq!(ask("10.0.0.9:0"), None(Unowned::Ambiguous));
    tree.process(50, 10, 500, &[1]);
    tree.table("raw", &[raw(1)]);
    assert_eq!(ask("10.0.0.9:0"), owned(50, 500, Shared), "one socket, several processes");
    assert_eq!(
        tree.first(key(Protocol::SCTP, "10.0.0.1:5", "10.0.0.9:6")),
        None(Unowned::NoPorts),
        "SCTP has no table of this form"
    );
}
