//! Recent callers and servers of endpoints: a guess at the owner of a connection that closed before its
//! socket, or its listener's, was looked up.
//!
//! A guess is made only if a single process was seen there within the last minute. The caller must check that
//! the process lived when the connection began.

use super::early::{End, Side};
use crate::bounded::{BoundedMap, Eviction};
use crate::model::{FlowKey, ProcId};
use std::time::{Duration, Instant};

/// The time for which a caller is kept.
const MEMORY: Duration = Duration::from_secs(60);
/// The limit of endpoints, about 130 bytes each, 2 MiB in all. A full table drops the endpoints that have
/// expired; if none has, it is cleared.
const LIMIT: usize = 16_384;

/// Processes that were seen to call one endpoint, or to be called there.
#[derive(Clone, Copy, Debug)]
enum Callers {
    One(ProcId, Instant),
    /// Several, or one that could not be found; the last of them at this time.
    Several(Instant),
}

/// The callers of endpoints.
#[derive(Debug)]
pub(super) struct EndpointOwners {
    ends: BoundedMap<End, Callers>,
}

impl Default for EndpointOwners {
    fn default() -> EndpointOwners {
        EndpointOwners { ends: BoundedMap::new(LIMIT, Eviction::All) }
    }
}

impl EndpointOwners {
    /// Records the owner of a flow; `None` records that the owner could not be found.
    pub fn note(&mut self, key: &FlowKey, side: Side, process: Option<ProcId>, now: Instant) {
        if self.ends.is_full() {
            self.ends.retain(|_, callers| callers.age(now) < MEMORY);
        }
        let now = process.map_or(Callers::Several(now), |process| Callers::One(process, now));
        let Some(known) = self.ends.get_or_insert_with(End::of(key, side), || now) else { return };
        *known = match (*known, now) {
            (old, now) if old.age(now.at()) >= MEMORY => now,
            (Callers::One(one, _), Callers::One(other, _)) if one == other => now,
            _ => Callers::Several(now.at()),
        };
    }

    /// The number of endpoints that were evicted before they had expired.
    pub fn evicted(&self) -> u64 {
        self.ends.evicted()
    }

    /// Returns the only process that was recently called at this flow's local endpoint, or else has called
    /// its remote endpoint, and the time at which it was last seen.
    pub fn only(&self, key: &FlowKey, now: Instant) -> Option<(ProcId, Instant)> {
        let known =
            [Side::Called, Side::Opener].into_iter().find_map(|side| self.ends.get(&End::of(key, side)));
        match known {
            Some(&Callers::One(process, at)) if now.saturating_duration_since(at) < MEMORY => {
                Some((process, at))
            }
            _ => None,
        }
    }
}

impl Callers {
    fn at(&self) -> Instant {
        let (Callers::One(_, at) | Callers::Several(at)) = self;
        *at
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.at())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;
    use crate::owner::made_up::key;

    const ONE: ProcId = ProcId { pid: 1, start_ticks: 10 };
    const OTHER: ProcId = ProcId { pid: 2, start_ticks: 20 };

    #[test]
    fn a_guess_needs_a_single_caller() {
        let mut similar = EndpointOwners::default();
        let start = Instant::now();
        let flow = |port| key(Protocol::TCP, &format!("10.0.0.1:{port}"), "10.0.0.2:80");
        assert_eq!(similar.only(&flow(1), start), None);
        similar.note(&flow(1), Side::Opener, Some(ONE), start);
        similar.note(&flow(2), Side::Opener, Some(ONE), start);
        assert_eq!(similar.only(&flow(3), start + MEMORY / 2), Some((ONE, start)));
        assert_eq!(similar.only(&flow(3), start + MEMORY), None, "it is long ago");
        let elsewhere = key(Protocol::TCP, "10.0.0.1:1", "10.0.0.3:80");
        assert_eq!(similar.only(&elsewhere, start), None);
        similar.note(&flow(4), Side::Opener, Some(OTHER), start + MEMORY / 2);
        similar.note(&flow(4), Side::Opener, Some(OTHER), start + MEMORY / 2);
        assert_eq!(similar.only(&flow(5), start + MEMORY / 2), None, "there are two");
        let unknown = key(Protocol::TCP, "10.0.0.1:9", "10.0.0.4:80");
        similar.note(&unknown, Side::Opener, Some(ONE), start);
        similar.note(&unknown, Side::Opener, None, start);
        assert_eq!(similar.only(&unknown, start), None, "there is another, whoever it is");
        similar.note(&flow(4), Side::Opener, Some(OTHER), start + MEMORY * 2);
        assert_eq!(
            similar.only(&flow(5), start + MEMORY * 2),
            Some((OTHER, start + MEMORY * 2)),
            "the other is forgotten"
        );
    }

    #[test]
    fn whoever_was_called_is_remembered_by_the_local_end() {
        let mut similar = EndpointOwners::default();
        let start = Instant::now();
        similar.note(&key(Protocol::TCP, "10.0.0.1:80", "10.0.0.2:4000"), Side::Called, Some(ONE), start);
        assert_eq!(
            similar.only(&key(Protocol::TCP, "10.0.0.1:80", "10.0.0.3:5000"), start),
            Some((ONE, start))
        );
        assert_eq!(similar.only(&key(Protocol::TCP, "10.0.0.1:81", "10.0.0.2:4000"), start), None);
    }

    #[test]
    fn it_is_bounded() {
        let mut similar = EndpointOwners::default();
        let start = Instant::now();
        for number in 0..LIMIT + 10 {
            let remote = format!("10.0.{}.{}:80", number >> 8, number & 255);
            similar.note(&key(Protocol::TCP, "10.0.0.1:1", &remote), Side::Opener, Some(ONE), start);
        }
        assert_eq!((similar.ends.len(), similar.evicted()), (10, LIMIT as u64));
        let later = start + MEMORY;
        for number in 0..LIMIT {
            let remote = format!("10.1.{}.{}:80", number >> 8, number & 255);
            similar.note(&key(Protocol::TCP, "10.0.0.1:1", &remote), Side::Opener, Some(ONE), later);
        }
        assert_eq!((similar.ends.len(), similar.evicted()), (LIMIT, LIMIT as u64), "the others had expired");
    }
}
