//! Frames written byte by byte, according to the descriptions of their formats.

use std::net::{IpAddr, SocketAddr};

/// The payload of an IP packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Carries {
    /// A TCP segment with these flags.
    Tcp(u8),
    Udp,
    /// An echo request of the family's own ICMP, whose identifier is the sender's port; or a reply, whose
    /// identifier is the receiver's port.
    Echo,
}

/// A part of a fragmented datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// The datagram's identification.
    pub id: u16,
    /// The offset of the part, in bytes.
    pub offset: u16,
    /// Set if more parts follow.
    pub more: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// The source.
    pub from: SocketAddr,
    /// The destination.
    pub to: SocketAddr,
    /// The kind of payload.
    pub carries: Carries,
    /// The number of bytes after the transport header.
    pub payload: usize,
    /// The part of a datagram that the packet is; `None` for a whole datagram.
    pub part: Option<Part>,
}

impl Packet {
    /// Returns a whole datagram.
    pub fn new(carries: Carries, from: &str, to: &str, payload: usize) -> Packet {
        let [from, to] = [from, to].map(|endpoint| endpoint.parse().unwrap());
        Packet { from, to, carries, payload, part: None }
    }

    /// Returns the packet from its IP header on.
    pub fn bytes(&self) -> Vec<u8> {
        let is_later = self.part.is_some_and(|part| part.offset > 0);
        let mut inside = if is_later { Vec::new() } else { self.transport() };
        inside.resize(inside.len() + self.payload, 0x5a);
        let length = inside.len() as u16;
        let mut bytes = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let Part { id, offset, more } = self.part.unwrap_or(Part { id: 0, offset: 0, more: false });
                let flags = (offset / 8) | (u16::from(more) << 13);
                let mut header = vec![0x45, 0];
                header.extend([length + 20, id, flags].iter().flat_map(|word| word.to_be_bytes()));
                header.extend([64, self.protocol(), 0, 0]);
                header.extend(from.octets().into_iter().chain(to.octets()));
                header
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let extra = if self.part.is_some() { 8 } else { 0 };
                let next = if self.part.is_some() { 44 } else { self.protocol() };
                let mut header = vec![0x60, 0, 0, 0];
                header.extend((length + extra).to_be_bytes());
                header.extend([next, 64]);
                header.extend(from.octets().into_iter().chain(to.octets()));
                if let Some(Part { id, offset, more }) = self.part {
                    header.extend([self.protocol(), 0]);
                    header.extend(((offset & !7) | u16::from(more)).to_be_bytes());
                    header.extend(u32::from(id).to_be_bytes());
                }
                header
            }
            mixed => panic!("two families in one packet: {mixed:?}"),
        };
        bytes.extend(inside);
        bytes
    }

    fn protocol(&self) -> u8 {
        match self.carries {
            Carries::Tcp(_) => 6,
            Carries::Udp => 17,
            Carries::Echo if self.from.is_ipv4() => 1,
            Carries::Echo => 58,
        }
    }

    fn transport(&self) -> Vec<u8> {
        let ports = [self.from.port(), self.to.port()].into_iter().flat_map(u16::to_be_bytes);
        match self.carries {
            Carries::Tcp(flags) => {
                let mut header: Vec<u8> = ports.collect();
                header.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0]);
                header
            }
            Carries::Udp => {
                let length = self.payload as u16 + 8;
                ports.chain(length.to_be_bytes()).chain([0, 0]).collect()
            }
            Carries::Echo => {
                let kind = match (self.from.is_ipv4(), self.to.port()) {
                    (true, 0) => 8,
                    (true, _) => 0,
                    (false, 0) => 128,
                    (false, _) => 129,
                };
                let id = self.from.port().max(self.to.port()).to_be_bytes();
                vec![kind, 0, 0, 0, id[0], id[1], 0, 1]
            }
        }
    }
}

/// The headers before the IP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wire {
    Ethernet,
    /// Ethernet with one 802.1Q tag.
    Tagged,
    /// Ethernet with a service tag and a customer tag.
    DoublyTagged,
    /// Linux cooked capture.
    Cooked1,
    /// Linux cooked capture, version 2.
    Cooked2,
    /// No header.
    RawIp,
    /// The address family, in the byte order of the machine.
    Null,
    /// The address family, in network byte order.
    Loop,
}

impl Wire {
    pub const ALL: [Wire; 8] = [
        Wire::Ethernet,
        Wire::Tagged,
        Wire::DoublyTagged,
        Wire::Cooked1,
        Wire::Cooked2,
        Wire::RawIp,
        Wire::Null,
        Wire::Loop,
    ];

    /// Returns a frame with this packet.
    pub fn frame(self, packet: &[u8]) -> Vec<u8> {
        let is_v4 = packet[0] >> 4 == 4;
        let mut frame = self.header(if is_v4 { 0x0800 } else { 0x86dd }, if is_v4 { 2 } else { 10 });
        frame.extend_from_slice(packet);
        frame
    }

    /// Returns the bytes of a frame of this length on the link: an Ethernet header takes the place
    /// of a cooked one.
    pub fn link_len(self, wire_len: u32) -> u32 {
        match self {
            Wire::Cooked1 => wire_len - 16 + 14,
            Wire::Cooked2 => wire_len - 20 + 14,
            _ => wire_len,
        }
    }

    /// Returns a header for this EtherType and this address family of Linux.
    fn header(self, ether_type: u16, family: u32) -> Vec<u8> {
        let kind = ether_type.to_be_bytes();
        let addresses = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        let mut header = Vec::new();
        match self {
            Wire::Ethernet => header.extend(addresses),
            Wire::Tagged => header.extend(addresses.into_iter().chain([0x81, 0, 0, 100])),
            Wire::DoublyTagged => {
                header.extend(addresses.into_iter().chain([0x88, 0xa8, 0, 100, 0x81, 0, 0, 7]));
            }
            // The packet type of loopback, which does not state the direction of a frame.
            Wire::Cooked1 => header.extend([0, 0, 3, 4, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0]),
            Wire::Cooked2 => {
                header.extend(kind.into_iter().chain([0, 0, 0, 0, 0, 2, 3, 4, 0, 6]));
                header.extend([2, 0, 0, 0, 0, 1, 0, 0]);
                return header;
            }
            Wire::RawIp => return header,
            Wire::Null => return family.to_ne_bytes().to_vec(),
            Wire::Loop => return family.to_be_bytes().to_vec(),
        }
        header.extend(kind);
        header
    }

    /// Returns a frame that carries no IP, or `None` if the link cannot carry one.
    pub fn arp(self) -> Option<Vec<u8>> {
        if matches!(self, Wire::RawIp | Wire::Null | Wire::Loop) {
            return None;
        }
        let mut frame = self.header(0x0806, 0);
        frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend([0; 20]);
        Some(frame)
    }
}
