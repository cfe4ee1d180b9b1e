//! One flow whose owner is looked for, and how far the search has come.

use crate::model::{FlowKey, Owner, Unowned};
use std::time::{Duration, Instant};

/// How long after each fruitless look-up to try again. An accepted connection gets its inode only when the server
/// calls accept(2); after three of these it is taken to be over. What is over may still be guessed once its like has
/// been found.
const RETRY_DELAYS: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(250),
    Duration::from_millis(1000),
    Duration::from_millis(2000),
    Duration::from_millis(2000),
];

/// After so many of these waits others like it may be known.
const SEASONED: u8 = 2;

/// How many fruitless look-ups are followed by another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RetryPolicy {
    /// Three more: what is looked for may be yet to come.
    Usual = 3,
    /// As many as there are: the owner of flows like it may be yet to be found.
    All = RETRY_DELAYS.len() as isize,
}

/// What is known of a flow's owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Its process. Final.
    Owned(Owner),
    /// There is none, or it cannot be told which. Final.
    Unowned(Unowned),
    /// Not known yet, for this reason.
    Retry {
        /// What has stood in the way so far.
        reason: Unowned,
        /// How long after the look-up's `now` to ask again.
        after: Duration,
    },
}

/// Whose the local end of a flow is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LocalEnd {
    /// This host's.
    Own,
    /// This host's only if a socket here takes the packets: its address is one for packets that a routing rule selects, and
    /// others to it are forwarded.
    Diverted,
    /// A group's, to which a socket of this host has sent: this host's only if another one receives that, too.
    Looped,
}

/// One flow whose owner is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Query {
    /// The flow, by the endpoints on the wire until its socket turns out to have others.
    pub key: FlowKey,
    /// The answer so far. A query whose outcome is final is left alone.
    pub outcome: Outcome,
    first_seen: Instant,
    due: Instant,
    attempts: u8,
    /// Whether the flow cannot be another host's or a container's, as far as that is known.
    pub(super) is_own: bool,
    /// Whose the flow's local end is.
    pub(super) local_end: LocalEnd,
    /// Whether the key has the endpoints of the socket in place of those on the wire.
    is_translated: bool,
    /// Whether it is to be given up soon.
    is_hurried: bool,
    /// Whether a look-up has found no socket.
    pub(super) was_missing: bool,
}

impl Query {
    /// A query for a flow whose first packet was seen at `first_seen`, on the clock of [`super::Finder::find`]'s
    /// `now`. Nothing that was read before then will answer it.
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
            is_hurried: false,
            was_missing: false,
        }
    }

    /// The same with a local end that may be none of this host's; then the answer is [`Unowned::NotLocal`].
    pub fn with_local_end(self, local_end: LocalEnd) -> Query {
        Query { local_end, ..self }
    }

    /// When the flow's first packet was seen.
    pub fn first_seen(&self) -> Instant {
        self.first_seen
    }

    /// How many look-ups have been made in vain. Those that the budget forbade do not count.
    pub fn attempts(&self) -> u8 {
        self.attempts
    }

    /// Before this there is nothing to do, and what was read before this is too old.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Whether a look-up at `now` is to be made.
    pub fn is_due(&self, now: Instant) -> bool {
        matches!(self.outcome, Outcome::Retry { .. }) && self.due <= now
    }

    /// Has it given up after a few look-ups if it has no socket, or not.
    pub fn set_hurried(&mut self, is_hurried: bool) {
        self.is_hurried = is_hurried;
    }

    /// Whether its socket is not to be looked for again: none was found, and there is no time to do so twice.
    pub fn is_known_missing(&self) -> bool {
        self.is_hurried && self.was_missing
    }

    /// There is no socket. One that is hurried waits once more only, until others like it may have been found.
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

    /// Whether the key has the endpoints of the socket, which the host translates to others on the wire.
    pub fn is_translated(&self) -> bool {
        self.is_translated
    }

    /// Has the flow looked for by the endpoints of its socket, at once.
    pub(super) fn translate(&mut self, key: FlowKey) {
        (self.key, self.is_own, self.is_translated) = (key, true, true);
    }

    /// Whether it was looked for long enough for others like it to be known.
    pub fn is_seasoned(&self) -> bool {
        self.attempts >= SEASONED
    }

    pub(super) fn is_last_try(&self) -> bool {
        usize::from(self.attempts) >= RetryPolicy::Usual as usize
    }

    /// The look-up was in vain.
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

    /// Who has the socket is not the one who will use it.
    pub fn not_yet(&mut self, now: Instant) {
        self.failed(Unowned::Pending, RetryPolicy::Usual, now);
    }

    /// The look-up could not be made within the budget.
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
