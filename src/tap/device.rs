//! One device that is captured on: its frames, and what was lost on it.

use super::frames::{Origin, drain, words};
use super::loss::{Gain, Wrapping};
use super::open::{self, Refusal, set_filter};
use super::options::TapOptions;
use super::plan::{Interface, Vlan};
use super::ring::silence;
use crate::error::{Code, Error};
use crate::model::{Frame, LinkType, Namespace};
use crate::namespace::{EnterError, Entry, enter};
use pcap::{Active, Capture};
use std::os::fd::{AsFd, BorrowedFd};

/// Why a device is not captured on.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Unopened {
    /// It is not up.
    Down,
    /// `OpenDevice`, `CompileFilter` or `SetFilter`, naming the device.
    Failed(Error),
}

/// A device that is to be opened.
pub(super) struct Opening {
    /// What names this opening among all of a tap.
    pub ticket: u64,
    /// The namespace that it is in; `None` for that of the calling thread.
    pub entry: Option<Entry>,
    pub interface: Interface,
    /// Bytes of its ring.
    pub ring: u32,
}

/// What one reading of a device gave.
pub(super) struct Batch {
    /// Frames handed on.
    pub frames: usize,
    /// Frames left to the device of their VLAN.
    pub skipped: usize,
    /// Why the device cannot be read any more, if it cannot.
    pub failure: Option<String>,
}

/// An open device.
pub(super) struct Device {
    pub index: u32,
    pub name: String,
    vlans: Vec<Vlan>,
    /// Bytes of its ring.
    pub ring: u32,
    /// Whether it has been seen to have frames and was not read empty since.
    pub ready: bool,
    origin: Origin,
    capture: Capture<Active>,
    by_kernel: Wrapping,
    by_device: Gain,
}

impl Device {
    /// Opens a device inside its namespace, and sets the filter for its link type. It then works on any thread. Takes
    /// some 10 ms, and longer where a host name in the filter is looked up.
    ///
    /// # Errors
    /// As [`Unopened`] says; the link type may also be one that is not decoded.
    pub(super) fn open(opening: &Opening, options: &TapOptions) -> Result<Device, Unopened> {
        let Opening { entry, interface, ring, .. } = opening;
        let name = &interface.name;
        let open = || open::live(name, interface.loopback, *ring, options);
        let handle = match entry {
            None => open(),
            Some(entry) => enter(entry, open).unwrap_or_else(|error| {
                // A way in that has closed is no fault of the device: it is tried again with the next refresh.
                Err(match error {
                    EnterError::Gone => Refusal::Down,
                    EnterError::Refused(error) => Refusal::Failed(error.text),
                })
            }),
        };
        let failed = |why: &str| {
            Unopened::Failed(Error::system(Code::OpenDevice, format_args!("opening the device {name}"), why))
        };
        let mut capture = match handle {
            Ok(capture) => capture,
            Err(Refusal::Down) => return Err(Unopened::Down),
            Err(Refusal::Failed(why)) => return Err(failed(&why)),
        };
        let dlt = capture.get_datalink();
        let Some(link) = LinkType::from_dlt(dlt.0) else {
            return Err(failed(&format!("{} is not decoded", link_name(dlt))));
        };
        // Even an empty filter cuts frames to the snaplen inside the kernel; without one they are copied whole.
        let filter = options.filter.as_deref().unwrap_or_default();
        set_filter(&mut capture, filter).map_err(|error| {
            Unopened::Failed(Error::new(error.code, format!("the device {name}: {}", error.text)))
        })?;
        Ok(Device {
            index: interface.index,
            name: name.clone(),
            vlans: Vec::new(),
            ring: *ring,
            ready: true,
            origin: Origin {
                link,
                namespace: entry.as_ref().map_or(Namespace::HOME, |entry| entry.namespace),
                packet_limit: u32::MAX,
            },
            capture,
            by_kernel: Wrapping::default(),
            by_device: Gain::since(interface.lost_by_device),
        })
    }

    /// What names the device among those of all namespaces, whose indices may be the same.
    pub(super) fn token(&self) -> u64 {
        u64::from(self.origin.namespace.0) << u32::BITS | u64::from(self.index)
    }

    /// The descriptor to wait for.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.capture.as_fd()
    }

    /// Sets what the plan says of it: tags whose frames other devices show, and the largest datagram that is one packet.
    pub(super) fn follow(&mut self, vlans: Vec<Vlan>, mtu: Option<u32>) {
        self.vlans = vlans;
        let header = self.origin.link.header_len();
        self.origin.packet_limit = mtu.map_or(u32::MAX, |mtu| mtu.saturating_add(header));
    }

    /// Reads at most `limit` frames without blocking and hands on those that no other device shows.
    pub(super) fn read(&mut self, limit: usize, mut handler: impl FnMut(Frame<'_>)) -> Batch {
        let (vlans, mut skipped) = (&self.vlans, 0);
        let (count, error) = drain(&mut self.capture, self.origin, limit, |frame| {
            if bears_tag_of(vlans, frame.data) {
                skipped += 1;
            } else {
                handler(frame);
            }
        });
        self.ready = error.is_none() && count == limit;
        Batch { frames: count - skipped, skipped, failure: error.map(words) }
    }

    /// Takes in the device's own counter of lost frames, as its interface shows it now.
    pub(super) fn observe(&mut self, lost_by_device: u64) {
        self.by_device.observe(lost_by_device);
    }

    /// Frames lost since the opening: by the kernel for want of room in the ring, and by the device itself.
    pub(super) fn losses(&mut self) -> (u64, u64) {
        if let Ok(stats) = self.capture.stats() {
            self.by_kernel.observe(stats.dropped);
        }
        (self.by_kernel.total(), self.by_device.total())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        silence(&self.capture);
    }
}

/// Whether the outermost tag of an Ethernet frame is one of `vlans`.
#[inline]
fn bears_tag_of(vlans: &[Vlan], frame: &[u8]) -> bool {
    !vlans.is_empty() && tag(frame).is_some_and(|tag| vlans.contains(&tag))
}

/// The outermost tag of an Ethernet frame, if it bears one. The kernel keeps it apart and libpcap puts it back.
#[inline]
fn tag(frame: &[u8]) -> Option<Vlan> {
    // IEEE 802.3: two addresses of 6 bytes, then the tag protocol identifier and the tag control information.
    let (_, &[p0, p1, t0, t1]) = frame.get(..16)?.split_last_chunk()?;
    Some(Vlan { protocol: u16::from_be_bytes([p0, p1]), id: u16::from_be_bytes([t0, t1]) & 0x0fff })
}

/// A link type as libpcap names it.
pub(super) fn link_name(link: pcap::Linktype) -> String {
    let name = link.get_name().unwrap_or_else(|_| "unknown".into());
    format!("the link type {name} ({})", link.0)
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

    #[test]
    fn link_types_have_names() {
        assert_eq!(link_name(pcap::Linktype(127)), "the link type IEEE802_11_RADIO (127)");
        assert_eq!(link_name(pcap::Linktype(99_999)), "the link type unknown (99999)");
    }
}
