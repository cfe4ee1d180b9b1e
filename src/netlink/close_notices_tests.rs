//! Tests of the notices against what the test itself wrote and read, in a network namespace of its own.

use super::super::message::put;
use super::super::testing::cookie;
use super::*;
use crate::model::{Address, Endpoint};
use capture_test_support::namespaces::in_new_namespace;
use nix::sys::socket::{setsockopt, sockopt};
use proptest::prelude::*;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// A socket and the bytes that it had acknowledged and received.
type Notice = (InetSocket, [u64; 2]);

/// Runs a test with the notices of a network namespace of its own.
fn alone(test: impl FnOnce(CloseNotices) + Send) {
    in_new_namespace(|| test(CloseNotices::open().unwrap()));
}

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::new(Address::from(address.ip()), address.port())
}

/// Returns the notices of sockets with these cookies. The kernel sends them from a work queue, soon after the
/// end.
fn notices<const N: usize>(ended: &mut CloseNotices, cookies: [u64; N]) -> [Notice; N] {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut seen: Vec<Notice> = Vec::new();
    loop {
        let lost = ended
            .read(|socket, totals| seen.push((*socket, [totals.acknowledged_bytes, totals.received_bytes])))
            .unwrap();
        assert_eq!(lost, 0);
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
            // The opening end has its SYN acknowledged, and both ends have their FIN acknowledged.
            for ((socket, totals), local, remote, sent, received, signs) in [
                (of_client, ends[0], ends[1], asked, answered, 2),
                (of_server, ends[1], ends[0], answered, asked, 1),
            ] {
                assert_eq!((socket.inode, socket.uid), (0, 0));
                assert_eq!((socket.local, socket.remote), (local, remote));
                let expected = [sent + signs, received + 1];
                assert_eq!(totals, expected, "with SYN and FIN");
            }
        });
    }
}

#[test]
fn lost_notices_are_counted_root() {
    alone(|mut ended| {
        setsockopt(&ended.as_fd(), sockopt::RcvBuf, &2048).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let (mut made, mut told, mut lost) = (0, 0, 0);
        while lost == 0 || told + lost < made {
            assert!(Instant::now() < deadline, "{told} told and {lost} lost of {made}");
            if lost == 0 {
                for _ in 0..200 {
                    drop(TcpListener::bind("127.0.0.1:0").unwrap());
                }
                made += 200;
            }
            // The work queue is behind; while the test does not read, it fills the small receive buffer.
            std::thread::sleep(Duration::from_millis(20));
            lost += ended.read(|_, _| told += 1).unwrap();
        }
        assert_eq!(told + lost, made);
        // Sockets that end from here on are reported again.
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let cookies = [cookie(&socket)];
        drop(socket);
        notices(&mut ended, cookies);
    });
}

#[test]
fn datagram_sockets_are_not_told_root() {
    alone(|mut ended| {
        drop(UdpSocket::bind("127.0.0.1:0").unwrap());
        let after = TcpListener::bind("127.0.0.1:0").unwrap();
        let cookies = [cookie(&after)];
        let port = after.local_addr().unwrap().port();
        drop(after);
        let [(socket, _)] = notices(&mut ended, cookies);
        assert_eq!((socket.local.port, socket.remote.port), (port, 0));
    });
}

/// Returns a notice of TCP in the kernel's layout, with the totals given in `struct tcp_info`.
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
fn an_older_kernel_gives_no_totals() {
    let mut info = [0; 136];
    put(&mut info, 120, &11u64.to_ne_bytes());
    put(&mut info, 128, &12u64.to_ne_bytes());
    let expected = TcpInfo { acknowledged_bytes: 11, received_bytes: 12, ..TcpInfo::default() };
    assert_eq!(parse(&made_up(&info)).unwrap().1, expected);
    assert_eq!(parse(&made_up(&info[..135])), None);
    assert_eq!(parse(&[0; 71]), None);
    let without_attributes = made_up(&info).get(..REPLY).unwrap().to_vec();
    assert_eq!(parse(&without_attributes), None);
    let mut of_another_protocol = made_up(&info);
    put(&mut of_another_protocol, REPLY + 4, &[17]);
    assert_eq!(parse(&of_another_protocol), None);
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
