//! Owners found at the first packet of their flow, kept until the capture's batch brings the question.

use super::likely::Side;
use crate::model::{FlowKey, Owner, Timestamp};
use crate::sync::Mutex;
use foldhash::fast::RandomState;
use std::collections::{HashMap, VecDeque};

/// Flows remembered at once, about 170 bytes each, 11 MiB in all; the oldest make room. At 2,000 new flows a second the
/// batches may be half a minute apart.
const LIMIT: usize = 65_536;

/// How much earlier than the capture's first packet of a flow its owner may have been found: the same packet is stamped
/// for each of its readers, and no other connection between the same endpoints follows within this time.
const EARLIER_NS: u64 = 50_000_000;

/// An owner found early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Early {
    /// The owner.
    pub owner: Owner,
    /// Which end of the flow is on this host.
    pub side: Side,
    /// When the packet was seen at which it was found.
    pub seen: Timestamp,
}

/// The table, shared by the thread that fills it and the one that answers questions.
#[derive(Default, Debug)]
pub struct EarlyOwners {
    table: Mutex<Table>,
}

#[derive(Default, Debug)]
struct Table {
    owners: HashMap<FlowKey, Early, RandomState>,
    order: VecDeque<FlowKey>,
    evicted: u64,
}

impl EarlyOwners {
    /// Keeps the owner of a flow.
    pub fn insert(&self, key: FlowKey, early: Early) {
        let mut table = self.table.lock();
        if table.owners.insert(key, early).is_none() {
            table.order.push_back(key);
        }
        if table.order.len() > LIMIT
            && let Some(oldest) = table.order.pop_front()
        {
            table.owners.remove(&oldest);
            table.evicted += 1;
        }
    }

    /// The owner of a flow whose first packet was captured at `first`, if it was found at that packet or later. What
    /// was found for an earlier connection between the same endpoints is no answer.
    pub fn get(&self, key: &FlowKey, first: Timestamp) -> Option<Early> {
        let table = self.table.lock();
        let early = table.owners.get(key)?;
        (early.seen.0.saturating_add(EARLIER_NS) >= first.0).then_some(*early)
    }

    /// Owners forgotten for want of room.
    pub fn evicted(&self) -> u64 {
        self.table.lock().evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ProcId, Protocol, Quality};
    use crate::owner::made_up::key;

    const EARLY: Early = Early {
        owner: Owner { process: ProcId { pid: 7, start_ticks: 70 }, quality: Quality::Exact },
        side: Side::Opener,
        seen: Timestamp(1_000_000_000),
    };

    #[test]
    fn an_owner_answers_for_its_own_connection_only() {
        let early = EarlyOwners::default();
        let flow = key(Protocol::TCP, "10.0.0.1:4000", "10.0.0.2:80");
        early.insert(flow, EARLY);
        assert_eq!(early.get(&flow, Timestamp(1_000_000_100)), Some(EARLY));
        assert_eq!(early.get(&flow, Timestamp(900_000_000)), Some(EARLY), "found at a later packet");
        assert_eq!(early.get(&flow, Timestamp(2_000_000_000)), None, "another connection, a second later");
        let other = key(Protocol::UDP, "10.0.0.1:4000", "10.0.0.2:80");
        assert_eq!(early.get(&other, Timestamp(0)), None);
    }

    #[test]
    fn the_oldest_make_room() {
        let early = EarlyOwners::default();
        for port in 0..=u16::MAX {
            for protocol in [Protocol::TCP, Protocol::UDP] {
                early.insert(key(protocol, &format!("10.0.0.1:{port}"), "10.0.0.2:80"), EARLY);
            }
        }
        let table = early.table.lock();
        assert_eq!((table.owners.len(), table.order.len()), (LIMIT, LIMIT));
        assert_eq!(table.evicted, LIMIT as u64);
    }
}
