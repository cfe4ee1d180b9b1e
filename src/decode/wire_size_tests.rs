//! Tests of every kind of offloaded frame that Linux creates. The packets after segmentation were computed by
//! hand.

use super::*;
use crate::model::{LinkType, Namespace, Passage, Timestamp};
use proptest::prelude::*;

const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
/// The timestamps option, as in nearly all TCP segments.
const OPTIONS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];

fn ethernet(ethertype: &[u8], datagram: &[u8]) -> Vec<u8> {
    [&MACS[..], ethertype, datagram].concat()
}

fn v4(total_len: u16, protocol: u8, transport: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend(total_len.to_be_bytes());
    header.extend([0x12, 0x34, 0x40, 0, 64, protocol, 0, 0, 192, 0, 2, 1, 198, 51, 100, 2]);
    [&header[..], transport].concat()
}

fn v6(payload_len: u16, next: u8, rest: &[u8]) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(payload_len.to_be_bytes());
    header.extend([next, 64]);
    header.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    header.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    [&header[..], rest].concat()
}

fn tcp(options: &[u8]) -> Vec<u8> {
    let words = (20 + options.len() / 4 * 4) / 4;
    let mut header = [0; 20];
    header[..4].copy_from_slice(&[0x30, 0x39, 0, 80]);
    (header[12], header[13]) = ((words as u8) << 4, 0x18);
    [&header[..], options].concat()
}

const UDP: [u8; 8] = [0x30, 0x39, 0, 53, 0, 0, 0, 0];

/// Returns the packets and bytes of a frame with these headers and `payload` bytes of payload.
fn size_at(link: LinkType, mtu: u32, headers: &[u8], payload: u32) -> (u32, u32) {
    size_limited(link, mtu, None, headers, payload)
}

/// Returns the same for a connection whose ends accept segments of at most `segment` bytes.
fn size_limited(link: LinkType, mtu: u32, segment: Option<u16>, headers: &[u8], payload: u32) -> (u32, u32) {
    let wire_len = headers.len() as u32 + payload;
    let packet_limit = mtu + link.header_len();
    let (time, namespace) = (Timestamp(1), Namespace::HOME);
    let size = wire_size(
        &Frame { time, wire_len, packet_limit, link, namespace, passage: Passage::Unknown, data: headers },
        segment,
    );
    (size.packets, size.bytes)
}

fn size(headers: &[u8], payload: u32) -> (u32, u32) {
    size_at(LinkType::Ethernet, 1500, headers, payload)
}

/// The cooked header is the capture's own: an Ethernet device has its header in its place, a tunnel none.
#[test]
fn a_cooked_header_is_on_no_wire() {
    let datagram = v4(64_000, 6, &tcp(&OPTIONS));
    for (hardware, link) in [(libc::ARPHRD_ETHER, 14), (libc::ARPHRD_IPGRE, 0)] {
        let mut frame = vec![0, 0];
        frame.extend(hardware.to_be_bytes());
        frame.extend([0; 10]);
        frame.extend([8, 0]);
        frame.extend(&datagram);
        let cooked = |payload| size_at(LinkType::Cooked1, 1500, &frame, payload);
        assert_eq!(cooked(1448), (1, link + 1500));
        assert_eq!(cooked(3 * 1448), (3, 3 * (link + 1500)));
    }
}

#[test]
fn a_tcp_segment_fills_the_mtu_with_its_own_headers() {
    let frame = ethernet(&[8, 0], &v4(64_000, 6, &tcp(&OPTIONS)));
    // 1,500 less 20 and 32 leaves 1,448 for the payload; each packet has 66 bytes of headers.
    assert_eq!(size(&frame, 1448), (1, 1514));
    assert_eq!(size(&frame, 1449), (2, 1449 + 2 * 66));
    assert_eq!(size(&frame, 2 * 1448), (2, 2 * 1514));
    assert_eq!(size(&frame, 45 * 1448), (45, 45 * 1514));
    let plain = ethernet(&[8, 0], &v4(64_000, 6, &tcp(&[])));
    assert_eq!(size(&plain, 3 * 1460), (3, 3 * 1514));
    let over_v6 = ethernet(&[0x86, 0xdd], &v6(64_000, 6, &tcp(&OPTIONS)));
    assert_eq!(size(&over_v6, 7 * 1428), (7, 7 * 1514));
    assert_eq!(size_at(LinkType::Ethernet, 9000, &frame, 2 * 8948), (2, 2 * 9014));
}

#[test]
fn what_links_put_before_the_datagram_is_before_each() {
    let datagram = v4(64_000, 6, &tcp(&OPTIONS));
    let tagged = ethernet(&[0x81, 0, 0, 5, 8, 0], &datagram);
    assert_eq!(size(&tagged, 1448), (1, 1518), "a tag alone makes no second packet");
    assert_eq!(size(&tagged, 4 * 1448), (4, 4 * 1518));
    let twice = ethernet(&[0x88, 0xa8, 0, 7, 0x81, 0, 0, 5, 8, 0], &datagram);
    assert_eq!(size(&twice, 4 * 1448), (4, 4 * 1522));
    assert_eq!(size_at(LinkType::RawIp, 1500, &datagram, 4 * 1448), (4, 4 * 1500));
}

#[test]
fn lengths_that_the_header_cannot_tell() {
    let zero = ethernet(&[8, 0], &v4(0, 6, &tcp(&OPTIONS)));
    assert_eq!(size(&zero, 100 * 1448), (100, 100 * 1514));
    let zero = ethernet(&[0x86, 0xdd], &v6(0, 6, &tcp(&OPTIONS)));
    assert_eq!(size(&zero, 100 * 1428), (100, 100 * 1514));
    // The jumbo option of 8 bytes is in the frame and in none of the packets.
    let option = [6, 0, 0xc2, 4, 0, 2, 0x2d, 0xf0];
    let jumbo = ethernet(&[0x86, 0xdd], &v6(0, 0, &[&option[..], &tcp(&OPTIONS)].concat()));
    assert_eq!(size(&jumbo, 100 * 1428), (100, 100 * 1514));
    // Any other hop-by-hop option is in each packet.
    let alert = [6, 0, 5, 2, 0, 0, 1, 0];
    let other = ethernet(&[0x86, 0xdd], &v6(64_000, 0, &[&alert[..], &tcp(&OPTIONS)].concat()));
    assert_eq!(size(&other, 10 * 1420), (10, 10 * 1514));
}

#[test]
fn other_protocols_are_the_fewest_packets_that_can_carry_the_payload() {
    let udp = ethernet(&[8, 0], &v4(64_000, 17, &UDP));
    assert_eq!(size(&udp, 1472), (1, 1514));
    assert_eq!(size(&udp, 1473), (2, 1473 + 2 * 42));
    assert_eq!(size(&udp, 40 * 1472), (40, 40 * 1514));
    let sctp = ethernet(&[0x86, 0xdd], &v6(64_000, 132, &[0; 12]));
    assert_eq!(size(&sctp, 3 * 1448), (3, 3 * 1514));
    let tunnel = ethernet(&[8, 0], &v4(64_000, 47, &[]));
    assert_eq!(size(&tunnel, 3 * 1480), (3, 3 * 1514));
}

#[test]
fn a_tcp_segment_is_no_larger_than_both_ends_accept() {
    let frame = ethernet(&[8, 0], &v4(64_000, 6, &tcp(&OPTIONS)));
    let jumbo = |segment| size_limited(LinkType::Ethernet, 9000, segment, &frame, 10 * 1448);
    assert_eq!(jumbo(Some(1460)), (10, 10 * 1514), "the options are part of what is accepted");
    assert_eq!(jumbo(Some(1459)), (11, 10 * 1448 + 11 * 66));
    assert_eq!(jumbo(None), (2, 10 * 1448 + 2 * 66));
    assert_eq!(jumbo(Some(20_000)), (2, 10 * 1448 + 2 * 66), "not larger than the MTU allows");
    assert_eq!(jumbo(Some(12)), (1, 66 + 10 * 1448), "no room for any payload");
    let udp = ethernet(&[8, 0], &v4(64_000, 17, &UDP));
    assert_eq!(size_limited(LinkType::Ethernet, 1500, Some(500), &udp, 2 * 1472), (2, 2 * 1514));
}

#[test]
fn what_an_end_accepts_stands_in_its_syn() {
    let limit = |link: LinkType, mtu: u32, data: &[u8]| {
        let (time, namespace) = (Timestamp(1), Namespace::HOME);
        let packet_limit = mtu.saturating_add(link.header_len());
        segment_limit(&Frame {
            time,
            wire_len: 74,
            packet_limit,
            link,
            namespace,
            passage: Passage::Unknown,
            data,
        })
    };
    let syn = v4(44, 6, &tcp(&[2, 4, 5, 0xb4]));
    let frame = ethernet(&[8, 0], &syn);
    assert_eq!(limit(LinkType::Ethernet, 9000, &frame), Some(1460));
    assert_eq!(limit(LinkType::RawIp, 1501, &syn), Some(1460));
    assert_eq!(limit(LinkType::Ethernet, 1500, &frame), None, "as large as the MTU allows");
    assert_eq!(limit(LinkType::Ethernet, u32::MAX, &frame), None, "an unknown MTU");
    assert_eq!(limit(LinkType::Ethernet, 9000, &frame[..50]), None, "cut before the option");
    for (claimed, expected) in [(0, Some(0)), (535, Some(535)), (9_000, None)] {
        let options = [&[2, 4], &u16::to_be_bytes(claimed)[..]].concat();
        let frame = ethernet(&[8, 0], &v4(44, 6, &tcp(&options)));
        assert_eq!(limit(LinkType::Ethernet, 9000, &frame), expected, "{claimed}");
    }
}

#[test]
fn what_cannot_be_read_is_one_packet() {
    let arp = ethernet(&[8, 6], &[0; 28]);
    assert_eq!(size(&arp, 5000), (1, 5042));
    let frame = ethernet(&[8, 0], &v4(64_000, 6, &tcp(&OPTIONS)));
    assert_eq!(size(&frame[..30], 5000), (1, 5030), "cut inside the IP header");
    assert_eq!(size_at(LinkType::Ethernet, 52, &frame, 5000), (1, 5066), "no room for any payload");
    // The frame is cut before the length of the TCP header, which counts as the shortest.
    let cut = &frame[..14 + 20 + 4];
    assert_eq!(size(cut, 16 + 2 * 1460), (2, 2 * 1514));
}

proptest! {
    /// For any bytes and lengths the function does not panic, counts all of a frame except a jumbo option,
    /// and returns a second packet only if the datagram exceeds the MTU.
    #[test]
    fn no_frame_shrinks_or_multiplies_without_need(
        data in proptest::collection::vec(any::<u8>(), 0..160),
        is_tcp in any::<bool>(),
        wire_len in any::<u32>(),
        mtu in 0u32..70_000,
        segment in any::<Option<u16>>(),
    ) {
        let mut data = data;
        if is_tcp {
            data.splice(0..0, ethernet(&[8, 0], &v4(0, 6, &[])));
        }
        let wire_len = wire_len.max(data.len() as u32);
        let link = LinkType::Ethernet;
        let (time, namespace, packet_limit) = (Timestamp(1), Namespace::HOME, mtu + link.header_len());
        let size = wire_size(&Frame { time, wire_len, packet_limit, link, namespace, passage: Passage::Unknown, data: &data }, segment);
        prop_assert!(size.packets >= 1);
        prop_assert!(size.bytes >= wire_len - 8);
        prop_assert!(size.packets == 1 || wire_len > packet_limit);
        prop_assert!(size.packets > 1 || size.bytes == wire_len);
    }
}
