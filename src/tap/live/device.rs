//! One captured device: its frames, and its losses.

use super::loss::Gain;
use super::packet_socket::{self, Refusal};
use super::ring::{Captured, Ring};
use crate::error::{Code, Error};
use crate::model::{Frame, LinkType, Namespace, Passage};
use crate::namespace::{EnterError, NamespaceEntry, enter};
use crate::netlink::{FrameKind, HardwareAddress, Interface, Vlan};
use crate::tap::filter::{Filter, asks_for_tags, everything};
use crate::tap::options::TapOptions;
use nix::errno::Errno;
use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

/// The addresses of the Ethernet devices of a namespace.
#[derive(Default, PartialEq, Eq)]
pub(in crate::tap) struct HardwareAddresses {
    /// The addresses of captured devices.
    pub captured: HashSet<HardwareAddress, foldhash::fast::FixedState>,
    /// The addresses of devices that the captured ones stand for, such as macvlan devices.
    pub covered: HashSet<HardwareAddress, foldhash::fast::FixedState>,
}

/// The reason why a device is not captured.
#[derive(PartialEq, Eq, Debug)]
pub(in crate::tap) enum Unopened {
    /// It is down or has disappeared.
    Down,
    /// `OpenDevice`, `CompileFilter` or `SystemResource`, naming the device.
    Failed(Error),
}

/// A request to open a device.
pub(in crate::tap) struct DeviceOpening {
    /// The number that identifies this opening among all openings of the tap.
    pub ticket: u64,
    /// The namespace of the device; `None` for that of the calling thread.
    pub entry: Option<NamespaceEntry>,
    pub interface: Interface,
    /// Bytes of its ring.
    pub ring: u32,
}

/// The result of one read from a device.
pub(in crate::tap) struct DeviceRead {
    /// Frames delivered.
    pub frames: usize,
    /// Frames left to the device of their VLAN.
    pub skipped: usize,
    /// The reason why the device can no longer be read, if it cannot.
    pub failure: Option<String>,
}

/// The properties of a device that follow from the plan, as of the last refresh.
#[derive(Default)]
pub(in crate::tap) struct Surroundings {
    /// Tags whose frames other devices show.
    pub vlans: Vec<Vlan>,
    /// The largest datagram that is one packet.
    pub mtu: Option<u32>,
    /// The hardware address of its frames.
    pub address: Option<HardwareAddress>,
    /// True if PPP devices show the traffic of the PPPoE sessions on this device.
    pub has_ppp: bool,
}

/// An open device.
pub(in crate::tap) struct Device {
    pub index: u32,
    pub name: String,
    /// Bytes of its ring.
    pub ring: u32,
    /// Set if the device had frames and has not been read empty since.
    pub ready: bool,
    /// The time by which the ring has been read to its end, if the device has disappeared.
    pub leaves: Option<Instant>,
    /// Bytes that it had carried when it was opened.
    pub carried_before: u64,
    capture: Ring,
    reading: FrameReader,
    dropped: u64,
    by_device: Gain,
}

/// The settings for reading a device's frames.
struct FrameReader {
    namespace: Namespace,
    is_ethernet: bool,
    is_loopback: bool,
    tells_passage: bool,
    /// Bytes kept of each frame.
    snaplen: usize,
    /// The filter, if the library rather than the kernel runs it.
    filter: Option<Filter>,
    packet_limit: u32,
    surroundings: Surroundings,
    /// The addresses of all devices in the namespace.
    others: Arc<HardwareAddresses>,
}

impl Device {
    /// Opens a device inside its namespace, with a filter for its frames. Any thread may then use it. Takes
    /// some 10 ms, and longer if a host name in the filter is resolved.
    ///
    /// # Errors
    /// Fails with an [`Unopened`] reason, also if the device's frames are not decoded.
    pub(in crate::tap) fn open(opening: &DeviceOpening, options: &TapOptions) -> Result<Device, Unopened> {
        let DeviceOpening { entry, interface, ring, .. } = opening;
        let name = &interface.name;
        let is_ethernet = interface.frames == FrameKind::Ethernet;
        let link = if is_ethernet { LinkType::Ethernet } else { LinkType::RawIp };
        let expression = options.filter.as_deref().map(str::trim).filter(|text| !text.is_empty());
        let filter = expression.map(|text| Filter::compile(text, link)).transpose().map_err(|error| {
            Unopened::Failed(Error::new(error.code, format!("the device {name}: {}", error.text)))
        })?;
        // An expression that tests tags runs in the library, where the tags have been restored.
        let (program, filter) = match filter {
            Some(filter) if expression.is_some_and(asks_for_tags) => {
                (everything(TapOptions::MAX_SNAPLEN), Some(filter))
            }
            Some(filter) => (filter.for_kernel(options.snaplen), None),
            // Even if everything passes, the kernel must truncate the frames.
            None => (everything(options.snaplen), None),
        };
        let open = || packet_socket::open(interface, *ring, options, &program);
        let outcome = match entry {
            None => open(),
            Some(entry) => enter(entry, open).unwrap_or_else(|error| {
                // A namespace entry that has become invalid is no fault of the device. The next refresh
                // retries it.
                Err(match error {
                    EnterError::Gone => Refusal::Down,
                    EnterError::Refused(error) => Refusal::Failed(error),
                })
            }),
        };
        let (capture, carried_before) = outcome.map_err(|refusal| match refusal {
            Refusal::Down => Unopened::Down,
            Refusal::Failed(error) => {
                let code = match error.code {
                    Code::SystemResource => Code::SystemResource,
                    _ => Code::OpenDevice,
                };
                Unopened::Failed(Error::new(code, format!("opening the device {name}: {}", error.text)))
            }
        })?;
        Ok(Device {
            index: interface.index,
            name: name.clone(),
            ring: *ring,
            ready: true,
            leaves: None,
            carried_before,
            capture,
            reading: FrameReader {
                namespace: entry.as_ref().map_or(Namespace::HOME, |entry| entry.namespace),
                is_ethernet,
                is_loopback: interface.loopback,
                tells_passage: interface.tells_passage,
                snaplen: options.snaplen as usize,
                filter,
                packet_limit: u32::MAX,
                surroundings: Surroundings::default(),
                others: Arc::default(),
            },
            dropped: 0,
            by_device: Gain::since(interface.lost_by_device),
        })
    }

    /// Returns the number that identifies the device among those of all namespaces, whose indices may be
    /// equal.
    pub(in crate::tap) fn token(&self) -> u64 {
        token(self.reading.namespace, self.index)
    }

    /// Returns the descriptor to wait for.
    pub(in crate::tap) fn descriptor(&self) -> BorrowedFd<'_> {
        self.capture.as_fd()
    }

    /// Sets the properties that follow from the plan.
    pub(in crate::tap) fn follow(&mut self, surroundings: Surroundings) {
        let header = if self.reading.is_ethernet { LinkType::Ethernet.header_len() } else { 0 };
        self.reading.packet_limit = surroundings.mtu.map_or(u32::MAX, |mtu| mtu.saturating_add(header));
        self.reading.surroundings = surroundings;
    }

    /// Sets the addresses of all devices in its namespace.
    pub(in crate::tap) fn know(&mut self, addresses: &Arc<HardwareAddresses>) {
        self.reading.others = Arc::clone(addresses);
    }

    /// Reads at most `limit` frames without blocking and delivers those that no other device shows.
    pub(in crate::tap) fn read(&mut self, limit: usize, mut handler: impl FnMut(Frame<'_>)) -> DeviceRead {
        let (mut frames, mut skipped) = (0, 0);
        let reading = &self.reading;
        let count = self.capture.read(limit, |captured| match reading.frame(&captured) {
            RingFrame::Frame(frame) => {
                frames += 1;
                handler(frame);
            }
            RingFrame::OfVlan => skipped += 1,
            RingFrame::Unwanted => {}
        });
        self.ready = count == limit;
        // A socket with a pending error stays ready until the error is taken. The device may come up again;
        // if it has disappeared, the next refresh closes it.
        let error = if count == 0 { self.capture.take_error() } else { None };
        let failure = error.filter(|errno| *errno != Errno::ENETDOWN).map(|errno| errno.to_string());
        DeviceRead { frames, skipped, failure }
    }

    /// Records the device's own counter of lost frames, as its interface shows it now.
    pub(in crate::tap) fn observe(&mut self, lost_by_device: u64) {
        self.by_device.observe(lost_by_device);
    }

    /// Returns the frames lost since the opening: by the kernel for lack of room in the ring, and by the
    /// device itself.
    pub(in crate::tap) fn losses(&mut self) -> (u64, u64) {
        self.dropped += u64::from(self.capture.take_dropped());
        (self.dropped, self.by_device.total())
    }
}

/// Returns the number that identifies the device with this index in a namespace. No device has index 0.
pub(in crate::tap) fn token(namespace: Namespace, index: u32) -> u64 {
    u64::from(namespace.0) << u32::BITS | u64::from(index)
}

/// The classification of a frame of the ring.
enum RingFrame<'a> {
    Frame(Frame<'a>),
    /// A frame left to the device of its VLAN.
    OfVlan,
    /// The sent copy of a loopback frame, or a frame that the filter does not pass.
    Unwanted,
}

impl FrameReader {
    #[inline]
    fn frame<'a>(&self, captured: &Captured<'a>) -> RingFrame<'a> {
        let &Captured { time, len, packet_type, protocol, mut data } = captured;
        if self.is_loopback && packet_type == libc::PACKET_OUTGOING {
            return RingFrame::Unwanted;
        }
        if let Some(filter) = &self.filter {
            if !filter.matches(data, len) {
                return RingFrame::Unwanted;
            }
            data = &data[..data.len().min(self.snaplen)];
        }
        if bears_tag_of(&self.surroundings.vlans, data) {
            return RingFrame::OfVlan;
        }
        let link = match i32::from(protocol) {
            _ if self.is_ethernet => LinkType::Ethernet,
            // A process that sends by a packet socket need not name a protocol.
            0 | libc::ETH_P_IP | libc::ETH_P_IPV6 => LinkType::RawIp,
            _ => LinkType::Bare(protocol),
        };
        let (namespace, packet_limit) = (self.namespace, self.packet_limit);
        let passage = self.passage(packet_type, data);
        RingFrame::Frame(Frame { time, wire_len: len, packet_limit, link, namespace, passage, data })
    }

    /// Returns the direction in which a frame passed.
    ///
    /// A frame that leaves with another captured device's address as its source, or arrives for that address,
    /// is a copy or was redirected (tc-mirred(8)), and that device shows it. In the same way a PPP device
    /// shows the traffic of a PPPoE session. The kernel drops a frame that arrives for an unrelated address
    /// before it looks at the IP addresses (ip_rcv_core in net/ipv4/ip_input.c), unless it is for a device
    /// that this one stands for.
    #[inline]
    fn passage(&self, packet_type: u8, data: &[u8]) -> Passage {
        if self.is_loopback {
            return Passage::Loopback;
        }
        if !self.tells_passage {
            return Passage::Unknown;
        }
        let (passage, address) = match packet_type {
            libc::PACKET_OUTGOING => (Passage::Outgoing, data.get(6..12)),
            _ => (Passage::Incoming, data.get(..6)),
        };
        let address = address.and_then(|address| <&HardwareAddress>::try_from(address).ok());
        let is_elsewhere = |address: &HardwareAddress| {
            let is_others = || self.surroundings.address.is_some_and(|own| own != *address);
            let is_strangers =
                packet_type == libc::PACKET_OTHERHOST && !self.others.covered.contains(address);
            is_strangers || is_others() && self.others.captured.contains(address)
        };
        let is_copy =
            || address.is_some_and(is_elsewhere) || self.surroundings.has_ppp && is_of_session(data);
        if self.is_ethernet && is_copy() { Passage::Copied } else { passage }
    }
}

/// Returns true if an Ethernet frame belongs to a PPPoE session (RFC 2516), under one tag at most.
fn is_of_session(frame: &[u8]) -> bool {
    const SESSION: &[u8] = &[0x88, 0x64];
    match frame.get(12..14) {
        Some([0x81, 0x00] | [0x88, 0xa8]) => frame.get(16..18) == Some(SESSION),
        other => other == Some(SESSION),
    }
}

/// Returns true if the outermost tag of an Ethernet frame is one of `vlans`.
#[inline]
fn bears_tag_of(vlans: &[Vlan], frame: &[u8]) -> bool {
    !vlans.is_empty() && tag(frame).is_some_and(|tag| vlans.contains(&tag))
}

/// Returns the outermost tag of an Ethernet frame, if it has one. The kernel keeps the tag apart and the ring
/// restores it.
#[inline]
fn tag(frame: &[u8]) -> Option<Vlan> {
    // IEEE 802.3: two addresses of 6 bytes, then the tag protocol identifier and the tag control information.
    let (_, &[p0, p1, t0, t1]) = frame.get(..16)?.split_last_chunk()?;
    Some(Vlan { protocol: u16::from_be_bytes([p0, p1]), id: u16::from_be_bytes([t0, t1]) & 0x0fff })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outermost_tag_is_read() {
        // Addresses, 802.1ad tag with priority 5 and identifier 0x123, 802.1Q tag, IPv4.
        let frame =
            [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xa8, 0xa1, 0x23, 0x81, 0x00, 0x00, 0x07, 0x08, 0x00];
        let vlan = |protocol, id| Vlan { protocol, id };
        assert_eq!(tag(&frame), Some(vlan(0x88a8, 0x123)));
        assert_eq!(tag(&frame[..15]), None);
        assert_eq!(tag(&[]), None);
        assert!(bears_tag_of(&[vlan(0x8100, 9), vlan(0x88a8, 0x123)], &frame));
        assert!(!bears_tag_of(&[], &frame));
        assert!(
            !bears_tag_of(&[vlan(0x8100, 0x123)], &frame),
            "the same identifier in a tag of another protocol"
        );
        assert!(!bears_tag_of(&[vlan(0x88a8, 7), vlan(0x8100, 7)], &frame), "the inner tag does not matter");
    }

    const OWN: HardwareAddress = [2, 0, 0, 0, 0, 1];
    const OTHER: HardwareAddress = [2, 0, 0, 0, 0, 2];
    const STRANGER: HardwareAddress = [2, 0, 0, 0, 0, 3];
    const COVERED: HardwareAddress = [2, 0, 0, 0, 0, 4];

    fn reading(interface: impl FnOnce(&mut FrameReader)) -> FrameReader {
        let mut reading = FrameReader {
            namespace: Namespace::HOME,
            is_ethernet: true,
            is_loopback: false,
            tells_passage: true,
            snaplen: 128,
            filter: None,
            packet_limit: 1514,
            surroundings: Surroundings { address: Some(OWN), ..Surroundings::default() },
            others: Arc::new(HardwareAddresses {
                captured: [OWN, OTHER].into_iter().collect(),
                covered: [COVERED].into_iter().collect(),
            }),
        };
        interface(&mut reading);
        reading
    }

    /// Reads a frame with the given packet type and EtherType. Returns `None` if the reader does not deliver
    /// it.
    fn read<'a>(reading: &FrameReader, packet_type: u8, protocol: u16, data: &'a [u8]) -> Option<Frame<'a>> {
        let time = crate::model::Timestamp(1);
        match reading.frame(&Captured { time, len: 100, packet_type, protocol, data }) {
            RingFrame::Frame(frame) => Some(frame),
            RingFrame::OfVlan | RingFrame::Unwanted => None,
        }
    }

    fn frame(to: HardwareAddress, from: HardwareAddress, rest: &[u8]) -> Vec<u8> {
        [&to[..], &from, rest].concat()
    }

    #[test]
    fn a_frame_has_passed_the_way_that_the_kernel_tells_unless_another_device_shows_it() {
        use libc::{PACKET_BROADCAST, PACKET_HOST, PACKET_OTHERHOST, PACKET_OUTGOING};
        const IPV4: &[u8] = &[0x08, 0x00, 0x45];
        const BROADCAST: HardwareAddress = [0xff; 6];
        let passage = |reading: &FrameReader, packet_type, data: &[u8]| {
            read(reading, packet_type, 0x0800, data).map(|frame| frame.passage)
        };
        let plain = reading(|_| ());
        for (packet_type, to, from, expected) in [
            (PACKET_OUTGOING, STRANGER, OWN, Passage::Outgoing),
            (PACKET_OUTGOING, OTHER, OWN, Passage::Outgoing),
            (PACKET_OUTGOING, STRANGER, STRANGER, Passage::Outgoing),
            (PACKET_OUTGOING, STRANGER, OTHER, Passage::Copied),
            (PACKET_HOST, OWN, STRANGER, Passage::Incoming),
            (PACKET_HOST, OWN, OTHER, Passage::Incoming),
            (PACKET_BROADCAST, BROADCAST, OTHER, Passage::Incoming),
            (PACKET_OTHERHOST, STRANGER, STRANGER, Passage::Copied),
            (PACKET_OTHERHOST, COVERED, STRANGER, Passage::Incoming),
            (PACKET_OTHERHOST, OTHER, STRANGER, Passage::Copied),
            (PACKET_HOST, OTHER, STRANGER, Passage::Copied),
        ] {
            let found = passage(&plain, packet_type, &frame(to, from, IPV4));
            assert_eq!(found, Some(expected), "{packet_type}: {from:?} to {to:?}");
        }
        let copy = frame(STRANGER, OTHER, IPV4);
        let silent = reading(|reading| reading.tells_passage = false);
        assert_eq!(passage(&silent, PACKET_OUTGOING, &copy), Some(Passage::Unknown));
        let bare = reading(|reading| reading.is_ethernet = false);
        assert_eq!(passage(&bare, PACKET_OUTGOING, &copy), Some(Passage::Outgoing), "no addresses there");
        let loopback = reading(|reading| reading.is_loopback = true);
        assert_eq!(passage(&loopback, PACKET_OUTGOING, &copy), None);
        assert_eq!(passage(&loopback, PACKET_HOST, &copy), Some(Passage::Loopback));
    }

    #[test]
    fn sessions_of_pppoe_are_left_to_their_devices() {
        let session = |tags: &[u8]| frame(STRANGER, OWN, &[tags, &[0x88, 0x64, 0x11, 0x00]].concat());
        let others = frame(STRANGER, OWN, &[0x08, 0x00, 0x45]);
        let with_ppp = reading(|reading| reading.surroundings.has_ppp = true);
        let passage = |reading: &FrameReader, data: &[u8]| {
            read(reading, libc::PACKET_OUTGOING, 0x8864, data).map(|frame| frame.passage)
        };
        for tags in [&[][..], &[0x81, 0x00, 0x00, 0x07], &[0x88, 0xa8, 0x00, 0x07]] {
            assert_eq!(passage(&with_ppp, &session(tags)), Some(Passage::Copied), "{tags:x?}");
            assert_eq!(passage(&reading(|_| ()), &session(tags)), Some(Passage::Outgoing), "{tags:x?}");
        }
        assert_eq!(passage(&with_ppp, &others), Some(Passage::Outgoing));
    }

    #[test]
    fn datagrams_without_a_link_header_are_what_the_kernel_says() {
        let bare = reading(|reading| reading.is_ethernet = false);
        let link = |protocol| read(&bare, libc::PACKET_HOST, protocol, &[0x45]).map(|frame| frame.link);
        assert_eq!((link(0x0800), link(0x86dd)), (Some(LinkType::RawIp), Some(LinkType::RawIp)));
        assert_eq!((link(0), link(0x8847)), (Some(LinkType::RawIp), Some(LinkType::Bare(0x8847))));
    }

    #[test]
    fn what_is_filtered_here_is_cut_afterwards() {
        let filter = Filter::compile("ether[100] = 7", LinkType::Ethernet).ok();
        let filtered = reading(|reading| (reading.filter, reading.snaplen) = (filter, 60));
        let mut data = vec![0; 200];
        assert!(read(&filtered, libc::PACKET_HOST, 0x0800, &data).is_none());
        data[100] = 7;
        let frame = read(&filtered, libc::PACKET_HOST, 0x0800, &data);
        assert_eq!(frame.map(|frame| (frame.data.len(), frame.wire_len)), Some((60, 100)));
    }
}
