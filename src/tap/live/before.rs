//! Bytes that devices carried before their capture began, for devices that appeared since the start of the
//! live capture.

use crate::netlink::Interface;
use std::collections::HashSet;

/// The bytes before capture of the devices of one namespace.
#[derive(Default)]
pub(in crate::tap) struct BeforeCapture {
    /// Devices that have been counted or excluded.
    settled: HashSet<u32>,
    bytes: u64,
}

impl BeforeCapture {
    /// Excludes a device: it existed before the capture, or another device shows its packets.
    pub(in crate::tap) fn leave_out(&mut self, index: u32) {
        self.settled.insert(index);
    }

    /// Counts the bytes that a device had carried when its capture began or when it disappeared.
    pub(in crate::tap) fn count(&mut self, index: u32, carried: u64) {
        if self.settled.insert(index) {
            self.bytes = self.bytes.saturating_add(carried);
        }
    }

    /// Removes devices that have disappeared. The kernel does not reuse their numbers.
    pub(in crate::tap) fn keep(&mut self, interfaces: &[Interface]) {
        self.settled.retain(|index| interfaces.iter().any(|interface| interface.index == *index));
    }

    /// Returns all bytes counted.
    pub(in crate::tap) fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_counts_once_and_not_if_it_is_left_out() {
        let mut before = BeforeCapture::default();
        before.leave_out(1);
        before.count(1, 100);
        before.count(2, 20);
        before.count(2, 30);
        assert_eq!(before.bytes(), 20);
        before.keep(&[]);
        before.count(3, 3);
        assert_eq!((before.bytes(), before.settled.len()), (23, 1));
    }
}
