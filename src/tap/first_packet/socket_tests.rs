//! Tests of the socket for first packets, on the loopback device of a network namespace of their own.

use super::*;
use crate::decode::{decode, sequence_number};
use crate::model::{LinkType, Packet, Protocol};
use capture_test_support::namespaces::in_new_namespace;
use std::net::{TcpListener, TcpStream, UdpSocket};

/// Returns the available packets. They are queued before the call that sent them returns.
fn packets(first: &mut FirstPacketSocket) -> Vec<Packet> {
    let mut found = Vec::new();
    first
        .read(1000, |packet| {
            assert_eq!(packet.direction, None, "loopback goes both ways");
            found.push(decode(LinkType::RawIp, packet.data).unwrap());
        })
        .unwrap();
    found
}

fn local_port(socket: &UdpSocket) -> u16 {
    socket.local_addr().unwrap().port()
}

#[test]
fn a_connection_shows_its_first_packet_only_root() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        in_new_namespace(|| {
            let mut first = FirstPacketSocket::open().unwrap();
            let listener = TcpListener::bind(address).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            std::io::Write::write_all(&mut server, b"hello").unwrap();
            drop((client.local_addr(), server));
            let seen = packets(&mut first);
            assert_eq!(seen.len(), 1, "{seen:?}");
            let ends = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            assert_eq!((seen[0].source.port, seen[0].destination.port), (ends.0.port(), ends.1.port()));
            assert_eq!((seen[0].source.address.ip(), seen[0].protocol), (ends.0.ip(), Protocol::TCP));
        });
    }
}

/// The time stamps state when a packet passed, not when it is read.
#[test]
fn packets_bear_times_and_sequence_numbers_root() {
    in_new_namespace(|| {
        let mut first = FirstPacketSocket::open().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        let connect = || drop(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        // The kernel begins to stamp a moment after the request.
        std::thread::sleep(std::time::Duration::from_millis(100));
        let begin = Timestamp::now();
        connect();
        let between = Timestamp::now();
        connect();
        datagrams.send_to(b"x", listener.local_addr().unwrap()).unwrap();
        let end = Timestamp::now();
        std::thread::sleep(std::time::Duration::from_millis(10));
        let mut seen = Vec::new();
        let note = |packet: FirstPacket<'_>| {
            seen.push((packet.time, sequence_number(LinkType::RawIp, packet.data)));
        };
        first.read(1000, note).unwrap();
        let [one, two, datagram] = seen[..] else { panic!("{seen:?}") };
        assert!(begin <= one.0 && one.0 <= between && between <= two.0 && two.0 <= datagram.0, "{seen:?}");
        assert!(datagram.0 <= end, "{seen:?}");
        assert!(one.1.is_some() && two.1.is_some() && one.1 != two.1 && datagram.1.is_none(), "{seen:?}");
    });
}

#[test]
fn datagrams_are_seen_but_for_ports_left_out_root() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        in_new_namespace(|| {
            let mut first = FirstPacketSocket::open().unwrap();
            let [one, two] = [(); 2].map(|()| UdpSocket::bind(address).unwrap());
            one.send_to(b"x", two.local_addr().unwrap()).unwrap();
            two.send_to(b"x", one.local_addr().unwrap()).unwrap();
            let ports = |seen: Vec<Packet>| seen.iter().map(|packet| packet.source.port).collect::<Vec<_>>();
            assert_eq!(ports(packets(&mut first)), [local_port(&one), local_port(&two)]);
            let mut others: Vec<u16> = (1..MAX_PORTS as u16).collect();
            others.push(local_port(&one));
            first.thin(&SamplingRate { ports: others, ..SamplingRate::default() }).unwrap();
            one.send_to(b"x", two.local_addr().unwrap()).unwrap();
            two.send_to(b"x", one.local_addr().unwrap()).unwrap();
            assert_eq!(ports(packets(&mut first)), [local_port(&two)]);
            first.thin(&SamplingRate { datagrams: 0.25, ..SamplingRate::default() }).unwrap();
            for _ in 0..400 {
                one.send_to(b"x", two.local_addr().unwrap()).unwrap();
            }
            let thinned = packets(&mut first).len();
            assert!((40..200).contains(&thinned), "a quarter of 400 is far from {thinned}");
        });
    }
}
