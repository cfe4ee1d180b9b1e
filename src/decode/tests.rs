//! Tests of whole frames, captured from Linux 6.18 with libpcap 1.10, each with the decoding by tcpdump 4.99.

use super::*;
use crate::model::TcpFlags;
use LinkType::{Cooked1, Cooked2, Ethernet};

/// Parses hexadecimal text to bytes.
fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Formats a packet in one line, or the reason why there is none.
fn shown(link: LinkType, data: &[u8]) -> String {
    match decode(link, data) {
        Ok(Packet { protocol, source, destination, tcp_flags: TcpFlags(flags), fragment, vlan, .. }) => {
            let mut line = format!("{protocol:?} {source} > {destination}");
            if flags != 0 {
                line += &format!(" flags {flags:02x}");
            }
            match fragment {
                Fragment::Whole => {}
                Fragment::First { id } => line += &format!(" first of {id:x}"),
                Fragment::Later { id } => line += &format!(" later of {id:x}"),
            }
            if vlan != 0 {
                line += &format!(" vlan {vlan}");
            }
            line
        }
        Err(reason) => format!("{reason:?}"),
    }
}

/// Captured frames. Each ends after its headers, because decoding depends on nothing after them.
#[rustfmt::skip]
const CAPTURED: &[(&str, LinkType, &str, &str)] = &[
    ("TCP over IPv4 on lo", Ethernet,
     "00000000000000000000000008004500003c5c9340004006e0267f0000017f000001a9fc1f901492188e00000000a002faf0fe300000020405b4",
     "tcp 127.0.0.1:43516 > 127.0.0.1:8080 flags 02"),
    ("TCP over IPv6 on lo", Ethernet,
     "00000000000000000000000086dd600cbab0002806400000000000000000000000000000000100000000000000000000000000000001d0481f9034a53d6c00000000a002fd2000300000",
     "tcp [::1]:53320 > [::1]:8080 flags 02"),
    ("segment of 282,762 bytes, not yet cut: payload length 0 and a jumbo option", Ethernet,
     "00000000000000000000000086dd600233140000004000000000000000000000000000000001000000000000000000000000000000010600c20400045054d0501f90d7b0135b9cb4b2f480180040505800000101080a",
     "tcp [::1]:53328 > [::1]:8080 flags 18"),
    ("first IPv4 fragment", Ethernet,
     "0000000000000000000000000800450005dc039220004011537d7f0000017f0000019c4014e90fa82c6d7979797979",
     "udp 127.0.0.1:40000 > 127.0.0.1:5353 first of 392"),
    ("later IPv4 fragment", Ethernet,
     "0000000000000000000000000800450005dc039220b9401152c47f0000017f0000017979797979797979797979797979",
     "udp 127.0.0.1:0 > 127.0.0.1:0 later of 392"),
    ("first IPv6 fragment", Ethernet,
     "00000000000000000000000086dd600f9bff05b02c4000000000000000000000000000000001000000000000000000000000000000011100000174a8299c9c4014e90fa82a6e79797979",
     "udp [::1]:40000 > [::1]:5353 first of 74a8299c"),
    ("later IPv6 fragment", Ethernet,
     "00000000000000000000000086dd600f9bff05b02c400000000000000000000000000000000100000000000000000000000000000001110005a974a8299c797979797979797979797979",
     "udp [::1]:0 > [::1]:0 later of 74a8299c"),
    ("IPv4 with 40 bytes of options", Ethernet,
     "0000000000000000000000000800\
      4f0000470394400040111e6a7f0000017f0000010727087f0000010000000000000000000000000000000000000000000000000000000000000000009c4214e9000bfe1e6f7074",
     "udp 127.0.0.1:40002 > 127.0.0.1:5353"),
    ("hop-by-hop and destination options", Ethernet,
     "00000000000000000000000086dd600f4b8e0023004000000000000000000000000000000001000000000000000000000000000000013c000104000000001101010c0000000000000000000000009c4314e9000b7531657874",
     "udp [::1]:40003 > [::1]:5353"),
    ("the same, first fragment", Ethernet,
     "00000000000000000000000086dd600f4b8e05b0004000000000000000000000000000000001000000000000000000000000000000013c000104000000002c01010c000000000000000000000000110000010fda54389c4314e90bc01922656565656565",
     "udp [::1]:40003 > [::1]:5353 first of fda5438"),
    ("the same, later fragment", Ethernet,
     "00000000000000000000000086dd600f4b8e05b0004000000000000000000000000000000001000000000000000000000000000000013c000104000000002c01010c000000000000000000000000110005910fda5438656565656565656565656565",
     "udp [::1]:0 > [::1]:0 later of fda5438"),
    ("echo request", Ethernet,
     "000000000000000000000000080045000020ef79400040014d617f0000017f0000010800089c1092000170696e67",
     "icmp 127.0.0.1:4242 > 127.0.0.1:0"),
    ("echo reply", Ethernet,
     "000000000000000000000000080045000020ef7a000040018d607f0000017f0000010000109c1092000170696e67",
     "icmp 127.0.0.1:0 > 127.0.0.1:4242"),
    ("ICMPv6 echo request", Ethernet,
     "00000000000000000000000086dd600c17ce000c3a400000000000000000000000000000000100000000000000000000000000000001800090531092000170696e67",
     "icmpv6 [::1]:4242 > [::1]:0"),
    ("port unreachable", Ethernet,
     "000000000000000000000000080045c0003cef7b000040018c837f0000017f000001030385dd000000004500002003954000401139367f0000017f00",
     "icmp 127.0.0.1:0 > 127.0.0.1:0"),
    ("UDP-Lite", Ethernet,
     "000000000000000000000000080045000020c4cf4000408877847f0000017f0000019c4114ea000c6f626c697465",
     "udplite 127.0.0.1:40001 > 127.0.0.1:5354"),
    ("raw socket with protocol 59", Ethernet,
     "00000000000000000000000008004500002c724c4000403bca487f0000017f00000100000000000000000000000000000000",
     "ip-59 127.0.0.1:0 > 127.0.0.1:0"),
    ("multicast listener report after a router alert", Ethernet,
     "333300000016623151242d4386dd600000000024000100000000000000000000000000000000ff0200000000000000000000000000163a000502000001008f0042230000000104000000ff0200000000000000000001ff242d43",
     "icmpv6 [::]:0 > [ff02::16]:0"),
    ("802.1Q, priority 5", Ethernet,
     "ffffffffffff0200000000028100a06408004500001c00070000401100000a0900020a09000103e807d000080000",
     "udp 10.9.0.2:1000 > 10.9.0.1:2000 vlan 100"),
    ("802.1ad around 802.1Q", Ethernet,
     "ffffffffffff02000000000288a800078100006408004500001c00070000401100000a0900020a09000103e807d000080000",
     "udp 10.9.0.2:1000 > 10.9.0.1:2000 vlan 7"),
    ("SCTP", Ethernet,
     "ffffffffffff02000000000208004500002400070000408400000a0900020a0900010f1c0f1d000000010000000001000014",
     "sctp 10.9.0.2:3868 > 10.9.0.1:3869"),
    ("DCCP", Ethernet,
     "ffffffffffff02000000000208004500002400070000402100000a0900020a0900011389138a040000000000000000000000",
     "ip-33 10.9.0.2:5001 > 10.9.0.1:5002"),
    ("ARP", Ethernet,
     "ffffffffffff020000000002080600000000000000000000000000000000000000000000000000000000",
     "NotIp"),
    ("spanning tree", Ethernet,
     "ffffffffffff02000000000200264242030000000000008000020000000000000000000000000000",
     "NotIp"),
    ("cooked, received", Cooked1,
     "000003040006000000000000000008004500003c0000400040063cba7f0000017f0000011f90a9fc88c761d91492188fa012fe88fe300000020405b4",
     "tcp 127.0.0.1:8080 > 127.0.0.1:43516 flags 12"),
    ("cooked version 2, received", Cooked2,
     "86dd0000000000010304000600000000000000006003c3080028064000000000000000000000000000000001000000000000000000000000000000011f90d0489372e25a34a53d6da012fb0400300000",
     "tcp [::1]:8080 > [::1]:53320 flags 12"),
    ("cooked, tag put back by libpcap", Cooked1,
     "00040001000602000000000200008100a06408004500001c00070000401100000a0900020a09000103e807d000080000",
     "udp 10.9.0.2:1000 > 10.9.0.1:2000 vlan 100"),
    ("cooked version 2, tag lost in the capture", Cooked2,
     "08000000000000030001010602000000000200004500001c00070000401100000a0900020a09000103e807d000080000",
     "udp 10.9.0.2:1000 > 10.9.0.1:2000"),
];

/// The kernel states IPv4 for these frames although a second tag comes first; tcpdump therefore does not see
/// version 4. They are the frame of "802.1ad around 802.1Q" above, received on the device "any".
#[rustfmt::skip]
const SECOND_TAG_LEFT: &[(LinkType, &str, &str)] = &[
    (Cooked1,
     "000100010006020000000002000088a800070800006408004500001c00070000401100000a0900020a09000103e807d000080000",
     "udp 10.9.0.2:1000 > 10.9.0.1:2000 vlan 7"),
    (Cooked2,
     "0800000000000003000101060200000000020000006408004500001c00070000401100000a0900020a09000103e807d000080000",
     "udp 10.9.0.2:1000 > 10.9.0.1:2000 vlan 100"),
];

#[test]
fn captured_frames_are_read_as_tcpdump_reads_them() {
    for (name, link, hex, expected) in CAPTURED {
        assert_eq!(shown(*link, &bytes(hex)), *expected, "{name}");
    }
}

#[test]
fn a_second_tag_that_the_kernel_left_in_a_cooked_frame_is_passed() {
    for (link, hex, expected) in SECOND_TAG_LEFT {
        let frame = bytes(hex);
        assert_eq!(shown(*link, &frame), *expected);
        assert_eq!(shown(*link, &frame[..frame.len() - 6]), "Truncated");
    }
    // Bytes that are neither of the stated version nor a tag before IP are not a datagram.
    let frame = bytes(SECOND_TAG_LEFT[1].1);
    for inner_type in [[0x08, 0x06], [0x12, 0x34]] {
        let mut other = frame.clone();
        other[22..24].copy_from_slice(&inner_type);
        assert_eq!(shown(Cooked2, &other), "Malformed");
    }
}

#[test]
fn the_same_datagram_is_read_behind_every_link_header() {
    let datagram = bytes(CAPTURED[0].2).split_off(14);
    let expected = CAPTURED[0].3;
    assert_eq!(shown(LinkType::RawIp, &datagram), expected);
    assert_eq!(shown(LinkType::Null, &[&[2, 0, 0, 0], &datagram[..]].concat()), expected);
    assert_eq!(shown(LinkType::Null, &[&[0, 0, 0, 2], &datagram[..]].concat()), expected);
    assert_eq!(shown(LinkType::Loop, &[&[0, 0, 0, 2], &datagram[..]].concat()), expected);
    // The link header says IPv6, but the datagram is IPv4.
    assert_eq!(shown(LinkType::Loop, &[&[0, 0, 0, 30], &datagram[..]].concat()), "Malformed");
}

#[test]
fn an_offloaded_segment_is_read_though_its_total_length_is_zero() {
    let mut frame = bytes(CAPTURED[0].2);
    frame[16..18].fill(0);
    assert_eq!(shown(Ethernet, &frame), CAPTURED[0].3);
}

#[test]
fn padding_is_not_read_as_a_header() {
    // A first fragment of 8 bytes (RFC 1858, the "tiny fragment"), padded by the link to 60 bytes with SYN
    // bits.
    let mut frame = bytes(CAPTURED[0].2);
    frame[16..18].copy_from_slice(&28u16.to_be_bytes());
    frame[20] = 0x20;
    frame[42..].fill(0xff);
    assert_eq!(shown(Ethernet, &frame), "tcp 127.0.0.1:43516 > 127.0.0.1:8080 first of 5c93");
    frame[16..18].copy_from_slice(&22u16.to_be_bytes());
    assert_eq!(shown(Ethernet, &frame), "Truncated");
}

#[test]
fn tunnels_are_seen_from_outside() {
    // IP in IP, IPv6 in IP, GRE and ESP have no ports; VXLAN has those of its UDP header.
    let mut frame = bytes(CAPTURED[0].2);
    for protocol in [4, 41, 47, 50] {
        frame[23] = protocol;
        assert_eq!(shown(Ethernet, &frame), format!("ip-{protocol} 127.0.0.1:0 > 127.0.0.1:0"));
    }
    frame[23] = 17;
    frame[36..38].copy_from_slice(&4789u16.to_be_bytes());
    assert_eq!(shown(Ethernet, &frame), "udp 127.0.0.1:43516 > 127.0.0.1:4789");
}

#[test]
fn a_cut_frame_is_truncated_until_its_ports_are_there_and_has_flags_when_they_are() {
    let frame = bytes(CAPTURED[0].2);
    for length in 0..=frame.len() {
        let expected = match length {
            0..38 => "Truncated",
            38..48 => "tcp 127.0.0.1:43516 > 127.0.0.1:8080",
            _ => CAPTURED[0].3,
        };
        assert_eq!(shown(Ethernet, &frame[..length]), expected, "{length} bytes");
    }
}

/// Returns an IPv4 or IPv6 datagram with a TCP header of 32 bytes and `payload` bytes of payload by its own
/// length.
fn segment(is_v4: bool, payload: u16) -> Vec<u8> {
    let tcp = [&[0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0x10][..], &[1; 18]].concat();
    let ip = if is_v4 {
        [
            &[0x45, 0][..],
            &(52 + payload).to_be_bytes(),
            &[0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2],
        ]
        .concat()
    } else {
        [&[0x60, 0, 0, 0][..], &(32 + payload).to_be_bytes(), &[6, 64], &[0xfd; 32]].concat()
    };
    [ip, tcp, vec![b'x'; payload.into()]].concat()
}

fn has_payload(link: LinkType, data: &[u8]) -> bool {
    decode(link, data).is_ok_and(|packet| packet.has_payload)
}

#[test]
fn payload_is_told_by_lengths_not_by_what_was_captured() {
    for is_v4 in [true, false] {
        for (payload, expected) in [(0, false), (1, true), (1_000, true)] {
            let whole = segment(is_v4, payload);
            let headers = whole.len() - usize::from(payload);
            for cut in headers..=whole.len().min(headers + 20) {
                assert_eq!(has_payload(LinkType::RawIp, &whole[..cut]), expected, "{payload} cut to {cut}");
            }
            let padded = [whole, vec![0; 6]].concat();
            assert_eq!(has_payload(LinkType::RawIp, &padded), expected, "{payload} with padding");
            assert!(!has_payload(LinkType::RawIp, &padded[..headers - 32 + 12]), "cut before its length");
        }
        // The device has not segmented it yet, and so it is larger than its length field can state.
        let mut offloaded = segment(is_v4, 0);
        offloaded[if is_v4 { 2..4 } else { 4..6 }].fill(0);
        assert!(has_payload(LinkType::RawIp, &offloaded));
    }
}

#[test]
fn only_tcp_sends_packets_that_carry_nothing() {
    for &(name, link, hex, shown) in CAPTURED {
        let expected = match shown.split_whitespace().next() {
            // None of them is longer than its headers, except the one that is not yet segmented.
            Some("tcp") => name.contains("not yet cut"),
            Some(reason) => !["NotIp", "Truncated", "Malformed"].contains(&reason),
            None => false,
        };
        assert_eq!(has_payload(link, &bytes(hex)), expected, "{name}");
    }
}
