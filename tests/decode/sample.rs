//! Random valid frames of every link type, built with etherparse where it can.

use capture::internals::model::LinkType;
use etherparse::{
    ArpHardwareId, EtherType, Ethernet2Header, IpAuthHeader, IpFragOffset, IpHeaders, IpNumber,
    Ipv4Extensions, Ipv4Header, Ipv4Options, Ipv6Extensions, Ipv6FlowLabel, Ipv6FragmentHeader, Ipv6Header,
    Ipv6RawExtHeader, Ipv6RoutingExtensions, LinuxSllHeader, LinuxSllPacketType, LinuxSllProtocolType,
    PacketBuilder, SingleVlanHeader, TcpHeader, VlanId, VlanPcp, ether_type,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

/// Every link type that a savefile can have.
pub const LINKS: [LinkType; 6] = [
    LinkType::Ethernet,
    LinkType::Cooked1,
    LinkType::Cooked2,
    LinkType::RawIp,
    LinkType::Null,
    LinkType::Loop,
];

/// An IP datagram with its VLAN tags: tag type, identifier, priority.
#[derive(Clone, Debug)]
pub struct Sample {
    pub datagram: Vec<u8>,
    pub tags: Vec<(u16, u16, u8)>,
}

impl Sample {
    pub fn is_v6(&self) -> bool {
        self.datagram[0] >> 4 == 6
    }

    /// Returns true if the header's length field is not 0; in IPv6, 0 stands for a jumbogram.
    pub fn states_its_length(&self) -> bool {
        !self.is_v6() || self.datagram[4..6] != [0, 0]
    }

    /// Returns the frame; the tags are left out if the link header has no room for them.
    pub fn frame(&self, link: LinkType) -> Vec<u8> {
        let ip = if self.is_v6() { ether_type::IPV6 } else { ether_type::IPV4 };
        let first = self.tags.first().map_or(ip, |tag| EtherType(tag.0));
        let mut frame = match link {
            LinkType::Ethernet => {
                Ethernet2Header { ether_type: first, ..Default::default() }.to_bytes().to_vec()
            }
            LinkType::Cooked1 => LinuxSllHeader {
                packet_type: LinuxSllPacketType::OUTGOING,
                arp_hrd_type: ArpHardwareId::ETHERNET,
                sender_address_valid_length: 6,
                sender_address: [2, 0, 0, 0, 0, 1, 0, 0],
                protocol_type: LinuxSllProtocolType::EtherType(first),
            }
            .to_bytes()
            .to_vec(),
            LinkType::Cooked2 => {
                let mut header = vec![0; 20];
                header[..2].copy_from_slice(&first.0.to_be_bytes());
                header[7] = 3; // the interface
                header[9] = 1; // ARPHRD_ETHER
                header
            }
            LinkType::RawIp | LinkType::Bare(_) => vec![],
            LinkType::Null => vec![if self.is_v6() { 30 } else { 2 }, 0, 0, 0],
            LinkType::Loop => vec![0, 0, 0, if self.is_v6() { 24 } else { 2 }],
        };
        if has_tags(link) {
            for (at, &(_, id, priority)) in self.tags.iter().enumerate() {
                let tag = SingleVlanHeader {
                    pcp: VlanPcp::try_new(priority).unwrap(),
                    drop_eligible_indicator: priority == 3,
                    vlan_id: VlanId::try_new(id).unwrap(),
                    ether_type: self.tags.get(at + 1).map_or(ip, |tag| EtherType(tag.0)),
                };
                frame.extend_from_slice(&tag.to_bytes());
            }
        }
        frame.extend_from_slice(&self.datagram);
        frame
    }
}

/// Returns true if tags can follow the link header.
pub fn has_tags(link: LinkType) -> bool {
    matches!(link, LinkType::Ethernet | LinkType::Cooked1 | LinkType::Cooked2)
}

/// Generates a transport header with payload, and its protocol number.
fn transport() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let ports = (1..=u16::MAX, 1..=u16::MAX);
    let tcp =
        (ports.clone(), any::<u8>(), vec(Just(1u8), 0..=40)).prop_map(|((from, to), flags, options)| {
            let mut header = TcpHeader::new(from, to, 7, 512);
            header.set_options_raw(&options).unwrap();
            let mut bytes = header.to_bytes().to_vec();
            bytes[13] = flags;
            (6, bytes)
        });
    let udp = ports.clone().prop_map(|(from, to)| {
        (17, [from.to_be_bytes(), to.to_be_bytes(), 8u16.to_be_bytes(), [0, 0]].concat())
    });
    // UDP-Lite with full coverage, SCTP with a COOKIE ACK chunk, DCCP with a request.
    let others = (ports, 0..3usize).prop_map(|((from, to), kind)| {
        let rest: &[u8] = [
            &[0, 0, 0, 0][..],
            &[0, 0, 0, 1, 0, 0, 0, 0, 11, 0, 0, 4],
            &[5, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0],
        ][kind];
        ([136, 132, 33][kind], [&from.to_be_bytes()[..], &to.to_be_bytes(), rest].concat())
    });
    let icmp = (prop::sample::select(vec![0u8, 3, 4, 5, 8, 11, 13, 14]), any::<[u8; 2]>())
        .prop_map(|(kind, id)| (1, [&[kind, 0, 0, 0, id[0], id[1], 0, 1][..], &[0; 12]].concat()));
    let icmpv6 = (prop::sample::select(vec![1u8, 2, 3, 128, 129, 133]), any::<[u8; 2]>())
        .prop_map(|(kind, id)| (58, [&[kind, 0, 0, 0, id[0], id[1], 0, 1][..], &[0; 12]].concat()));
    let opaque =
        prop::sample::select(vec![4u8, 41, 47, 50, 59, 89, 253]).prop_map(|protocol| (protocol, vec![0; 24]));
    let with_ports = (prop_oneof![tcp, udp, others], 0..64usize).prop_map(|((protocol, mut bytes), more)| {
        bytes.resize(bytes.len() + more, 0x55);
        (protocol, bytes)
    });
    prop_oneof![9 => with_ports, 1 => icmp, 1 => icmpv6, 1 => opaque]
}

/// Generates the offset in units of 8 bytes, the more-fragments flag and the identification.
fn fragment() -> impl Strategy<Value = (u16, bool, u32)> {
    prop_oneof![
        3 => Just((0, false, 0)),
        1 => (0..=0x1fffu16, any::<bool>(), any::<u32>()),
        1 => any::<u32>().prop_map(|id| (0, true, id)),
    ]
}

fn authentication() -> impl Strategy<Value = Option<IpAuthHeader>> {
    let header =
        (0..8usize).prop_map(|words| IpAuthHeader::new(IpNumber(0), 1, 2, &vec![0; words * 4]).unwrap());
    option::weighted(0.2, header)
}

fn options() -> impl Strategy<Value = Option<Ipv6RawExtHeader>> {
    // One padding option fills the header.
    let header = (0..6u8).prop_map(|units| {
        let mut payload = vec![0; 6 + usize::from(units) * 8];
        payload[..2].copy_from_slice(&[1, units * 8 + 4]);
        Ipv6RawExtHeader::new_raw(IpNumber(0), &payload).unwrap()
    });
    option::weighted(0.3, header)
}

fn v4() -> impl Strategy<Value = IpHeaders> {
    (any::<[u8; 4]>(), any::<[u8; 4]>(), 0..=10usize, fragment(), authentication()).prop_map(
        |(source, destination, option_words, (offset, more_fragments, id), auth)| {
            let header = Ipv4Header {
                source,
                destination,
                time_to_live: 64,
                identification: id as u16,
                more_fragments,
                fragment_offset: IpFragOffset::try_new(offset).unwrap(),
                options: Ipv4Options::try_from(&vec![1; option_words * 4][..]).unwrap(),
                ..Default::default()
            };
            IpHeaders::Ipv4(header, Ipv4Extensions { auth })
        },
    )
}

fn v6() -> impl Strategy<Value = IpHeaders> {
    let ends = (any::<[u8; 16]>(), any::<[u8; 16]>());
    (ends, [options(), options(), options(), options()], option::of(fragment()), authentication()).prop_map(
        |((source, destination), [hop, first, routing, last], fragment, auth)| {
            let header = Ipv6Header {
                source,
                destination,
                hop_limit: 64,
                flow_label: Ipv6FlowLabel::ZERO,
                ..Default::default()
            };
            // A routing header of type 1, which no implementation interprets, with no segments left.
            let routing = routing.map(|mut routing| {
                let length = routing.payload().len();
                routing.set_payload(&[&[1, 0][..], &vec![0; length - 2]].concat()).unwrap();
                Ipv6RoutingExtensions { routing, final_destination_options: last }
            });
            let fragment = fragment.map(|(offset, more_fragments, identification)| Ipv6FragmentHeader {
                next_header: IpNumber(0),
                fragment_offset: IpFragOffset::try_new(offset).unwrap(),
                more_fragments,
                identification,
            });
            let extensions = Ipv6Extensions {
                hop_by_hop_options: hop,
                destination_options: first,
                routing,
                fragment,
                auth,
            };
            IpHeaders::Ipv6(header, extensions)
        },
    )
}

/// Generates a datagram of either version with up to three tags.
pub fn sample() -> impl Strategy<Value = Sample> {
    let tag = (prop::sample::select(vec![0x8100, 0x88a8, 0x9100]), 1..=4094u16, 0..8u8);
    (prop_oneof![v4(), v6()], transport(), vec(tag, 0..=3)).prop_map(|(ip, (protocol, payload), tags)| {
        let mut datagram = vec![];
        PacketBuilder::ip(ip).write(&mut datagram, IpNumber(protocol), &payload).unwrap();
        Sample { datagram, tags }
    })
}
