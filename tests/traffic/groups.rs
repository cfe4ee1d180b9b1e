//! Packets to groups, multicast and broadcast, whose sender and receivers are on one host.

use super::counting::{expect, me, on};
use super::nat::{Way, unowned};
use super::{Watch, with};
use capture::internals::model::Unowned;
use capture_test_support::lab::{Host, Lab, run};
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

/// Payload of a datagram, as the traffic maker sends it, and the number of datagrams.
const PAYLOAD: u64 = 1200;
const DATAGRAMS: u64 = 200;

/// A group, the calls that its receiver makes, and the length of all headers.
struct Group {
    target: &'static str,
    bind: &'static str,
    join: fn(&UdpSocket),
    headers: u64,
}

fn join_by(socket: &UdpSocket, own: [u8; 4]) {
    socket.join_multicast_v4(&Ipv4Addr::new(239, 1, 2, 3), &Ipv4Addr::from(own)).unwrap();
}

const GROUPS: [Group; 5] = [
    Group {
        target: "239.1.2.3:7070",
        bind: "0.0.0.0:7070",
        join: |socket| join_by(socket, [10, 77, 0, 1]),
        headers: 14 + 20 + 8,
    },
    Group {
        target: "239.1.2.3:7071",
        bind: "239.1.2.3:7071",
        join: |socket| join_by(socket, [10, 77, 0, 1]),
        headers: 14 + 20 + 8,
    },
    Group {
        target: "[ff15::7]:7072",
        bind: "[::]:7072",
        join: |socket| {
            let index = nix::net::if_::if_nametoindex("veth0").unwrap();
            socket.join_multicast_v6(&"ff15::7".parse::<Ipv6Addr>().unwrap(), index).unwrap();
        },
        headers: 14 + 40 + 8,
    },
    Group { target: "10.77.0.255:7073", bind: "0.0.0.0:7073", join: |_| (), headers: 14 + 20 + 8 },
    Group { target: "255.255.255.255:7074", bind: "0.0.0.0:7074", join: |_| (), headers: 14 + 20 + 8 },
];

/// Without pauses, a receiver's queue can be full.
const NUMBERS: [(&str, u64); 2] = [("bytes", PAYLOAD * DATAGRAMS), ("rate", 1_000_000)];

/// Makes two hosts that use only IPv4 unless a test says otherwise, with routes for groups through a
/// device of host A.
fn lab(device: &str) -> Lab {
    let lab = super::nat::lab();
    let source = if device == "lo" { "src 127.0.0.1" } else { "" };
    run(&format!("ip -n {} route add 239.0.0.0/8 dev {device} {source}", lab.name(Host::A)));
    run(&format!("ip -n {} route add 255.255.255.255/32 dev {device}", lab.name(Host::A)));
    lab
}

fn receiver(lab: &Lab, group: &Group) -> UdpSocket {
    on(lab, Host::A, || {
        let socket = UdpSocket::bind(group.bind).unwrap();
        (group.join)(&socket);
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket
    })
}

/// Reads until nothing more arrives. Returns the number of datagrams and their bytes.
fn read_all(socket: &UdpSocket) -> (u64, u64) {
    let (mut datagrams, mut bytes) = (0, 0);
    while let Ok(count) = socket.recv(&mut [0; 2048]) {
        (datagrams, bytes) = (datagrams + 1, bytes + count as u64);
    }
    (datagrams, bytes)
}

/// Checks that the group's datagrams are credited to the sender and to this process, which receives them, and
/// to no other process.
fn received(device: &str, group: &Group) {
    for way in Way::ALL {
        with(
            || lab(device),
            |lab| {
                println!("{way:?}, {} by {device}:", group.target);
                let socket = receiver(&lab, group);
                let mut watch = Watch::with(&lab, Host::A, way.options());
                let mut source = lab.maker(Host::A, "udp-source", group.target, &NUMBERS);
                source.start();
                let (datagrams, bytes) = read_all(&socket);
                assert_eq!(source.finish().payload, PAYLOAD * DATAGRAMS);
                assert_eq!(datagrams, DATAGRAMS);
                let truth = bytes + datagrams * group.headers;
                let stats = expect(&mut watch, vec![(source.pid(), truth, 0), (me(), 0, truth)]);
                println!("  sent {truth}, received {truth}; {:?}", stats.bytes.owned);
            },
        );
    }
}

#[test]
fn what_is_sent_to_a_group_is_received_on_the_same_host_root() {
    GROUPS.iter().for_each(|group| received("veth0", group));
}

#[test]
fn what_is_sent_to_a_group_on_loopback_is_received_root() {
    let join = |socket: &UdpSocket| join_by(socket, [127, 0, 0, 1]);
    received("lo", &Group { join, ..GROUPS[0] });
}

/// Sockets on the port of a group that no socket has joined, and of a group that was joined on another port,
/// receive nothing.
#[test]
fn a_group_that_nobody_here_receives_is_only_sent_root() {
    for way in [Way::Owners, Way::Portable] {
        with(
            || lab("veth0"),
            |lab| {
                let on_port = on(&lab, Host::A, || UdpSocket::bind("0.0.0.0:7070").unwrap());
                let joined = receiver(&lab, &Group { bind: "0.0.0.0:7079", ..GROUPS[0] });
                let other = Ipv4Addr::new(239, 9, 9, 9);
                on_port.join_multicast_v4(&other, &Ipv4Addr::new(10, 77, 0, 1)).unwrap();
                for target in ["239.1.2.4:7070", "239.1.2.3:7078"] {
                    let mut watch = Watch::with(&lab, Host::A, way.options());
                    let mut source = lab.maker(Host::A, "udp-source", target, &NUMBERS);
                    source.start();
                    source.finish();
                    let truth = DATAGRAMS * (PAYLOAD + 14 + 20 + 8);
                    expect(&mut watch, vec![(source.pid(), truth, 0)]);
                    assert_eq!(unowned(&watch, Unowned::NotLocal), 0, "{way:?}, {target}");
                }
                on_port.set_nonblocking(true).unwrap();
                assert_eq!((read_all(&on_port), read_all(&joined)), ((0, 0), (0, 0)));
            },
        );
    }
}

/// Each of two processes receives the group's datagrams. With engine `pcap`, one of them is credited for both
/// and flagged as shared.
#[test]
fn of_two_processes_in_a_group_one_at_least_has_received_root() {
    for way in [Way::Owners, Way::Portable] {
        with(
            || lab("veth0"),
            |lab| {
                let sockets: [UdpSocket; 2] = std::array::from_fn(|_| {
                    on(&lab, Host::A, || {
                        use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
                        // SAFETY: the call takes no pointers, and nothing else owns the descriptor
                        // that it returns.
                        let socket = unsafe {
                            let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
                            OwnedFd::from_raw_fd(libc::socket(libc::AF_INET, kind, 0))
                        };
                        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::ReuseAddr, &true)
                            .unwrap();
                        let any = nix::sys::socket::SockaddrIn::new(0, 0, 0, 0, 7070);
                        nix::sys::socket::bind(socket.as_raw_fd(), &any).unwrap();
                        let socket = UdpSocket::from(socket);
                        join_by(&socket, [10, 77, 0, 1]);
                        socket
                    })
                });
                let [own, handed] = sockets;
                let mut other = lab.command(Host::A, "sleep");
                other.arg("60").stdin(std::process::Stdio::from(std::os::fd::OwnedFd::from(handed)));
                let mut other = other.spawn().unwrap();
                let mut watch = Watch::with(&lab, Host::A, way.options());
                let mut source = lab.maker(Host::A, "udp-source", GROUPS[0].target, &NUMBERS);
                source.start();
                own.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
                let (datagrams, bytes) = read_all(&own);
                source.finish();
                assert_eq!(datagrams, DATAGRAMS);
                let truth = bytes + datagrams * GROUPS[0].headers;
                let other_pid = other.id() as i32;
                watch.wait_for_traffic(|traffic| {
                    let of = |pid| traffic.get(&pid).map_or(0, |traffic| traffic.receive_bytes);
                    of(me()) + of(other_pid) == truth
                });
                other.kill().unwrap();
                other.wait().unwrap();
            },
        );
    }
}
