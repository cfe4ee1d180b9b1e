//! The periods by which the eBPF programs keep accounts.
//!
//! An eBPF program adds to an entry of a map a moment after it has found the entry. If the entry is deleted
//! in between, the addition is lost, or it goes to another entry that was created in the same place.
//! Therefore no entry is deleted that an eBPF program may still find. Every key contains the number of a
//! period, and entries are deleted when the next period has lasted for long enough.

use super::batch::{Batch, delete};
use aya::Pod;
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::os::fd::BorrowedFd;

/// The minimum duration of a period.
const PERIOD_NS: u64 = 2_000_000_000;

/// The maximum run time of an eBPF program, including the time for which its processor runs other code.
const PROGRAM_NS: u64 = 1_000_000_000;

/// The current period.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Periods {
    current: u32,
    began_ns: u64,
    now_ns: u64,
}

impl Periods {
    /// Returns the first period, with which the eBPF programs begin, at a time in nanoseconds since boot.
    pub(super) fn new(now_ns: u64) -> Periods {
        Periods { current: 0, began_ns: now_ns, now_ns }
    }

    /// Begins a reading, with a clock that may have been read before the period began.
    pub(super) fn read_at(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    /// Returns true if nothing more is added to entries of a period.
    pub(super) fn is_over(self, period: u32) -> bool {
        period != self.current && self.now_ns.saturating_sub(self.began_ns) >= PROGRAM_NS
    }

    /// Returns the number of the next period once the current one has lasted for long enough. All earlier
    /// periods are over then.
    pub(super) fn next(self) -> Option<u32> {
        let is_due = self.now_ns.saturating_sub(self.began_ns) >= PERIOD_NS;
        is_due.then(|| self.current + 1)
    }

    /// Begins the next period. The caller has set it for the eBPF programs, and has read the clock after
    /// that.
    pub(super) fn begin(&mut self, now_ns: u64) {
        self.current += 1;
        self.began_ns = now_ns;
    }
}

/// A map whose entries are kept by periods and only grow.
pub(super) struct Growing<K, V> {
    batch: Batch<K, V>,
    /// The last value of each entry, and the reading that found it.
    known: HashMap<K, (V, u64), RandomState>,
    reading: u64,
}

impl<K, V> Growing<K, V>
where
    K: Pod + Default + Eq + Hash,
    V: Pod + Default + PartialEq,
{
    pub(super) fn new() -> Growing<K, V> {
        Growing { batch: Batch::new(), known: HashMap::default(), reading: 0 }
    }

    /// Passes on the additions to each entry since the last reading, which `beyond` computes. Deletes the
    /// entries whose period is over.
    ///
    /// # Errors
    /// Fails with the error of bpf(2).
    pub(super) fn read(
        &mut self,
        map: BorrowedFd<'_>,
        is_over: impl Fn(&K) -> bool,
        beyond: fn(&V, &V) -> V,
        mut each: impl FnMut(&K, &V),
    ) -> io::Result<()> {
        let Growing { batch, known, reading } = self;
        *reading += 1;
        let mut over = Vec::new();
        batch.read(map, |key, now| {
            let (before, seen) = known.entry(*key).or_default();
            let news = beyond(now, before);
            (*before, *seen) = (*now, *reading);
            if news != V::default() {
                each(key, &news);
            }
            if is_over(key) {
                over.push(*key);
            }
        })?;
        delete(map, &over);
        known.retain(|_, (_, seen)| *seen == *reading);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_period_is_over_when_the_next_one_has_lasted() {
        let mut periods = Periods::new(100 * SECOND);
        assert!(!periods.is_over(0) && periods.next().is_none());
        periods.read_at(101 * SECOND);
        assert!(!periods.is_over(0) && periods.next().is_none());
        periods.read_at(102 * SECOND);
        assert_eq!(periods.next(), Some(1));
        // The reading took a while.
        periods.begin(105 * SECOND);
        assert!(!periods.is_over(0), "a program may have just found an entry of it");
        assert!(periods.next().is_none());
        // Another session has read the clock before.
        periods.read_at(104 * SECOND);
        assert!(!periods.is_over(0) && periods.next().is_none());
        periods.read_at(106 * SECOND);
        assert!(periods.is_over(0) && !periods.is_over(1));
    }

    /// All periods before the current one are over at each reading, even if readings are rare.
    #[test]
    fn each_reading_releases_what_the_one_before_has_ended() {
        let mut periods = Periods::new(0);
        for reading in 1..100 {
            let now_ns = u64::from(reading) * 60 * SECOND;
            periods.read_at(now_ns);
            assert!((0..reading - 1).all(|before| periods.is_over(before)));
            assert!(!periods.is_over(reading - 1));
            assert_eq!(periods.next(), Some(reading));
            periods.begin(now_ns);
        }
    }
}
