//! The clocks that the programs, packets and people go by.

use crate::model::Timestamp;
use std::time::Duration;

/// How long packets may have been with the capture until they are asked about.
const LONGEST_BATCH_NS: u64 = 60_000_000_000;

/// How long they usually have been, at most: the usual read timeout and some more.
const USUAL_BATCH_NS: u64 = 150_000_000;

/// The time of a reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clocks {
    /// Nanoseconds since boot (CLOCK_BOOTTIME).
    pub now_ns: u64,
    /// The time of day at boot, nanoseconds since the Unix epoch.
    pub epoch_ns: u64,
}

impl Clocks {
    /// Both clocks, read now.
    pub fn now() -> Clocks {
        // The clock is there since Linux 2.6.39.
        let now_ns = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
            .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64);
        Clocks { now_ns, epoch_ns: Timestamp::now().0.saturating_sub(now_ns) }
    }

    /// The time so long before now, in nanoseconds since boot.
    pub fn before(&self, waited: Duration) -> u64 {
        self.now_ns.saturating_sub(u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX))
    }

    /// The time when a packet was captured, in nanoseconds since boot, by the time of day that it bears. It was asked about `waited`
    /// ago, a moment after that; where it bears another time the clock was set meanwhile.
    pub fn captured(&self, time: Timestamp, waited: Duration) -> u64 {
        let asked_ns = self.before(waited);
        let by_clock = time.0.checked_sub(self.epoch_ns);
        let is_possible = |&ns: &u64| ns <= asked_ns && asked_ns - ns <= LONGEST_BATCH_NS;
        by_clock.filter(is_possible).unwrap_or(asked_ns.saturating_sub(USUAL_BATCH_NS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn packets_have_their_time_unless_the_clock_was_set() {
        let clocks = Clocks { now_ns: 500 * SECOND, epoch_ns: 1_700_000_000 * SECOND };
        let captured = |since_boot: u64, waited: u64| {
            clocks.captured(Timestamp(clocks.epoch_ns + since_boot), Duration::from_secs(waited))
        };
        assert_eq!(captured(499 * SECOND, 1), 499 * SECOND);
        assert_eq!(captured(439 * SECOND, 1), 439 * SECOND, "the capture was a minute behind");
        let usual = 499 * SECOND - USUAL_BATCH_NS;
        assert_eq!(captured(499 * SECOND + 1, 1), usual, "it was set back");
        assert_eq!(captured(500 * SECOND, 1), usual);
        assert_eq!(captured(100 * SECOND, 1), usual, "it was set forward");
        assert_eq!(clocks.captured(Timestamp(7), Duration::from_secs(1)), usual, "before this boot");
    }
}
