//! Tests of frames that are several packets on the wire: they count as those at both ends, but as captured
//! wherever a connection is compared with the bytes of its socket.

use super::*;
use crate::model::{Endpoint, Passage, Protocol};
use std::net::SocketAddr;

/// Headers of TCP over IPv4 over Ethernet, without options, and the payload that fits the MTU with them.
const HEADERS: u64 = 54;
const SEGMENT: u64 = 1460;

impl PipelineFixture {
    /// Counts a packet as a frame with this much payload, of which only the headers are captured.
    fn offloaded(&mut self, packet: Packet, payload: u64) {
        self.now += 1_000;
        let data = Wire::Ethernet.frame(&packet.bytes());
        self.pipeline.frame(&Frame {
            time: Timestamp(self.now),
            wire_len: data.len() as u32 + payload as u32,
            packet_limit: ETHERNET_LIMIT,
            link: LinkType::Ethernet,
            namespace: Namespace::HOME,
            passage: Passage::Unknown,
            data: &data,
        });
    }

    /// Returns the sent and received packets that were credited to a process.
    fn credited_packets(&mut self, pid: i32) -> (u64, u64) {
        self.fetch();
        let all = self.fetched.iter().filter(|(process, _)| process.pid == pid);
        all.fold((0, 0), |sum, (_, it)| (sum.0 + it.send_packets, sum.1 + it.receive_packets))
    }
}

fn tcp(flags: u8, from: &str, to: &str) -> Packet {
    Packet::new(Carries::Tcp(flags), from, to, 0)
}

fn endpoint(text: &str) -> Endpoint {
    let address: SocketAddr = text.parse().unwrap();
    Endpoint::new(address.ip().into(), address.port())
}

#[test]
fn an_offloaded_frame_counts_as_the_packets_it_is_on_the_wire() {
    let mut bench = PipelineFixture::new(8);
    let (own, peer) = (&*format!("{HOST}:10"), &*format!("{PEER}:2"));
    bench.offloaded(tcp(0x18, own, peer), 10 * SEGMENT);
    bench.offloaded(tcp(0x18, own, peer), SEGMENT);
    bench.offloaded(tcp(0x18, peer, own), 2 * SEGMENT + 1);
    bench.answer_all(by_port);
    let sent = 11 * (SEGMENT + HEADERS);
    let received = 2 * SEGMENT + 1 + 3 * HEADERS;
    assert_eq!(bench.credited(10), (sent, received));
    assert_eq!(bench.credited_packets(10), (11, 3));
    let counts = bench.pipeline.counts();
    assert_eq!((counts.frames, counts.bytes), (3, 13 * SEGMENT + 1 + 3 * HEADERS));
    assert_eq!((counts.offloaded, counts.offloaded_packets, counts.estimated_bytes), (2, 13, 11 * HEADERS));
}

#[test]
fn what_is_only_passing_counts_as_packets_too() {
    let mut bench = PipelineFixture::new(8);
    bench.offloaded(tcp(0x18, "203.0.113.1:10", "203.0.113.2:2"), 4 * SEGMENT);
    bench.answer_all(by_port);
    assert_eq!(bench.unowned(Unowned::NotLocal), 4 * (SEGMENT + HEADERS));
}

#[test]
fn a_packet_between_two_processes_here_is_as_many_at_both() {
    let mut bench = PipelineFixture::new(8);
    bench.offloaded(tcp(0x18, &format!("{HOST}:10"), &format!("{HOST}:20")), 3 * SEGMENT);
    bench.answer_all(by_port);
    let bytes = 3 * (SEGMENT + HEADERS);
    assert_eq!((bench.credited(10), bench.credited(20)), ((bytes, 0), (0, bytes)));
    assert_eq!((bench.credited_packets(10), bench.credited_packets(20)), ((3, 0), (0, 3)));
}

/// The estimated headers of a frame's segments were not captured, and hide no lost bytes.
#[test]
fn estimated_headers_do_not_hide_what_was_lost() {
    let (own, peer) = (&*format!("{HOST}:10"), &*format!("{PEER}:2"));
    let key = FlowKey {
        local: endpoint(own),
        remote: endpoint(peer),
        protocol: Protocol::TCP,
        namespace: Namespace::HOME,
    };
    let mut bench = PipelineFixture::new(8);
    for (flags, from, to) in [(0x02, own, peer), (0x12, peer, own), (0x10, own, peer)] {
        bench.offloaded(tcp(flags, from, to), 0);
    }
    bench.offloaded(tcp(0x18, own, peer), 40 * SEGMENT);
    bench.offloaded(tcp(0x18, peer, own), 20 * SEGMENT);
    let id = bench.pipeline.flows.find(&key).unwrap();
    let seen = bench.pipeline.flows.captured(id);
    assert_eq!((seen.send_packets, seen.send_bytes), (3, 3 * HEADERS + 40 * SEGMENT));
    assert_eq!((seen.receive_packets, seen.receive_bytes), (2, 2 * HEADERS + 20 * SEGMENT));
    // A new connection between the same endpoints inherits nothing.
    bench.offloaded(tcp(0x14, own, peer), 0);
    bench.offloaded(tcp(0x02, own, peer), 0);
    let id = bench.pipeline.flows.find(&key).unwrap();
    let seen = bench.pipeline.flows.captured(id);
    assert_eq!((seen.send_packets, seen.send_bytes), (1, HEADERS));
}

/// Both ends of a connection state in their SYN the segment size that they accept; neither sends more.
#[test]
fn segments_are_no_larger_than_both_ends_accept() {
    let mut bench = PipelineFixture::new(2000);
    let (own, peer) = (&*format!("{HOST}:10"), &*format!("{PEER}:2"));
    let syn = |bench: &mut PipelineFixture, flags: u8, from: &str, to: &str, limit: u16| {
        let mut data = Wire::Ethernet.frame(&Packet::new(Carries::Tcp(flags), from, to, 4).bytes());
        // A header of six words, the last of which is the option.
        data[14 + 20 + 12] = 0x60;
        data[14 + 20 + 20..][..2].copy_from_slice(&[2, 4]);
        data[14 + 20 + 22..][..2].copy_from_slice(&limit.to_be_bytes());
        bench.pipeline.frame(&Frame {
            time: Timestamp(1),
            wire_len: data.len() as u32,
            packet_limit: ETHERNET_LIMIT,
            link: LinkType::Ethernet,
            namespace: Namespace::HOME,
            passage: Passage::Unknown,
            data: &data,
        });
    };
    syn(&mut bench, 0x02, own, peer, 1460);
    syn(&mut bench, 0x12, peer, own, 1000);
    // So many other flows that the cached path is overwritten.
    for port in 100..1000 {
        bench.packet(udp(&format!("{HOST}:{port}"), &format!("{PEER}:{port}")));
    }
    bench.offloaded(tcp(0x18, own, peer), 10_000);
    bench.offloaded(tcp(0x18, peer, own), 5_000);
    bench.answer_all(by_port);
    assert_eq!(bench.credited_packets(10), (1 + 10, 1 + 5));
    // Several small segments can be merged to a frame that the device would carry as one packet.
    bench.offloaded(tcp(0x18, own, peer), 1_001);
    bench.offloaded(tcp(0x18, own, peer), 1_000);
    bench.offloaded(tcp(0x18, own, "198.51.100.9:2"), 1_001);
    bench.answer_all(by_port);
    assert_eq!(bench.credited_packets(10), (11 + 2 + 1 + 1, 6));
    // An end that accepts little is sent no more, but could send more.
    syn(&mut bench, 0x02, peer, &format!("{HOST}:11"), 300);
    syn(&mut bench, 0x12, &format!("{HOST}:11"), peer, 1460);
    bench.offloaded(tcp(0x18, &format!("{HOST}:11"), peer), 3_000);
    bench.offloaded(tcp(0x18, peer, &format!("{HOST}:11")), 1_200);
    bench.answer_all(by_port);
    assert_eq!(bench.credited_packets(11), (1 + 10, 1 + 1));
    // After the connection is open, a SYN proves nothing: any host may have sent it.
    syn(&mut bench, 0x02, peer, own, 536);
    bench.offloaded(tcp(0x18, own, peer), 10_000);
    bench.answer_all(by_port);
    assert_eq!(bench.credited_packets(10), (15 + 10, 6 + 1));
    // A new connection inherits nothing.
    bench.offloaded(tcp(0x14, own, peer), 0);
    bench.offloaded(tcp(0x02, own, peer), 0);
    bench.offloaded(tcp(0x18, own, peer), 10 * SEGMENT);
    bench.answer_all(by_port);
    assert_eq!(bench.credited_packets(10), (25 + 2 + 10, 7));
}
