//! The reasons why flows end, each caused on purpose.

use crate::watch::{Watch, assert_known};
use crate::{beside_others, with_lab};
use capture::internals::config::Engine;
use capture::internals::model::{CloseReason, FlowPhase, FlowRecord, FlowValidity as V, Role};
use capture_test_support::lab::{Host, Lab, run};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

const LOOPBACK: &str = "127.0.0.1:0";

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(LOOPBACK).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

/// Closes a connection with an RST.
fn reset(stream: TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream, sockopt::Linger, &linger).unwrap();
}

#[track_caller]
fn assert_end(record: &FlowRecord, role: Role, reason: CloseReason, errno: i32) {
    assert_known(record, &[V::REASON, V::ERRNO, V::OPENED, V::DURATION, V::ROLE]);
    assert_eq!((record.phase, record.role), (FlowPhase::Ended, role), "{record:?}");
    assert_eq!((record.reason, record.errno), (reason, errno), "{record:?}");
}

#[test]
fn orderly_reset_aborted_and_refused_root() {
    with_lab(|lab, engine| {
        let mut watch = Watch::on(lab, Host::A, engine);
        let (client, mut server) = pair();
        let (near, far) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        drop(client);
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
        drop(server);
        assert_end(&watch.last(near, far), Role::Opened, CloseReason::Orderly, 0);
        assert_end(&watch.last(far, near), Role::Accepted, CloseReason::Orderly, 0);

        let (client, mut server) = pair();
        let (near, far) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        reset(client);
        let seen = server.read(&mut [0]).unwrap_err();
        assert_end(&watch.last(near, far), Role::Opened, CloseReason::Aborted, 0);
        assert_end(&watch.last(far, near), Role::Accepted, CloseReason::Reset, seen.raw_os_error().unwrap());

        let far = TcpListener::bind(LOOPBACK).unwrap().local_addr().unwrap();
        let (near, seen) = connect_failing(far, None);
        assert_end(&watch.last(near, far), Role::Opened, CloseReason::Refused, seen as i32);
    });
}

#[test]
fn a_call_that_icmp_refuses_without_waiting_has_the_error_of_the_process_root() {
    with_lab(|lab, engine| {
        let mut watch = Watch::on(lab, Host::A, engine);
        run("nft add table inet refuse");
        run("nft add chain inet refuse input { type filter hook input priority 0 ; }");
        for (port, kind) in
            [(7010, "admin-prohibited"), (7011, "net-unreachable"), (7012, "port-unreachable")]
        {
            run(&format!("nft add rule inet refuse input tcp dport {port} reject with icmp type {kind}"));
            let far: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
            let socket = bound(&format!("127.0.0.1:{}", port + 800));
            nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
            let begun = nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(far));
            assert_eq!(begun, Err(Errno::EINPROGRESS));
            let stream = TcpStream::from(socket);
            let near = stream.local_addr().unwrap();
            let seen = stream.take_error().unwrap().unwrap().raw_os_error().unwrap();
            drop(stream);
            let record = watch.last(near, far);
            let is_known = record.valid.has(V::ERRNO);
            assert!(is_known || engine == Engine::Pcap, "{record:?}");
            assert!(!is_known || record.errno == seen, "{record:?} but {seen}");
            assert!(record.reason != CloseReason::Aborted, "{record:?}");
        }
    });
}

/// Returns a socket that is bound to the address `to`.
fn bound(to: &str) -> OwnedFd {
    let socket =
        nix::sys::socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
            .unwrap();
    let address: SocketAddr = to.parse().unwrap();
    nix::sys::socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address)).unwrap();
    socket
}

/// Connects to a peer that does not answer as wanted, with `syns` retransmitted SYNs if given. Returns the
/// source address and the error of the call.
fn connect_failing(target: SocketAddr, syns: Option<i32>) -> (SocketAddr, Errno) {
    let source = if target.ip().is_loopback() { "127.0.0.1:7801" } else { "10.77.0.1:7802" };
    let socket = bound(source);
    if let Some(count) = syns {
        set_syn_count(&socket, count);
    }
    let error = nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(target)).unwrap_err();
    (source.parse().unwrap(), error)
}

fn set_syn_count(socket: &OwnedFd, count: i32) {
    // SAFETY: the option takes an int, which lives during the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_SYNCNT,
            (&raw const count).cast(),
            size_of::<i32>() as u32,
        )
    };
    assert_eq!(set, 0);
}

/// Makes host B drop all packets to a port.
fn lose(lab: &Lab, port: u16) {
    let b = lab.name(Host::B);
    run(&format!("ip netns exec {b} nft add table inet loss"));
    run(&format!(
        "ip netns exec {b} nft add chain inet loss input {{ type filter hook input priority 0 ; }}"
    ));
    run(&format!("ip netns exec {b} nft add rule inet loss input tcp dport {port} drop"));
}

#[test]
fn a_call_that_nobody_answers_times_out_root() {
    beside_others(|lab, engine| {
        lose(lab, 7000);
        let mut watch = Watch::on(lab, Host::A, engine);
        let far = "10.77.0.2:7000".parse().unwrap();
        let calling = std::thread::scope(|scope| {
            let calling = scope.spawn(|| {
                lab.enter(Host::A);
                connect_failing(far, Some(1))
            });
            watch.until("the call to fail", |_| calling.is_finished().then_some(()));
            calling.join().unwrap()
        });
        let (near, seen) = calling;
        assert_eq!(seen, Errno::ETIMEDOUT);
        let record = watch.last(near, far);
        assert_end(&record, Role::Opened, CloseReason::TimedOut, seen as i32);
        assert!(!record.valid.has(V::ESTABLISHED) && !record.valid.has(V::CONNECT_LATENCY));
        assert!(record.retransmits >= 1, "{record:?}");
        assert_eq!(record.retransmits + 1, record.traffic.send_packets);
    });
}

#[test]
fn a_connection_whose_peer_falls_silent_times_out_root() {
    beside_others(|lab, engine| {
        let mut watch = Watch::on(lab, Host::A, engine);
        std::fs::write("/proc/sys/net/ipv4/tcp_retries2", "3").unwrap();
        let listener = std::thread::scope(|scope| {
            let bind = || {
                lab.enter(Host::B);
                TcpListener::bind("10.77.0.2:7000").unwrap()
            };
            scope.spawn(bind).join().unwrap()
        });
        let far = listener.local_addr().unwrap();
        let mut stream = TcpStream::connect(far).unwrap();
        let near = stream.local_addr().unwrap();
        lose(lab, 7000);
        stream.write_all(b"hello").unwrap();
        let seen = stream.read(&mut [0]).unwrap_err();
        assert_eq!(seen.kind(), std::io::ErrorKind::TimedOut);
        drop(stream);
        let record = watch.last(near, far);
        assert_end(&record, Role::Opened, CloseReason::TimedOut, seen.raw_os_error().unwrap());
        assert_known(&record, &[V::ESTABLISHED, V::RETRANSMITS]);
        assert!(record.retransmits >= 3, "{record:?}");
    });
}
