//! Who called an endpoint lately: a guess at the owner of a connection that was over before its socket was looked up.
//!
//! A guess is made only when one process alone was seen to call that endpoint within the last minute, and still lives.

use super::likely::{End, Side};
use crate::model::{FlowKey, ProcId};
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// For how long a caller is remembered.
const MEMORY: Duration = Duration::from_secs(60);
/// Endpoints remembered, about 130 bytes each, 2 MiB in all. In a full table those not called lately make room.
const LIMIT: usize = 16_384;

/// Processes seen to call one endpoint.
#[derive(Clone, Copy, Debug)]
enum Callers {
    One(ProcId, Instant),
    /// Several, the last of them at this time.
    Several(Instant),
}

/// The callers of endpoints.
#[derive(Default, Debug)]
pub(super) struct Similar {
    ends: HashMap<End, Callers, RandomState>,
}

impl Similar {
    /// A process was found to own a flow of which this host's end is the opener.
    pub fn note(&mut self, key: &FlowKey, process: ProcId, now: Instant) {
        if self.ends.len() >= LIMIT {
            self.ends.retain(|_, callers| callers.age(now) < MEMORY);
        }
        if self.ends.len() >= LIMIT {
            self.ends.clear();
        }
        let known = self.ends.entry(End::of(key, Side::Opener)).or_insert(Callers::One(process, now));
        *known = match *known {
            _ if known.age(now) >= MEMORY => Callers::One(process, now),
            Callers::One(one, _) if one == process => Callers::One(process, now),
            _ => Callers::Several(now),
        };
    }

    /// The only process that has lately called this flow's remote end.
    pub fn only_caller(&self, key: &FlowKey, now: Instant) -> Option<ProcId> {
        match self.ends.get(&End::of(key, Side::Opener)) {
            Some(Callers::One(process, at)) if now.saturating_duration_since(*at) < MEMORY => Some(*process),
            _ => None,
        }
    }
}

impl Callers {
    fn age(&self, now: Instant) -> Duration {
        let (Callers::One(_, at) | Callers::Several(at)) = self;
        now.saturating_duration_since(*at)
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
        let mut similar = Similar::default();
        let start = Instant::now();
        let flow = |port| key(Protocol::TCP, &format!("10.0.0.1:{port}"), "10.0.0.2:80");
        assert_eq!(similar.only_caller(&flow(1), start), None);
        similar.note(&flow(1), ONE, start);
        similar.note(&flow(2), ONE, start);
        assert_eq!(similar.only_caller(&flow(3), start + MEMORY / 2), Some(ONE));
        assert_eq!(similar.only_caller(&flow(3), start + MEMORY), None, "it is long ago");
        let elsewhere = key(Protocol::TCP, "10.0.0.1:1", "10.0.0.3:80");
        assert_eq!(similar.only_caller(&elsewhere, start), None);
        similar.note(&flow(4), OTHER, start + MEMORY / 2);
        similar.note(&flow(4), OTHER, start + MEMORY / 2);
        assert_eq!(similar.only_caller(&flow(5), start + MEMORY / 2), None, "there are two");
        similar.note(&flow(4), OTHER, start + MEMORY * 2);
        assert_eq!(similar.only_caller(&flow(5), start + MEMORY * 2), Some(OTHER), "the other is forgotten");
    }

    #[test]
    fn it_is_bounded() {
        let mut similar = Similar::default();
        let start = Instant::now();
        for number in 0..LIMIT + 10 {
            let remote = format!("10.0.{}.{}:80", number >> 8, number & 255);
            similar.note(&key(Protocol::TCP, "10.0.0.1:1", &remote), ONE, start);
        }
        assert!(similar.ends.len() <= LIMIT);
    }
}
