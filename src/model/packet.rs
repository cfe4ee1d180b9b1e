//! The result of decoding a frame: the endpoints and properties of one packet that the flow table needs.

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

    /// Returns true if every bit of `other` is set.
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

/// The position of a packet in a fragmented datagram. Only the first fragment carries ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragment {
    /// Not fragmented.
    Whole,
    /// The first fragment. Its ports are known, and `id` is the datagram's identification.
    First {
        /// Identification field: 16 bits in IPv4, 32 in IPv6.
        id: u32,
    },
    /// A later fragment. Its ports are 0. The datagram's first fragment, with the same `id`, carried them.
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
    /// The source. For an ICMP echo, the port of the requesting end is the identifier, and the port of the
    /// responding end is 0. The port is 0 for protocols without ports.
    pub source: Endpoint,
    /// The destination.
    pub destination: Endpoint,
    /// The TCP flags, or none for other protocols.
    pub tcp_flags: TcpFlags,
    /// Set if it carries data for a process: a TCP segment with payload, and every packet of another protocol.
    pub has_payload: bool,
    /// Its position in a fragmented datagram.
    pub fragment: Fragment,
    /// The outermost VLAN identifier (1-4094), or 0 if the frame has no tag.
    pub vlan: u16,
}

/// The reason that a frame could not be decoded. Its bytes are counted under the reason, never dropped
/// silently.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(usize)]
pub enum Undecoded {
    /// The captured bytes end inside a required header (the snaplen is too small, or the frame is a runt).
    Truncated = 0,
    /// The link header is complete, but the payload is not IP (ARP, LLDP, …).
    NotIp = 1,
    /// A header contradicts itself (version, header length).
    Malformed = 2,
}

impl Undecoded {
    /// The number of reasons.
    pub const COUNT: usize = 3;
}
