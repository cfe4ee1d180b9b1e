//! Makes room in the table of flows: for any flow when it is full, and among those that one end has opened and the other has
//! not answered.

use super::entry::{Flow, FlowId};
use super::metrics::FlowMetrics;
use super::state::FlowState;
use super::table::FlowTable;
use crate::model::{Direction, Timestamp};
use std::cmp::Reverse;
use std::collections::VecDeque;

/// How many flows are looked at to find one to let go when the table is full: at least so many, to take one that has
/// long been idle, and at most so many, to find one that is not in use.
const EVICTION_WINDOW: std::ops::RangeInclusive<usize> = 8..=64;

/// Memory for flows that one end has opened and the other has not answered, bytes. Beyond it the oldest of them make room, so
/// that a flood of them displaces nothing else; of those opened here and by other ends those that there are more of.
const UNANSWERED_BYTES: usize = 16 << 20;

/// What a flow takes besides its slot: its places in the index and in the lists.
const PLACES_BYTES: usize = 40;

/// The least length of the lists of unanswered flows at which those that are no longer are dropped from them.
pub(super) const MIN_UNANSWERED_REVIEW: usize = 4096;

/// How long an unanswered flow of several datagrams is kept at least, nanoseconds: it may be one that needs no answer.
const UNANSWERED_IDLE: u64 = 1_000_000_000;

impl FlowTable {
    /// Lets one flow of a full table go and returns its slot: an expired one, else the least worth and longest idle
    /// of those next under the hand.
    pub(super) fn evict(&mut self, now: Timestamp) -> u32 {
        let first = self.advance();
        let mut victim = (self.rank(first, now), first);
        for looked in 1..self.slots.len().min(*EVICTION_WINDOW.end()) {
            let (worth, _) = victim.0;
            if worth < FlowState::IN_USE && looked >= *EVICTION_WINDOW.start() {
                break;
            }
            let slot = self.advance();
            victim = victim.min((self.rank(slot, now), slot));
        }
        let slot = victim.1;
        if self.slots[slot as usize].is_expired(now) {
            self.expired += 1;
        } else {
            self.evicted += 1;
        }
        self.remove(slot);
        slot
    }

    /// The order in which flows are let go, lowest first.
    fn rank(&self, slot: u32, now: Timestamp) -> (u8, Reverse<u64>) {
        let flow = &self.slots[slot as usize];
        let worth = if flow.is_expired(now) { 0 } else { flow.state().worth() };
        (worth, Reverse(flow.idle(now)))
    }

    /// Lists a new flow that is unanswered, and lets the oldest of these go when there are too many.
    pub(super) fn limit_unanswered(&mut self, slot: u32, now: Timestamp) {
        let flow = &self.slots[slot as usize];
        let opener = match flow.state() {
            FlowState::SynSent | FlowState::SendOnly => Direction::Send,
            FlowState::SynReceived | FlowState::ReceiveOnly => Direction::Receive,
            _ => return,
        };
        let generation = flow.generation();
        self.unanswered[opener as usize].push_back(FlowId { index: slot, generation });
        let details = if self.keeps_details { size_of::<FlowMetrics>() } else { 0 };
        let limit = UNANSWERED_BYTES / (size_of::<Flow>() + PLACES_BYTES + details);
        let listed = |lists: &[VecDeque<FlowId>; 2]| lists.each_ref().map(VecDeque::len);
        if listed(&self.unanswered).iter().sum::<usize>() >= self.unanswered_review {
            self.review_unanswered();
        }
        let [sent, received] = listed(&self.unanswered);
        if sent + received <= limit {
            return;
        }
        let longer = if sent > received { Direction::Send } else { Direction::Receive };
        let Some(id) = self.unanswered[longer as usize].pop_front() else { return };
        let Some(flow) = self.get(id) else { return };
        let is_datagrams = matches!(flow.state(), FlowState::SendOnly | FlowState::ReceiveOnly);
        let totals = flow.totals();
        let is_repeated = totals.send_packets + totals.receive_packets > 1;
        if is_datagrams && is_repeated && flow.idle(now) < UNANSWERED_IDLE {
            self.unanswered[longer as usize].push_back(id);
        } else if flow.is_unanswered() || !flow.state().is_answered() {
            self.evicted += 1;
            self.remove(id.index);
            self.vacant.push(id.index);
        }
    }

    /// Drops flows from the lists of those unanswered that have left or were answered. The next time is when there are twice
    /// as many, so that each flow costs the same however many there are.
    #[cold]
    fn review_unanswered(&mut self) {
        let FlowTable { unanswered, slots, .. } = self;
        for list in unanswered.iter_mut() {
            list.retain(|id| {
                let flow = slots.get(id.index as usize).filter(|flow| flow.generation() == id.generation);
                flow.is_some_and(|flow| flow.is_unanswered() || !flow.state().is_answered())
            });
            list.shrink_to(2 * list.len());
        }
        let left: usize = self.unanswered.iter().map(VecDeque::len).sum();
        self.unanswered_review = MIN_UNANSWERED_REVIEW.max(2 * left);
    }
}

#[cfg(test)]
#[path = "eviction_tests.rs"]
mod tests;
