//! Owners of TCP connections that have ended and left the table, for late packets of these connections.
//!
//! An end of a connection may repeat its FIN until the other end acknowledges it, and the kernel answers for
//! the length of TIME_WAIT. Such packets are rare, so that little is kept for them: a part of the hash of the
//! connection's key instead of the key. Two of the connections that are kept at once agree in it once in a
//! hundred million times.

use crate::model::{Owner, Timestamp};
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use std::collections::{HashMap, VecDeque};

/// The minimum time for which an owner is kept, nanoseconds: the length of Linux's TIME_WAIT
/// (`TCP_TIMEWAIT_LEN`, include/net/tcp.h).
const KEPT: u64 = 60_000_000_000;

/// The length of a period, nanoseconds. All connections that ended within one period are released together.
const PERIOD: u64 = KEPT / 3;

/// The maximum number of periods: one more than `KEPT` has, since the newest is not over.
const MAX_PERIODS: usize = 4;

/// The maximum number of connections in one period; beyond it the next period begins early. A connection
/// takes some 12 bytes.
const MAX_CONNECTIONS: usize = 100_000;

/// The number of parts of a period's index. Each part grows on its own, so that no packet waits for more than
/// some thousand entries to be moved.
const PARTS: usize = 64;

/// A connection: 48 bits of the hash of its key, and the number of its owner within the period.
#[derive(Clone, Copy)]
struct LateEntry {
    high: u32,
    low: u16,
    owner: u16,
}

impl LateEntry {
    fn new(hash: u64, owner: u16) -> LateEntry {
        LateEntry { high: (hash >> 32) as u32, low: (hash >> 16) as u16, owner }
    }

    fn is_of(&self, hash: u64) -> bool {
        (self.high, self.low) == ((hash >> 32) as u32, (hash >> 16) as u16)
    }

    /// The number of the part that holds the entry.
    fn part(&self) -> usize {
        self.high as usize % PARTS
    }

    /// The entry's hash within the part: hashbrown takes the bucket from the low bits and its tag from the
    /// top seven.
    fn spread(&self) -> u64 {
        u64::from(self.high) << 32 | u64::from(self.low)
    }
}

/// The connections of one period.
struct Period {
    began: Timestamp,
    owners: Vec<Owner>,
    numbers: HashMap<Owner, u16, RandomState>,
    parts: Box<[HashTable<LateEntry>; PARTS]>,
    held: usize,
}

impl Period {
    fn new(began: Timestamp) -> Period {
        Period {
            began,
            owners: Vec::new(),
            numbers: HashMap::default(),
            parts: Box::new(std::array::from_fn(|_| HashTable::new())),
            held: 0,
        }
    }

    fn is_over(&self, now: Timestamp) -> bool {
        now < self.began || now.since(self.began) >= PERIOD || self.held >= MAX_CONNECTIONS
    }

    /// Returns the number of an owner, or `None` if all numbers are in use.
    fn number(&mut self, owner: Owner) -> Option<u16> {
        if let Some(&number) = self.numbers.get(&owner) {
            return Some(number);
        }
        let number = u16::try_from(self.owners.len()).ok()?;
        self.owners.push(owner);
        self.numbers.insert(owner, number);
        Some(number)
    }

    fn insert(&mut self, hash: u64, owner: Owner) {
        let Some(number) = self.number(owner) else { return };
        let entry = LateEntry::new(hash, number);
        self.parts[entry.part()].insert_unique(entry.spread(), entry, LateEntry::spread);
        self.held += 1;
    }

    fn take(&mut self, hash: u64) -> Option<Owner> {
        let sought = LateEntry::new(hash, 0);
        let part = &mut self.parts[sought.part()];
        let (entry, _) = part.find_entry(sought.spread(), |entry| entry.is_of(hash)).ok()?.remove();
        self.held -= 1;
        self.owners.get(usize::from(entry.owner)).copied()
    }
}

/// The connections of the last minute, the oldest period first.
#[derive(Default)]
pub(super) struct LateOwners(VecDeque<Period>);

impl LateOwners {
    /// Records the owner of a connection whose key has this hash.
    pub fn insert(&mut self, hash: u64, owner: Owner, now: Timestamp) {
        if self.0.back().is_none_or(|newest| newest.is_over(now)) {
            if self.0.len() == MAX_PERIODS {
                self.0.pop_front();
            }
            self.0.push_back(Period::new(now));
        }
        if let Some(newest) = self.0.back_mut() {
            newest.insert(hash, owner);
        }
    }

    /// Removes the connections whose key has this hash. Returns the owner of the latest of them.
    pub fn take(&mut self, hash: u64) -> Option<Owner> {
        self.0.iter_mut().rev().fold(None, |latest, period| {
            let found = period.take(hash);
            latest.or(found)
        })
    }

    /// Releases periods that ended long enough ago, and periods that lie in the future after the clock was
    /// set back.
    pub fn expire(&mut self, now: Timestamp) {
        let is_old = |period: &Period| now < period.began || now.since(period.began) > KEPT + PERIOD;
        while self.0.front().is_some_and(is_old) {
            self.0.pop_front();
        }
    }

    /// Moves all times with a clock that was set forward by `step` nanoseconds (back if negative).
    pub fn step_clock(&mut self, step: i64) {
        for period in &mut self.0 {
            period.began = period.began.moved(step);
        }
    }

    /// Returns true if no connection is kept.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ProcId, Quality};

    const SECOND: u64 = 1_000_000_000;

    fn owner(pid: i32) -> Owner {
        Owner { process: ProcId { pid, start_ticks: 1 }, quality: Quality::Exact }
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp(seconds * SECOND)
    }

    /// Returns a hash that differs from others in all of its bits.
    fn hash(number: u64) -> u64 {
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    #[test]
    fn the_latest_of_a_key_is_found_once() {
        let mut late = LateOwners::default();
        assert!(late.is_empty());
        late.insert(hash(1), owner(1), at(100));
        late.insert(hash(2), owner(2), at(100));
        late.insert(hash(1), owner(3), at(130));
        assert_eq!(late.take(hash(1)), Some(owner(3)));
        assert_eq!(late.take(hash(1)), None, "an earlier one has nothing to do with what comes now");
        assert_eq!((late.take(hash(3)), late.take(hash(2))), (None, Some(owner(2))));
    }

    #[test]
    fn owners_are_kept_for_a_minute_and_not_for_ever() {
        let mut late = LateOwners::default();
        for second in 100..200 {
            late.insert(hash(second), owner(1), at(second));
            late.expire(at(second));
            if second >= 160 {
                assert_eq!(late.take(hash(second - 60)), Some(owner(1)));
            }
        }
        late.expire(at(270));
        assert_eq!(late.take(hash(150)), None);
        late.expire(at(290));
        assert!(late.is_empty());
    }

    #[test]
    fn a_clock_that_was_set_back_keeps_nothing_for_ever() {
        let mut late = LateOwners::default();
        late.insert(hash(1), owner(1), at(1_000_000));
        late.insert(hash(2), owner(2), at(10));
        assert_eq!(late.take(hash(2)), Some(owner(2)));
        late.expire(at(10));
        late.expire(at(91));
        assert!(late.is_empty());
    }

    #[test]
    fn they_are_bounded() {
        let mut late = LateOwners::default();
        let many = MAX_CONNECTIONS as u64 * 6;
        for number in 0..many {
            late.insert(hash(number), owner((number % 100_000) as i32), at(100));
        }
        let held: usize = late.0.iter().map(|period| period.held).sum();
        assert!(held <= MAX_PERIODS * MAX_CONNECTIONS && held > MAX_CONNECTIONS, "{held}");
        let bytes: usize =
            late.0.iter().flat_map(|period| period.parts.iter()).map(HashTable::allocation_size).sum();
        assert!(bytes <= 5 << 20, "{bytes}");
        assert_eq!(late.take(hash(0)), None, "the oldest have made room");
        assert_eq!(size_of::<LateEntry>(), 8);
    }
}
