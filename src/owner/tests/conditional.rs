//! Tests of flows whose local address is this host's for some packets only. The namespace and its sockets are
//! real.

use crate::model::{Protocol, Unowned};
use crate::netlink::InetDiag;
use crate::owner::made_up::{NOW, OwnerTree, key};
use crate::owner::{LocalEnd, Outcome};
use capture_test_support::namespaces::in_new_namespace;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;

fn make_transparent(socket: &UdpSocket) {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads no more than the given length, which is that of the number.
    let status = unsafe {
        let length = size_of_val(&on) as libc::socklen_t;
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            libc::IP_TRANSPARENT,
            (&raw const on).cast(),
            length,
        )
    };
    assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
}

/// No process of the fixture holds the sockets: a flow whose packets are taken has no holder, and any other
/// is forwarded.
#[test]
fn only_a_socket_that_takes_just_such_packets_makes_a_flow_this_hosts_root() {
    in_new_namespace(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let listening = listener.local_addr().unwrap();
        let client = TcpStream::connect(listening).unwrap();
        let calling = client.local_addr().unwrap().to_string();
        let _server = listener.accept().unwrap();
        let _bound = UdpSocket::bind("0.0.0.0:53").unwrap();
        let transparent = UdpSocket::bind("0.0.0.0:54").unwrap();
        make_transparent(&transparent);
        let _specific = UdpSocket::bind("127.0.0.9:57").unwrap();
        let connected = UdpSocket::bind("127.0.0.1:55").unwrap();
        connected.connect("127.0.0.1:56").unwrap();

        let listening = listening.to_string();
        let peer = "198.51.100.1:4000";
        let flows = [
            (key(Protocol::TCP, &listening, &calling), true),
            (key(Protocol::TCP, &listening, peer), false),
            (key(Protocol::TCP, "203.0.113.7:80", peer), false),
            (key(Protocol::UDP, "203.0.113.7:53", peer), false),
            (key(Protocol::UDP, "203.0.113.7:54", peer), true),
            (key(Protocol::UDP, "127.0.0.9:57", peer), true),
            (key(Protocol::UDP, "127.0.0.1:55", "127.0.0.1:56"), true),
            (key(Protocol(47), "203.0.113.7:0", "198.51.100.1:0"), false),
        ];
        let tree = OwnerTree::new();
        let mut finder = tree.finder();
        finder.ask_kernel(InetDiag::open().unwrap());
        for (flow, is_taken) in flows {
            let mut query = tree.query(flow, NOW).with_local_end(LocalEnd::Diverted);
            finder.find(std::slice::from_mut(&mut query), tree.start);
            let is_forwarded = query.outcome == Outcome::Unowned(Unowned::NotLocal);
            assert_eq!(is_forwarded, !is_taken, "{flow:?}: {:?}", query.outcome);
        }
    });
}
