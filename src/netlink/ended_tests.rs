//! Tests of the notices against what the test itself wrote and read, in a network namespace where there is nobody else.

use super::super::message::put;
use super::super::testing::cookie;
use super::*;
use crate::model::{Address, Endpoint};
use nix::sys::socket::{setsockopt, sockopt};
use proptest::prelude::*;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

type Notice = (InetSocket, Protocol, Option<TcpTotals>);

/// Runs a test with notices of a network namespace where it is alone.
fn alone(test: impl FnOnce(Ended) + Send) {
    super::super::testing::alone(|| test(Ended::open().unwrap()));
}

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::new(Address::from(address.ip()), address.port())
}

/// The notices of sockets with these cookies. The kernel sends them from a work queue, soon after the end.
fn notices<const N: usize>(ended: &mut Ended, cookies: [u64; N]) -> [Notice; N] {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut seen: Vec<Notice> = Vec::new();
    loop {
        let lost = ended.read(|socket, protocol, totals| seen.push((*socket, protocol, totals))).unwrap();
        assert!(!lost);
        let of = |cookie| seen.iter().find(|(socket, ..)| socket.cookie == cookie).copied();
        if cookies.iter().all(|&cookie| of(cookie).is_some()) {
            return cookies.map(|cookie| of(cookie).unwrap());
        }
        assert!(Instant::now() < deadline, "{cookies:?} are not in {seen:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn totals_are_what_was_written_and_read_root() {
    // The last one is a listener for both families that is called by IPv4.
    for (bound, called) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "127.0.0.1")] {
        alone(|mut ended| {
            let listener = TcpListener::bind(bound).unwrap();
            let target = SocketAddr::new(called.parse().unwrap(), listener.local_addr().unwrap().port());
            let mut client = TcpStream::connect(target).unwrap();
            let (mut server, near) = listener.accept().unwrap();
            let cookies = [cookie(&client), cookie(&server)];
            let (asked, answered) = (vec![1; 1_234], vec![2; 3_456_789]);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    client.write_all(&asked).unwrap();
                    client.shutdown(Shutdown::Write).unwrap();
                    assert_eq!(client.read_to_end(&mut Vec::new()).unwrap(), answered.len());
                });
                assert_eq!(server.read_to_end(&mut Vec::new()).unwrap(), asked.len());
                server.write_all(&answered).unwrap();
                server.shutdown(Shutdown::Write).unwrap();
            });
            let ends = [endpoint(client.local_addr().unwrap()), endpoint(target)];
            assert_eq!(ends[0].port, near.port());
            drop((client, server));
            let [of_client, of_server] = notices(&mut ended, cookies);
            let (asked, answered) = (asked.len() as u64, answered.len() as u64);
            for ((socket, protocol, totals), local, remote, sent, received) in [
                (of_client, ends[0], ends[1], asked, answered),
                (of_server, ends[1], ends[0], answered, asked),
            ] {
                assert_eq!((protocol, socket.inode, socket.uid), (Protocol::TCP, 0, 0));
                assert_eq!((socket.local, socket.remote), (local, remote));
                let totals = totals.unwrap();
                assert_eq!(totals.sent_bytes - totals.retransmitted_bytes, sent);
                assert_eq!(totals.received_bytes, received + 1, "with the FIN");
            }
            let [client, server] = [of_client, of_server].map(|(_, _, totals)| totals.unwrap());
            if client.retransmitted_bytes + server.retransmitted_bytes == 0 {
                // Loopback loses none; the last ones may be on their way past the socket, to its TIME_WAIT row.
                assert!(
                    server.sent_segments.abs_diff(client.received_segments) <= 2,
                    "{client:?} {server:?}"
                );
                assert!(
                    client.sent_segments.abs_diff(server.received_segments) <= 2,
                    "{client:?} {server:?}"
                );
            }
        });
    }
}

#[test]
fn datagram_sockets_end_without_totals_root() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        alone(|mut ended| {
            let [connected, peer] = [(); 2].map(|()| UdpSocket::bind(address).unwrap());
            connected.connect(peer.local_addr().unwrap()).unwrap();
            let ends = [&connected, &peer].map(|socket| endpoint(socket.local_addr().unwrap()));
            let cookies = [cookie(&connected), cookie(&peer)];
            drop((connected, peer));
            let [(socket, protocol, totals), (of_peer, ..)] = notices(&mut ended, cookies);
            assert_eq!((protocol, totals, socket.inode), (Protocol::UDP, None, 0));
            assert_eq!((socket.local, socket.remote), (ends[0], ends[1]));
            assert_eq!((of_peer.local, of_peer.remote.port), (ends[1], 0));
            assert_eq!(socket.is_v6, address.starts_with('['));
        });
    }
}

#[test]
fn lost_notices_are_told_root() {
    alone(|mut ended| {
        setsockopt(&ended.as_fd(), sockopt::RcvBuf, &2048).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut lost = false;
        while !lost {
            assert!(Instant::now() < deadline, "nothing was lost");
            for _ in 0..200 {
                drop(UdpSocket::bind("127.0.0.1:0").unwrap());
            }
            // The work queue is behind; while nobody reads, it fills the little room.
            std::thread::sleep(Duration::from_millis(20));
            lost = ended.read(|_, _, _| ()).unwrap();
        }
        // What ends from here on is told again.
        std::thread::sleep(Duration::from_millis(100));
        while ended.read(|_, _, _| ()).unwrap() {}
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let cookies = [cookie(&socket)];
        drop(socket);
        notices(&mut ended, cookies);
    });
}

/// A notice of TCP as the kernel lays it out, with the totals given in `struct tcp_info`.
fn made_up(info: &[u8]) -> Vec<u8> {
    let mut row = vec![0; REPLY];
    put(&mut row, 0, &[libc::AF_INET as u8, 7]);
    for (kind, value) in [(PROTOCOL, &[6][..]), (INFO, info)] {
        row.extend((value.len() as u16 + 4).to_ne_bytes());
        row.extend(kind.to_ne_bytes());
        row.extend(value);
        row.resize(row.len().next_multiple_of(4), 0);
    }
    row
}

#[test]
fn an_older_kernel_gives_no_totals_but_the_notice() {
    let mut info = [0; 216];
    put(&mut info, 200, &11u64.to_ne_bytes());
    put(&mut info, 128, &12u64.to_ne_bytes());
    let (_, protocol, totals) = parse(&made_up(&info)).unwrap();
    assert_eq!(protocol, Protocol::TCP);
    let expected = TcpTotals { sent_bytes: 11, received_bytes: 12, ..TcpTotals::default() };
    assert_eq!(totals, Some(expected));
    assert_eq!(parse(&made_up(&info[..215])).unwrap().2, None);
    assert_eq!(parse(&[0; 71]), None);
    let without_protocol = made_up(&info).get(..REPLY).unwrap().to_vec();
    assert_eq!(parse(&without_protocol), None);
}

proptest! {
    #[test]
    fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..400), at in 0usize..330, byte: u8) {
        let _ = parse(&bytes);
        let mut notice = made_up(&[7; 232]);
        put(&mut notice, at, &[byte]);
        let _ = parse(&notice);
        let _ = parse(notice.get(..at).unwrap_or_default());
    }
}
