//! The periods by which the programs keep accounts.
//!
//! A program that has found an entry of a map adds to it a moment later. If the entry is deleted in between, what it adds is
//! lost, or is another entry's that is made in the same place. So nothing is deleted that a program may still find: every
//! key has the number of a period in it, and entries are deleted when the next period has lasted for long enough.

use super::batch::{Batch, delete};
use aya::Pod;
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::os::fd::BorrowedFd;

/// How long a period lasts at least.
const PERIOD_NS: u64 = 2_000_000_000;

/// How long a program may take at most, also when others have its processor meanwhile.
const PROGRAM_NS: u64 = 1_000_000_000;

/// Which period it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Periods {
    current: u32,
    began_ns: u64,
    now_ns: u64,
}

impl Periods {
    /// The first one, which the programs begin with, at a time in nanoseconds since boot.
    pub(super) fn new(now_ns: u64) -> Periods {
        Periods { current: 0, began_ns: now_ns, now_ns }
    }

    /// Begins a reading, with a clock that may have been read before the period began.
    pub(super) fn read_at(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    /// Returns whether nothing more is added to entries of a period.
    pub(super) fn is_over(self, period: u32) -> bool {
        period != self.current && self.now_ns.saturating_sub(self.began_ns) >= PROGRAM_NS
    }

    /// Returns the number of the next one, once this one has lasted for long enough. All before it are over then.
    pub(super) fn next(self) -> Option<u32> {
        let is_due = self.now_ns.saturating_sub(self.began_ns) >= PERIOD_NS;
        is_due.then(|| self.current + 1)
    }

    /// Begins the next one. The programs know it, and the clock was read after that.
    pub(super) fn begin(&mut self, now_ns: u64) {
        self.current += 1;
        self.began_ns = now_ns;
    }
}

/// The entries of a map that are kept by periods and only grow.
pub(super) struct Growing<K, V> {
    batch: Batch<K, V>,
    /// What was read of each, and in which reading.
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

    /// Hands on what has been added to each entry since the last reading, by `beyond`, and deletes those that are over.
    ///
    /// # Errors
    /// What bpf(2) returns.
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

    /// However rare the readings are.
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
