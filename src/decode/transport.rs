//! The transport header: ports, ICMP identifiers and TCP flags.

use crate::model::{Protocol, TcpFlags, Undecoded};

/// Datagram Congestion Control Protocol (RFC 4340). Its header begins with ports, as in the other protocols
/// with ports.
const DCCP: Protocol = Protocol(33);

/// The offset in a TCP header of the byte whose upper half is the header's length in words of 4 bytes, and the
/// end of the flags byte after it (RFC 9293, 3.1).
const TCP_OFFSET_AT: usize = 12;
const TCP_FLAGS_END: usize = TCP_OFFSET_AT + 2;

/// The length of a TCP header without options (RFC 9293, 3.1).
pub(super) const TCP_HEADER: usize = 20;

/// TCP options (RFC 9293, 3.2): end of options, one byte of padding, largest segment.
const OPTION_END: u8 = 0;
const OPTION_PADDING: u8 = 1;
const OPTION_MSS: u8 = 2;

/// The length of a UDP header (RFC 768; RFC 3828 for UDP-Lite).
const UDP_HEADER: usize = 8;

/// The length of the header that is common to all chunks of a packet (RFC 9260, 3.1).
const SCTP_HEADER: usize = 12;

/// The data of a transport header that belong to the flow. The default is that of a packet without ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Transport {
    pub source: u16,
    pub destination: u16,
    pub flags: TcpFlags,
    pub has_payload: bool,
}

impl Default for Transport {
    fn default() -> Transport {
        Transport { source: 0, destination: 0, flags: TcpFlags::default(), has_payload: true }
    }
}

/// Reads the header of a whole datagram or of a first fragment. `payload` is the captured part of its `len`
/// bytes.
#[inline]
pub(super) fn read(protocol: u8, payload: &[u8], len: usize) -> Result<Transport, Undecoded> {
    match Protocol(protocol) {
        Protocol::TCP => match payload.first_chunk::<TCP_FLAGS_END>() {
            Some(header @ [.., words, flags]) => {
                let has_payload = len > usize::from(words >> 4) * 4;
                Ok(Transport { flags: TcpFlags(*flags), has_payload, ..ports(header)? })
            }
            None => Ok(Transport { has_payload: false, ..ports(payload)? }),
        },
        Protocol::UDP | Protocol::UDPLITE | Protocol::SCTP | DCCP => ports(payload),
        Protocol::ICMP => identifier(payload, icmp_exchange),
        Protocol::ICMPV6 => identifier(payload, icmpv6_exchange),
        _ => Ok(Transport::default()),
    }
}

/// Returns the length of the transport header that each segment of a datagram has after the device has
/// segmented it: for TCP with its options; 0 for other protocols, whose headers are not known.
pub(super) fn header_len(protocol: u8, payload: &[u8]) -> usize {
    match Protocol(protocol) {
        Protocol::TCP => {
            payload.get(TCP_OFFSET_AT).map_or(0, |byte| usize::from(byte >> 4) * 4).max(TCP_HEADER)
        }
        Protocol::UDP | Protocol::UDPLITE => UDP_HEADER,
        Protocol::SCTP => SCTP_HEADER,
        _ => 0,
    }
}

/// Returns the sequence number of a TCP header (RFC 9293, 3.1).
pub(super) fn sequence_number(payload: &[u8]) -> Option<u32> {
    payload.get(4..8)?.try_into().ok().map(u32::from_be_bytes)
}

/// Returns the largest segment, without headers, that the sender of a TCP header accepts, if the captured
/// part of the header states it (RFC 9293, 3.7.1).
pub(super) fn segment_limit(payload: &[u8]) -> Option<u16> {
    let end = header_len(Protocol::TCP.0, payload).min(payload.len());
    let mut options = payload.get(TCP_HEADER..end)?;
    loop {
        options = match options {
            [OPTION_MSS, 4, high, low, ..] => return Some(u16::from_be_bytes([*high, *low])),
            [OPTION_PADDING, rest @ ..] => rest,
            // An option has at least its kind and its length.
            [kind, len, ..] if *kind != OPTION_END && *len >= 2 => options.get(usize::from(*len)..)?,
            _ => return None,
        }
    }
}

#[inline]
fn ports(payload: &[u8]) -> Result<Transport, Undecoded> {
    let (header, _) = payload.split_first_chunk::<4>().ok_or(Undecoded::Truncated)?;
    Ok(Transport {
        source: u16::from_be_bytes([header[0], header[1]]),
        destination: u16::from_be_bytes([header[2], header[3]]),
        ..Transport::default()
    })
}

/// An ICMP message with an identifier.
#[derive(Clone, Copy)]
enum EchoKind {
    Request,
    Reply,
}

/// Reads the identifier of an ICMP message, which has the same place in every message that has one. Request
/// and reply carry the same identifier. A ping socket uses it as its port (icmp(7)), so it is the port of the
/// requesting end. The replying end, as a rule the kernel, has none. This distinguishes a process that sends
/// requests from the kernel that replies, also between the same addresses.
#[inline]
fn identifier(payload: &[u8], exchange: fn(u8) -> Option<EchoKind>) -> Result<Transport, Undecoded> {
    let kind = *payload.first().ok_or(Undecoded::Truncated)?;
    let Some(exchange) = exchange(kind) else { return Ok(Transport::default()) };
    let (header, _) = payload.split_first_chunk::<6>().ok_or(Undecoded::Truncated)?;
    let id = u16::from_be_bytes([header[4], header[5]]);
    Ok(match exchange {
        EchoKind::Request => Transport { source: id, ..Transport::default() },
        EchoKind::Reply => Transport { destination: id, ..Transport::default() },
    })
}

/// Classifies echo, timestamp and information (RFC 792), address mask (RFC 950) and extended echo (RFC 8335).
fn icmp_exchange(kind: u8) -> Option<EchoKind> {
    match kind {
        8 | 13 | 15 | 17 | 42 => Some(EchoKind::Request),
        0 | 14 | 16 | 18 | 43 => Some(EchoKind::Reply),
        _ => None,
    }
}

/// Classifies echo (RFC 4443, 4) and extended echo (RFC 8335).
fn icmpv6_exchange(kind: u8) -> Option<EchoKind> {
    match kind {
        128 | 160 => Some(EchoKind::Request),
        129 | 161 => Some(EchoKind::Reply),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(protocol: u8, payload: &[u8]) -> (u16, u16) {
        let transport = read(protocol, payload, 0).unwrap();
        (transport.source, transport.destination)
    }

    #[test]
    fn ports_of_every_protocol_that_has_them() {
        for protocol in [6, 17, 33, 132, 136] {
            assert_eq!(ends(protocol, &[0x01, 0xbb, 0xc0, 0x01]), (443, 49153), "protocol {protocol}");
            assert_eq!(
                read(protocol, &[0x01, 0xbb, 0xc0], 0),
                Err(Undecoded::Truncated),
                "protocol {protocol}"
            );
        }
    }

    #[test]
    fn protocols_without_ports_need_no_bytes() {
        // IGMP, IP in IP, IPv6 in IP, GRE, ESP, "no next header", OSPF, VRRP.
        for protocol in [2, 4, 41, 47, 50, 59, 89, 112] {
            assert_eq!(read(protocol, &[], 0), Ok(Transport::default()));
            assert_eq!(read(protocol, &[0xff; 20], 0), Ok(Transport::default()));
        }
    }

    #[test]
    fn tcp_flags_are_the_byte_after_the_data_offset() {
        let mut header = [0u8; 20];
        header[12] = 0x50;
        header[13] = 0x12;
        let flags = |payload| read(6, payload, 0).unwrap().flags;
        assert_eq!(flags(&header[..]), TcpFlags::SYN | TcpFlags::ACK);
        assert_eq!(flags(&header[..14]), TcpFlags::SYN | TcpFlags::ACK);
        let cut = read(6, &header[..13], 100).unwrap();
        assert_eq!((cut.flags, cut.has_payload), (TcpFlags::default(), false), "cut before its flags");
        assert_eq!(read(17, &header, 0).unwrap().flags, TcpFlags::default(), "not TCP");
    }

    #[test]
    fn the_sequence_number_follows_the_ports() {
        let header = [0, 1, 0, 2, 0xfe, 3, 4, 5, 6];
        assert_eq!(sequence_number(&header), Some(0xfe03_0405));
        assert_eq!(sequence_number(&header[..7]), None, "cut");
    }

    #[test]
    fn the_largest_segment_is_found_among_the_options() {
        let limit = |options: &[u8]| {
            let mut header = [0u8; 20];
            header[12] = (5 + options.len().div_ceil(4) as u8) << 4;
            segment_limit(&[&header[..], options, &[2, 4, 9, 9]].concat())
        };
        assert_eq!(limit(&[2, 4, 5, 0xb4]), Some(1460));
        assert_eq!(limit(&[1, 3, 3, 7, 4, 2, 1, 1, 2, 4, 2, 0x18]), Some(536));
        assert_eq!(limit(&[]), None, "what follows the header is no option");
        assert_eq!(limit(&[0, 0, 0, 0, 2, 4, 5, 0xb4]), None, "the options have ended");
        for damaged in [[3, 0, 0, 0], [3, 1, 0, 0], [3, 99, 0, 0], [2, 3, 5, 1], [2, 4, 5, 1]] {
            let found = limit(&damaged);
            assert_eq!(found, (damaged[..2] == [2, 4]).then_some(0x501), "{damaged:?}");
        }
        assert_eq!(segment_limit(&[0; 19]), None);
        assert_eq!(segment_limit(&[0xff; 22]), None);
    }

    #[test]
    fn an_icmp_identifier_is_the_port_of_the_end_that_asks() {
        for (request, reply) in [(8, 0), (13, 14), (15, 16), (17, 18), (42, 43)] {
            for (kind, expected) in [(request, (0x1234, 0)), (reply, (0, 0x1234))] {
                assert_eq!(ends(1, &[kind, 0, 0, 0, 0x12, 0x34, 0, 1]), expected, "type {kind}");
                assert_eq!(read(1, &[kind, 0, 0, 0, 0x12], 0), Err(Undecoded::Truncated));
            }
        }
        for (request, reply) in [(128, 129), (160, 161)] {
            for (kind, expected) in [(request, (0x1234, 0)), (reply, (0, 0x1234))] {
                assert_eq!(ends(58, &[kind, 0, 0, 0, 0x12, 0x34, 0, 1]), expected, "type {kind}");
            }
        }
        assert_eq!(read(1, &[], 0), Err(Undecoded::Truncated));
    }

    #[test]
    fn other_icmp_has_no_ports() {
        // Unreachable, redirect, router advertisement, time exceeded; in ICMPv6 unreachable, too big, and the
        // neighbour discovery and listener messages. Their fifth and sixth bytes have other meanings.
        for kind in [3, 5, 9, 11, 12] {
            assert_eq!(ends(1, &[kind, 0, 0, 0, 0x12, 0x34]), (0, 0), "type {kind}");
        }
        for kind in [1, 2, 3, 130, 133, 134, 135, 136, 143] {
            assert_eq!(ends(58, &[kind, 0, 0, 0, 0x12, 0x34]), (0, 0), "type {kind}");
        }
    }
}
