//! Tests of translated connections that nftables rules create.

use super::*;
use crate::model::Namespace;
use capture_test_support::namespaces::in_new_namespace;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};

fn nft(rules: &str) {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success(), "nft");
}

fn end(address: SocketAddr) -> Endpoint {
    Endpoint::new(address.ip().into(), address.port())
}

fn key(protocol: Protocol, local: SocketAddr, remote: SocketAddr) -> FlowKey {
    FlowKey { local: end(local), remote: end(remote), protocol, namespace: Namespace::HOME }
}

/// Runs a test where connections to port 80 of these addresses go to port 8080 of loopback.
fn redirecting(test: impl FnOnce(&mut Conntrack) + Send) {
    in_new_namespace(|| {
        nft("table inet t {
               chain out {
                 type nat hook output priority -100;
                 ip daddr 10.9.9.9 meta l4proto { tcp, udp } th dport 80 redirect to :8080
                 ip6 daddr fd99::9 meta l4proto { tcp, udp } th dport 80 redirect to :8080
               }
             }");
        for route in ["10.9.9.0/24", "fd99::/64"] {
            let words = ["route", "add", route, "dev", "lo"];
            assert!(Command::new("ip").args(words).status().unwrap().success());
        }
        test(&mut Conntrack::open().unwrap());
    });
}

#[test]
fn the_socket_behind_a_translation_is_found_root() {
    redirecting(|conntrack| {
        for (loopback, virtual_address) in [("127.0.0.1:8080", "10.9.9.9:80"), ("[::1]:8080", "[fd99::9]:80")]
        {
            let called: SocketAddr = virtual_address.parse().unwrap();
            let listener = TcpListener::bind(loopback).unwrap();
            let client = TcpStream::connect(called).unwrap();
            let (server, _) = listener.accept().unwrap();
            let (own, on_wire) = (client.local_addr().unwrap(), server.local_addr().unwrap());
            let flow = key(Protocol::TCP, own, on_wire);
            assert_eq!(conntrack.behind(&flow), Ok(Some(key(Protocol::TCP, own, called))), "{called}");
            let receiver = UdpSocket::bind(loopback).unwrap();
            let sender = UdpSocket::bind((own.ip(), 0)).unwrap();
            sender.send_to(b"?", called).unwrap();
            let (_, from) = receiver.recv_from(&mut [0; 9]).unwrap();
            let flow = key(Protocol::UDP, from, on_wire);
            let behind = key(Protocol::UDP, sender.local_addr().unwrap(), called);
            assert_eq!(conntrack.behind(&flow), Ok(Some(behind)), "{called}");
        }
    });
}

#[test]
fn what_is_not_translated_is_the_same_and_what_is_not_tracked_is_not_known_root() {
    redirecting(|conntrack| {
        let listener = TcpListener::bind("127.0.0.1:9000").unwrap();
        let client = TcpStream::connect("127.0.0.1:9000").unwrap();
        let (own, remote) = (client.local_addr().unwrap(), listener.local_addr().unwrap());
        for flow in [key(Protocol::TCP, own, remote), key(Protocol::TCP, remote, own)] {
            assert_eq!(conntrack.behind(&flow), Ok(Some(flow)));
        }
        assert_eq!(conntrack.behind(&key(Protocol::UDP, own, remote)), Ok(None));
        assert_eq!(conntrack.behind(&key(Protocol(89), own, remote)), Ok(None));
    });
}

#[test]
fn an_echo_is_found_by_its_identifier_root() {
    redirecting(|conntrack| {
        let ping = Command::new("ping").args(["-c1", "-W1", "-e77", "127.0.0.1"]).output().unwrap();
        assert!(ping.status.success(), "{}", String::from_utf8_lossy(&ping.stderr));
        let ends = |own: &str, other: &str| (own.parse().unwrap(), other.parse().unwrap());
        let (own, other) = ends("127.0.0.1:77", "127.0.0.1:0");
        let flow = key(Protocol::ICMP, own, other);
        assert_eq!(conntrack.behind(&flow), Ok(Some(flow)));
        assert_eq!(conntrack.behind(&key(Protocol::ICMP, other, own)), Ok(None), "the end that answers");
    });
}

#[test]
fn damaged_entries_are_refused() {
    for length in 0..16 {
        assert_eq!(parse(&vec![0xff; length]), None);
        assert_eq!(parse(&vec![0; length]), None);
    }
}
