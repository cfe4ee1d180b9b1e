//! Tests against sockets of our own, in a network namespace where there are no others.

use super::*;
use crate::model::Namespace;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

const TIME_WAIT: u8 = 6;
const LISTEN: u8 = 10;

/// Runs a test in a thread that is alone in its network namespace, if that is permitted.
fn alone(test: impl FnOnce(InetDiag) + Send) {
    let run = || {
        if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
            assert!(std::env::var_os("CAPTURE_REQUIRE_ALL").is_none(), "root is required");
            println!("not run: needs root");
            return;
        }
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        test(InetDiag::open().unwrap());
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap());
}

fn key(protocol: Protocol, local: SocketAddr, remote: SocketAddr) -> FlowKey {
    let end = |end: SocketAddr| Endpoint::new(Address::from(end.ip()), end.port());
    FlowKey { local: end(local), remote: end(remote), protocol, namespace: Namespace::HOME }
}

/// The inode as `/proc` shows it.
fn inode(socket: &impl AsRawFd) -> u64 {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
    let text = link.to_str().unwrap();
    text.strip_prefix("socket:[").unwrap().strip_suffix(']').unwrap().parse().unwrap()
}

fn cookie(socket: &impl AsFd) -> u64 {
    let (mut value, mut length) = (0u64, 8);
    // SAFETY: SO_COOKIE gives 8 bytes to a value of 8 bytes, both alive for the length of the call.
    let status = unsafe {
        let fd = socket.as_fd().as_raw_fd();
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_COOKIE, (&raw mut value).cast(), &raw mut length)
    };
    assert_eq!(status, 0);
    value
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
        // Whoever closes first waits; the other end falls to the listener or to nobody.
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
            // A connected socket takes packets of its peer only.
            assert_eq!(diag.find(&key(Protocol::UDP, end(&connected), end(&bound))).unwrap(), None);
        });
    }
}

/// The kernel chooses among sockets that share a port by a hash of both ends. Its answer is the socket that receives.
#[test]
fn of_sockets_that_share_a_port_the_receiver_is_found_root() {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
    };
    alone(|mut diag| {
        let shared = [(); 4].map(|()| {
            let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_NONBLOCK, None).unwrap();
            setsockopt(&fd, sockopt::ReusePort, &true).unwrap();
            bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 7007)).unwrap();
            UdpSocket::from(fd)
        });
        let target: SocketAddr = "127.0.0.1:7007".parse().unwrap();
        let mut receivers = std::collections::HashSet::new();
        for _ in 0..40 {
            let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
            sender.send_to(b"x", target).unwrap();
            let receiver = shared.iter().find(|socket| socket.recv(&mut [0; 8]).is_ok()).unwrap();
            let found =
                diag.find(&key(Protocol::UDP, target, sender.local_addr().unwrap())).unwrap().unwrap();
            assert_eq!(found.inode, inode(receiver));
            receivers.insert(found.inode);
        }
        assert!(receivers.len() > 1, "one of four is never chosen forty times");
    });
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
    // No kernel shows sockets of GRE.
    assert_eq!(diag.find(&key(Protocol(47), end, end)), Err(Errno::EPROTONOSUPPORT));
    assert_eq!(diag.dump(Protocol(47), u32::MAX, |_| ()), Err(Errno::EPROTONOSUPPORT));
    assert_eq!(diag.find(&key(Protocol::TCP, end, end)), Ok(None));
}
