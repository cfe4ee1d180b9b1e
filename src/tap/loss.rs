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

/// What a 64-bit counter has gained since the first observation. It may be set back to 0, as drivers do on a reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Gain {
    last: u64,
    total: u64,
}

impl Gain {
    /// Begins with what the counter shows now, none of which is counted.
    pub(super) fn since(shown: u64) -> Gain {
        Gain { last: shown, total: 0 }
    }

    /// Takes in what the counter shows now. After a reset, what has been counted anew is the gain.
    pub(super) fn observe(&mut self, shown: u64) {
        let gain = shown.checked_sub(self.last).unwrap_or(shown);
        self.total = self.total.saturating_add(gain);
        self.last = shown;
    }

    /// All that was gained.
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

    #[test]
    fn a_reset_counts_from_zero_again() {
        let mut counter = Gain::since(100);
        counter.observe(107);
        counter.observe(2);
        counter.observe(5);
        assert_eq!(counter.total(), 7 + 2 + 3);
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
