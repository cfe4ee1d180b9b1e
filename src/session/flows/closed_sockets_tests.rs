//! Tests of the notices with real connections, in network namespaces without other traffic.

use super::*;
use crate::model::{Address, Endpoint};
use crate::netlink::InetDiag;
use capture_test_support::namespaces::in_new_namespace;
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{FromRawFd, OwnedFd};

/// Reads until `count` connections have ended, and a little longer, so that surplus notices are detected if
/// they arrive soon.
fn ends(reader: &mut Reader, count: usize) -> Vec<Connection> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut all = Vec::new();
    let mut quiet = 0;
    while all.len() < count || quiet < 5 {
        assert!(Instant::now() < deadline, "{all:?}");
        std::thread::sleep(2 * REST);
        reader.read();
        let new = reader.queue().take(usize::MAX);
        quiet = if new.is_empty() { quiet + 1 } else { 0 };
        all.extend(new);
    }
    all
}

/// A reader in the namespace of the calling thread, and a socket to look up sockets with.
struct Reader {
    ended: EndedReader,
    diag: InetDiag,
}

impl Reader {
    fn read(&mut self) {
        self.ended.read(Instant::now(), |key| self.diag.find(key));
    }

    fn queue(&self) -> &EndedQueue {
        self.ended.queue.as_ref().unwrap()
    }
}

fn reader() -> Reader {
    let ended = EndedReader::open(Known::default(), Some(Arc::default()), None).unwrap();
    Reader { ended, diag: InetDiag::open().unwrap() }
}

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::new(Address::from(address.ip()), address.port())
}

/// Opens a connection from the given local port.
fn connect_from(port: u16, target: SocketAddr) -> TcpStream {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};
    use std::os::fd::{AsRawFd, IntoRawFd};
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(target.ip(), port))).unwrap();
    connect(socket.as_raw_fd(), &SockaddrStorage::from(target)).unwrap();
    // SAFETY: `into_raw_fd` has just released the descriptor, so the stream is its only owner.
    TcpStream::from(unsafe { OwnedFd::from_raw_fd(socket.into_raw_fd()) })
}

#[test]
fn both_ends_of_a_connection_are_told_with_what_they_carried_root() {
    in_new_namespace(|| {
        let began = Timestamp::now();
        let mut reader = reader();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(target).unwrap();
        let near = client.local_addr().unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(&[1; 5_000]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(server.read_to_end(&mut Vec::new()).unwrap(), 5_000);
        server.write_all(&[2; 70_000]).unwrap();
        drop(server);
        assert_eq!(client.read_to_end(&mut Vec::new()).unwrap(), 70_000);
        drop(client);
        drop(listener);
        let mut ends = ends(&mut reader, 2);
        ends.sort_by_key(|end| end.key.local.port == target.port());
        assert_eq!(ends.len(), 2, "the listener had no connection: {ends:?}");
        for (end, local, remote, sent, received) in
            [(ends[0], near, target, 5_000, 70_000), (ends[1], target, near, 70_000, 5_000)]
        {
            let (local, remote) = (endpoint(local), endpoint(remote));
            let (protocol, namespace) = (Protocol::TCP, Namespace::HOME);
            assert_eq!(end.key, FlowKey { local, remote, protocol, namespace });
            let carried = end.carried.unwrap();
            // The kernel does not always count the SYN.
            assert!((sent - 1..=sent).contains(&carried.sent), "{carried:?}");
            assert_eq!(carried.received, received);
            assert!((began..end.told).contains(&end.all_told_since), "since the reader was opened");
        }
        assert_eq!(reader.queue().lost(), 0);
    });
}

/// The end of a reset connection is not reported while another connection has its endpoints, since a process
/// may keep the old socket.
#[test]
fn an_end_is_not_told_while_another_connection_has_its_place_root() {
    in_new_namespace(|| {
        let mut reader = reader();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let mut kept = connect_from(40_000, target);
        let (mut server, _) = listener.accept().unwrap();
        server.write_all(&[1; 50_000]).unwrap();
        kept.read_exact(&mut [0; 50_000]).unwrap();
        // Closing a socket with unread data resets the connection (RFC 2525, 2.17).
        kept.write_all(&[2; 100]).unwrap();
        server.set_nonblocking(true).unwrap();
        while server.peek(&mut [0]).is_err() {
            std::thread::yield_now();
        }
        drop(server);
        assert_eq!(ends(&mut reader, 1).len(), 1, "the end that did the reset");
        // The connection has ended; only its process still has the socket.
        assert!(kept.read(&mut [0]).is_err());
        let later = connect_from(40_000, target);
        assert_eq!(later.local_addr().unwrap(), kept_address(target));
        drop(kept);
        assert_eq!(ends(&mut reader, 0).len(), 0);
        let (server, _) = listener.accept().unwrap();
        drop((later, server));
        assert_eq!(ends(&mut reader, 2).len(), 2);
    });
}

fn kept_address(target: SocketAddr) -> SocketAddr {
    SocketAddr::new(target.ip(), 40_000)
}

#[test]
fn notices_that_were_lost_are_counted_and_leave_no_trust_in_the_rest_root() {
    in_new_namespace(|| {
        let mut reader = reader();
        let begin = Timestamp::now();
        setsockopt(&reader.ended.descriptors().next().unwrap(), sockopt::RcvBuf, &2048).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while reader.queue().lost() == 0 {
            assert!(Instant::now() < deadline, "nothing was lost");
            for _ in 0..100 {
                let client = TcpStream::connect(target).unwrap();
                drop((listener.accept().unwrap(), client));
            }
            std::thread::sleep(2 * REST);
            reader.queue().take(usize::MAX);
            reader.read();
        }
        let told = reader.queue().take(usize::MAX);
        assert!(!told.is_empty() && told.iter().all(|end| end.all_told_since > begin), "{told:?}");
    });
}

#[test]
fn the_queue_is_bounded() {
    let key = FlowKey {
        local: Endpoint::new(Address::v4([10, 0, 0, 1]), 1),
        remote: Endpoint::new(Address::v4([10, 0, 0, 2]), 2),
        protocol: Protocol::TCP,
        namespace: Namespace::HOME,
    };
    let (told, told_at, all_told_since) = (Timestamp(1), Instant::now(), Timestamp(0));
    let one =
        Connection { key, carried: None, cookie: 0, info: TcpInfo::default(), told, told_at, all_told_since };
    let queue = EndedQueue::default();
    assert!(queue.add(&mut vec![one; LIMIT]));
    let mut more = vec![one; 3];
    assert!(!queue.add(&mut more));
    assert!(more.is_empty());
    assert_eq!((queue.lost(), queue.take(10).len()), (3, 10));
    assert_eq!(queue.take(usize::MAX).len(), LIMIT - 10);
}
