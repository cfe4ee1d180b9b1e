//! One open device.

use super::loss::Wrapping;
use super::options::TapOptions;
use super::savefile::frame;
use crate::error::{Code, Error, Result};
use crate::model::{Frame, LinkType};
use pcap::{Active, Capture, Precision};
use std::os::fd::{AsRawFd, BorrowedFd};

/// An open device. Frames that belong to a VLAN device which is captured as well are left to that one.
pub(super) struct Device {
    pub index: u32,
    pub name: String,
    pub buffer_bytes: u32,
    pub vlans_above: Vec<u16>,
    capture: Capture<Active>,
    link: LinkType,
    dropped_by_kernel: Wrapping,
    dropped_by_device: Wrapping,
}

/// Whether reading a device can go on.
pub(super) enum Read {
    /// Everything was read.
    Drained,
    /// The limit was reached.
    More,
    /// The device has vanished or gone down, in libpcap's words.
    Closed(String),
}

impl Device {
    /// Opens a device.
    ///
    /// # Errors
    /// `OpenDevice` when libpcap refuses it or its link type cannot be decoded; `CompileFilter` when the filter does
    /// not compile for its link type.
    pub fn open(index: u32, name: &str, options: &TapOptions, buffer_bytes: u32) -> Result<Device> {
        let refused = |error: pcap::Error| {
            Error::system(Code::OpenDevice, format_args!("opening the device {name}"), error)
        };
        let mut capture = Capture::from_device(name)
            .map_err(refused)?
            .promisc(options.promiscuous)
            .snaplen(i32::try_from(options.snaplen).unwrap_or(i32::MAX))
            .buffer_size(i32::try_from(buffer_bytes).unwrap_or(i32::MAX))
            .timeout(i32::try_from(options.timeout.as_millis()).unwrap_or(i32::MAX))
            .precision(Precision::Nano)
            .open()
            .map_err(refused)?
            .setnonblock()
            .map_err(refused)?;
        let dlt = capture.get_datalink();
        let link = LinkType::from_dlt(dlt.0).ok_or_else(|| {
            let link = dlt.get_name().unwrap_or_else(|_| dlt.0.to_string());
            Error::new(
                Code::OpenDevice,
                format!("the device {name} has link type {link}, which is not decoded"),
            )
        })?;
        if let Some(filter) = &options.filter {
            capture.filter(filter, true).map_err(|error| {
                let tried = format_args!("setting the filter \"{filter}\" on the device {name}");
                Error::system(Code::SetFilter, tried, error)
            })?;
        }
        Ok(Device {
            index,
            name: name.to_owned(),
            buffer_bytes,
            vlans_above: Vec::new(),
            capture,
            link,
            dropped_by_kernel: Wrapping::default(),
            dropped_by_device: Wrapping::default(),
        })
    }

    /// Hands over at most `limit` of the frames that are there.
    pub fn read(&mut self, limit: usize, handler: &mut impl FnMut(&Frame<'_>)) -> Read {
        for _ in 0..limit {
            match self.capture.next_packet() {
                Ok(packet) => {
                    let frame = frame(&packet, self.link);
                    if self.vlans_above.is_empty() || !is_of_vlan(&frame, &self.vlans_above) {
                        handler(&frame);
                    }
                }
                Err(pcap::Error::TimeoutExpired) => return Read::Drained,
                Err(error) => return Read::Closed(error.to_string()),
            }
        }
        Read::More
    }

    /// Asks libpcap for the losses, and returns all there were: in the kernel, and in the device.
    pub fn losses(&mut self) -> (u64, u64) {
        if let Ok(stats) = self.capture.stats() {
            self.dropped_by_kernel.observe(stats.dropped);
            self.dropped_by_device.observe(stats.if_dropped);
        }
        (self.dropped_by_kernel.total(), self.dropped_by_device.total())
    }

    /// What is waited for.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: on Linux the capture's descriptor is its packet socket, open as long as the capture is, which
        // this borrow keeps from being dropped.
        unsafe { BorrowedFd::borrow_raw(self.capture.as_raw_fd()) }
    }
}

/// Whether the frame's first tag is one of these VLAN identifiers. libpcap puts tags that the device has stripped
/// back where they were (IEEE 802.1Q).
fn is_of_vlan(frame: &Frame<'_>, vlans: &[u16]) -> bool {
    let Some([high, low, tag_high, tag_low]) = frame.data.get(12..16) else { return false };
    let is_tag = matches!(u16::from_be_bytes([*high, *low]), 0x8100 | 0x88a8);
    frame.link == LinkType::Ethernet
        && is_tag
        && vlans.contains(&(u16::from_be_bytes([*tag_high, *tag_low]) & 0x0fff))
}
