//! A query for the owner of one flow, and the progress of its lookup.

use super::EarlyOwner;
use crate::model::{FlowKey, Owner, Unowned};
use std::time::{Duration, Instant};

/// Delays after each failed lookup before the next one. An accepted connection gets its inode only when the
/// server calls accept(2); after three of these delays it is assumed to have closed. The owner of a closed
/// connection can still be guessed once a similar flow has been resolved.
const RETRY_DELAYS: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(250),
    Duration::from_millis(1000),
    Duration::from_millis(2000),
    Duration::from_millis(2000),
];

/// The number of these delays after which the owners of similar flows may be known.
const SEASONED: u8 = 2;

/// The number of failed lookups that are followed by a retry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RetryPolicy {
    /// Three more: the socket or its holder may be yet to appear.
    Usual = 3,
    /// All delays: the owner of similar flows may be yet to be found.
    All = RETRY_DELAYS.len() as isize,
}

/// The state of the search for a flow's owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The owning process. Final.
    Owned(Owner),
    /// There is no owner, or it cannot be determined. Final.
    Unowned(Unowned),
    /// Not known yet, for this reason.
    Retry {
        /// The reason for the failure so far.
        reason: Unowned,
        /// The delay after the lookup's `now` before the next lookup.
        after: Duration,
    },
}

/// The host that the local endpoint of a flow belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LocalEnd {
    /// This host.
    Own,
    /// This host, but only if a socket here takes the packets: the address is local only for packets that a
    /// routing rule selects, and other packets to it are forwarded.
    Diverted,
    /// A group to which a socket of this host has sent: the endpoint is this host's only if another socket of
    /// this host receives the packets too.
    Looped,
}

/// One flow whose owner is looked up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Query {
    /// The flow, by its endpoints on the wire until its socket turns out to have others.
    pub key: FlowKey,
    /// The answer so far. A query with a final outcome is not looked up again.
    pub outcome: Outcome,
    first_seen: Instant,
    due: Instant,
    attempts: u8,
    /// Set if the flow cannot belong to another host or a container, as far as is known.
    pub(super) is_own: bool,
    /// The host that the flow's local endpoint belongs to.
    pub(super) local_end: LocalEnd,
    /// Set if the socket has other endpoints than the flow has on the wire.
    is_translated: bool,
    /// The time of the last lookup of the endpoints behind those on the wire.
    pub(super) looked_behind: Option<Instant>,
    /// Set if the query is to be given up soon.
    is_hurried: bool,
    /// Set if a lookup has found no socket.
    pub(super) was_missing: bool,
}

impl Query {
    /// Returns a query for a flow whose first packet was seen at `first_seen`, on the clock of
    /// [`super::Finder::find`]'s `now`. Data that was read before then does not answer it.
    pub fn new(key: FlowKey, first_seen: Instant) -> Query {
        let outcome = Outcome::Retry { reason: Unowned::Pending, after: Duration::ZERO };
        Query {
            key,
            outcome,
            first_seen,
            due: first_seen,
            attempts: 0,
            is_own: true,
            local_end: LocalEnd::Own,
            is_translated: false,
            looked_behind: None,
            is_hurried: false,
            was_missing: false,
        }
    }

    /// Returns the query with a local endpoint that may not be this host's; if it is not, the answer is
    /// [`Unowned::NotLocal`].
    pub fn with_local_end(self, local_end: LocalEnd) -> Query {
        Query { local_end, ..self }
    }

    /// The time at which the flow's first packet was seen.
    pub fn first_seen(&self) -> Instant {
        self.first_seen
    }

    /// The number of failed lookups. Lookups that the budget forbade do not count.
    pub fn attempts(&self) -> u8 {
        self.attempts
    }

    /// The time of the next lookup. Data that was read before it is too old for the query.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Returns true if the query is to be looked up at `now`.
    pub fn is_due(&self, now: Instant) -> bool {
        matches!(self.outcome, Outcome::Retry { .. }) && self.due <= now
    }

    /// Sets whether the query is given up after a few lookups when the flow has no socket.
    pub fn set_hurried(&mut self, is_hurried: bool) {
        self.is_hurried = is_hurried;
    }

    /// Returns true if the socket is not to be looked up again: none was found, and there is no time for a
    /// second lookup.
    pub fn is_known_missing(&self) -> bool {
        self.is_hurried && self.was_missing
    }

    /// Records that there is no socket. A hurried query waits only once more, until the owners of similar
    /// flows may have been found.
    pub(super) fn missed(&mut self, now: Instant) {
        if !self.is_hurried {
            self.failed(Unowned::NoSocket, RetryPolicy::All, now);
        } else if self.is_seasoned() {
            self.outcome = Outcome::Unowned(Unowned::NoSocket);
        } else {
            let after = RETRY_DELAYS.iter().take(usize::from(SEASONED)).sum();
            (self.attempts, self.due) = (SEASONED, now + after);
            self.outcome = Outcome::Retry { reason: Unowned::NoSocket, after };
        }
    }

    /// Returns true if the host translates the endpoints of the flow's socket to others on the wire.
    pub fn is_translated(&self) -> bool {
        self.is_translated
    }

    /// Makes the query due at once by the endpoints of its socket.
    pub(super) fn translate(&mut self, key: FlowKey) {
        (self.key, self.is_own, self.is_translated) = (key, true, true);
    }

    /// Answers the query with an owner that was found early.
    pub fn answer_early(&mut self, early: &EarlyOwner) {
        self.outcome = Outcome::Owned(early.owner);
        self.is_translated = early.is_translated;
    }

    /// Returns true if the search has lasted long enough for the owners of similar flows to be known.
    pub fn is_seasoned(&self) -> bool {
        self.attempts >= SEASONED
    }

    pub(super) fn is_last_try(&self) -> bool {
        usize::from(self.attempts) >= RetryPolicy::Usual as usize
    }

    /// Records a failed lookup.
    pub(super) fn failed(&mut self, reason: Unowned, tries: RetryPolicy, now: Instant) {
        let waits = RETRY_DELAYS.get(..tries as usize).unwrap_or_default();
        self.outcome = match waits.get(usize::from(self.attempts)) {
            Some(&after) => {
                self.attempts += 1;
                self.due = now + after;
                Outcome::Retry { reason, after }
            }
            None => Outcome::Unowned(reason),
        };
    }

    /// Records that the present holder of the socket is not the process that will use it.
    pub fn not_yet(&mut self, now: Instant) {
        self.failed(Unowned::Pending, RetryPolicy::Usual, now);
    }

    /// Puts the query off: the budget did not allow the lookup.
    pub(super) fn put_off(&mut self, after: Duration) {
        self.outcome = Outcome::Retry { reason: Unowned::Pending, after };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Address, Endpoint, Namespace, Protocol};

    #[test]
    fn patience_ends() {
        let end = Endpoint::new(Address::UNSPECIFIED_V4, 1);
        let start = Instant::now();
        let mut query = Query::new(
            FlowKey { local: end, remote: end, protocol: Protocol::TCP, namespace: Namespace::HOME },
            start,
        );
        let mut now = start;
        let mut waits = Vec::new();
        while query.is_due(now) {
            query.failed(Unowned::NoSocket, RetryPolicy::All, now);
            if let Outcome::Retry { after, .. } = query.outcome {
                waits.push(after.as_millis());
                assert!(!query.is_due(now) && query.due() == now + after);
                now += after;
            }
        }
        assert_eq!(waits, [50, 250, 1000, 2000, 2000]);
        assert_eq!(query.outcome, Outcome::Unowned(Unowned::NoSocket));
        let mut hurried = Query::new(query.key, start);
        hurried.set_hurried(true);
        hurried.missed(start);
        assert!(hurried.is_seasoned() && hurried.due() == start + Duration::from_millis(300));
        hurried.missed(hurried.due());
        assert_eq!(hurried.outcome, Outcome::Unowned(Unowned::NoSocket));
        let mut usual = Query::new(query.key, start);
        usual.failed(Unowned::NoHolder, RetryPolicy::Usual, start);
        usual.put_off(Duration::from_secs(9));
        assert_eq!((usual.attempts(), usual.due()), (1, start + Duration::from_millis(50)));
        (0..3).for_each(|_| usual.failed(Unowned::NoHolder, RetryPolicy::Usual, start));
        assert_eq!(usual.outcome, Outcome::Unowned(Unowned::NoHolder));
    }
}
