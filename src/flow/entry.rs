//! One flow of the table, in two cache lines, and the record that remains of it when it leaves.

use super::metrics::FlowMetrics;
use super::state::FlowState;
use crate::model::{
    Direction, FlowKey, Owner, ProcId, Quality, TcpFlags, Timestamp, Traffic, Unowned, WireSize,
};

/// The generation of ids that name no flow: those of flows are odd.
const OUTSIDE: u32 = 0;

/// The id of one flow of one table. A slot is used by many flows in turn; `generation` tells them apart, so
/// that a late answer finds no flow rather than the wrong one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowId {
    /// The flow's slot.
    pub(super) index: u32,
    /// The number of the slot's use.
    pub(super) generation: u32,
}

/// The state of a flow's owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Binding {
    /// No lookup was requested; the flow is on the list of flows to be looked up.
    Unasked,
    /// The lookup is in progress.
    Asked,
    /// The flow belongs to this process.
    Owned(Owner),
    /// No owner was found, for this reason.
    Unowned(Unowned),
}

/// A flow: its key, its traffic, its state and its owner.
///
/// Traffic is counted as *pending* until it is taken to be credited to an owner.
// The first cache line has the fields that a packet and the sweep read first. `Binding` and two `Traffic`
// would make it three lines. Therefore the owner is spread over `tie`, `pid` and the last field, and pending
// packets have 32 bits (see `count`).
#[repr(C, align(64))]
pub struct Flow {
    key: FlowKey,
    state: FlowState,
    tie: OwnerBits,
    generation: u32,
    pid: i32,
    last: Timestamp,
    first: Timestamp,

    pending_send_bytes: u64,
    pending_receive_bytes: u64,
    pending_send_packets: u32,
    pending_receive_packets: u32,
    credited: Traffic,
    /// While the flow is owned: the start time of its owner. While it is not: the number of pending bytes
    /// that have been reported as unowned.
    start_ticks_or_reported: u64,
}

const _: () = assert!(size_of::<Flow>() == 128);

/// Stands in place of an owner's pid: the other end has opened a TCP connection and has not completed the
/// handshake.
const UNANSWERED: i32 = -1;

/// A `Binding` without its process, and three marks: the flow is on the list of those that counted something
/// (`DIRTY`); it is a TCP connection all of whose packets since its opening could be seen (`WHOLE`); and the
/// progress of its rechecks (`LOOKS`).
#[derive(Clone, Copy)]
struct OwnerBits(u8);

impl OwnerBits {
    const UNASKED: u8 = 0;
    const ASKED: u8 = 1;
    const OWNED: u8 = 2;
    const UNOWNED: u8 = OwnerBits::OWNED + Quality::COUNT as u8;
    const DIRTY: u8 = 0x80;
    const WHOLE: u8 = 0x40;
    const LOOK: u8 = 0x10;
    const LOOKS: u8 = 0x30;
    const MARKS: u8 = OwnerBits::DIRTY | OwnerBits::WHOLE | OwnerBits::LOOKS;
}

/// The qualities and reasons by their numbers.
const QUALITIES: [Quality; Quality::COUNT] = [Quality::Exact, Quality::Shared, Quality::Guessed];
const REASONS: [Unowned; Unowned::COUNT] = [
    Unowned::Pending,
    Unowned::NoSocket,
    Unowned::NoHolder,
    Unowned::Ambiguous,
    Unowned::NotPermitted,
    Unowned::QueueFull,
    Unowned::Fragment,
    Unowned::NotLocal,
    Unowned::NoPorts,
    Unowned::OwnerEnded,
    Unowned::Unreadable,
];

impl FlowId {
    /// Returns a number that no other flow of the table has or had, until a slot has had 2^31 flows.
    pub fn number(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// Creates an id that no flow has, for a request about something else.
    pub fn outside(number: u32) -> FlowId {
        FlowId { index: number, generation: OUTSIDE }
    }

    /// Returns the number of an id that no flow has.
    pub fn outside_number(self) -> Option<u32> {
        (self.generation == OUTSIDE).then_some(self.index)
    }
}

impl Flow {
    /// Creates a flow whose first packet is yet to be counted.
    pub(super) fn new(key: FlowKey, state: FlowState, now: Timestamp, generation: u32) -> Flow {
        Flow {
            key,
            state,
            tie: OwnerBits(match state {
                FlowState::SynSent | FlowState::SynReceived => OwnerBits::UNASKED | OwnerBits::WHOLE,
                _ => OwnerBits::UNASKED,
            }),
            generation,
            pid: if state == FlowState::SynReceived { UNANSWERED } else { 0 },
            last: now,
            first: now,
            pending_send_bytes: 0,
            pending_receive_bytes: 0,
            pending_send_packets: 0,
            pending_receive_packets: 0,
            credited: Traffic::default(),
            start_ticks_or_reported: 0,
        }
    }

    /// The protocol and endpoints.
    #[inline]
    pub fn key(&self) -> &FlowKey {
        &self.key
    }

    /// The state of the flow as its packets show it.
    #[inline]
    pub fn state(&self) -> FlowState {
        self.state
    }

    /// The capture time of the first packet.
    #[inline]
    pub fn first(&self) -> Timestamp {
        self.first
    }

    /// The capture time of the packet that was counted last; earlier than `first` if the clock was set back.
    #[inline]
    pub fn last(&self) -> Timestamp {
        self.last
    }

    /// The traffic that was counted and not yet taken.
    #[inline]
    pub fn pending(&self) -> Traffic {
        Traffic {
            send_bytes: self.pending_send_bytes,
            receive_bytes: self.pending_receive_bytes,
            send_packets: u64::from(self.pending_send_packets),
            receive_packets: u64::from(self.pending_receive_packets),
        }
    }

    /// Takes the pending traffic, to be credited to an owner.
    #[inline]
    pub fn take_pending(&mut self) -> Traffic {
        let taken = self.pending();
        self.pending_send_bytes = 0;
        self.pending_receive_bytes = 0;
        self.pending_send_packets = 0;
        self.pending_receive_packets = 0;
        if !self.is_owned() {
            self.start_ticks_or_reported = 0;
        }
        self.credited += taken;
        taken
    }

    /// Returns all counted traffic, pending or taken.
    pub fn totals(&self) -> Traffic {
        let mut totals = self.credited;
        totals += self.pending();
        totals
    }

    /// The state of the owner.
    #[inline]
    pub fn binding(&self) -> Binding {
        match self.tie.0 & !OwnerBits::MARKS {
            OwnerBits::UNASKED => Binding::Unasked,
            OwnerBits::ASKED => Binding::Asked,
            code => {
                let quality = QUALITIES.get(usize::from(code - OwnerBits::OWNED));
                let process = ProcId { pid: self.pid, start_ticks: self.start_ticks_or_reported };
                let owned = quality.map(|&quality| Binding::Owned(Owner { process, quality }));
                let reason = REASONS.get(usize::from(code.saturating_sub(OwnerBits::UNOWNED)));
                owned.unwrap_or(Binding::Unowned(reason.copied().unwrap_or(Unowned::Pending)))
            }
        }
    }

    /// Records the answer of an owner lookup in place of the previous one.
    #[inline]
    pub fn bind(&mut self, answer: Result<Owner, Unowned>) {
        match answer {
            Ok(Owner { process, quality }) => {
                self.pid = process.pid;
                self.set_tie(OwnerBits::OWNED + quality as u8);
                self.start_ticks_or_reported = process.start_ticks;
            }
            Err(reason) => self.set_tie(OwnerBits::UNOWNED + reason as u8),
        }
    }

    /// The number of pending bytes that have been reported as unowned; 0 for a flow with an owner.
    #[inline]
    pub fn reported(&self) -> u64 {
        if self.is_owned() { 0 } else { self.start_ticks_or_reported }
    }

    /// Records that all pending bytes are reported as unowned, and returns the number of those that had not
    /// been. Does nothing for a flow with an owner.
    #[inline]
    pub fn report_pending(&mut self) -> u64 {
        if self.is_owned() {
            return 0;
        }
        let bytes = self.pending_send_bytes + self.pending_receive_bytes;
        let new = bytes.saturating_sub(self.start_ticks_or_reported);
        self.start_ticks_or_reported = bytes;
        new
    }

    /// The value set by [`Flow::set_looks`]; 0 for a new flow.
    #[inline]
    pub fn looks(&self) -> u8 {
        (self.tie.0 & OwnerBits::LOOKS) / OwnerBits::LOOK
    }

    /// Records the progress of its owner's rechecks: the number of recheck ages that it had reached at the
    /// latest one, from 0 to 3.
    pub fn set_looks(&mut self, looks: u8) {
        let looks = looks.min(OwnerBits::LOOKS / OwnerBits::LOOK) * OwnerBits::LOOK;
        self.tie.0 = (self.tie.0 & !OwnerBits::LOOKS) | looks;
    }

    /// Returns true if some of its traffic was credited to an owner.
    pub fn was_credited(&self) -> bool {
        !self.credited.is_empty()
    }

    #[inline]
    fn is_owned(&self) -> bool {
        (OwnerBits::OWNED..OwnerBits::UNOWNED).contains(&(self.tie.0 & !OwnerBits::MARKS))
    }

    /// Records that a lookup is in progress, or that none was requested.
    #[inline]
    pub(super) fn set_asked(&mut self, asked: bool) {
        self.set_tie(if asked { OwnerBits::ASKED } else { OwnerBits::UNASKED });
    }

    #[inline]
    fn set_tie(&mut self, code: u8) {
        if self.is_owned() {
            self.start_ticks_or_reported = 0;
        }
        self.tie = OwnerBits(self.tie.0 & OwnerBits::MARKS | code);
    }

    /// Marks that it counted something. Returns true if it was not marked before.
    #[inline]
    pub(super) fn set_dirty(&mut self) -> bool {
        let was_clean = self.tie.0 & OwnerBits::DIRTY == 0;
        self.tie.0 |= OwnerBits::DIRTY;
        was_clean
    }

    /// Clears the mark. Returns true if it was set.
    #[inline]
    pub(super) fn clear_dirty(&mut self) -> bool {
        let was_dirty = self.tie.0 & OwnerBits::DIRTY != 0;
        self.tie.0 &= !OwnerBits::DIRTY;
        was_dirty
    }

    /// Counts the packets captured as one frame and takes the flow to its next state.
    ///
    /// # Errors
    /// Fails with `PendingFull`, and counts nothing, if the pending packets in this direction would exceed
    /// 2^32 - 1: they have to be taken first.
    #[inline]
    pub(super) fn count(
        &mut self,
        direction: Direction,
        size: WireSize,
        flags: TcpFlags,
        now: Timestamp,
    ) -> Result<(), PendingFull> {
        let (packets, bytes) = match direction {
            Direction::Send => (&mut self.pending_send_packets, &mut self.pending_send_bytes),
            Direction::Receive => (&mut self.pending_receive_packets, &mut self.pending_receive_bytes),
        };
        *packets = packets.checked_add(size.packets).ok_or(PendingFull)?;
        *bytes += u64::from(size.bytes);
        if flags == TcpFlags::default() {
            // The packet is a later fragment, which has no TCP header, or its header was cut.
            self.tie.0 &= !OwnerBits::WHOLE;
        }
        self.last = now;
        self.state = self.state.next(direction, flags);
        if self.pid == UNANSWERED && !matches!(self.state, FlowState::SynReceived | FlowState::Reset) {
            self.pid = 0;
        }
        Ok(())
    }

    /// Returns true if the other end has opened a TCP connection and has not completed the handshake, and no
    /// data has passed. The kernel handles such a connection on its own, and no process knows of it.
    #[inline]
    pub fn is_unanswered(&self) -> bool {
        self.pid == UNANSWERED
    }

    /// Returns true if it is a TCP connection seen from its opening on, in both directions, so that the
    /// traffic of its socket can be compared with the counted traffic. Only the first call returns true: what
    /// has the same endpoints later may be another connection.
    pub fn take_whole(&mut self) -> bool {
        let was_whole = self.tie.0 & OwnerBits::WHOLE != 0;
        self.tie.0 &= !OwnerBits::WHOLE;
        let totals = self.totals();
        was_whole && totals.send_packets > 0 && totals.receive_packets > 0
    }

    /// Returns true if [`Flow::take_whole`] may still return true.
    #[inline]
    pub(super) fn may_be_whole(&self) -> bool {
        self.tie.0 & OwnerBits::WHOLE != 0
    }

    /// Counts the bytes of packets that were not seen.
    pub(super) fn count_unseen(&mut self, send_bytes: u64, receive_bytes: u64) {
        self.pending_send_bytes += send_bytes;
        self.pending_receive_bytes += receive_bytes;
    }

    /// The generation of its slot: odd while a flow is in the slot, even while it is vacant.
    #[inline]
    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    /// Returns true if the slot holds a flow.
    #[inline]
    pub(super) fn is_held(&self) -> bool {
        self.generation % 2 == 1
    }

    /// Makes the slot vacant.
    pub(super) fn vacate(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// The nanoseconds since its latest packet; 0 if that lies in the future.
    #[inline]
    pub(super) fn idle(&self, now: Timestamp) -> u64 {
        now.since(self.last)
    }

    /// Returns true if it has been idle for longer than the timeout of its state and protocol.
    #[inline]
    pub(super) fn is_expired(&self, now: Timestamp) -> bool {
        self.idle(now) > self.state.timeout(self.key.protocol)
    }

    /// Moves the time of the latest packet with a clock that was set forward by `forward` nanoseconds, and
    /// reduces a time in the future to `now`. Otherwise, after the clock was set back, an idle flow would be
    /// kept until the clock had caught up.
    #[inline]
    pub(super) fn mend_clock(&mut self, forward: i64, now: Timestamp) {
        self.last = self.last.moved(forward).min(now);
    }

    /// Sets the pending received packets to the maximum that can be counted.
    #[cfg(test)]
    pub(super) fn fill_pending(&mut self) {
        self.pending_receive_packets = u32::MAX;
    }

    /// Records that it will have no more packets: the next SYN begins another flow.
    pub(super) fn close(&mut self) {
        self.state = FlowState::Closed;
    }

    /// Records that the RST that ended it was not its own.
    pub(super) fn revive(&mut self) {
        self.state = FlowState::Midstream;
    }

    /// Takes the pending traffic, if any, as a record of its own, together with the rest that is to be
    /// reported of the flow.
    pub(super) fn depart(&mut self, index: u32, detail: Option<Box<FlowMetrics>>) -> Option<Departed> {
        let reported = self.reported();
        let pending = self.take_pending();
        let id = FlowId { index, generation: self.generation };
        (!pending.is_empty() || detail.is_some()).then(|| Departed {
            id,
            key: self.key,
            binding: self.binding(),
            pending,
            reported,
            totals: self.totals(),
            first: self.first,
            last: self.last,
            state: self.state,
            detail,
        })
    }
}

/// More packets are pending than can be counted.
#[derive(Debug)]
pub(super) struct PendingFull;

/// Traffic that left the table before it was taken, with the data of its flow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Departed {
    /// The flow's id; an answer under this id may still be on its way.
    pub id: FlowId,
    /// Its protocol and endpoints.
    pub key: FlowKey,
    /// The state of its owner.
    pub binding: Binding,
    /// The traffic that was counted and never taken.
    pub pending: Traffic,
    /// The number of bytes of `pending` that have been reported as unowned.
    pub reported: u64,
    /// All traffic of the flow, `pending` included.
    pub totals: Traffic,
    /// The capture time of the flow's first packet.
    pub first: Timestamp,
    /// The capture time of its last packet.
    pub last: Timestamp,
    /// The last state of the flow.
    pub state: FlowState,
    /// Its metrics, if the flow has left the table and not all of them have been reported.
    pub detail: Option<Box<FlowMetrics>>,
}

#[cfg(test)]
#[path = "entry_tests.rs"]
mod tests;
