//! The bounded table of flows: counts packets, hands out new and changed flows, and expires and evicts flows.

use super::entry::{Binding, Departed, Flow, FlowId};
use super::eviction::MIN_UNANSWERED_REVIEW;
use super::index::{FlowIndex, KeyHash};
use super::late::LateOwners;
use super::metrics::FlowMetrics;
use super::offload::Offloads;
use super::state::FlowState;
use crate::error::{Code, Error, Result};
use crate::model::{CloseReason, Direction, FlowKey, TcpFlags, Timestamp, WireSize};
use std::collections::{TryReserveError, VecDeque};

/// The counters of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowStats {
    /// Flows in the table now.
    pub held: u64,
    /// The maximum number of flows in the table.
    pub limit: u64,
    /// Slots in use or vacant, all of which a sweep visits; the maximum number of flows that were ever in the
    /// table at once.
    pub slots: u64,
    /// Flows that ever entered it: `held` and all that have left.
    pub inserted: u64,
    /// Flows that left it because they had been idle too long.
    pub expired: u64,
    /// Flows that left it early because a limit was reached.
    pub evicted: u64,
    /// Flows that left it because another connection began between the same endpoints.
    pub superseded: u64,
}

/// A bounded table of flows, for one thread.
///
/// It is used in batches: `record` every packet, then drain the changes (`drain_dirty`, `drain_fresh`,
/// `drain_departed`) and `sweep` a number of slots. The three lists are bounded by the flows that were
/// recorded, requeued for lookup and swept since they were last drained.
///
/// Traffic is never lost: recorded traffic is pending in a flow, has been taken from it, or is in a
/// `Departed`.
///
/// Address space for `limit` flows is reserved at once, so that flows never move. Memory is used as flows
/// arrive: 128 bytes for each flow, 10 to 30 for its place in the index and the lists, and at most 100 more
/// for a flow whose packets are captured in frames of several packets. Slots are reused. The lists grow as
/// needed and are not reserved: once some MB have been allocated and soon freed, the allocator takes such
/// sizes from its heaps, where they scatter later allocations.
pub struct FlowTable {
    limit: usize,
    pub(super) slots: Vec<Flow>,
    /// The metrics of the flow in each slot; empty if metrics are not kept.
    pub(super) details: Vec<FlowMetrics>,
    pub(super) keeps_details: bool,
    /// Offload state by slot, for the flows that have any.
    pub(super) offloads: Offloads,
    /// A lower bound of the segment limits in `offloads`.
    pub(super) min_segment: u16,
    pub(super) index: FlowIndex,
    pub(super) vacant: Vec<u32>,
    dirty: Vec<u32>,
    fresh: Vec<u32>,
    departed: Vec<Departed>,
    /// Flows that began unanswered, by the direction of their first packet, oldest first. Some of them have
    /// left or were answered since.
    pub(super) unanswered: [VecDeque<FlowId>; 2],
    /// The total length of both lists at which flows that have left or were answered are dropped next.
    pub(super) unanswered_review: usize,
    /// Flows that have ended, and the time since when they have waited for late packets.
    pub(super) ended: VecDeque<(FlowId, Timestamp)>,
    /// Owners of connections that were released.
    pub(super) late: LateOwners,
    /// Flows that were answered and are to be looked up now.
    answered: Vec<FlowId>,
    /// The next slot for the sweep, or for the search for a flow to evict.
    hand: usize,
    inserted: u64,
    pub(super) expired: u64,
    pub(super) evicted: u64,
    superseded: u64,
}

impl FlowTable {
    /// Creates a table of at most `limit` flows. A limit of 0 is raised to 1, and one above 2^32 - 1 is
    /// reduced to it.
    ///
    /// # Errors
    /// Fails with `SystemResource` if the address space for so many flows is unavailable.
    pub fn new(limit: usize) -> Result<FlowTable> {
        let limit = limit.clamp(1, u32::MAX as usize);
        let refused = |error: TryReserveError| {
            Error::system(Code::SystemResource, format_args!("reserving a table of {limit} flows"), error)
        };
        Ok(FlowTable {
            limit,
            slots: reserve(limit).map_err(refused)?,
            details: Vec::new(),
            keeps_details: false,
            offloads: Offloads::default(),
            min_segment: u16::MAX,
            index: FlowIndex::new(),
            vacant: Vec::new(),
            dirty: Vec::new(),
            fresh: Vec::new(),
            departed: Vec::new(),
            unanswered: [VecDeque::new(), VecDeque::new()],
            unanswered_review: MIN_UNANSWERED_REVIEW,
            ended: VecDeque::new(),
            late: LateOwners::default(),
            answered: Vec::new(),
            hand: 0,
            inserted: 0,
            expired: 0,
            evicted: 0,
            superseded: 0,
        })
    }

    /// Keeps the metrics of every flow from now on, some 170 bytes for each. The table must be empty.
    ///
    /// # Errors
    /// Fails as [`FlowTable::new`] does.
    pub fn keep_details(&mut self) -> Result<()> {
        let refused = |error: TryReserveError| {
            let tried = format_args!("reserving the metrics of {} flows", self.limit);
            Error::system(Code::SystemResource, tried, error)
        };
        self.details = reserve(self.limit).map_err(refused)?;
        self.keeps_details = true;
        Ok(())
    }

    /// Records a packet in the metrics of a flow that has just counted it.
    #[inline]
    pub fn observe(
        &mut self,
        id: FlowId,
        direction: Direction,
        flags: TcpFlags,
        has_payload: bool,
        now: Timestamp,
    ) {
        let state = self.get(id).map(Flow::state);
        if let (Some(state), Some(detail)) = (state, self.details.get_mut(id.index as usize)) {
            detail.observe(state, direction, flags, has_payload, now);
            if state == FlowState::Reset && detail.disproves_end(direction, flags, now) {
                self.revive(id.index, now);
            }
        }
    }

    /// Continues a flow whose end has been disproved. If its last record was made, what follows has a record of
    /// its own.
    #[cold]
    fn revive(&mut self, slot: u32, now: Timestamp) {
        match self.details.get_mut(slot as usize) {
            Some(detail) if !detail.is_told() => {
                detail.revive();
                self.slots[slot as usize].revive();
            }
            _ => self.supersede(slot, FlowState::Midstream, now),
        }
    }

    /// Records that the socket of a flow has disappeared, although no packet said so; the next SYN begins
    /// another flow.
    pub fn vanish(&mut self, id: FlowId, reason: CloseReason, when: Timestamp) {
        let Some(flow) = self.get_mut(id) else { return };
        flow.close();
        self.list_ended(id, when);
        if let Some(detail) = self.details.get_mut(id.index as usize) {
            detail.vanish(reason, when);
            if self.slots[id.index as usize].set_dirty() {
                self.dirty.push(id.index);
            }
        }
    }

    /// Returns a flow of the table with its metrics.
    pub fn detail_mut(&mut self, id: FlowId) -> Option<(&mut Flow, &mut FlowMetrics)> {
        let slot = id.index as usize;
        let flow = self.slots.get_mut(slot).filter(|flow| flow.generation() == id.generation)?;
        Some((flow, self.details.get_mut(slot)?))
    }

    /// Records that a flow's socket has other endpoints than the flow.
    pub fn set_translated(&mut self, id: FlowId) {
        if let Some(flow) = self.get_mut(id) {
            flow.take_whole();
        }
        if let Some((_, detail)) = self.detail_mut(id) {
            detail.set_translated();
        }
    }

    /// Returns all flows whose metrics are kept.
    pub fn detailed(&self) -> impl Iterator<Item = (FlowId, &Flow, &FlowMetrics)> {
        let held = self.slots.iter().zip(&self.details).zip(0..).filter(|((flow, _), _)| flow.is_held());
        held.map(|((flow, detail), index)| (FlowId { index, generation: flow.generation() }, flow, detail))
    }

    /// Counts a frame for the flow of `key` and takes the flow to its next state. Adds the flow if there is
    /// none; a full table evicts another flow for it.
    ///
    /// A SYN that can only begin another connection between the same endpoints ends the existing flow and
    /// begins a new one, whose owner is unknown.
    pub fn record(
        &mut self,
        key: &FlowKey,
        direction: Direction,
        size: impl Into<WireSize>,
        flags: TcpFlags,
        now: Timestamp,
    ) -> FlowId {
        let hash = self.index.hash(key);
        let slots = &self.slots;
        let slot = match self.index.find(hash, |slot| slots[slot as usize].key() == key) {
            Some(slot) => {
                if slots[slot as usize].state().is_superseded_by(direction, flags) {
                    self.supersede(slot, FlowState::first(key.protocol, direction, flags), now);
                }
                slot
            }
            None => match self.take_late(key, flags) {
                Some(owner) => {
                    let slot = self.insert(hash, key, FlowState::Closed, now);
                    self.restore(slot, owner, now);
                    slot
                }
                None => {
                    let slot = self.insert(hash, key, FlowState::first(key.protocol, direction, flags), now);
                    self.fresh.push(slot);
                    slot
                }
            },
        };
        self.count(slot, direction, size.into(), flags, now)
    }

    #[inline]
    fn count(
        &mut self,
        slot: u32,
        direction: Direction,
        size: WireSize,
        flags: TcpFlags,
        now: Timestamp,
    ) -> FlowId {
        let flow = &mut self.slots[slot as usize];
        let was_answered = !flow.is_unanswered() && flow.state().is_answered();
        let was_over = flow.state().is_over();
        while flow.count(direction, size, flags, now).is_err() {
            self.departed.extend(flow.depart(slot, None));
        }
        if !was_answered && !flow.is_unanswered() && flow.state().is_answered() {
            self.answered.push(FlowId { index: slot, generation: flow.generation() });
        }
        if flow.set_dirty() {
            self.dirty.push(slot);
        }
        let id = FlowId { index: slot, generation: flow.generation() };
        if !was_over && flow.state().is_over() {
            self.list_ended(id, now);
        }
        id
    }

    /// Counts a frame for flows whose ids [`FlowTable::record`] has returned for an earlier frame of the same
    /// endpoints: for its sender, and for its receiver. Returns `false` and counts nothing if one of them has
    /// left the table, or if the frame may begin another connection.
    #[inline]
    pub fn count_known(
        &mut self,
        send: Option<FlowId>,
        receive: Option<FlowId>,
        size: WireSize,
        flags: TcpFlags,
        now: Timestamp,
    ) -> bool {
        let is_held = |id: Option<FlowId>| id.is_none_or(|id| self.get(id).is_some());
        if flags.has(TcpFlags::SYN) || !is_held(send) || !is_held(receive) {
            return false;
        }
        for (id, direction) in [(send, Direction::Send), (receive, Direction::Receive)] {
            if let Some(id) = id {
                self.count(id.index, direction, size, flags, now);
            }
        }
        true
    }

    /// Returns the flow with this id, unless it has left the table.
    #[inline]
    pub fn get(&self, id: FlowId) -> Option<&Flow> {
        self.slots.get(id.index as usize).filter(|flow| flow.generation() == id.generation)
    }

    /// Returns the flow with this id, unless it has left the table.
    #[inline]
    pub fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.slots.get_mut(id.index as usize).filter(|flow| flow.generation() == id.generation)
    }

    /// Returns the id of the flow that now has this key.
    pub fn find(&self, key: &FlowKey) -> Option<FlowId> {
        let index = self.index.find(self.index.hash(key), |slot| self.slots[slot as usize].key() == key)?;
        Some(FlowId { index, generation: self.slots[index as usize].generation() })
    }

    /// Counts the bytes of packets that were not seen, for a flow that is in the table. They are pending like
    /// those of a packet, but do not renew the flow's age.
    pub fn count_unseen(&mut self, id: FlowId, send_bytes: u64, receive_bytes: u64) {
        let Some(flow) = self.get_mut(id) else { return };
        flow.count_unseen(send_bytes, receive_bytes);
        if flow.set_dirty() {
            self.dirty.push(id.index);
        }
    }

    /// Calls `visit` once for every flow that has counted a packet since the last drain, with its metrics if
    /// they are kept.
    pub fn drain_dirty(&mut self, mut visit: impl FnMut(FlowId, &mut Flow, Option<&mut FlowMetrics>)) {
        for index in self.dirty.drain(..) {
            // A slot is listed twice if its flow left and another arrived since the last drain.
            let flow = &mut self.slots[index as usize];
            if flow.is_held() && flow.clear_dirty() {
                let detail = self.details.get_mut(index as usize);
                visit(FlowId { index, generation: flow.generation() }, flow, detail);
            }
        }
    }

    /// Calls `ask` once for every flow whose owner is to be looked up; the flow is bound as `Asked` before.
    pub fn drain_fresh(&mut self, mut ask: impl FnMut(FlowId, &mut Flow)) {
        for index in self.fresh.drain(..) {
            let flow = &mut self.slots[index as usize];
            if flow.is_held() && flow.binding() == Binding::Unasked {
                flow.set_asked(true);
                ask(FlowId { index, generation: flow.generation() }, flow);
            }
        }
    }

    /// Takes the flows that were answered since the last call, to be looked up. They include those still on
    /// the list of [`FlowTable::drain_fresh`].
    pub fn take_answered(&mut self) -> Vec<FlowId> {
        std::mem::take(&mut self.answered)
    }

    /// Calls `visit` for all traffic that has left the table untaken since the last drain.
    pub fn drain_departed(&mut self, visit: impl FnMut(Departed)) {
        self.departed.drain(..).for_each(visit);
    }

    /// Drops a flow's owner and lists the flow to be looked up. Returns `false` if it has left the table.
    pub fn ask_again(&mut self, id: FlowId) -> bool {
        let Some(flow) = self.get_mut(id) else { return false };
        if flow.binding() != Binding::Unasked {
            flow.set_asked(false);
            self.fresh.push(id.index);
        }
        true
    }

    /// Visits the next `slots` slots, each at most once, and expires the flows that have been idle too long.
    ///
    /// With the maximum time (`u64::MAX`) and `usize::MAX` slots it empties the table.
    pub fn sweep(&mut self, now: Timestamp, slots: usize) {
        for _ in 0..slots.min(self.slots.len()) {
            let slot = self.advance();
            let flow = &mut self.slots[slot as usize];
            if !flow.is_held() {
                continue;
            }
            flow.mend_clock(0, now);
            if flow.is_expired(now) {
                self.expired += 1;
                self.remove(slot);
                self.vacant.push(slot);
            }
        }
    }

    /// Returns the table's counters.
    pub fn stats(&self) -> FlowStats {
        FlowStats {
            held: (self.slots.len() - self.vacant.len()) as u64,
            limit: self.limit as u64,
            slots: self.slots.len() as u64,
            inserted: self.inserted,
            expired: self.expired,
            evicted: self.evicted,
            superseded: self.superseded,
        }
    }

    /// Returns the slot under the clock hand, and advances the hand.
    pub(super) fn advance(&mut self) -> u32 {
        if self.hand >= self.slots.len() {
            self.hand = 0;
        }
        self.hand += 1;
        (self.hand - 1) as u32
    }

    #[inline(never)]
    fn insert(&mut self, hash: KeyHash, key: &FlowKey, state: FlowState, now: Timestamp) -> u32 {
        let slot = if let Some(slot) = self.vacant.pop() {
            self.occupy(slot, *key, state, now);
            slot
        } else if self.slots.len() < self.limit {
            self.slots.push(Flow::new(*key, state, now, 1));
            if self.keeps_details {
                self.details.push(FlowMetrics::new(state));
            }
            (self.slots.len() - 1) as u32
        } else {
            let slot = self.evict(now);
            self.occupy(slot, *key, state, now);
            slot
        };
        self.index.insert(hash, slot);
        self.inserted += 1;
        self.limit_unanswered(slot, now);
        slot
    }

    /// Ends the flow in a slot and begins another one with the same key there.
    #[cold]
    fn supersede(&mut self, slot: u32, state: FlowState, now: Timestamp) {
        self.depart(slot);
        let flow = &mut self.slots[slot as usize];
        flow.vacate();
        let key = *flow.key();
        self.occupy(slot, key, state, now);
        self.superseded += 1;
        self.inserted += 1;
        self.fresh.push(slot);
    }

    /// Puts a flow into a vacant slot.
    fn occupy(&mut self, slot: u32, key: FlowKey, state: FlowState, now: Timestamp) {
        let flow = &mut self.slots[slot as usize];
        *flow = Flow::new(key, state, now, flow.generation().wrapping_add(1));
        if let Some(detail) = self.details.get_mut(slot as usize) {
            *detail = FlowMetrics::new(state);
        }
    }

    /// Lists the traffic and metrics to be reported of a flow that leaves its slot.
    fn depart(&mut self, slot: u32) {
        if self.offloads.remove(&slot).is_some() && self.offloads.is_empty() {
            self.min_segment = u16::MAX;
        }
        let detail = self.details.get(slot as usize);
        let unreported = detail.filter(|detail| !detail.is_told() || detail.has_counts());
        let detail = unreported.map(|detail| Box::new(detail.clone()));
        self.departed.extend(self.slots[slot as usize].depart(slot, detail));
    }

    /// Removes the flow from a slot, which is then vacant.
    pub(super) fn remove(&mut self, slot: u32) {
        self.depart(slot);
        let flow = &mut self.slots[slot as usize];
        flow.vacate();
        self.index.remove(self.index.hash(flow.key()), slot);
    }

    /// The number of keys in the index.
    #[cfg(test)]
    pub(super) fn indexed(&self) -> usize {
        self.index.len()
    }
}

/// Returns an empty vector with capacity for `limit` elements; unused capacity takes no memory.
fn reserve<T>(limit: usize) -> std::result::Result<Vec<T>, TryReserveError> {
    let mut vector = Vec::new();
    vector.try_reserve_exact(limit)?;
    Ok(vector)
}
