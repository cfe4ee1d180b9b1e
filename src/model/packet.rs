//! What decoding a frame yields: the endpoints and what a flow table needs to know of one packet.

use super::address::Endpoint;
use std::fmt;

/// An IP protocol number (IANA "Protocol Numbers").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP for IPv4.
    pub const ICMP: Protocol = Protocol(1);
    /// Transmission Control Protocol.
    pub const TCP: Protocol = Protocol(6);
    /// User Datagram Protocol.
    pub const UDP: Protocol = Protocol(17);
    /// ICMP for IPv6.
    pub const ICMPV6: Protocol = Protocol(58);
    /// Stream Control Transmission Protocol.
    pub const SCTP: Protocol = Protocol(132);
    /// UDP-Lite (RFC 3828).
    pub const UDPLITE: Protocol = Protocol(136);
}

impl fmt::Debug for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Protocol::ICMP => f.write_str("icmp"),
            Protocol::TCP => f.write_str("tcp"),
            Protocol::UDP => f.write_str("udp"),
            Protocol::ICMPV6 => f.write_str("icmpv6"),
            Protocol::SCTP => f.write_str("sctp"),
            Protocol::UDPLITE => f.write_str("udplite"),
            Protocol(number) => write!(f, "ip-{number}"),
        }
    }
}

/// The flag byte of a TCP header (RFC 9293, 3.1); 0 for every other protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// The sender has finished sending.
    pub const FIN: TcpFlags = TcpFlags(0x01);
    /// Opens a connection.
    pub const SYN: TcpFlags = TcpFlags(0x02);
    /// Aborts a connection.
    pub const RST: TcpFlags = TcpFlags(0x04);
    /// Carries an acknowledgement.
    pub const ACK: TcpFlags = TcpFlags(0x10);

    /// Whether every bit of `other` is set.
    #[inline]
    pub const fn has(self, other: TcpFlags) -> bool {
        self.0 & other.0 == other.0
    }
}

impl std::ops::BitOr for TcpFlags {
    type Output = TcpFlags;
    fn bitor(self, other: TcpFlags) -> TcpFlags {
        TcpFlags(self.0 | other.0)
    }
}

/// Whether a packet is whole or part of a fragmented datagram. Only the first fragment carries ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragment {
    /// Not fragmented.
    Whole,
    /// The first fragment: ports are known; `id` is the datagram's identification.
    First {
        /// Identification field: 16 bits in IPv4, 32 in IPv6.
        id: u32,
    },
    /// A later fragment: ports are 0; the datagram's first fragment, with the same `id`, carried them.
    Later {
        /// Identification field: 16 bits in IPv4, 32 in IPv6.
        id: u32,
    },
}

/// One decoded IP packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// The transport protocol, after IPv6 extension headers.
    pub protocol: Protocol,
    /// Where it comes from. Of an ICMP echo the end that asks has the identifier as its port and the one that answers 0;
    /// protocols without ports have 0.
    pub source: Endpoint,
    /// Where it goes.
    pub destination: Endpoint,
    /// TCP flags, or none.
    pub tcp_flags: TcpFlags,
    /// Its place in a fragmented datagram.
    pub fragment: Fragment,
    /// The outermost VLAN identifier (1-4094), or 0 when the frame bears no tag.
    pub vlan: u16,
}

/// Why a frame could not be decoded. Its bytes are counted under the reason, never dropped silently.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(usize)]
pub enum Undecoded {
    /// The captured bytes end inside a header that is needed (snaplen too small, or a runt frame).
    Truncated = 0,
    /// A whole link header, but the payload is not IP (ARP, LLDP, …).
    NotIp = 1,
    /// A header contradicts itself (version, header length).
    Malformed = 2,
}

impl Undecoded {
    /// How many reasons there are.
    pub const COUNT: usize = 3;
}
