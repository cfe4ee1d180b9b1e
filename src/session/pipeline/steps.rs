//! Detects that the time of day was set. Packets are stamped with it, so flows would otherwise seem older by
//! as much as the clock was set forward.

use crate::kernel::Clocks;

/// Minimum step, in nanoseconds. Smaller ones matter to no timeout, and the clocks are not read at exactly
/// one moment.
const MIN_STEP: u64 = 10_000_000;

/// The steps of the time of day relative to the time since boot, which is never set and continues while the
/// machine sleeps.
#[derive(Default)]
pub struct ClockSteps {
    /// The time of day at boot, by the clock as it was set last.
    epoch_ns: Option<u64>,
}

impl ClockSteps {
    /// Returns the number of nanoseconds by which the clock was set forward since the last call, negative if
    /// it was set back; `None` if it was not set.
    pub fn take(&mut self, clocks: &Clocks) -> Option<i64> {
        let known = *self.epoch_ns.get_or_insert(clocks.epoch_ns);
        if clocks.epoch_ns.abs_diff(known) < MIN_STEP {
            return None;
        }
        self.epoch_ns = Some(clocks.epoch_ns);
        Some(clocks.epoch_ns.wrapping_sub(known).cast_signed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const HOUR: u64 = 3_600_000_000_000;

    #[test]
    fn a_step_is_returned_once() {
        let mut steps = ClockSteps::default();
        let mut take = |epoch_ns| steps.take(&Clocks { now_ns: 1, epoch_ns, at: Instant::now() });
        assert_eq!([take(9 * HOUR), take(9 * HOUR)], [None, None]);
        assert_eq!([take(12 * HOUR), take(12 * HOUR)], [Some(3 * HOUR as i64), None]);
        assert_eq!([take(HOUR), take(HOUR)], [Some(-11 * HOUR as i64), None]);
        assert_eq!(take(HOUR + 300_000_000), Some(300_000_000));
    }

    #[test]
    fn what_is_too_small_adds_up() {
        let mut steps = ClockSteps::default();
        let taken: Vec<i64> = (0..10)
            .filter_map(|number| {
                steps.take(&Clocks { now_ns: 1, epoch_ns: HOUR + number * 4_000_000, at: Instant::now() })
            })
            .collect();
        assert_eq!(taken, [12_000_000; 3]);
    }
}
