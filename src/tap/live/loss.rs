//! Accumulated loss counters that survive a reset.

/// The gain of a 64-bit counter since its first observation. The counter may be reset to 0, as drivers do on
/// a reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::tap) struct Gain {
    last: u64,
    total: u64,
}

impl Gain {
    /// Begins with the counter's current value, none of which is counted.
    pub(in crate::tap) fn since(shown: u64) -> Gain {
        Gain { last: shown, total: 0 }
    }

    /// Records the counter's current value. After a reset, the new value is the gain.
    pub(in crate::tap) fn observe(&mut self, shown: u64) {
        let gain = shown.checked_sub(self.last).unwrap_or(shown);
        self.total = self.total.saturating_add(gain);
        self.last = shown;
    }

    /// Returns the total gain.
    pub(in crate::tap) fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_counts_from_zero_again() {
        let mut counter = Gain::since(100);
        counter.observe(107);
        counter.observe(2);
        counter.observe(5);
        assert_eq!(counter.total(), 7 + 2 + 3);
    }
}
