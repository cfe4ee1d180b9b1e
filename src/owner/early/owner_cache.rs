//! Owners found at the first packet of their flow, kept until the capture's batch brings the query.
//!
//! Several connections may follow one another between the same endpoints within a batch. Each has its own
//! entry, by the time of its first packet.

use super::candidates::Side;
use crate::model::{FlowKey, Owner, Protocol, Timestamp};
use crate::sync::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// The limit of recorded flows, about 240 bytes each, 15 MiB in all; the oldest are evicted. At 2,000 new
/// flows a second the batches may be half a minute apart.
const LIMIT: usize = 65_536;

/// The capacity of `order` that is kept if fewer flows are recorded.
const MIN_CAPACITY: usize = 1024;

/// The time for which an owner is kept. Its query comes with the capture's next batch, at most the longest
/// read timeout (60 s) later; under load, the capture, the lookup queue and the retries delay it further.
const KEPT: Duration = Duration::from_secs(90);

/// The maximum time by which an owner may have been found earlier than the capture's first packet of its
/// flow: the capture may see the packet on a later one of the devices that it passes.
const EARLIER_NS: u64 = 50_000_000;

/// The maximum time by which the same packet's timestamp in the early lookup may be later than in the
/// capture. The kernel stamps a packet once for all readers, except for those that read when it began to
/// stamp.
const SAME_PACKET_NS: u64 = 20_000;

/// An owner found early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EarlyOwner {
    /// The owner.
    pub owner: Owner,
    /// The end of the flow that is on this host.
    pub side: Side,
    /// Set if its socket has other endpoints than the flow has on the wire.
    pub is_translated: bool,
    /// The capture time of the packet at which the owner was found.
    pub seen: Timestamp,
}

/// The table, shared by the early lookup thread, which fills it, and the resolver, which reads it.
#[derive(Default, Debug)]
pub struct EarlyOwnerCache {
    table: Mutex<OwnerTable>,
}

/// A flow, and the time at which its first packet was captured; 0 if the flow is not a TCP connection.
type CacheKey = (FlowKey, Timestamp);

#[derive(Default, Debug)]
struct OwnerTable {
    /// The owners with the time of the record; `None` for a connection that was not found, if others between
    /// its endpoints are recorded.
    owners: BTreeMap<CacheKey, (Option<EarlyOwner>, Instant)>,
    /// The same keys, the oldest first, each with a time since which it is kept at least.
    order: VecDeque<(Instant, CacheKey)>,
    evicted: u64,
}

impl OwnerTable {
    fn insert(&mut self, place: CacheKey, early: Option<EarlyOwner>, now: Instant) {
        if self.owners.insert(place, (early, now)).is_none() {
            self.order.push_back((now, place));
        }
        if self.order.len() > LIMIT
            && let Some((_, oldest)) = self.order.pop_front()
            && self.owners.remove(&oldest).is_some_and(|(early, _)| early.is_some())
        {
            self.evicted += 1;
        }
    }

    fn expire(&mut self, now: Instant) {
        let is_old = |since: Instant| now.saturating_duration_since(since) > KEPT;
        while self.order.front().is_some_and(|(since, _)| is_old(*since))
            && let Some((_, place)) = self.order.pop_front()
        {
            // Datagrams of the same flow may have renewed it.
            match self.owners.get(&place) {
                Some(&(_, renewed)) if !is_old(renewed) => self.order.push_back((renewed, place)),
                _ => {
                    self.owners.remove(&place);
                }
            }
        }
        // A burst leaves more capacity than is needed.
        if self.order.capacity() > MIN_CAPACITY && self.order.len() < self.order.capacity() / 4 {
            self.order.shrink_to(MIN_CAPACITY.max(2 * self.order.len()));
        }
    }

    /// Returns the first entry of a flow from `from` on.
    fn next(&self, key: &FlowKey, from: Timestamp) -> Option<Option<EarlyOwner>> {
        let (_, (early, _)) = self.owners.range((*key, from)..=(*key, Timestamp(u64::MAX))).next()?;
        Some(*early)
    }

    /// Returns the last entry of a flow from `from` to `to`.
    fn last(&self, key: &FlowKey, from: Timestamp, to: Timestamp) -> Option<Option<EarlyOwner>> {
        let (_, (early, _)) = self.owners.range((*key, from)..=(*key, to)).next_back()?;
        Some(*early)
    }
}

impl EarlyOwnerCache {
    /// Records the owner of a flow. If the flow is not a connection, the entry replaces the previous one.
    pub fn insert(&self, key: FlowKey, early: EarlyOwner, now: Instant) {
        let begins = if key.protocol == Protocol::TCP { early.seen } else { Timestamp::default() };
        self.table.lock().insert((key, begins), Some(early), now);
    }

    /// Expires the owners that no lookup will need any more.
    pub fn expire(&self, now: Instant) {
        self.table.lock().expire(now);
    }

    /// Records that the owner of a connection which began at `seen` was not found, so that a lookup does not
    /// return the owner of the connection before or after it.
    pub fn miss(&self, key: FlowKey, seen: Timestamp, now: Instant) {
        if key.protocol != Protocol::TCP {
            return;
        }
        let mut table = self.table.lock();
        let before = table.last(&key, Timestamp(seen.0.saturating_sub(EARLIER_NS)), seen);
        let after = table.next(&key, seen);
        if before.into_iter().chain(after).any(|early| early.is_some()) {
            table.insert((key, seen), None, now);
        }
    }

    /// Returns the owner of a flow whose first packet was captured at `first`, if it was found at that
    /// packet, or, for a flow that has not ended, at a later one. The owner of another connection between the
    /// same endpoints is never returned.
    pub fn get(&self, key: &FlowKey, first: Timestamp, is_over: bool) -> Option<EarlyOwner> {
        let table = self.table.lock();
        let earliest = Timestamp(first.0.saturating_sub(EARLIER_NS));
        let latest = Timestamp(first.0.saturating_add(SAME_PACKET_NS));
        if key.protocol != Protocol::TCP {
            let early = table.next(key, Timestamp::default()).flatten();
            return early.filter(|early| early.seen >= earliest && (early.seen <= latest || !is_over));
        }
        match table.last(key, earliest, latest) {
            Some(early) => early,
            None if is_over => None,
            None => table.next(key, first).flatten(),
        }
    }

    /// The number of owners evicted because of the limit.
    pub fn evicted(&self) -> u64 {
        self.table.lock().evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ProcId, Quality};
    use crate::owner::made_up::key;

    const MS: u64 = 1_000_000;
    /// The time at which the first packet of the tested flows was captured.
    const START: u64 = 1_000 * MS;

    fn early(pid: i32, seen: u64) -> EarlyOwner {
        let process = ProcId { pid, start_ticks: 70 };
        let owner = Owner { process, quality: Quality::Exact };
        EarlyOwner { owner, side: Side::Opener, is_translated: false, seen: Timestamp(seen) }
    }

    fn flow(protocol: Protocol) -> FlowKey {
        key(protocol, "10.0.0.1:4000", "10.0.0.2:80")
    }

    #[test]
    fn an_owner_answers_for_its_own_connection_only() {
        for protocol in [Protocol::TCP, Protocol::UDP] {
            let owners = EarlyOwnerCache::default();
            let (flow, found) = (flow(protocol), early(7, START));
            owners.insert(flow, found, Instant::now());
            let get = |first, is_over| owners.get(&flow, Timestamp(first), is_over);
            for is_over in [false, true] {
                assert_eq!(get(START, is_over), Some(found));
                assert_eq!(get(START + 10 * MS, is_over), Some(found), "it has passed another device since");
                assert_eq!(get(2 * START, is_over), None, "another connection, a second later");
            }
            assert_eq!(get(START - 100 * MS, false), Some(found), "found at a later packet");
            assert_eq!(get(START - 100 * MS, true), None, "it may have been over by then");
            let other = key(protocol, "10.0.0.1:4001", "10.0.0.2:80");
            assert_eq!(owners.get(&other, Timestamp(0), false), None);
        }
    }

    #[test]
    fn connections_that_follow_one_another_have_their_own_owners() {
        let (owners, flow) = (EarlyOwnerCache::default(), flow(Protocol::TCP));
        let begins = |number: i32| START + number as u64 * MS;
        // The owner of one connection may be found after that of the next.
        let (even, odd): (Vec<i32>, Vec<i32>) = (0..100).partition(|number| number % 2 == 0);
        for number in odd.into_iter().chain(even) {
            owners.insert(flow, early(number, begins(number)), Instant::now());
        }
        for number in 0..100 {
            for is_over in [false, true] {
                let found = owners.get(&flow, Timestamp(begins(number)), is_over);
                assert_eq!(found, Some(early(number, begins(number))));
            }
        }
    }

    #[test]
    fn one_that_was_not_found_is_not_the_one_before_or_after_it() {
        let (owners, flow) = (EarlyOwnerCache::default(), flow(Protocol::TCP));
        owners.miss(flow, Timestamp(START - MS), Instant::now());
        assert!(owners.table.lock().owners.is_empty(), "there is none to be mistaken for it");
        owners.insert(flow, early(7, START), Instant::now());
        owners.insert(flow, early(8, START + 2 * MS), Instant::now());
        owners.miss(flow, Timestamp(START + MS), Instant::now());
        for is_over in [false, true] {
            assert_eq!(owners.get(&flow, Timestamp(START + MS), is_over), None);
            assert_eq!(owners.get(&flow, Timestamp(START), is_over), Some(early(7, START)));
        }
    }

    #[test]
    fn datagrams_of_a_flow_have_one_place() {
        let (owners, flow) = (EarlyOwnerCache::default(), flow(Protocol::UDP));
        for number in 0..10 {
            owners.insert(flow, early(number as i32, START + number * 100 * MS), Instant::now());
        }
        owners.miss(flow, Timestamp(3 * START), Instant::now());
        assert_eq!(owners.get(&flow, Timestamp(START), false), Some(early(9, START + 900 * MS)));
        assert_eq!(owners.table.lock().order.len(), 1);
    }

    #[test]
    fn the_oldest_make_room() {
        let owners = EarlyOwnerCache::default();
        for port in 0..=u16::MAX {
            for protocol in [Protocol::TCP, Protocol::UDP] {
                owners.insert(
                    key(protocol, &format!("10.0.0.1:{port}"), "10.0.0.2:80"),
                    early(7, START),
                    Instant::now(),
                );
            }
        }
        let size = || {
            let table = owners.table.lock();
            (table.owners.len(), table.order.len(), table.evicted)
        };
        assert_eq!(size(), (LIMIT, LIMIT, LIMIT as u64));
        let flow = flow(Protocol::TCP);
        let evicted = owners.evicted();
        owners.insert(flow, early(8, START), Instant::now());
        (1..=LIMIT as u64).for_each(|number| owners.miss(flow, Timestamp(START + number), Instant::now()));
        assert_eq!(
            size(),
            (LIMIT, LIMIT, evicted + 2),
            "what was missed after what was missed needs no place"
        );
    }

    #[test]
    fn owners_are_released_when_their_questions_have_been_asked() {
        let (owners, began) = (EarlyOwnerCache::default(), Instant::now());
        let at = |second| began + Duration::from_secs(second);
        let port = |port| key(Protocol::TCP, &format!("10.0.0.1:{port}"), "10.0.0.2:80");
        for number in 0..20_000 {
            owners.insert(port(number), early(7, START), at(0));
        }
        let last = port(30_000);
        owners.insert(last, early(8, START), at(60));
        let datagrams = flow(Protocol::UDP);
        owners.insert(datagrams, early(9, START), at(0));
        owners.insert(datagrams, early(9, 2 * START), at(75));
        owners.expire(began + KEPT);
        assert_eq!(
            owners.get(&port(0), Timestamp(START), false),
            Some(early(7, START)),
            "as long as it says"
        );
        owners.expire(at(110));
        assert_eq!(owners.get(&port(0), Timestamp(START), false), None);
        assert_eq!(owners.get(&last, Timestamp(START), false), Some(early(8, START)));
        assert_eq!(owners.get(&datagrams, Timestamp(2 * START), false), Some(early(9, 2 * START)), "renewed");
        let room = owners.table.lock().order.capacity();
        assert!(room <= 2 * MIN_CAPACITY, "{room}");
        owners.expire(at(180));
        let table = owners.table.lock();
        assert_eq!((table.owners.len(), table.order.len(), table.evicted), (0, 0, 0));
    }
}
