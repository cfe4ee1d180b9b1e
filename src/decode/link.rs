//! The link header: finds the IP datagram in a frame, and the frame's VLAN.

use crate::model::{LinkType, Undecoded};

/// The maximum number of VLAN tags of a frame. Provider networks stack two, seldom three.
pub const MAX_TAGS: usize = 8;

/// The maximum number of MPLS labels of a frame. Provider networks stack two or three, traffic engineering
/// seldom more than ten.
pub const MAX_LABELS: usize = 16;

/// The bytes after the link header, and their IP version according to the link header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Network<'a> {
    V4(&'a [u8]),
    V6(&'a [u8]),
}

impl<'a> Network<'a> {
    /// The bytes after the link header.
    pub(super) fn bytes(self) -> &'a [u8] {
        match self {
            Network::V4(data) | Network::V6(data) => data,
        }
    }
}

/// EtherTypes (IEEE 802 numbers at IANA; `linux/if_ether.h`).
mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const IPV6: u16 = 0x86dd;
    /// 802.1Q customer tag.
    pub const VLAN: u16 = 0x8100;
    /// 802.1ad service tag.
    pub const SERVICE_VLAN: u16 = 0x88a8;
    /// Service tag of switches that predate 802.1ad.
    pub const LEGACY_VLAN: u16 = 0x9100;
    /// MPLS with labels that the receiver has assigned, and with others (RFC 5332).
    pub const MPLS: u16 = 0x8847;
    pub const MPLS_UPSTREAM: u16 = 0x8848;
    /// The session stage of PPPoE (RFC 2516).
    pub const PPPOE: u16 = 0x8864;
}

/// PPP protocol numbers (IANA).
mod ppp {
    pub const IPV4: u16 = 0x0021;
    pub const IPV6: u16 = 0x0057;
    pub const MPLS: u16 = 0x0281;
    pub const MPLS_UPSTREAM: u16 = 0x0283;
}

/// Device types of `linux/if_arp.h` for which a cooked header's protocol field is not an EtherType
/// (LINKTYPE_LINUX_SLL and LINKTYPE_LINUX_SLL2 of the tcpdump group).
mod hardware {
    pub const FRAME_RELAY: u16 = 770;
    pub const RADIOTAP: u16 = 803;
    pub const NETLINK: u16 = 824;
}

/// Address families of a BSD loopback header. AF_INET is 2 everywhere; AF_INET6 is that of the recording
/// system.
mod family {
    pub const INET: u32 = 2;
    pub const INET6_LINUX: u32 = 10;
    pub const INET6_OPENBSD: u32 = 24;
    pub const INET6_FREEBSD: u32 = 28;
    pub const INET6_DARWIN: u32 = 30;
}

/// Finds the datagram in a frame; the second value is [`Packet::vlan`](crate::model::Packet::vlan).
// Inlined for the reason given at `ip::datagram`.
#[inline(always)]
pub(super) fn network(link: LinkType, data: &[u8]) -> Result<(Network<'_>, u16), Undecoded> {
    match link {
        LinkType::Ethernet => {
            let (header, rest) = data.split_first_chunk::<14>().ok_or(Undecoded::Truncated)?;
            tagged(u16::from_be_bytes([header[12], header[13]]), rest, 0)
        }
        LinkType::Cooked1 => {
            let (header, rest) = data.split_first_chunk::<16>().ok_or(Undecoded::Truncated)?;
            cooked(
                u16::from_be_bytes([header[2], header[3]]),
                u16::from_be_bytes([header[14], header[15]]),
                rest,
            )
        }
        LinkType::Cooked2 => {
            let (header, rest) = data.split_first_chunk::<20>().ok_or(Undecoded::Truncated)?;
            cooked(
                u16::from_be_bytes([header[8], header[9]]),
                u16::from_be_bytes([header[0], header[1]]),
                rest,
            )
        }
        LinkType::RawIp => match data.first().map(|first| first >> 4) {
            Some(4) => Ok((Network::V4(data), 0)),
            Some(6) => Ok((Network::V6(data), 0)),
            Some(_) => Err(Undecoded::Malformed),
            None => Err(Undecoded::Truncated),
        },
        LinkType::Bare(protocol) => tagged(protocol, data, 0),
        LinkType::Null => {
            let (header, rest) = data.split_first_chunk::<4>().ok_or(Undecoded::Truncated)?;
            // A savefile may come from a host of the other byte order. Families are small numbers, so the
            // smaller reading is the right one.
            loopback(u32::from_be_bytes(*header).min(u32::from_le_bytes(*header)), rest)
        }
        LinkType::Loop => {
            let (header, rest) = data.split_first_chunk::<4>().ok_or(Undecoded::Truncated)?;
            loopback(u32::from_be_bytes(*header), rest)
        }
    }
}

/// Finds the datagram in a cooked frame after its header. libpcap restores a tag that the kernel removed to
/// its place in Ethernet.
///
/// If a received frame has a second tag, the kernel states the EtherType behind all tags and yet begins the
/// payload in that second tag, after its type (`vlan_get_protocol_dgram` in `net/packet/af_packet.c`).
/// Therefore bytes that are not of the stated version are read as the rest of a tag. A tag of priority 2
/// before IPv4, or 3 before IPv6, looks like the version and cannot be distinguished from it.
#[inline]
fn cooked(hardware: u16, protocol: u16, rest: &[u8]) -> Result<(Network<'_>, u16), Undecoded> {
    if matches!(hardware, hardware::FRAME_RELAY | hardware::RADIOTAP | hardware::NETLINK) {
        return Err(Undecoded::NotIp);
    }
    let (network, vlan) = tagged(protocol, rest, 0)?;
    let (data, version) = match network {
        Network::V4(data) => (data, 4),
        Network::V6(data) => (data, 6),
    };
    if data.first().is_none_or(|first| first >> 4 == version) {
        return Ok((network, vlan));
    }
    tagged(ethertype::VLAN, data, vlan).map_err(|reason| match reason {
        Undecoded::NotIp => Undecoded::Malformed,
        other => other,
    })
}

/// Returns the bytes after an EtherType, which may be tags; `vlan` is the VLAN of the tags before it. An
/// 802.3 length in place of the EtherType is below every EtherType.
#[inline]
fn tagged(mut ethertype: u16, mut rest: &[u8], mut vlan: u16) -> Result<(Network<'_>, u16), Undecoded> {
    for _ in 0..=MAX_TAGS {
        match ethertype {
            ethertype::IPV4 => return Ok((Network::V4(rest), vlan)),
            ethertype::IPV6 => return Ok((Network::V6(rest), vlan)),
            ethertype::VLAN | ethertype::SERVICE_VLAN | ethertype::LEGACY_VLAN => {
                let (tag, inner) = rest.split_first_chunk::<4>().ok_or(Undecoded::Truncated)?;
                let id = u16::from_be_bytes([tag[0], tag[1]]) & 0x0fff;
                // 0 bears only a priority and 0xfff is reserved (802.1Q, table 9-2): neither names a VLAN.
                if vlan == 0 && id != 0x0fff {
                    vlan = id;
                }
                ethertype = u16::from_be_bytes([tag[2], tag[3]]);
                rest = inner;
            }
            ethertype::MPLS | ethertype::MPLS_UPSTREAM => return Ok((labelled(rest)?, vlan)),
            ethertype::PPPOE => return Ok((session(rest)?, vlan)),
            _ => return Err(Undecoded::NotIp),
        }
    }
    Err(Undecoded::Malformed)
}

/// Finds the datagram behind a stack of MPLS labels (RFC 3032). No label states the protocol of its contents.
/// IP is recognized by its version; contents that routers must not take for IP begin with other bits (RFC
/// 4928).
#[cold]
fn labelled(mut rest: &[u8]) -> Result<Network<'_>, Undecoded> {
    const BOTTOM_OF_STACK: u8 = 1;
    for _ in 0..MAX_LABELS {
        let (label, inner) = rest.split_first_chunk::<4>().ok_or(Undecoded::Truncated)?;
        rest = inner;
        if label[2] & BOTTOM_OF_STACK != 0 {
            return match rest.first().map(|first| first >> 4) {
                Some(4) => Ok(Network::V4(rest)),
                Some(6) => Ok(Network::V6(rest)),
                Some(_) => Err(Undecoded::NotIp),
                None => Err(Undecoded::Truncated),
            };
        }
    }
    Err(Undecoded::Malformed)
}

/// Finds the datagram in a PPPoE session, behind version and type, code, session, length, and the number of
/// PPP's protocol, which may be compressed to one byte (RFC 1661, 6.5).
#[cold]
fn session(rest: &[u8]) -> Result<Network<'_>, Undecoded> {
    let (header, rest) = rest.split_first_chunk::<6>().ok_or(Undecoded::Truncated)?;
    if header[..2] != [0x11, 0] {
        return Err(Undecoded::NotIp);
    }
    let (&[first], after) = rest.split_first_chunk::<1>().ok_or(Undecoded::Truncated)?;
    let (protocol, rest) = if first & 1 != 0 {
        (u16::from(first), after)
    } else {
        let (protocol, rest) = rest.split_first_chunk::<2>().ok_or(Undecoded::Truncated)?;
        (u16::from_be_bytes(*protocol), rest)
    };
    match protocol {
        ppp::IPV4 => Ok(Network::V4(rest)),
        ppp::IPV6 => Ok(Network::V6(rest)),
        ppp::MPLS | ppp::MPLS_UPSTREAM => labelled(rest),
        _ => Err(Undecoded::NotIp),
    }
}

#[inline]
fn loopback(family: u32, rest: &[u8]) -> Result<(Network<'_>, u16), Undecoded> {
    match family {
        family::INET => Ok((Network::V4(rest), 0)),
        family::INET6_LINUX | family::INET6_OPENBSD | family::INET6_FREEBSD | family::INET6_DARWIN => {
            Ok((Network::V6(rest), 0))
        }
        _ => Err(Undecoded::NotIp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

    fn ethernet(after_macs: &[u8]) -> Vec<u8> {
        [&MACS[..], after_macs].concat()
    }

    #[test]
    fn the_outermost_tag_that_names_a_vlan_counts() {
        let cases: [(&[u8], u16); 7] = [
            (&[0x08, 0x00], 0),
            (&[0x81, 0x00, 0x00, 0x64, 0x08, 0x00], 100),
            // Priority 7 and the drop bit are not part of the identifier.
            (&[0x81, 0x00, 0xff, 0xfe, 0x08, 0x00], 4094),
            (&[0x88, 0xa8, 0x00, 0x07, 0x81, 0x00, 0x00, 0x64, 0x08, 0x00], 7),
            (&[0x91, 0x00, 0x00, 0x08, 0x91, 0x00, 0x00, 0x09, 0x08, 0x00], 8),
            // A priority tag around a VLAN tag.
            (&[0x81, 0x00, 0xe0, 0x00, 0x81, 0x00, 0x00, 0x05, 0x08, 0x00], 5),
            (&[0x81, 0x00, 0x0f, 0xff, 0x08, 0x00], 0),
        ];
        for (header, vlan) in cases {
            let frame = ethernet(header);
            assert_eq!(network(LinkType::Ethernet, &frame), Ok((Network::V4(&[]), vlan)), "{header:x?}");
        }
    }

    #[test]
    fn tags_are_bounded() {
        let tag = [0x81, 0x00, 0x00, 0x01];
        let stack = |tags: usize| ethernet(&[tag.repeat(tags), vec![0x86, 0xdd]].concat());
        assert_eq!(network(LinkType::Ethernet, &stack(MAX_TAGS)), Ok((Network::V6(&[]), 1)));
        assert_eq!(network(LinkType::Ethernet, &stack(MAX_TAGS + 1)), Err(Undecoded::Malformed));
    }

    #[test]
    fn what_is_not_ip_says_so() {
        let others: [&[u8]; 10] = [
            &[0x08, 0x06],                                                 // ARP
            &[0x88, 0xcc],                                                 // LLDP
            &[0x88, 0x63, 0x11, 0x09, 0x00, 0x00, 0x00, 0x00],             // PPPoE discovery
            &[0x88, 0x64, 0x11, 0x00, 0x00, 0x01, 0x00, 0x08, 0xc0, 0x21], // PPPoE session: LCP
            &[0x88, 0x64, 0x11, 0xa7, 0x00, 0x01, 0x00, 0x00],             // PPPoE session: terminated
            &[0x88, 0x47, 0x00, 0x06, 0x41, 0x40, 0x00, 0x00], // MPLS with a control word: a wire's emulation
            &[0x00, 0x26, 0x42, 0x42, 0x03], // 802.3 length 38 with an LLC header: spanning tree
            &[0x05, 0xdc],                   // the longest 802.3 length
            &[0x81, 0x00, 0x00, 0x01, 0x08, 0x06], // ARP in a VLAN
            &[0x81, 0x00, 0x00, 0x01, 0x00, 0x26, 0x42, 0x42], // 802.3 in a VLAN
        ];
        for header in others {
            assert_eq!(network(LinkType::Ethernet, &ethernet(header)), Err(Undecoded::NotIp), "{header:x?}");
        }
    }

    #[test]
    fn labels_and_sessions_are_passed_over() {
        let label = |bottom: u8| [0x00, 0x06, 0x40 | bottom, 0x40];
        let stack = |labels: usize| [label(0).repeat(labels - 1), label(1).to_vec()].concat();
        let v4: &[u8] = &[0x45];
        let v6: &[u8] = &[0x60];
        let session = [0x11, 0x00, 0x00, 0x01, 0x00, 0x03];
        let frame = |before: &[&[u8]], data: &[u8]| ethernet(&[&before.concat(), data].concat());
        let cases = [
            (frame(&[&[0x88, 0x47], &stack(1)], v4), Ok((Network::V4(v4), 0))),
            (frame(&[&[0x88, 0x48], &stack(MAX_LABELS)], v6), Ok((Network::V6(v6), 0))),
            (frame(&[&[0x88, 0x47], &stack(MAX_LABELS + 1)], v4), Err(Undecoded::Malformed)),
            (frame(&[&[0x81, 0, 0, 9, 0x88, 0x47], &stack(2)], v4), Ok((Network::V4(v4), 9))),
            (frame(&[&[0x88, 0x64], &session, &[0, 0x21]], v4), Ok((Network::V4(v4), 0))),
            (frame(&[&[0x88, 0x64], &session, &[0, 0x57]], v6), Ok((Network::V6(v6), 0))),
            (frame(&[&[0x88, 0x64], &session, &[0x21]], v4), Ok((Network::V4(v4), 0))),
            (frame(&[&[0x88, 0x64], &session, &[2, 0x81], &stack(1)], v6), Ok((Network::V6(v6), 0))),
        ];
        for (frame, expected) in cases {
            assert_eq!(network(LinkType::Ethernet, &frame), expected, "{frame:x?}");
            for end in 14..frame.len() {
                let cut = network(LinkType::Ethernet, &frame[..end]);
                let is_empty = cut.is_ok_and(|(network, _)| network.bytes().is_empty());
                assert!(is_empty || cut == Err(Undecoded::Truncated) || cut == expected, "{frame:x?}: {end}");
            }
        }
        let bare = [&stack(2)[..], v4].concat();
        assert_eq!(network(LinkType::Bare(0x8847), &bare), Ok((Network::V4(v4), 0)));
        assert_eq!(network(LinkType::Bare(0x0806), &bare), Err(Undecoded::NotIp));
    }

    #[test]
    fn cooked_headers_hold_the_ethertype_at_their_end_and_at_their_start() {
        let mut first = [0; 16];
        first[2..4].copy_from_slice(&1u16.to_be_bytes()); // ARPHRD_ETHER
        first[14..].copy_from_slice(&[0x86, 0xdd]);
        assert_eq!(network(LinkType::Cooked1, &first), Ok((Network::V6(&[]), 0)));

        let mut second = [0; 20];
        second[..2].copy_from_slice(&[0x08, 0x00]);
        second[8..10].copy_from_slice(&772u16.to_be_bytes()); // ARPHRD_LOOPBACK
        assert_eq!(network(LinkType::Cooked2, &second), Ok((Network::V4(&[]), 0)));

        let tag = [0x00, 0x2a, 0x86, 0xdd];
        first[14..].copy_from_slice(&[0x81, 0x00]);
        assert_eq!(network(LinkType::Cooked1, &[&first[..], &tag].concat()), Ok((Network::V6(&[]), 42)));
        second[..2].copy_from_slice(&[0x81, 0x00]);
        assert_eq!(network(LinkType::Cooked2, &[&second[..], &tag].concat()), Ok((Network::V6(&[]), 42)));
    }

    #[test]
    fn a_cooked_protocol_field_that_is_no_ethertype_is_not_read_as_one() {
        for hardware in [770u16, 803, 824] {
            let mut first = [0; 16];
            first[2..4].copy_from_slice(&hardware.to_be_bytes());
            first[14..].copy_from_slice(&[0x08, 0x00]);
            assert_eq!(network(LinkType::Cooked1, &first), Err(Undecoded::NotIp));
            let mut second = [0; 20];
            second[..2].copy_from_slice(&[0x08, 0x00]);
            second[8..10].copy_from_slice(&hardware.to_be_bytes());
            assert_eq!(network(LinkType::Cooked2, &second), Err(Undecoded::NotIp));
        }
    }

    #[test]
    fn loopback_families_in_the_byte_orders_they_come_in() {
        for (family, version) in [(2u32, 4), (10, 6), (24, 6), (28, 6), (30, 6)] {
            let expected = Ok((if version == 4 { Network::V4(&[]) } else { Network::V6(&[]) }, 0));
            assert_eq!(network(LinkType::Null, &family.to_le_bytes()), expected);
            assert_eq!(network(LinkType::Null, &family.to_be_bytes()), expected);
            assert_eq!(network(LinkType::Loop, &family.to_be_bytes()), expected);
            assert_eq!(network(LinkType::Loop, &family.to_le_bytes()), Err(Undecoded::NotIp));
        }
        assert_eq!(network(LinkType::Null, &[1, 0, 0, 0]), Err(Undecoded::NotIp));
        assert_eq!(network(LinkType::Null, &[2, 0, 0, 2]), Err(Undecoded::NotIp));
    }

    #[test]
    fn a_raw_frame_is_what_its_first_four_bits_say() {
        assert_eq!(network(LinkType::RawIp, &[0x45]), Ok((Network::V4(&[0x45]), 0)));
        assert_eq!(network(LinkType::RawIp, &[0x60]), Ok((Network::V6(&[0x60]), 0)));
        assert_eq!(network(LinkType::RawIp, &[0x50]), Err(Undecoded::Malformed));
        assert_eq!(network(LinkType::RawIp, &[]), Err(Undecoded::Truncated));
    }

    #[test]
    fn a_cut_link_header_is_truncated() {
        let links = [
            (LinkType::Ethernet, 14),
            (LinkType::Cooked1, 16),
            (LinkType::Cooked2, 20),
            (LinkType::Null, 4),
            (LinkType::Loop, 4),
        ];
        for (link, length) in links {
            assert_eq!(network(link, &vec![0; length - 1]), Err(Undecoded::Truncated));
            assert_ne!(network(link, &vec![0; length]), Err(Undecoded::Truncated));
        }
        let tag_cut = ethernet(&[0x81, 0x00, 0x00, 0x01, 0x08]);
        assert_eq!(network(LinkType::Ethernet, &tag_cut), Err(Undecoded::Truncated));
    }
}
