//! The local addresses of a network namespace over time. An address counts from its notice on, and for a
//! moment longer than it exists, since frames that wait in a ring still have it.

use crate::model::LocalAddresses;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The time beyond the read timeout for which removed addresses still count, for frames that wait in a ring and
/// for the reader to come to them. They count until the first listing after it.
const KEPT: Duration = Duration::from_millis(400);

/// The number of entries of removed addresses: listings within this part of the time share one.
const PARTS: u32 = 10;

/// The local addresses that count, and the sets that they consist of.
pub(in crate::tap) struct Local {
    /// The minimum time for which removed addresses still count.
    kept: Duration,
    shown: Arc<LocalAddresses>,
    /// The addresses of the last listing, and those that have been added since.
    known: LocalAddresses,
    /// Addresses that may have been removed, the oldest first.
    gone: VecDeque<Gone>,
}

/// Addresses some of which were missing in a listing.
struct Gone {
    addresses: LocalAddresses,
    /// The times when the first and the last of them were found to be missing.
    first: Instant,
    last: Instant,
}

impl Local {
    /// Returns a set of no addresses, for rings with this read timeout.
    pub(in crate::tap) fn new(timeout: Duration) -> Local {
        Local {
            kept: timeout + KEPT,
            shown: Arc::default(),
            known: LocalAddresses::default(),
            gone: VecDeque::new(),
        }
    }

    /// Returns the addresses that count.
    pub(in crate::tap) fn shown(&self) -> &Arc<LocalAddresses> {
        &self.shown
    }

    /// Adds new addresses.
    pub(in crate::tap) fn add(&mut self, come: &LocalAddresses) {
        if !self.known.covers(come) {
            self.known.extend(come);
        }
        if !self.shown.covers(come) {
            Arc::make_mut(&mut self.shown).extend(come);
        }
    }

    /// Records a listing.
    pub(in crate::tap) fn set(&mut self, listed: LocalAddresses, now: Instant) {
        self.gone.retain(|gone| now.saturating_duration_since(gone.last) < self.kept);
        if !listed.covers(&self.known) {
            let addresses = std::mem::take(&mut self.known);
            match self.gone.back_mut() {
                Some(gone) if now.saturating_duration_since(gone.first) < self.kept / PARTS => {
                    gone.addresses.extend(&addresses);
                    gone.last = now;
                }
                _ => self.gone.push_back(Gone { addresses, first: now, last: now }),
            }
        }
        self.known = listed;
        let mut all = self.known.clone();
        self.gone.iter().for_each(|gone| all.extend(&gone.addresses));
        if all != *self.shown {
            self.shown = Arc::new(all);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Address;

    const TIMEOUT: Duration = Duration::from_secs(2);
    const A: Address = Address::v4([10, 0, 0, 1]);
    const B: Address = Address::v4([10, 0, 0, 2]);

    fn of(addresses: &[Address]) -> LocalAddresses {
        addresses.iter().copied().collect()
    }

    #[test]
    fn an_address_counts_for_a_moment_after_its_end() {
        let start = Instant::now();
        let mut local = Local::new(TIMEOUT);
        local.set(of(&[A, B]), start);
        assert!(local.shown().contains(&A));
        local.set(of(&[A]), start);
        assert!(local.shown().contains(&B));
        local.set(of(&[A]), start + TIMEOUT);
        assert!(local.shown().contains(&B));
        local.set(of(&[A]), start + KEPT + TIMEOUT);
        assert!(local.shown().contains(&A) && !local.shown().contains(&B));
    }

    #[test]
    fn addresses_that_come_and_go_all_the_time_are_let_go_too() {
        let start = Instant::now();
        let mut local = Local::new(TIMEOUT);
        let address = |number: u32| Address::v4([10, 1, (number / 250) as u8, (number % 250) as u8]);
        for number in 0..2_000 {
            local.add(&of(&[address(number)]));
            local.set(of(&[A]), start + number * (KEPT + TIMEOUT) / 100);
        }
        assert!(local.shown().contains(&address(1_999)) && local.shown().contains(&address(1_901)));
        assert!(!local.shown().contains(&address(1_800)) && !local.shown().contains(&address(0)));
        assert!(local.gone.len() <= 11, "{}", local.gone.len());
    }

    #[test]
    fn an_address_counts_from_its_notice_on() {
        let mut local = Local::new(TIMEOUT);
        local.set(of(&[A]), Instant::now());
        let before = Arc::clone(local.shown());
        local.add(&of(&[A]));
        assert!(Arc::ptr_eq(&before, local.shown()), "nothing is new");
        local.add(&of(&[B]));
        assert!(local.shown().contains(&B));
        local.set(of(&[A]), Instant::now());
        assert!(local.shown().contains(&B), "one that has gone before it was listed");
    }
}
