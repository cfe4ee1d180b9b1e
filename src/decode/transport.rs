//! The transport header: ports, ICMP identifiers and TCP flags.

use crate::model::{Protocol, TcpFlags, Undecoded};

/// Datagram Congestion Control Protocol (RFC 4340), whose header begins with ports like all the others.
const DCCP: Protocol = Protocol(33);

/// Where the flag byte stands in a TCP header (RFC 9293, 3.1).
const TCP_FLAGS_AT: usize = 13;

/// Where the length of that header stands, in words of 4 bytes, in the upper half of a byte.
const TCP_OFFSET_AT: usize = 12;

/// A TCP header without options (RFC 9293, 3.1).
pub(super) const TCP_HEADER: usize = 20;

/// Options of TCP (RFC 9293, 3.2): the end of all, one byte of padding, the largest segment.
const OPTION_END: u8 = 0;
const OPTION_PADDING: u8 = 1;
const OPTION_MSS: u8 = 2;

/// RFC 768, and RFC 3828 for UDP-Lite.
const UDP_HEADER: usize = 8;

/// The header that is common to all chunks of a packet (RFC 9260, 3.1).
const SCTP_HEADER: usize = 12;

/// What a transport header says of the flow; all 0 for protocols without ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Transport {
    pub source: u16,
    pub destination: u16,
    pub flags: TcpFlags,
}

/// Reads the header of a whole datagram or of a first fragment.
#[inline]
pub(super) fn read(protocol: u8, payload: &[u8]) -> Result<Transport, Undecoded> {
    match Protocol(protocol) {
        Protocol::TCP => {
            let flags = payload.get(TCP_FLAGS_AT).copied().unwrap_or_default();
            Ok(Transport { flags: TcpFlags(flags), ..ports(payload)? })
        }
        Protocol::UDP | Protocol::UDPLITE | Protocol::SCTP | DCCP => ports(payload),
        Protocol::ICMP => identifier(payload, icmp_exchange),
        Protocol::ICMPV6 => identifier(payload, icmpv6_exchange),
        _ => Ok(Transport::default()),
    }
}

/// Whether a whole datagram or a first fragment, of which `payload` is what was captured and `len` the whole length,
/// carries anything for a program. Of TCP that is a segment with data; what has no connection is always for a program.
#[inline]
pub(super) fn has_payload(protocol: u8, payload: &[u8], len: usize) -> bool {
    match Protocol(protocol) {
        Protocol::TCP => payload.get(TCP_OFFSET_AT).is_some_and(|byte| len > usize::from(byte >> 4) * 4),
        _ => true,
    }
}

/// The length of the header that each segment of a datagram bears when a device cuts it: of TCP with its options, of
/// protocols that are not known the part that is certain, none.
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

/// The sequence number of a TCP header (RFC 9293, 3.1).
pub(super) fn sequence_number(payload: &[u8]) -> Option<u32> {
    payload.get(4..8)?.try_into().ok().map(u32::from_be_bytes)
}

/// The largest segment that the sender of a TCP header accepts, as far as the header was captured and says so (RFC 9293,
/// 3.7.1). Its headers are not part of it.
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
        flags: TcpFlags::default(),
    })
}

/// An ICMP message with an identifier.
#[derive(Clone, Copy)]
enum EchoKind {
    Request,
    Reply,
}

/// The identifier stands in the same place of every ICMP message that has one. Request and reply carry the same. A ping
/// socket has it for its port (icmp(7)), so it is the port of the end that asks. The end that answers, the kernel as a
/// rule, has none: a process that asks is thereby told from the kernel that answers, also between the same addresses.
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

/// Echo, timestamp and information (RFC 792), address mask (RFC 950), extended echo (RFC 8335).
fn icmp_exchange(kind: u8) -> Option<EchoKind> {
    match kind {
        8 | 13 | 15 | 17 | 42 => Some(EchoKind::Request),
        0 | 14 | 16 | 18 | 43 => Some(EchoKind::Reply),
        _ => None,
    }
}

/// Echo (RFC 4443, 4) and extended echo (RFC 8335).
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
        let transport = read(protocol, payload).unwrap();
        (transport.source, transport.destination)
    }

    #[test]
    fn ports_of_every_protocol_that_has_them() {
        for protocol in [6, 17, 33, 132, 136] {
            assert_eq!(ends(protocol, &[0x01, 0xbb, 0xc0, 0x01]), (443, 49153), "protocol {protocol}");
            assert_eq!(read(protocol, &[0x01, 0xbb, 0xc0]), Err(Undecoded::Truncated), "protocol {protocol}");
        }
    }

    #[test]
    fn protocols_without_ports_need_no_bytes() {
        // IGMP, IP in IP, IPv6 in IP, GRE, ESP, "no next header", OSPF, VRRP.
        for protocol in [2, 4, 41, 47, 50, 59, 89, 112] {
            assert_eq!(read(protocol, &[]), Ok(Transport::default()));
            assert_eq!(read(protocol, &[0xff; 20]), Ok(Transport::default()));
        }
    }

    #[test]
    fn tcp_flags_are_the_byte_after_the_data_offset() {
        let mut header = [0u8; 20];
        header[12] = 0x50;
        header[13] = 0x12;
        let flags = |payload| read(6, payload).unwrap().flags;
        assert_eq!(flags(&header[..]), TcpFlags::SYN | TcpFlags::ACK);
        assert_eq!(flags(&header[..14]), TcpFlags::SYN | TcpFlags::ACK);
        assert_eq!(flags(&header[..13]), TcpFlags::default(), "cut before its flags");
        assert_eq!(read(17, &header).unwrap().flags, TcpFlags::default(), "not TCP");
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
                assert_eq!(read(1, &[kind, 0, 0, 0, 0x12]), Err(Undecoded::Truncated));
            }
        }
        for (request, reply) in [(128, 129), (160, 161)] {
            for (kind, expected) in [(request, (0x1234, 0)), (reply, (0, 0x1234))] {
                assert_eq!(ends(58, &[kind, 0, 0, 0, 0x12, 0x34, 0, 1]), expected, "type {kind}");
            }
        }
        assert_eq!(read(1, &[]), Err(Undecoded::Truncated));
    }

    #[test]
    fn other_icmp_has_no_ports() {
        // Unreachable, redirect, router advertisement, time exceeded; in ICMPv6 unreachable, too big, and the
        // neighbour discovery and listener messages. Their fifth and sixth bytes mean something else.
        for kind in [3, 5, 9, 11, 12] {
            assert_eq!(ends(1, &[kind, 0, 0, 0, 0x12, 0x34]), (0, 0), "type {kind}");
        }
        for kind in [1, 2, 3, 130, 133, 134, 135, 136, 143] {
            assert_eq!(ends(58, &[kind, 0, 0, 0, 0x12, 0x34]), (0, 0), "type {kind}");
        }
    }
}
