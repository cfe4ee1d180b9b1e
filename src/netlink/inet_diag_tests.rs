//! Tests against sockets that the tests open, in a network namespace that has no others.

use super::super::testing::{cookie, inode};
use super::*;
use crate::model::Namespace;
use crate::model::tcp_state::{LISTEN, TIME_WAIT};
use crate::netlink::begin;
use capture_test_support::namespaces::in_new_namespace;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Runs a test with the sockets of a network namespace of its own.
fn alone(test: impl FnOnce(InetDiag) + Send) {
    in_new_namespace(|| test(InetDiag::open().unwrap()));
}

fn key(protocol: Protocol, local: SocketAddr, remote: SocketAddr) -> FlowKey {
    let end = |end: SocketAddr| Endpoint::new(Address::from(end.ip()), end.port());
    FlowKey { local: end(local), remote: end(remote), protocol, namespace: Namespace::HOME }
}

#[test]
fn a_connection_is_found_at_both_ends_root() {
    // The last one is a listener for both families that is called by IPv4.
    for (bound, called) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "127.0.0.1")] {
        alone(|mut diag| {
            let listener = TcpListener::bind(bound).unwrap();
            let target = SocketAddr::new(called.parse().unwrap(), listener.local_addr().unwrap().port());
            let client = TcpStream::connect(target).unwrap();
            let near = client.local_addr().unwrap();
            let at_client = key(Protocol::TCP, near, target);
            let at_server = key(Protocol::TCP, target, near);
            let found = diag.find(&at_client).unwrap().unwrap();
            assert_eq!((found.inode, found.cookie, found.state), (inode(&client), cookie(&client), 1));
            assert_eq!((found.local, found.remote), (at_client.local, at_client.remote));
            assert_eq!(found.uid, nix::unistd::geteuid().as_raw());
            let waiting = diag.find(&at_server).unwrap().unwrap();
            assert_eq!((waiting.inode, waiting.state), (0, 1), "not accepted yet");
            let (server, _) = listener.accept().unwrap();
            let found = diag.find(&at_server).unwrap().unwrap();
            assert_eq!((found.inode, found.cookie, found.state), (inode(&server), cookie(&server), 1));
            assert_eq!(found.is_v6, bound.starts_with('['));
            assert_eq!((found.local, found.remote), (at_server.local, at_server.remote));
            let another = key(Protocol::TCP, target, SocketAddr::new(near.ip(), 1));
            let found = diag.find(&another).unwrap().unwrap();
            assert_eq!((found.inode, found.state, found.remote.port), (inode(&listener), LISTEN, 0));
            let nobody = key(Protocol::TCP, SocketAddr::new(target.ip(), 1), near);
            assert_eq!(diag.find(&nobody).unwrap(), None);
        });
    }
}

#[test]
fn a_connection_that_is_over_has_no_inode_root() {
    alone(|mut diag| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(target).unwrap();
        let near = client.local_addr().unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.write_all(b"bye").unwrap();
        drop(server);
        client.read_to_end(&mut Vec::new()).unwrap();
        drop(client);
        // The end that closes first enters TIME_WAIT. For the other end the kernel finds the listener or
        // nothing.
        let at_server = diag.find(&key(Protocol::TCP, target, near)).unwrap().unwrap();
        assert_eq!((at_server.state, at_server.inode), (TIME_WAIT, 0));
        assert_eq!(diag.find(&key(Protocol::TCP, near, target)).unwrap(), None);
    });
}

#[test]
fn datagram_sockets_are_found_as_a_packet_would_root() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        alone(|mut diag| {
            let [bound, connected, peer] = [(); 3].map(|()| UdpSocket::bind(address).unwrap());
            let end = |socket: &UdpSocket| socket.local_addr().unwrap();
            connected.connect(end(&peer)).unwrap();
            let mut find = |one: &UdpSocket, other: &UdpSocket| {
                diag.find(&key(Protocol::UDP, end(one), end(other))).unwrap().unwrap()
            };
            let found = find(&connected, &peer);
            assert_eq!((found.inode, found.remote.port), (inode(&connected), end(&peer).port()));
            let found = find(&bound, &peer);
            assert_eq!((found.inode, found.remote.port, found.cookie), (inode(&bound), 0, cookie(&bound)));
            // A connected socket accepts only packets of its peer.
            assert_eq!(diag.find(&key(Protocol::UDP, end(&connected), end(&bound))).unwrap(), None);
        });
    }
}

/// The kernel chooses among sockets that share a port by a hash of both ends. The lookup returns the socket
/// that receives.
#[test]
fn of_sockets_that_share_a_port_the_receiver_is_found_root() {
    // The last sockets are for both families and are called by IPv4.
    for (bound, called) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1")] {
        alone(|mut diag| {
            let shared = [(); 4].map(|()| {
                let bound = SocketAddr::new(bound.parse().unwrap(), 7007);
                let family = if bound.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
                let fd = socket(family, SockType::Datagram, SockFlag::SOCK_NONBLOCK, None).unwrap();
                setsockopt(&fd, sockopt::ReusePort, &true).unwrap();
                bind(fd.as_raw_fd(), &SockaddrStorage::from(bound)).unwrap();
                UdpSocket::from(fd)
            });
            let target = SocketAddr::new(called.parse().unwrap(), 7007);
            let mut receivers = std::collections::HashSet::new();
            for _ in 0..40 {
                let sender = UdpSocket::bind((target.ip(), 0)).unwrap();
                sender.send_to(b"x", target).unwrap();
                let receiver = shared.iter().find(|socket| socket.recv(&mut [0; 8]).is_ok()).unwrap();
                let near = sender.local_addr().unwrap();
                let found = diag.find(&key(Protocol::UDP, target, near)).unwrap().unwrap();
                assert_eq!(found.inode, inode(receiver));
                receivers.insert(found.inode);
            }
            assert!(receivers.len() > 1, "one of four is never chosen forty times");
        });
    }
}

/// IPv6 sockets also serve IPv4 unless they are set to IPv6 only.
#[test]
fn a_socket_for_both_families_serves_ipv4_root() {
    alone(|mut diag| {
        let datagram = |only: bool| {
            let fd = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::empty(), None).unwrap();
            setsockopt(&fd, sockopt::Ipv6V6Only, &only).unwrap();
            bind(fd.as_raw_fd(), &SockaddrStorage::from("[::]:0".parse::<SocketAddr>().unwrap())).unwrap();
            UdpSocket::from(fd)
        };
        let [both, only] = [false, true].map(datagram);
        let ends = |socket: &UdpSocket, ip: &str| {
            let port = socket.local_addr().unwrap().port();
            let ip = ip.parse().unwrap();
            key(Protocol::UDP, SocketAddr::new(ip, port), SocketAddr::new(ip, 9))
        };
        let found = diag.find(&ends(&both, "127.0.0.1")).unwrap().unwrap();
        assert_eq!((found.inode, found.is_v6, found.v6_only), (inode(&both), true, false));
        assert_eq!(found.local.address, Address::UNSPECIFIED_V6);
        assert_eq!((found.remote.address, found.remote.port), (Address::UNSPECIFIED_V6, 0));
        assert_eq!(diag.find(&ends(&only, "127.0.0.1")).unwrap(), None);
        let found = diag.find(&ends(&only, "::1")).unwrap().unwrap();
        assert_eq!((found.inode, found.is_v6, found.v6_only), (inode(&only), true, true));
        let plain = UdpSocket::bind("0.0.0.0:0").unwrap();
        let found = diag.find(&ends(&plain, "127.0.0.1")).unwrap().unwrap();
        assert_eq!((found.local.address, found.is_v6), (Address::UNSPECIFIED_V4, false));
    });
}

#[test]
fn udplite_is_served_root() {
    alone(|mut diag| {
        // SAFETY: the call takes numbers only.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE) };
        if fd < 0 {
            println!("not run: needs UDP-Lite, which newer kernels lack");
            return;
        }
        // SAFETY: the descriptor has just been opened, and nothing else owns it.
        let lite = UdpSocket::from(unsafe { OwnedFd::from_raw_fd(fd) });
        bind(lite.as_raw_fd(), &SockaddrStorage::from("127.0.0.1:0".parse::<SocketAddr>().unwrap())).unwrap();
        let end = lite.local_addr().unwrap();
        let found = diag.find(&key(Protocol::UDPLITE, end, end)).unwrap().unwrap();
        assert_eq!((found.inode, found.cookie), (inode(&lite), cookie(&lite)));
        assert_eq!(diag.find(&key(Protocol::UDP, end, end)).unwrap(), None, "ports are each protocol's own");
    });
}

#[test]
fn a_socket_bound_to_a_device_is_only_listed_root() {
    alone(|mut diag| {
        let bound = UdpSocket::bind("127.0.0.1:0").unwrap();
        setsockopt(&bound, sockopt::BindToDevice, &"lo".into()).unwrap();
        let end = bound.local_addr().unwrap();
        assert_eq!(diag.find(&key(Protocol::UDP, end, end)).unwrap(), None);
        let mut listed = Vec::new();
        diag.dump(Protocol::UDP, u32::MAX, |socket| listed.push((socket.inode, socket.interface))).unwrap();
        assert_eq!(listed, [(inode(&bound), nix::net::if_::if_nametoindex("lo").unwrap())]);
    });
}

#[test]
fn answers_to_earlier_questions_are_passed_over_root() {
    alone(|mut diag| {
        let sockets = [(); 1000].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let keys = [0, 1].map(|at: usize| {
            let end = sockets[at].local_addr().unwrap();
            key(Protocol::UDP, end, end)
        });
        // The reply to this request stays unread.
        let mut question = [0; MESSAGE_HEADER + REQUEST];
        begin(&mut question, BY_FAMILY, libc::NLM_F_REQUEST, u32::MAX);
        put(&mut question, MESSAGE_HEADER, &[libc::AF_INET as u8, Protocol::UDP.0]);
        diag.exchange.transport.send(&question).unwrap();
        assert_eq!(diag.find(&keys[0]).unwrap().unwrap().inode, inode(&sockets[0]));
        // The rest of these lists, which are much longer than one reply, stays unread too.
        let break_off = |diag: &mut InetDiag| {
            let dump =
                std::panic::AssertUnwindSafe(|| diag.dump(Protocol::UDP, u32::MAX, |_| panic!("enough")));
            std::panic::catch_unwind(dump).unwrap_err();
        };
        break_off(&mut diag);
        assert_eq!(diag.find(&keys[1]).unwrap().unwrap().inode, inode(&sockets[1]));
        assert_eq!(diag.find(&keys[0]).unwrap().unwrap().inode, inode(&sockets[0]));
        break_off(&mut diag);
        let mut inodes = Vec::new();
        diag.dump(Protocol::UDP, u32::MAX, |socket| inodes.push(socket.inode)).unwrap();
        inodes.sort_unstable();
        let mut expected = sockets.iter().map(inode).collect::<Vec<_>>();
        expected.sort_unstable();
        assert_eq!(inodes, expected);
    });
}

#[test]
fn a_socket_asks_in_the_namespace_where_it_was_opened_root() {
    let mut here = InetDiag::open().unwrap();
    let there = std::sync::Mutex::new(None);
    in_new_namespace(|| {
        let listener = TcpListener::bind("127.77.7.7:0").unwrap();
        *there.lock().unwrap() = Some((InetDiag::open().unwrap(), listener));
    });
    let Some((mut there, listener)) = there.into_inner().unwrap() else { return };
    let end = listener.local_addr().unwrap();
    let key = key(Protocol::TCP, end, end);
    assert_eq!(there.find(&key).unwrap().unwrap().inode, inode(&listener));
    assert_ne!(here.find(&key).unwrap().map(|found| found.inode), Some(inode(&listener)));
}

#[test]
fn lists_show_what_the_tables_show_root() {
    alone(|mut diag| {
        let listeners = [(); 20].map(|()| TcpListener::bind("[::]:0").unwrap());
        let mut sockets = Vec::new();
        for listener in &listeners {
            sockets.push(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
            sockets.push(listener.accept().unwrap().0);
        }
        let datagrams = [(); 30].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let rows = |name: &str| {
            let table = std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap();
            let inodes =
                table.lines().skip(1).map(|line| line.split_whitespace().nth(9).unwrap().parse().unwrap());
            inodes.collect::<Vec<u64>>()
        };
        let mut list = |protocol, states| {
            let mut inodes = Vec::new();
            diag.dump(protocol, states, |socket| inodes.push(socket.inode)).unwrap();
            inodes.sort_unstable();
            inodes
        };
        let sorted = |mut inodes: Vec<u64>| {
            inodes.sort_unstable();
            inodes
        };
        assert_eq!(list(Protocol::TCP, u32::MAX), sorted([rows("tcp"), rows("tcp6")].concat()));
        assert_eq!(list(Protocol::UDP, u32::MAX), sorted(datagrams.iter().map(inode).collect()));
        assert_eq!(list(Protocol::TCP, 1 << LISTEN), sorted(listeners.iter().map(inode).collect()));
    });
}

#[test]
fn a_protocol_that_is_not_served_is_told_from_a_socket_that_is_not_there() {
    let mut diag = InetDiag::open().unwrap();
    let end: SocketAddr = "127.0.0.1:1".parse().unwrap();
    // No kernel reports sockets of GRE.
    assert_eq!(diag.find(&key(Protocol(47), end, end)), Err(Errno::EPROTONOSUPPORT));
    assert_eq!(diag.dump(Protocol(47), u32::MAX, |_| ()), Err(Errno::EPROTONOSUPPORT));
    assert_eq!(diag.find(&key(Protocol::TCP, end, end)), Ok(None));
}

/// A row is parsed only if it has the full length and belongs to one of the two families.
#[test]
fn a_row_is_understood_field_by_field() {
    let mut row = [0; REPLY];
    put(&mut row, 0, &[libc::AF_INET6 as u8, 10]);
    put(&mut row, 4, &[0x1f, 0x90, 0x00, 0x50]);
    put(&mut row, 8, &Address::v4([10, 0, 0, 1]).bytes()[..]);
    put(&mut row, 24, &[0xfe, 0x80]);
    put(&mut row, 40, &7u32.to_ne_bytes());
    put(&mut row, 44, &[2u32.to_ne_bytes(), 1u32.to_ne_bytes()].concat());
    put(&mut row, 64, &[1000u32.to_ne_bytes(), 4_000_000_000u32.to_ne_bytes()].concat());
    let mut link_local = [0; 16];
    put(&mut link_local, 0, &[0xfe, 0x80]);
    let expected = InetSocket {
        local: Endpoint::new(Address::v4([10, 0, 0, 1]), 8080),
        remote: Endpoint::new(Address::v6(link_local), 80),
        state: LISTEN,
        uid: 1000,
        inode: 4_000_000_000,
        cookie: 1 << 32 | 2,
        is_v6: true,
        v6_only: false,
        is_transparent: false,
        loops_multicast: true,
        interface: 7,
    };
    assert_eq!(parse(&row), Some(expected));
    assert_eq!(parse(&row[..REPLY - 1]), None);
    row[0] = libc::AF_UNIX as u8;
    assert_eq!(parse(&row), None);
}

proptest::proptest! {
    #[test]
    fn no_bytes_do_harm(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let _ = parse(&bytes);
    }
}

#[test]
fn a_socket_that_is_bound_to_a_device_is_found_by_it_root() {
    alone(|mut diag| {
        let loopback = nix::net::if_::if_nametoindex("lo").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let client = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&client, sockopt::BindToDevice, &"lo".into()).unwrap();
        let address: nix::sys::socket::SockaddrIn = match target {
            SocketAddr::V4(v4) => v4.into(),
            SocketAddr::V6(_) => unreachable!(),
        };
        nix::sys::socket::connect(client.as_raw_fd(), &address).unwrap();
        let client = TcpStream::from(client);
        let near = client.local_addr().unwrap();
        let key = key(Protocol::TCP, near, target);
        assert_eq!(diag.find(&key), Ok(None));
        let found = diag.find_on(&key, loopback).unwrap().unwrap();
        assert_eq!((found.inode, found.interface), (inode(&client), loopback));
        assert_eq!(diag.find_on(&key, loopback + 1), Ok(None));
    });
}
