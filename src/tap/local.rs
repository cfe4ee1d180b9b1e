//! The local addresses of a network namespace over time: one counts from the notice of it on, and for a moment longer than
//! it exists, since frames that wait in a ring still bear it.

use crate::model::LocalAddresses;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long addresses count at least that are gone: longer than any frame stays in a ring. Then until the next listing.
const KEPT: Duration = Duration::from_millis(500);

/// The local addresses that are shown, and what they are made of.
#[derive(Default)]
pub(super) struct Local {
    shown: Arc<LocalAddresses>,
    /// Those of the last listing, and those that have come since.
    known: LocalAddresses,
    /// Those that may be gone, and when they were last known to exist.
    gone: Option<(LocalAddresses, Instant)>,
}

impl Local {
    /// Those that count.
    pub(super) fn shown(&self) -> &Arc<LocalAddresses> {
        &self.shown
    }

    /// Takes in those that have come.
    pub(super) fn add(&mut self, come: &LocalAddresses) {
        if !self.known.covers(come) {
            self.known.extend(come);
        }
        if !self.shown.covers(come) {
            Arc::make_mut(&mut self.shown).extend(come);
        }
    }

    /// Takes in a listing.
    pub(super) fn set(&mut self, listed: LocalAddresses, now: Instant) {
        if !listed.covers(&self.known) {
            let mut gone = std::mem::take(&mut self.known);
            if let Some((earlier, _)) = &self.gone {
                gone.extend(earlier);
            }
            self.gone = Some((gone, now));
        }
        self.known = listed;
        self.gone.take_if(|(_, at)| now.saturating_duration_since(*at) >= KEPT);
        let mut all = self.known.clone();
        if let Some((gone, _)) = &self.gone {
            all.extend(gone);
        }
        if all != *self.shown {
            self.shown = Arc::new(all);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Address;

    const A: Address = Address::v4([10, 0, 0, 1]);
    const B: Address = Address::v4([10, 0, 0, 2]);

    fn of(addresses: &[Address]) -> LocalAddresses {
        addresses.iter().copied().collect()
    }

    #[test]
    fn an_address_counts_for_a_moment_after_its_end() {
        let start = Instant::now();
        let mut local = Local::default();
        local.set(of(&[A, B]), start);
        assert!(local.shown().contains(&A));
        local.set(of(&[A]), start);
        assert!(local.shown().contains(&B));
        local.set(of(&[A]), start + KEPT / 2);
        assert!(local.shown().contains(&B));
        local.set(of(&[A]), start + KEPT);
        assert!(local.shown().contains(&A) && !local.shown().contains(&B));
    }

    #[test]
    fn an_address_counts_from_its_notice_on() {
        let mut local = Local::default();
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
