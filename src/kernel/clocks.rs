//! The clocks of the eBPF programs, of packets and of users.

use crate::model::Timestamp;
use std::time::{Duration, Instant};

/// The maximum time between the capture of a packet and its lookup.
const LONGEST_BATCH_NS: u64 = 60_000_000_000;

/// The usual maximum of that time: the usual read timeout and some more.
const USUAL_BATCH_NS: u64 = 150_000_000;

/// The maximum time by which a packet may seem to have been captured after its lookup: different clocks time
/// the two.
const TOLERANCE_NS: u64 = 1_000_000;

/// The maximum time between the reads of the clocks, and the number of retries to stay below it: a thread may
/// lose its processor in between.
const SPREAD_NS: u64 = 20_000;
const ATTEMPTS: u32 = 8;

/// The time of a reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clocks {
    /// Nanoseconds since boot (CLOCK_BOOTTIME).
    pub now_ns: u64,
    /// The time of day at boot, in nanoseconds since the Unix epoch.
    pub epoch_ns: u64,
    /// The same moment by the clock that threads wait by.
    pub at: Instant,
}

impl Clocks {
    /// Reads all clocks.
    pub fn now() -> Clocks {
        let (mut best, mut spread) = read();
        for _ in 0..ATTEMPTS {
            if spread <= SPREAD_NS {
                break;
            }
            let (clocks, closer) = read();
            if closer < spread {
                (best, spread) = (clocks, closer);
            }
        }
        best
    }

    /// Returns the time of day.
    pub fn time_of_day(&self) -> Timestamp {
        Timestamp(self.epoch_ns.saturating_add(self.now_ns))
    }

    /// Returns the time of day at another moment, by the clock as it is set now.
    pub fn time_at(&self, moment: Instant) -> Timestamp {
        let nanoseconds = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        let after = nanoseconds(moment.saturating_duration_since(self.at));
        let before = nanoseconds(self.at.saturating_duration_since(moment));
        self.time_of_day().moved(after).moved(-before)
    }

    /// Returns the time `waited` before now, in nanoseconds since boot.
    pub fn before(&self, waited: Duration) -> u64 {
        self.now_ns.saturating_sub(u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Returns the capture time of a packet, in nanoseconds since boot, from its timestamp `time`. The packet
    /// was captured shortly before its lookup at `asked`. If the timestamp contradicts this, the clock was
    /// set in between, and the result is estimated from `asked`.
    pub fn captured(&self, time: Timestamp, asked: Instant) -> u64 {
        let asked_ns = self.before(self.at.saturating_duration_since(asked));
        let by_clock = time.0.checked_sub(self.epoch_ns);
        let is_possible = |&ns: &u64| {
            ns <= asked_ns.saturating_add(TOLERANCE_NS) && asked_ns.saturating_sub(ns) <= LONGEST_BATCH_NS
        };
        by_clock.filter(is_possible).unwrap_or(asked_ns.saturating_sub(USUAL_BATCH_NS))
    }
}

/// Reads all clocks once. Also returns the time between the first and the last read, in nanoseconds.
fn read() -> (Clocks, u64) {
    let before = since_boot();
    let (time, at) = (Timestamp::now(), Instant::now());
    let spread = since_boot().saturating_sub(before);
    let now_ns = before + spread / 2;
    (Clocks { now_ns, epoch_ns: time.0.saturating_sub(now_ns), at }, spread)
}

fn since_boot() -> u64 {
    // The clock exists since Linux 2.6.39.
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn packets_have_their_time_unless_the_clock_was_set() {
        let at = Instant::now();
        let clocks = Clocks { now_ns: 500 * SECOND, epoch_ns: 1_700_000_000 * SECOND, at };
        let asked = at.checked_sub(Duration::from_secs(1)).unwrap();
        let captured =
            |since_boot: u64, asked: Instant| clocks.captured(Timestamp(clocks.epoch_ns + since_boot), asked);
        assert_eq!(captured(499 * SECOND, asked), 499 * SECOND);
        assert_eq!(captured(439 * SECOND, asked), 439 * SECOND, "the capture was a minute behind");
        assert_eq!(
            captured(499 * SECOND + 500_000, asked),
            499 * SECOND + 500_000,
            "half a millisecond is nothing"
        );
        assert_eq!(captured(500 * SECOND, at), 500 * SECOND, "it is asked about at once");
        let usual = 499 * SECOND - USUAL_BATCH_NS;
        assert_eq!(captured(499 * SECOND + 2_000_000, asked), usual, "it was set back");
        assert_eq!(captured(500 * SECOND, asked), usual);
        assert_eq!(captured(100 * SECOND, asked), usual, "it was set forward");
        assert_eq!(clocks.captured(Timestamp(7), asked), usual, "before this boot");
    }

    #[test]
    fn other_moments_have_the_time_of_the_clock_as_it_is_set_now() {
        let at = Instant::now() + Duration::from_secs(100);
        let clocks = Clocks { now_ns: 500 * SECOND, epoch_ns: 1_700_000_000 * SECOND, at };
        let seconds = |moment| clocks.time_at(moment).0 / SECOND;
        assert_eq!(clocks.time_of_day(), clocks.time_at(at));
        assert_eq!(seconds(at), 1_700_000_500);
        assert_eq!(seconds(at + Duration::from_secs(7)), 1_700_000_507);
        assert_eq!(seconds(at - Duration::from_secs(7)), 1_700_000_493);
    }

    /// Values that are derived from the clocks stay the same even on a busy machine.
    #[test]
    fn the_clocks_are_read_at_the_same_moment() {
        let first = Clocks::now();
        for _ in 0..1_000 {
            std::thread::yield_now();
            let next = Clocks::now();
            assert!(next.epoch_ns.abs_diff(first.epoch_ns) < 1_000_000, "{first:?} {next:?}");
            let (by_boot, by_thread) = (next.now_ns - first.now_ns, next.at - first.at);
            assert!(by_boot.abs_diff(by_thread.as_nanos() as u64) < 1_000_000, "{first:?} {next:?}");
        }
    }
}
