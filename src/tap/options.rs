//! The options of a live capture, and their bounds.

use crate::error::{Code, Error, Result};
use crate::namespace::NamespaceChoice;
use std::time::Duration;

/// The options of a live capture. `TapOptions::default()` suits the accounting of bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TapOptions {
    /// The devices to capture on, by interface name. If it is empty or contains `any`, the tap captures on
    /// every usable device. It opens each by itself, because a capture on all devices at once shows a packet
    /// once for every device that the packet passes.
    pub devices: Vec<String>,
    /// A pcap-filter(7) expression; `None` captures everything. A host name in it is resolved each time a
    /// device is opened, which blocks.
    pub filter: Option<String>,
    /// The number of bytes kept of each frame, 1 to [`TapOptions::MAX_SNAPLEN`].
    pub snaplen: u32,
    /// The size of the kernel's ring for each device in bytes, [`TapOptions::MIN_BUFFER`] to
    /// [`TapOptions::MAX_BUFFER`]. The devices share [`TapOptions::ALL_BUFFERS`]: if there are very many,
    /// later ones get smaller rings.
    pub buffer_bytes: u32,
    /// The time for which the kernel gathers a batch before it delivers it, 1 ms to
    /// [`TapOptions::MAX_TIMEOUT`].
    pub timeout: Duration,
    /// Set to capture also frames that are not addressed to this machine. Such traffic is never credited to
    /// the machine.
    pub promiscuous: bool,
    /// The network namespaces to capture in besides that of the thread that opens the tap. All other options
    /// apply to each of them. A named device is captured in every namespace that has a device of this name.
    /// Each namespace takes two descriptors and one for each device, and in a session another three.
    /// [`crate::namespace::Registry`] states the maximum number of namespaces.
    pub namespaces: NamespaceChoice,
}

impl TapOptions {
    /// Room for the headers that decoding reads, in bad cases: Ethernet 14, two VLAN tags 8, IPv6 40 with
    /// some 170 bytes of extension headers, TCP up to the flags 14. It is far below a full frame, so that a
    /// ring holds more frames.
    pub const DEFAULT_SNAPLEN: u32 = crate::decode::SNAPLEN as u32;
    /// 32 blocks of the ring: at one block per timeout, three seconds of a stalled reader.
    pub const DEFAULT_BUFFER: u32 = 8 << 20;
    /// A compromise between the age of the figures and the number of wake-ups.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(100);
    /// libpcap's `MAXIMUM_SNAPLEN`.
    pub const MAX_SNAPLEN: u32 = 262_144;
    /// Two blocks of the ring: with fewer, the kernel has nowhere to write while one is read.
    pub const MIN_BUFFER: u32 = 512 << 10;
    /// A bound against mistakes in the unit.
    pub const MAX_BUFFER: u32 = 1 << 30;
    /// The limit of the rings of all devices together, except that each device has at least
    /// [`TapOptions::MIN_BUFFER`]. A machine with hundreds of container interfaces must not lose gigabytes of
    /// memory to idle rings.
    pub const ALL_BUFFERS: u64 = 256 << 20;
    /// A bound against mistakes in the unit.
    pub const MAX_TIMEOUT: Duration = Duration::from_secs(60);

    /// Checks every bound.
    ///
    /// # Errors
    /// Fails with `InvalidArgument`, naming the option, its value and its bounds, if an option is out of
    /// bounds.
    pub fn check(&self) -> Result<()> {
        let invalid = |text: String| Err(Error::new(Code::InvalidArgument, text));
        if !(1..=Self::MAX_SNAPLEN).contains(&self.snaplen) {
            return invalid(format!("snaplen is {}; it must be 1 to {}", self.snaplen, Self::MAX_SNAPLEN));
        }
        if !(Self::MIN_BUFFER..=Self::MAX_BUFFER).contains(&self.buffer_bytes) {
            let (bytes, min, max) = (self.buffer_bytes, Self::MIN_BUFFER, Self::MAX_BUFFER);
            return invalid(format!("buffer_bytes is {bytes}; it must be {min} to {max}"));
        }
        if !(Duration::from_millis(1)..=Self::MAX_TIMEOUT).contains(&self.timeout) {
            let (timeout, max) = (self.timeout, Self::MAX_TIMEOUT);
            return invalid(format!("the read timeout is {timeout:?}; it must be 1ms to {max:?}"));
        }
        self.namespaces.check()?;
        if let Some(name) = self.devices.iter().find(|name| name.contains('\0')) {
            return invalid(format!("the device name {name:?} contains a NUL character"));
        }
        self.filter.as_deref().map_or(Ok(()), check_filter)
    }

    /// Returns true if the options select every packet on every usable device.
    pub fn is_of_everything(&self) -> bool {
        self.every_device() && self.filter.as_deref().unwrap_or_default().trim().is_empty()
    }

    /// Returns true if the options select every usable device.
    pub(super) fn every_device(&self) -> bool {
        self.devices.is_empty() || self.devices.iter().any(|name| name == "any")
    }

    /// Returns the ring size of a further device if the open ones take `taken` bytes: the chosen size while
    /// there is plenty, then half of the remainder each time, but at least the minimum.
    pub(super) fn next_buffer(&self, taken: u64) -> u32 {
        let share = u32::try_from(Self::ALL_BUFFERS.saturating_sub(taken) / 2).unwrap_or(u32::MAX);
        match taken {
            0 => self.buffer_bytes,
            _ => self.buffer_bytes.min(share).max(Self::MIN_BUFFER),
        }
    }
}

impl Default for TapOptions {
    fn default() -> TapOptions {
        TapOptions {
            devices: Vec::new(),
            filter: None,
            snaplen: Self::DEFAULT_SNAPLEN,
            buffer_bytes: Self::DEFAULT_BUFFER,
            timeout: Self::DEFAULT_TIMEOUT,
            promiscuous: false,
            namespaces: NamespaceChoice::default(),
        }
    }
}

/// Rejects an expression that contains a NUL character, which a C string cannot hold.
///
/// # Errors
/// Fails with `InvalidArgument` if the expression contains a NUL character.
pub(super) fn check_filter(filter: &str) -> Result<()> {
    if filter.contains('\0') {
        let text = format!("the filter {filter:?} contains a NUL character");
        return Err(Error::new(Code::InvalidArgument, text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut TapOptions)) -> String {
        let mut options = TapOptions::default();
        options.check().expect("the defaults are within bounds");
        change(&mut options);
        let error = options.check().expect_err("out of bounds");
        assert_eq!(error.code, Code::InvalidArgument);
        error.text
    }

    #[test]
    fn every_bound_is_checked() {
        assert!(refused(|o| o.snaplen = 0).contains("snaplen is 0"));
        assert!(refused(|o| o.snaplen = 262_145).contains("262144"));
        assert!(refused(|o| o.buffer_bytes = 1000).contains("buffer_bytes is 1000"));
        assert!(refused(|o| o.buffer_bytes = u32::MAX).contains("4294967295"));
        assert!(refused(|o| o.timeout = Duration::ZERO).contains("0ns"));
        assert!(refused(|o| o.timeout = Duration::from_secs(61)).contains("61s"));
        assert!(refused(|o| o.filter = Some("tcp\0port 1".into())).contains("NUL"));
        assert!(refused(|o| o.devices = vec!["lo\0".into()]).contains("NUL"));
    }

    #[test]
    fn a_filter_or_a_device_leaves_something_out() {
        let with = |devices: &[&str], filter: Option<&str>| TapOptions {
            devices: devices.iter().map(|name| (*name).into()).collect(),
            filter: filter.map(Into::into),
            ..TapOptions::default()
        };
        for all in [with(&[], None), with(&[], Some(" ")), with(&["any"], None), with(&["lo", "any"], None)] {
            assert!(all.is_of_everything(), "{all:?}");
        }
        for part in [with(&["lo"], None), with(&[], Some("tcp")), with(&["any"], Some("port 1"))] {
            assert!(!part.is_of_everything(), "{part:?}");
        }
    }

    #[test]
    fn rings_shrink_when_there_are_many() {
        let options = TapOptions::default();
        let mut taken = 0u64;
        let rings: Vec<u32> = (0..500)
            .map(|_| {
                let ring = options.next_buffer(taken);
                taken += u64::from(ring);
                ring
            })
            .collect();
        assert!(rings[..20].iter().all(|&ring| ring == options.buffer_bytes));
        assert!(rings.windows(2).all(|pair| pair[1] <= pair[0]));
        assert_eq!(rings[499], TapOptions::MIN_BUFFER);
        assert!(taken <= TapOptions::ALL_BUFFERS + 500 * u64::from(TapOptions::MIN_BUFFER));
        let one = TapOptions { buffer_bytes: TapOptions::MAX_BUFFER, ..options };
        assert_eq!(one.next_buffer(0), TapOptions::MAX_BUFFER, "a single device gets what was asked for");
    }
}
