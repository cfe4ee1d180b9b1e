//! Evicts flows: any flow if the table is full, and unanswered flows (opened by one end and not answered by
//! the other) if there are too many of them.

use super::entry::{Flow, FlowId};
use super::metrics::FlowMetrics;
use super::state::FlowState;
use super::table::FlowTable;
use crate::model::{Direction, Timestamp};
use std::cmp::Reverse;
use std::collections::VecDeque;

/// The number of flows examined to find one to evict from a full table: at least the lower bound, to find one
/// that has long been idle, and at most the upper bound, to find one that is not in use.
const EVICTION_WINDOW: std::ops::RangeInclusive<usize> = 8..=64;

/// Memory for unanswered flows, bytes. Beyond it the oldest of them are evicted, so that a flood of them
/// displaces nothing else. There is a list of those opened here and one of those opened by other ends; the
/// longer list loses its oldest flow.
const UNANSWERED_BYTES: usize = 16 << 20;

/// The memory of a flow in addition to its slot: its places in the index and in the lists.
const PLACES_BYTES: usize = 40;

/// The minimum length of the lists of unanswered flows at which flows that are no longer unanswered are
/// dropped from them.
pub(super) const MIN_UNANSWERED_REVIEW: usize = 4096;

/// The minimum time for which an unanswered flow of several datagrams is kept, nanoseconds: it may be a flow
/// that needs no answer.
const UNANSWERED_IDLE: u64 = 1_000_000_000;

impl FlowTable {
    /// Evicts one flow of a full table and returns its slot: an expired flow, else the least valuable and
    /// longest idle of those next under the clock hand.
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

    /// The order of eviction, lowest first.
    fn rank(&self, slot: u32, now: Timestamp) -> (u8, Reverse<u64>) {
        let flow = &self.slots[slot as usize];
        let worth = if flow.is_expired(now) { 0 } else { flow.state().worth() };
        (worth, Reverse(flow.idle(now)))
    }

    /// Lists a new flow that is unanswered, and evicts the oldest unanswered flow if there are too many.
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

    /// Drops flows that have left or were answered from the lists of unanswered flows. The next review is due
    /// when there are twice as many, so that the cost per flow does not depend on their number.
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
