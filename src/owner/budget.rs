//! A limit on the CPU time of the search for owners: a share of wall time, with room for a burst.

use nix::time::{ClockId, clock_gettime};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Reads the CPU time of the caller's thread, from any origin. An input, so that tests are exact.
pub trait Meter: Send {
    /// The CPU time used so far.
    fn cpu_time(&mut self) -> Duration;
}

/// The CPU time of the calling thread (`CLOCK_THREAD_CPUTIME_ID`, clock_gettime(2)).
#[derive(Clone, Copy, Debug, Default)]
pub struct ThreadMeter;

impl Meter for ThreadMeter {
    fn cpu_time(&mut self) -> Duration {
        clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
    }
}

/// An account of CPU time that fills with wall time and is drawn on by work.
///
/// A round of work that begins with a positive balance may read all that it needs, once. Its cost, known only
/// afterwards, may overdraw the account; then no round is allowed until wall time has made up for it. On
/// average, therefore, the share is kept whatever a round costs, and every round that is allowed completes.
pub struct Budget {
    meter: Box<dyn Meter>,
    share: f64,
    burst: i64,
    /// Nanoseconds of CPU time in the account.
    balance: i64,
    filled_at: Option<Instant>,
    /// Set if this round was allowed to read.
    granted: Cell<bool>,
    measured: Duration,
    spent: Duration,
}

/// The smallest share. Smaller shares would put a single scan's repayment off for hours; zero and NaN would
/// never allow any work.
const MIN_SHARE: f64 = 0.001;

impl Budget {
    /// Returns an account, full at first, that fills by `share` of wall time (0.05 is 5% of one core; at
    /// least 0.001) up to `burst`.
    pub fn new(share: f64, burst: Duration, meter: Box<dyn Meter>) -> Budget {
        let share = if share > MIN_SHARE { share } else { MIN_SHARE };
        let burst = nanoseconds(burst).max(1);
        Budget {
            meter,
            share,
            burst,
            balance: burst,
            filled_at: None,
            granted: Cell::new(false),
            measured: Duration::ZERO,
            spent: Duration::ZERO,
        }
    }

    /// CPU time used so far.
    pub fn spent(&self) -> Duration {
        self.spent
    }

    /// Begins a round: fills the account up to `now` and starts measuring. Earlier work of the thread is not
    /// drawn.
    pub(super) fn begin(&mut self, now: Instant) {
        let elapsed = self.filled_at.map_or(Duration::ZERO, |then| now.saturating_duration_since(then));
        self.filled_at = Some(self.filled_at.map_or(now, |then| then.max(now)));
        let income = (elapsed.as_nanos() as f64 * self.share) as i64;
        self.balance = self.balance.saturating_add(income).min(self.burst);
        self.granted.set(false);
        self.measured = self.meter.cpu_time();
    }

    /// Leaves the round's work so far undrawn if the round was not allowed to read. Exact lookups are as many
    /// as there are flows, and those of a flood would put off the search for the holders of other sockets.
    pub(super) fn exempt(&mut self) {
        if !self.granted.get() {
            let now = self.meter.cpu_time();
            self.spent = self.spent.saturating_add(now.saturating_sub(self.measured));
            self.measured = now;
        }
    }

    /// Allows this round to read. Fails with the wall time after which a round may read if the account is
    /// overdrawn.
    pub(super) fn allow(&self) -> Result<(), Duration> {
        if self.balance > 0 {
            self.granted.set(true);
            return Ok(());
        }
        let debt = self.balance.unsigned_abs().saturating_add(1);
        Err(Duration::from_nanos((debt as f64 / self.share).ceil() as u64).max(Duration::from_millis(1)))
    }

    /// Ends a round: draws the CPU time that it used.
    pub(super) fn settle(&mut self) {
        let cost = self.meter.cpu_time().saturating_sub(self.measured);
        self.balance = self.balance.saturating_sub(nanoseconds(cost));
        self.spent = self.spent.saturating_add(cost);
    }
}

/// 5% of one core, with a burst of a quarter of a second.
impl Default for Budget {
    fn default() -> Budget {
        Budget::new(0.05, Duration::from_millis(250), Box::new(ThreadMeter))
    }
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// A meter of which each reading costs the milliseconds in `step`.
    #[derive(Clone, Default)]
    pub struct Costly {
        pub step: Arc<AtomicU64>,
        total: u64,
    }

    impl Costly {
        pub fn new(step: u64) -> Costly {
            Costly { step: Arc::new(AtomicU64::new(step)), total: 0 }
        }
    }

    impl Meter for Costly {
        fn cpu_time(&mut self) -> Duration {
            self.total += self.step.load(Ordering::Relaxed);
            Duration::from_millis(self.total)
        }
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn debt_is_repaid_at_the_share() {
        let start = Instant::now();
        let mut budget = Budget::new(0.1, 10 * MS, Box::new(Costly::new(6)));
        for _ in 0..2 {
            budget.begin(start);
            assert_eq!(budget.allow(), Ok(()), "4 ms are left for a second round");
            budget.settle();
        }
        budget.begin(start);
        let wait = budget.allow().unwrap_err();
        assert!((20 * MS..21 * MS).contains(&wait), "2 ms of debt at a tenth: {wait:?}");
        budget.begin(start + 19 * MS);
        assert!(budget.allow().is_err());
        budget.begin(start + wait);
        assert_eq!(budget.allow(), Ok(()));
        assert_eq!(budget.spent(), 12 * MS);
    }

    #[test]
    fn exact_questions_are_not_drawn() {
        let start = Instant::now();
        let mut budget = Budget::new(0.1, 10 * MS, Box::new(Costly::new(6)));
        for _ in 0..5 {
            budget.begin(start);
            budget.exempt();
            budget.granted.set(true);
            budget.exempt();
        }
        assert_eq!((budget.balance, budget.spent()), (10_000_000, 30 * MS));
        budget.begin(start);
        assert_eq!(budget.allow(), Ok(()));
        budget.exempt();
        budget.settle();
        assert_eq!(budget.balance, 4_000_000, "what was allowed is drawn");
    }

    #[test]
    fn idle_time_fills_only_the_burst_and_time_may_stand_still_or_go_back() {
        let start = Instant::now();
        let mut budget = Budget::new(0.5, 10 * MS, Box::new(Costly::new(0)));
        budget.begin(start + 100 * MS);
        budget.begin(start);
        budget.begin(start + 100_000 * MS);
        assert_eq!(budget.balance, 10_000_000);
    }

    #[test]
    fn senseless_shares_still_make_progress() {
        for share in [0.0, -1.0, f64::NAN] {
            let mut budget = Budget::new(share, Duration::ZERO, Box::new(Costly::new(1)));
            budget.begin(Instant::now());
            budget.settle();
            let wait = budget.allow().unwrap_err();
            assert!(wait <= 1001 * MS, "{wait:?}");
        }
    }

    #[test]
    fn a_threads_cpu_time_goes_on() {
        let first = ThreadMeter.cpu_time();
        assert!(first > Duration::ZERO);
        while ThreadMeter.cpu_time() == first {}
    }
}
