//! The bounded table of flows: counting packets, handing out what is new or changed, and letting flows go.

use super::detail::Detail;
use super::entry::{Binding, Departed, Flow, FlowId};
use super::eviction::MIN_UNANSWERED_REVIEW;
use super::index::{Index, KeyHash};
use super::late::LateOwners;
use super::offload::Offloads;
use super::state::FlowState;
use crate::error::{Code, Error, Result};
use crate::model::{CloseReason, Direction, FlowKey, TcpFlags, Timestamp, WireSize};
use std::collections::{TryReserveError, VecDeque};

/// What a table has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowStats {
    /// Flows held now.
    pub held: u64,
    /// The most flows it holds.
    pub limit: u64,
    /// Slots in use or vacant, which a sweep looks at; the most flows that were ever held.
    pub slots: u64,
    /// Flows that ever entered it: `held` and all that left it.
    pub inserted: u64,
    /// Flows that left it because they had been idle too long.
    pub expired: u64,
    /// Flows that left it early to make room for another.
    pub evicted: u64,
    /// Flows that left it because another connection began between the same endpoints.
    pub superseded: u64,
}

/// A bounded table of flows, for one thread.
///
/// It is worked in batches: `record` every packet, then drain what changed (`drain_dirty`, `drain_fresh`,
/// `drain_departed`) and `sweep` a number of slots. The three lists are bounded by what was recorded, asked again and
/// swept since they were last drained.
///
/// Traffic is never lost: what was recorded is pending in a flow, has been taken from it, or is in a `Departed`.
///
/// Address space for `limit` flows is reserved at once, so that flows never move; memory is used as flows come, 128
/// bytes for each and 10 to 30 for its place in the index and the lists; at most 100 more for one whose packets are
/// captured as frames of many. What flows have used is kept for others. The lists grow as they need: room of some MB that
/// is reserved and given back soon is taken from the allocator's heaps from then on, where it scatters what comes after.
pub struct FlowTable {
    limit: usize,
    pub(super) slots: Vec<Flow>,
    /// What is kept besides of the flow in each slot; empty where nothing is.
    pub(super) details: Vec<Detail>,
    pub(super) keeps_details: bool,
    /// By slot, for the flows that have something to keep there.
    pub(super) offloads: Offloads,
    pub(super) index: Index,
    pub(super) vacant: Vec<u32>,
    dirty: Vec<u32>,
    fresh: Vec<u32>,
    departed: Vec<Departed>,
    /// Flows that began unanswered, by the direction of their first packet, the oldest first; some of those that have left
    /// or were answered since included.
    pub(super) unanswered: [VecDeque<FlowId>; 2],
    /// The length of both together at which the latter are dropped next.
    pub(super) unanswered_review: usize,
    /// Flows that have ended, and since when they are to wait for packets that come late.
    pub(super) ended: VecDeque<(FlowId, Timestamp)>,
    /// Owners of those that were let go.
    pub(super) late: LateOwners,
    /// Flows that were answered and are to be asked about now.
    answered: Vec<FlowId>,
    /// The next slot that the sweep, or the search for a flow to evict, looks at.
    hand: usize,
    inserted: u64,
    pub(super) expired: u64,
    pub(super) evicted: u64,
    superseded: u64,
}

impl FlowTable {
    /// A table of at most `limit` flows. A limit of 0 counts as 1, and one above 2^32 - 1 as that.
    ///
    /// # Errors
    /// `SystemResource` when the address space for so many flows cannot be had.
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
            index: Index::new(),
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

    /// Keeps the course of every flow from now on, some 170 bytes for each. Only for a table that is empty.
    ///
    /// # Errors
    /// As [`FlowTable::new`].
    pub fn keep_details(&mut self) -> Result<()> {
        let refused = |error: TryReserveError| {
            let tried = format_args!("reserving the courses of {} flows", self.limit);
            Error::system(Code::SystemResource, tried, error)
        };
        self.details = reserve(self.limit).map_err(refused)?;
        self.keeps_details = true;
        Ok(())
    }

    /// Notes the course of a flow whose packet was just counted.
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
        }
    }

    /// Notes that the socket of a flow has gone, although no packet said so; the next SYN begins another flow.
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

    /// A flow that is in the table, with its course.
    pub fn detail_mut(&mut self, id: FlowId) -> Option<(&mut Flow, &mut Detail)> {
        let slot = id.index as usize;
        let flow = self.slots.get_mut(slot).filter(|flow| flow.generation() == id.generation)?;
        Some((flow, self.details.get_mut(slot)?))
    }

    /// All flows of which the course is kept.
    pub fn detailed(&self) -> impl Iterator<Item = (FlowId, &Flow, &Detail)> {
        let held = self.slots.iter().zip(&self.details).zip(0..).filter(|((flow, _), _)| flow.is_held());
        held.map(|((flow, detail), index)| (FlowId { index, generation: flow.generation() }, flow, detail))
    }

    /// Counts a frame for the flow of `key`, which is made if there is none, and takes the flow to its next state. In a
    /// full table another flow makes room for it.
    ///
    /// A SYN that can only begin another connection between the same endpoints ends the flow that was and makes a
    /// new one, about whose owner nothing is known.
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

    /// Counts a frame for flows whose names [`FlowTable::record`] has returned for an earlier one of the same
    /// endpoints: for its sender, and for its receiver. Returns `false` and counts nothing when one has left the table,
    /// or when the frame may begin another connection.
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

    /// The flow of this name, unless it has left the table.
    #[inline]
    pub fn get(&self, id: FlowId) -> Option<&Flow> {
        self.slots.get(id.index as usize).filter(|flow| flow.generation() == id.generation)
    }

    /// The flow of this name, unless it has left the table.
    #[inline]
    pub fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.slots.get_mut(id.index as usize).filter(|flow| flow.generation() == id.generation)
    }

    /// The name of the flow that now has this key.
    pub fn find(&self, key: &FlowKey) -> Option<FlowId> {
        let index = self.index.find(self.index.hash(key), |slot| self.slots[slot as usize].key() == key)?;
        Some(FlowId { index, generation: self.slots[index as usize].generation() })
    }

    /// Counts bytes that have passed in packets which were not seen, for a flow that is in the table. They are pending
    /// like those of a packet, but it stays as old as it is.
    pub fn count_unseen(&mut self, id: FlowId, send_bytes: u64, receive_bytes: u64) {
        let Some(flow) = self.get_mut(id) else { return };
        flow.count_unseen(send_bytes, receive_bytes);
        if flow.set_dirty() {
            self.dirty.push(id.index);
        }
    }

    /// Calls `visit` once for every flow that has counted a packet since the last drain, with its course if that is kept.
    pub fn drain_dirty(&mut self, mut visit: impl FnMut(FlowId, &mut Flow, Option<&mut Detail>)) {
        for index in self.dirty.drain(..) {
            // A slot is listed twice when its flow left and another came since the last drain.
            let flow = &mut self.slots[index as usize];
            if flow.is_held() && flow.clear_dirty() {
                let detail = self.details.get_mut(index as usize);
                visit(FlowId { index, generation: flow.generation() }, flow, detail);
            }
        }
    }

    /// Calls `ask` once for every flow whose owner is to be asked for; the flow is bound as `Asked` before.
    pub fn drain_fresh(&mut self, mut ask: impl FnMut(FlowId, &mut Flow)) {
        for index in self.fresh.drain(..) {
            let flow = &mut self.slots[index as usize];
            if flow.is_held() && flow.binding() == Binding::Unasked {
                flow.set_asked(true);
                ask(FlowId { index, generation: flow.generation() }, flow);
            }
        }
    }

    /// Takes the flows that were answered since the last time, to be asked about. Those still on the list of
    /// [`FlowTable::drain_fresh`] are among them.
    pub fn take_answered(&mut self) -> Vec<FlowId> {
        std::mem::take(&mut self.answered)
    }

    /// Calls `visit` for all traffic that left the table untaken since the last drain.
    pub fn drain_departed(&mut self, visit: impl FnMut(Departed)) {
        self.departed.drain(..).for_each(visit);
    }

    /// Forgets what is known of a flow's owner and lists the flow to be asked about. `false` when it has left the
    /// table.
    pub fn ask_again(&mut self, id: FlowId) -> bool {
        let Some(flow) = self.get_mut(id) else { return false };
        if flow.binding() != Binding::Unasked {
            flow.set_asked(false);
            self.fresh.push(id.index);
        }
        true
    }

    /// Looks at the next `slots` slots, at most at each one once, and lets go the flows that were idle too long.
    ///
    /// With the latest time there is (`u64::MAX`) and `usize::MAX` slots it empties the table.
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

    /// What it has done so far.
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

    /// The slot under the hand, which moves on.
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
                self.details.push(Detail::new(state));
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

    /// Ends the flow in a slot and begins another one of the same key there.
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
            *detail = Detail::new(state);
        }
    }

    /// Lists what is to be reported of a flow that leaves its slot.
    fn depart(&mut self, slot: u32) {
        if !self.offloads.is_empty() {
            self.offloads.remove(&slot);
        }
        let detail = self.details.get(slot as usize);
        let unreported = detail.filter(|detail| !detail.is_told() || detail.has_counts());
        let detail = unreported.map(|detail| Box::new(detail.clone()));
        self.departed.extend(self.slots[slot as usize].depart(slot, detail));
    }

    /// Takes the flow out of a slot, which is then vacant.
    pub(super) fn remove(&mut self, slot: u32) {
        self.depart(slot);
        let flow = &mut self.slots[slot as usize];
        flow.vacate();
        self.index.remove(self.index.hash(flow.key()), slot);
    }

    /// How many keys the index holds.
    #[cfg(test)]
    pub(super) fn indexed(&self) -> usize {
        self.index.len()
    }
}

/// An empty vector with room for `limit` elements; untouched, the room takes no memory.
fn reserve<T>(limit: usize) -> std::result::Result<Vec<T>, TryReserveError> {
    let mut vector = Vec::new();
    vector.try_reserve_exact(limit)?;
    Ok(vector)
}
