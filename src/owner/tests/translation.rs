//! Tests of flows whose addresses the host may translate. The namespace is real, the sockets are those of a
//! fixture.

use crate::model::Quality::{Exact, Guessed};
use crate::model::tcp_state::LISTEN;
use crate::model::{Protocol, Unowned};
use crate::owner::Outcome::Unowned as None;
use crate::owner::made_up::{ESTABLISHED, NOW, OwnerTree, UNCONNECTED, key, owned, row};
use crate::owner::{Behind, Outcome, Query, Translations};
use crate::proc::ProcRoot;
use capture_test_support::namespaces::in_new_namespace;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

fn ip(words: &str) {
    assert!(Command::new("ip").args(words.split(' ')).status().unwrap().success(), "ip {words}");
}

fn nft(rules: &str) {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success(), "nft");
}

fn forward(value: &str) {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", value).unwrap();
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", value).unwrap();
}

/// Returns the final outcome of each of these flows, which are looked up at the same times.
fn last<const N: usize>(
    tree: &OwnerTree,
    translations: Translations,
    flows: [crate::model::FlowKey; N],
) -> [Outcome; N] {
    let mut finder = tree.finder();
    finder.translate(translations);
    let mut queries = flows.map(|flow| tree.query(flow, NOW));
    while let Some(due) = queries.iter().filter(|query| query.is_due(query.due())).map(Query::due).min() {
        while finder.find(&mut queries, due) {}
    }
    queries.map(|query| query.outcome)
}

/// Nothing is guessed if connections appear to be tracked, packets are forwarded, and the kernel cannot be
/// queried: the fixture has neither `/proc/sys` nor a list of modules.
#[test]
fn without_knowledge_of_translations_nothing_is_guessed_where_packets_are_forwarded_root() {
    in_new_namespace(|| {
        ip("address add 10.0.0.1/24 dev lo");
        let tree = OwnerTree::new();
        (1..=3).for_each(|n| tree.process(10 * n as i32, 1, 100 * n, &[n]));
        tree.table(
            "tcp",
            &[
                row("0.0.0.0:80", "0.0.0.0:0", LISTEN, 1),
                row("10.0.0.1:4000", "10.0.0.9:443", ESTABLISHED, 2),
            ],
        );
        tree.table("udp", &[row("0.0.0.0:53", "0.0.0.0:0", UNCONNECTED, 3)]);
        let flows = [
            key(Protocol::TCP, "10.0.0.1:4000", "10.0.0.9:443"),
            key(Protocol::TCP, "10.0.0.1:80", "10.0.0.9:5000"),
            key(Protocol::TCP, "10.0.0.1:4001", "10.0.0.9:443"),
            key(Protocol::UDP, "10.0.0.1:53", "10.0.0.9:5000"),
        ];
        let open = || Translations::open(Arc::new(ProcRoot::open(&tree.path(".")).unwrap()), true);
        let (own, bound) = (owned(20, 200, Exact), owned(30, 300, Guessed));
        forward("0");
        let (listening, similar) = (owned(10, 100, Guessed), owned(20, 200, Guessed));
        assert_eq!(last(&tree, open(), flows), [own, listening, similar, bound]);
        forward("1");
        let unknown = None(Unowned::NoSocket);
        assert_eq!(last(&tree, open(), flows), [own, unknown, unknown, bound]);
    });
}

/// The endpoints behind a translated address are found, from the view of the called end.
#[test]
fn what_is_behind_an_address_is_found_root() {
    in_new_namespace(|| {
        let root = Arc::new(ProcRoot::open(Path::new("/proc")).unwrap());
        forward("1");
        ip("address add 10.1.0.1/24 dev lo");
        ip("route add 10.9.9.0/24 dev lo");
        let mut translations = Translations::open(root, true);
        let flow = key(Protocol::TCP, "10.1.0.1:8080", "10.1.0.1:5000");
        assert_eq!(translations.behind(&flow, Instant::now()), Behind::Same, "nothing is tracked");
        nft("table ip t {
               chain out {
                 type nat hook output priority -100;
                 ip daddr 10.9.9.9 meta l4proto { tcp, udp } th dport 80 redirect to :8080
               }
               chain after {
                 type nat hook postrouting priority 100;
                 udp dport 9 snat to 10.7.7.7
               }
             }");
        let listener = TcpListener::bind("0.0.0.0:8080").unwrap();
        let client = TcpStream::connect("10.9.9.9:80").unwrap();
        let (server, _) = listener.accept().unwrap();
        let text = |address: std::io::Result<std::net::SocketAddr>| address.unwrap().to_string();
        let own = text(client.local_addr());
        let flow = key(Protocol::TCP, &own, &text(server.local_addr()));
        let socket = key(Protocol::TCP, &own, "10.9.9.9:80");
        assert_eq!(
            translations.behind(&flow, Instant::now()),
            Behind::Socket(socket),
            "from the first one on"
        );
        let direct = TcpStream::connect("10.1.0.1:8080").unwrap();
        let flow = key(Protocol::TCP, &text(direct.local_addr()), &text(direct.peer_addr()));
        assert_eq!(translations.behind(&flow, Instant::now()), Behind::Same);
        let untracked = key(Protocol::TCP, "10.1.0.1:1", "10.1.0.1:2");
        assert_eq!(translations.behind(&untracked, Instant::now()), Behind::Unknown);
        let elsewhere = key(Protocol::TCP, "10.2.0.1:1", "10.1.0.1:2");
        assert_eq!(
            translations.behind(&elsewhere, Instant::now()),
            Behind::Unknown,
            "no address of this host"
        );
        // Seen from the address that the kernel has put in its place, the sender is another host.
        let sender = UdpSocket::bind("10.1.0.1:0").unwrap();
        sender.send_to(b"?", "10.1.0.1:9").unwrap();
        ip("address add 10.7.7.7/32 dev lo");
        ip("address del 10.1.0.1/24 dev lo");
        let mut later = Translations::open(Arc::new(ProcRoot::open(Path::new("/proc")).unwrap()), true);
        let port = sender.local_addr().unwrap().port();
        let flow = key(Protocol::UDP, &format!("10.7.7.7:{port}"), "10.1.0.1:9");
        assert_eq!(later.behind(&flow, Instant::now()), Behind::Elsewhere);
        assert_eq!(later.fault(), Option::None);
    });
}
