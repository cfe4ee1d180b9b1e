//! One captured frame, and the format of its first bytes.

use super::flow::Namespace;
use std::fmt;
use std::time::SystemTime;

/// Nanoseconds since the Unix epoch, by the clock of the capture. For a savefile, this is the time of
/// recording.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Returns the current time.
    pub fn now() -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Returns the nanoseconds from `earlier` to `self`, or 0 if the clock went backwards.
    #[inline]
    pub fn since(self, earlier: Timestamp) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns the same moment by a clock that was set forward by `step` nanoseconds, or back if `step` is
    /// negative.
    pub fn moved(self, step: i64) -> Timestamp {
        Timestamp(self.0.saturating_add_signed(step))
    }
}

/// The link-layer header at the beginning of a frame (pcap's `DLT_` values, pcap-linktype(7)).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LinkType {
    /// `DLT_EN10MB`: Ethernet, and Linux's loopback device.
    Ethernet,
    /// `DLT_LINUX_SLL`: Linux cooked capture, version 1.
    Cooked1,
    /// `DLT_LINUX_SLL2`: Linux cooked capture, version 2.
    Cooked2,
    /// `DLT_RAW`: the frame begins with the IP header (tun devices).
    RawIp,
    /// `DLT_NULL`: BSD loopback, a 4-byte address family in the byte order of the capturing host.
    Null,
    /// `DLT_LOOP`: OpenBSD loopback, a 4-byte address family in network byte order.
    Loop,
    /// No link header: the frame is the payload of this EtherType, which the capture states separately.
    Bare(u16),
}

impl LinkType {
    /// Returns the link type of a pcap `DLT_` value, or `None` if frames of that type cannot be decoded.
    pub fn from_dlt(dlt: i32) -> Option<LinkType> {
        match dlt {
            0 => Some(LinkType::Null),
            1 => Some(LinkType::Ethernet),
            // DLT_RAW differs between systems: 12 and 14 are its values in live captures, 101, 228 and 229
            // those in savefiles (LINKTYPE_RAW, LINKTYPE_IPV4, LINKTYPE_IPV6).
            12 | 14 | 101 | 228 | 229 => Some(LinkType::RawIp),
            108 => Some(LinkType::Loop),
            113 => Some(LinkType::Cooked1),
            276 => Some(LinkType::Cooked2),
            _ => None,
        }
    }

    /// Returns a pcap `DLT_` value for frames of this link type, for which filters can be compiled.
    pub fn dlt(self) -> i32 {
        match self {
            LinkType::Null => 0,
            LinkType::Ethernet => 1,
            LinkType::RawIp | LinkType::Bare(_) => 12,
            LinkType::Loop => 108,
            LinkType::Cooked1 => 113,
            LinkType::Cooked2 => 276,
        }
    }

    /// Returns the length of the header, without VLAN tags.
    pub fn header_len(self) -> u32 {
        match self {
            LinkType::Ethernet => 14,
            LinkType::Cooked1 => 16,
            LinkType::Cooked2 => 20,
            LinkType::RawIp | LinkType::Bare(_) => 0,
            LinkType::Null | LinkType::Loop => 4,
        }
    }
}

/// The direction in which a frame passed its device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Passage {
    /// Unknown: the capture does not report the direction.
    #[default]
    Unknown,
    /// The frame passed the loopback device: it left and arrived at once. Its sender is on this host whatever
    /// its address, which may be translated (NAT).
    Loopback,
    /// The frame arrived. It can have a receiver here. Its sender was counted where it left.
    Incoming,
    /// The frame left. It can have a sender here. Its receiver is counted where it arrives.
    Outgoing,
    /// The frame is a copy or redirection of another device's frame, or is addressed to another host and only
    /// passes by. Neither end is counted here.
    Copied,
}

impl Passage {
    /// Returns true if this frame counts for the sender, provided that the sender is on this host.
    #[inline]
    pub fn has_sender(self) -> bool {
        matches!(self, Passage::Unknown | Passage::Loopback | Passage::Outgoing)
    }

    /// Returns true if this frame counts for the receiver, provided that the receiver is on this host.
    #[inline]
    pub fn has_receiver(self) -> bool {
        matches!(self, Passage::Unknown | Passage::Loopback | Passage::Incoming)
    }
}

/// A frame as a capture delivers it. It is valid only while the capture's batch is being read.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    /// The time of capture.
    pub time: Timestamp,
    /// Its length as the capture saw it, link header included. An offloaded frame can be larger than any MTU.
    pub wire_len: u32,
    /// The MTU of its device plus the length of a link header without VLAN tags. A frame of at most this
    /// length is one packet on the wire, unless it carries a connection whose ends accept only smaller segments.
    /// It is `u32::MAX` if the MTU is unknown, as in a savefile.
    pub packet_limit: u32,
    /// The link type of `data`.
    pub link: LinkType,
    /// The network namespace of the device that captured the frame.
    pub namespace: Namespace,
    /// The direction in which it passed that device.
    pub passage: Passage,
    /// The captured bytes from the link header on: at most `wire_len`, as the snaplen allows.
    pub data: &'a [u8],
}

/// The fields of a cooked header that describe the device.
struct Cooked {
    /// The type of the device (linux/if_arp.h).
    hardware: u16,
    /// The packet type (linux/if_packet.h), such as `PACKET_OUTGOING`.
    packet_type: u8,
}

impl Frame<'_> {
    /// Returns its length on the link. A cooked header is the capture's own: Ethernet has its own header in
    /// its place, and other devices have none that is counted.
    #[inline]
    pub fn link_len(&self) -> u32 {
        match self.cooked() {
            None => self.wire_len,
            Some(Cooked { hardware, .. }) => {
                let is_ethernet = matches!(hardware, libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK);
                let header = if is_ethernet { LinkType::Ethernet.header_len() } else { 0 };
                self.wire_len.saturating_sub(self.link.header_len()).saturating_add(header)
            }
        }
    }

    /// Returns the direction that the frame's own header states. A cooked header states it, except on
    /// loopback, where a frame is captured only as it arrives.
    pub fn stated_passage(&self) -> Passage {
        match self.cooked() {
            Some(Cooked { hardware, packet_type }) if hardware != libc::ARPHRD_LOOPBACK => {
                match packet_type {
                    libc::PACKET_OUTGOING => Passage::Outgoing,
                    libc::PACKET_OTHERHOST => Passage::Copied,
                    _ => Passage::Incoming,
                }
            }
            _ => Passage::Unknown,
        }
    }

    #[inline]
    fn cooked(&self) -> Option<Cooked> {
        match (self.link, self.data) {
            (LinkType::Cooked1, &[_, packet_type, h0, h1, ..])
            | (LinkType::Cooked2, &[_, _, _, _, _, _, _, _, h0, h1, packet_type, ..]) => {
                Some(Cooked { hardware: u16::from_be_bytes([h0, h1]), packet_type })
            }
            _ => None,
        }
    }
}

impl fmt::Debug for Frame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({:?}, {} of {} bytes)", self.link, self.data.len(), self.wire_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the direction and the link length that result from a cooked header of this version, for a
    /// frame of 100 bytes from a device of this type.
    fn cooked(version: usize, hardware: u16, packet_type: u8) -> (Passage, u32) {
        let [h0, h1] = hardware.to_be_bytes();
        let (link, data) = match version {
            1 => (LinkType::Cooked1, vec![0, packet_type, h0, h1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0, 8, 0]),
            _ => {
                let header = [8, 0, 0, 0, 0, 0, 0, 2, h0, h1, packet_type, 6, 2, 0, 0, 0, 0, 1, 0, 0];
                (LinkType::Cooked2, header.to_vec())
            }
        };
        let (time, wire_len, packet_limit) = (Timestamp(1), link.header_len() + 100, u32::MAX);
        let (namespace, passage) = (Namespace::HOME, Passage::Unknown);
        let frame = Frame { time, wire_len, packet_limit, link, namespace, passage, data: &data };
        (frame.stated_passage(), frame.link_len())
    }

    #[test]
    fn a_cooked_header_tells_the_passage_and_stands_for_the_links_own() {
        use libc::{
            ARPHRD_ETHER, ARPHRD_LOOPBACK, ARPHRD_NONE, ARPHRD_PPP, PACKET_HOST, PACKET_OTHERHOST,
            PACKET_OUTGOING,
        };
        for version in [1, 2] {
            assert_eq!(cooked(version, ARPHRD_ETHER, PACKET_OUTGOING), (Passage::Outgoing, 114));
            assert_eq!(cooked(version, ARPHRD_ETHER, PACKET_HOST), (Passage::Incoming, 114));
            assert_eq!(cooked(version, ARPHRD_ETHER, PACKET_OTHERHOST), (Passage::Copied, 114));
            assert_eq!(cooked(version, ARPHRD_LOOPBACK, PACKET_HOST), (Passage::Unknown, 114));
            assert_eq!(cooked(version, ARPHRD_PPP, PACKET_OUTGOING), (Passage::Outgoing, 100));
            assert_eq!(cooked(version, ARPHRD_NONE, PACKET_HOST), (Passage::Incoming, 100));
        }
        let (link, namespace) = (LinkType::Ethernet, Namespace::HOME);
        let (time, packet_limit, passage) = (Timestamp(1), u32::MAX, Passage::Unknown);
        let frame = Frame { time, wire_len: 60, packet_limit, link, namespace, passage, data: &[0; 60] };
        assert_eq!((frame.stated_passage(), frame.link_len()), (Passage::Unknown, 60));
    }
}
