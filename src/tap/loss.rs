//! Loss counters that wrap or restart, accumulated to 64 bits.

/// The sum of a 32-bit counter that wraps, such as those of `pcap_stats(3PCAP)`.
///
/// Right as long as it is observed at least once in every 2^32 counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Wrapping {
    last: u32,
    total: u64,
}

impl Wrapping {
    /// Takes in what the counter shows now; it began at 0.
    pub(super) fn observe(&mut self, shown: u32) {
        self.total += u64::from(shown.wrapping_sub(self.last));
        self.last = shown;
    }

    /// All that was counted.
    pub(super) fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_wrap_is_not_a_step_back() {
        let mut counter = Wrapping::default();
        counter.observe(u32::MAX - 1);
        counter.observe(3);
        assert_eq!(counter.total(), u64::from(u32::MAX) - 1 + 5);
        counter.observe(3);
        assert_eq!(counter.total(), (1 << 32) + 3);
    }

    proptest! {
        #[test]
        fn any_steps_add_up(steps in proptest::collection::vec(any::<u32>(), 0..50)) {
            let mut counter = Wrapping::default();
            let mut sum = 0u64;
            for step in steps {
                sum += u64::from(step);
                counter.observe(sum as u32);
            }
            prop_assert_eq!(counter.total(), sum);
        }
    }
}
