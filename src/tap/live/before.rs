//! What devices have carried before they were captured on, of those that have come since the capture began.

use crate::netlink::Interface;
use std::collections::HashSet;

/// The devices of one namespace.
#[derive(Default)]
pub(in crate::tap) struct BeforeCapture {
    /// Those of which this is counted, or not to be.
    settled: HashSet<u32>,
    bytes: u64,
}

impl BeforeCapture {
    /// Leaves out a device: it was there before the capture, or another shows its packets.
    pub(in crate::tap) fn leave_out(&mut self, index: u32) {
        self.settled.insert(index);
    }

    /// Counts what a device had carried when its capture began, or when it was gone.
    pub(in crate::tap) fn count(&mut self, index: u32, carried: u64) {
        if self.settled.insert(index) {
            self.bytes = self.bytes.saturating_add(carried);
        }
    }

    /// Forgets devices that are gone. Their numbers are not given out again.
    pub(in crate::tap) fn keep(&mut self, interfaces: &[Interface]) {
        self.settled.retain(|index| interfaces.iter().any(|interface| interface.index == *index));
    }

    /// All that was counted.
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
