//! The packet that etherparse decodes from a frame.

use capture::internals::model::{Address, Endpoint, Fragment, LinkType, Packet, Protocol, TcpFlags};
use etherparse::{
    Icmpv4Slice, Icmpv4Type, Icmpv6Slice, Icmpv6Type, IpNumber, Ipv6ExtensionSlice, LinkExtSlice, NetSlice,
    SlicedPacket, TcpHeader, UdpHeaderSlice,
};

/// Returns the packet, or `None` for link types that etherparse does not support.
pub fn read(link: LinkType, frame: &[u8]) -> Option<Packet> {
    let sliced = match link {
        LinkType::Ethernet => SlicedPacket::from_ethernet(frame).unwrap(),
        LinkType::Cooked1 => SlicedPacket::from_linux_sll(frame).unwrap(),
        LinkType::RawIp => SlicedPacket::from_ip(frame).unwrap(),
        LinkType::Cooked2 | LinkType::Null | LinkType::Loop | LinkType::Bare(_) => return None,
    };
    let vlan = sliced.link_exts.iter().find_map(|extension| match extension {
        LinkExtSlice::Vlan(tag) => Some(tag.vlan_identifier().value()),
        _ => None,
    });
    let place = |offset: u16, more, id| match (offset, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First { id },
        _ => Fragment::Later { id },
    };
    let (source, destination, fragment, protocol, payload) = match sliced.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let id = u32::from(header.identification());
            let fragment = place(header.fragments_offset().value(), header.more_fragments(), id);
            let ends = (Address::v4(header.source()), Address::v4(header.destination()));
            // Etherparse also looks for an authentication header in later fragments, where the
            // payload is no header.
            let later = matches!(fragment, Fragment::Later { .. });
            let protocol = if later { header.protocol() } else { ip.payload_ip_number() };
            (ends.0, ends.1, fragment, protocol, ip.payload().payload)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.extensions().clone().into_iter().find_map(|extension| match extension {
                Ipv6ExtensionSlice::Fragment(header) => Some(header),
                _ => None,
            });
            let fragment = header.as_ref().map_or(Fragment::Whole, |header| {
                place(header.fragment_offset().value(), header.more_fragments(), header.identification())
            });
            let protocol = match (&header, fragment) {
                (Some(header), Fragment::Later { .. }) => header.next_header(),
                _ => ip.payload().ip_number,
            };
            let ends = (Address::v6(ip.header().source()), Address::v6(ip.header().destination()));
            (ends.0, ends.1, fragment, protocol, ip.payload().payload)
        }
        NetSlice::Arp(_) => unreachable!("no ARP was built"),
    };
    let later = matches!(fragment, Fragment::Later { .. });
    let (ports, flags, has_payload) = if later { ((0, 0), 0, true) } else { transport(protocol, payload) };
    Some(Packet {
        protocol: Protocol(protocol.0),
        source: Endpoint::new(source, ports.0),
        destination: Endpoint::new(destination, ports.1),
        tcp_flags: TcpFlags(flags),
        has_payload,
        fragment,
        vlan: vlan.unwrap_or(0),
    })
}

/// Returns ports, flags and the presence of payload as etherparse decodes them. It does not know the last
/// three protocols, whose ports are at the same offsets as those of UDP.
fn transport(protocol: IpNumber, payload: &[u8]) -> ((u16, u16), u8, bool) {
    match protocol.0 {
        6 => {
            let (tcp, rest) = TcpHeader::from_slice(payload).unwrap();
            let bits = [tcp.fin, tcp.syn, tcp.rst, tcp.psh, tcp.ack, tcp.urg, tcp.ece, tcp.cwr];
            let flags = bits.iter().enumerate().map(|(at, &bit)| u8::from(bit) << at).sum();
            ((tcp.source_port, tcp.destination_port), flags, !rest.is_empty())
        }
        1 => {
            let icmp = Icmpv4Slice::from_slice(payload).unwrap();
            let ports = match icmp.icmp_type() {
                Icmpv4Type::EchoRequest(echo) => (echo.id, 0),
                Icmpv4Type::EchoReply(echo) => (0, echo.id),
                Icmpv4Type::TimestampRequest(message) => (message.id, 0),
                Icmpv4Type::TimestampReply(message) => (0, message.id),
                _ => (0, 0),
            };
            (ports, 0, true)
        }
        58 => {
            let ports = match Icmpv6Slice::from_slice(payload).unwrap().icmp_type() {
                Icmpv6Type::EchoRequest(echo) => (echo.id, 0),
                Icmpv6Type::EchoReply(echo) => (0, echo.id),
                _ => (0, 0),
            };
            (ports, 0, true)
        }
        17 | 33 | 132 | 136 => {
            let udp = UdpHeaderSlice::from_slice(payload).unwrap();
            ((udp.source_port(), udp.destination_port()), 0, true)
        }
        _ => ((0, 0), 0, true),
    }
}
