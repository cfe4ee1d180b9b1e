//! One flow of the table, in two cache lines, and what remains of it when it leaves.

use super::detail::Detail;
use super::state::FlowState;
use crate::model::{
    Direction, FlowKey, Owner, ProcId, Quality, TcpFlags, Timestamp, Traffic, Unowned, WireSize,
};

/// A generation that no flow has: those of flows are odd.
const OUTSIDE: u32 = 0;

/// Names one flow of one table. A slot is used by many flows in turn; `generation` tells them apart, so that a late
/// answer finds no flow rather than the wrong one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowId {
    /// The flow's slot.
    pub(super) index: u32,
    /// Which user of the slot it is.
    pub(super) generation: u32,
}

/// What is known of a flow's owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Binding {
    /// Nobody has been asked; the flow is on the list of those to be asked about.
    Unasked,
    /// The question is under way.
    Asked,
    /// The flow belongs to this process.
    Owned(Owner),
    /// No owner was found, for this reason.
    Unowned(Unowned),
}

/// A flow: its key, its traffic, its state and its owner.
///
/// Traffic is counted as *pending* and stays so until it is taken to be credited to somebody.
// What a packet and the sweep look at first is in the first cache line. `Binding` and two `Traffic` would make it three
// lines; so the owner is spread over `tie`, `pid` and the last field, and pending packets have 32 bits (see `count`).
#[repr(C, align(64))]
pub struct Flow {
    key: FlowKey,
    state: FlowState,
    tie: Tie,
    generation: u32,
    pid: i32,
    last: Timestamp,
    first: Timestamp,

    pending_send_bytes: u64,
    pending_receive_bytes: u64,
    pending_send_packets: u32,
    pending_receive_packets: u32,
    credited: Traffic,
    /// While the flow is owned: when its owner started. While it is not: how many of the pending bytes have been
    /// reported as unowned.
    start_ticks_or_reported: u64,
}

const _: () = assert!(size_of::<Flow>() == 128);

/// In place of an owner's pid: the other end has opened a TCP connection and has not completed the handshake.
const UNANSWERED: i32 = -1;

/// A `Binding` without its process, whether the flow is on the list of those that counted something, whether it is a
/// TCP connection of which everything that passed since its opening was to be seen, and how far its owner was made sure of.
#[derive(Clone, Copy)]
struct Tie(u8);

impl Tie {
    const UNASKED: u8 = 0;
    const ASKED: u8 = 1;
    const OWNED: u8 = 2;
    const UNOWNED: u8 = Tie::OWNED + Quality::COUNT as u8;
    const DIRTY: u8 = 0x80;
    const WHOLE: u8 = 0x40;
    const LOOK: u8 = 0x10;
    const LOOKS: u8 = 0x30;
    const MARKS: u8 = Tie::DIRTY | Tie::WHOLE | Tie::LOOKS;
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
    /// A number that no other flow of the table has or had, until a slot has had 2^31 of them.
    pub fn number(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// A name that no flow has, for a question about something else.
    pub fn outside(number: u32) -> FlowId {
        FlowId { index: number, generation: OUTSIDE }
    }

    /// The number of a name that no flow has.
    pub fn outside_number(self) -> Option<u32> {
        (self.generation == OUTSIDE).then_some(self.index)
    }
}

impl Flow {
    /// A flow whose first packet is yet to be counted.
    pub(super) fn new(key: FlowKey, state: FlowState, now: Timestamp, generation: u32) -> Flow {
        Flow {
            key,
            state,
            tie: Tie(match state {
                FlowState::SynSent | FlowState::SynReceived => Tie::UNASKED | Tie::WHOLE,
                _ => Tie::UNASKED,
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

    /// Its protocol and endpoints.
    #[inline]
    pub fn key(&self) -> &FlowKey {
        &self.key
    }

    /// How far it has come.
    #[inline]
    pub fn state(&self) -> FlowState {
        self.state
    }

    /// When its first packet was captured.
    #[inline]
    pub fn first(&self) -> Timestamp {
        self.first
    }

    /// When the packet that was counted last was captured; earlier than `first` if the clock was set back.
    #[inline]
    pub fn last(&self) -> Timestamp {
        self.last
    }

    /// What was counted and not yet taken.
    #[inline]
    pub fn pending(&self) -> Traffic {
        Traffic {
            send_bytes: self.pending_send_bytes,
            receive_bytes: self.pending_receive_bytes,
            send_packets: u64::from(self.pending_send_packets),
            receive_packets: u64::from(self.pending_receive_packets),
        }
    }

    /// Takes what is pending, to credit it to somebody.
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

    /// All it has counted, pending or taken.
    pub fn totals(&self) -> Traffic {
        let mut totals = self.credited;
        totals += self.pending();
        totals
    }

    /// What is known of its owner.
    #[inline]
    pub fn binding(&self) -> Binding {
        match self.tie.0 & !Tie::MARKS {
            Tie::UNASKED => Binding::Unasked,
            Tie::ASKED => Binding::Asked,
            code => {
                let quality = QUALITIES.get(usize::from(code - Tie::OWNED));
                let process = ProcId { pid: self.pid, start_ticks: self.start_ticks_or_reported };
                let owned = quality.map(|&quality| Binding::Owned(Owner { process, quality }));
                let reason = REASONS.get(usize::from(code.saturating_sub(Tie::UNOWNED)));
                owned.unwrap_or(Binding::Unowned(reason.copied().unwrap_or(Unowned::Pending)))
            }
        }
    }

    /// Keeps the answer to the question who owns it, whatever was known before.
    #[inline]
    pub fn bind(&mut self, answer: Result<Owner, Unowned>) {
        match answer {
            Ok(Owner { process, quality }) => {
                self.pid = process.pid;
                self.set_tie(Tie::OWNED + quality as u8);
                self.start_ticks_or_reported = process.start_ticks;
            }
            Err(reason) => self.set_tie(Tie::UNOWNED + reason as u8),
        }
    }

    /// How many of the pending bytes have been reported as unowned; 0 for a flow with an owner.
    #[inline]
    pub fn reported(&self) -> u64 {
        if self.is_owned() { 0 } else { self.start_ticks_or_reported }
    }

    /// Notes that all pending bytes are reported as unowned, and returns how many of them had not been. Does
    /// nothing for a flow with an owner.
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

    /// What [`Flow::set_looks`] has set, 0 for a new flow.
    #[inline]
    pub fn looks(&self) -> u8 {
        (self.tie.0 & Tie::LOOKS) / Tie::LOOK
    }

    /// Notes how far its owner has been made sure of after it had been found, from 0 to 3.
    pub fn set_looks(&mut self, looks: u8) {
        let looks = looks.min(Tie::LOOKS / Tie::LOOK) * Tie::LOOK;
        self.tie.0 = (self.tie.0 & !Tie::LOOKS) | looks;
    }

    /// Whether it has had an owner that was credited with some of its traffic.
    pub fn was_credited(&self) -> bool {
        !self.credited.is_empty()
    }

    #[inline]
    fn is_owned(&self) -> bool {
        (Tie::OWNED..Tie::UNOWNED).contains(&(self.tie.0 & !Tie::MARKS))
    }

    /// Notes that nobody has been asked, or that somebody has.
    #[inline]
    pub(super) fn set_asked(&mut self, asked: bool) {
        self.set_tie(if asked { Tie::ASKED } else { Tie::UNASKED });
    }

    #[inline]
    fn set_tie(&mut self, code: u8) {
        if self.is_owned() {
            self.start_ticks_or_reported = 0;
        }
        self.tie = Tie(self.tie.0 & Tie::MARKS | code);
    }

    /// Marks that it counted something; whether it was not marked before.
    #[inline]
    pub(super) fn set_dirty(&mut self) -> bool {
        let was_clean = self.tie.0 & Tie::DIRTY == 0;
        self.tie.0 |= Tie::DIRTY;
        was_clean
    }

    /// Clears the mark; whether there was one.
    #[inline]
    pub(super) fn clear_dirty(&mut self) -> bool {
        let was_dirty = self.tie.0 & Tie::DIRTY != 0;
        self.tie.0 &= !Tie::DIRTY;
        was_dirty
    }

    /// Counts what was captured as one frame and takes the flow to its next state.
    ///
    /// # Errors
    /// Counts nothing when the packets pending that way would exceed 2^32 - 1: they have to be taken first.
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
            // A later fragment, which has no TCP header, or a header that was cut.
            self.tie.0 &= !Tie::WHOLE;
        }
        self.last = now;
        self.state = self.state.next(direction, flags);
        if self.pid == UNANSWERED && !matches!(self.state, FlowState::SynReceived | FlowState::Reset) {
            self.pid = 0;
        }
        Ok(())
    }

    /// Whether the other end has opened a TCP connection and has not completed the handshake, nor data has passed: what the
    /// kernel does with it by itself, no process knows of.
    #[inline]
    pub fn is_unanswered(&self) -> bool {
        self.pid == UNANSWERED
    }

    /// Whether it is a TCP connection seen from its opening on, both ways, so that what its socket has carried can be
    /// compared with what was counted. Only the first call says so.
    pub fn take_whole(&mut self) -> bool {
        let was_whole = self.tie.0 & Tie::WHOLE != 0;
        self.tie.0 &= !Tie::WHOLE;
        let totals = self.totals();
        was_whole && totals.send_packets > 0 && totals.receive_packets > 0
    }

    /// Whether [`Flow::take_whole`] may still say so.
    #[inline]
    pub(super) fn may_be_whole(&self) -> bool {
        self.tie.0 & Tie::WHOLE != 0
    }

    /// Counts bytes that have passed in packets which were not seen.
    pub(super) fn count_unseen(&mut self, send_bytes: u64, receive_bytes: u64) {
        self.pending_send_bytes += send_bytes;
        self.pending_receive_bytes += receive_bytes;
    }

    /// Its slot's generation: odd while a flow is in the slot, even while it is vacant.
    #[inline]
    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether the slot holds a flow.
    #[inline]
    pub(super) fn is_held(&self) -> bool {
        self.generation % 2 == 1
    }

    /// Leaves the slot vacant.
    pub(super) fn vacate(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// Nanoseconds since its latest packet; 0 when that lies in the future.
    #[inline]
    pub(super) fn idle(&self, now: Timestamp) -> u64 {
        now.since(self.last)
    }

    /// Whether it has been idle for longer than a flow of its state and protocol is kept.
    #[inline]
    pub(super) fn is_expired(&self, now: Timestamp) -> bool {
        self.idle(now) > self.state.timeout(self.key.protocol)
    }

    /// Moves the time of the latest packet with a clock that was set forward by so many nanoseconds, and pulls one that lies
    /// in the future back to `now`. After the clock was set back an idle flow would otherwise be kept until the clock had
    /// caught up.
    #[inline]
    pub(super) fn mend_clock(&mut self, forward: i64, now: Timestamp) {
        self.last = self.last.moved(forward).min(now);
    }

    /// Brings the packets pending for receipt to the most that can be counted.
    #[cfg(test)]
    pub(super) fn fill_pending(&mut self) {
        self.pending_receive_packets = u32::MAX;
    }

    /// Notes that there will be no more packets of it: the next SYN begins another flow.
    pub(super) fn close(&mut self) {
        self.state = FlowState::Closed;
    }

    /// Takes what is pending as a record of its own, if there is anything, with what else is to be reported of it.
    pub(super) fn depart(&mut self, index: u32, detail: Option<Box<Detail>>) -> Option<Departed> {
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

/// Traffic that left the table before it was taken, with what was known of its flow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Departed {
    /// The flow's name, under which an answer may still be on its way.
    pub id: FlowId,
    /// Its protocol and endpoints.
    pub key: FlowKey,
    /// What was known of its owner.
    pub binding: Binding,
    /// What was counted and never taken.
    pub pending: Traffic,
    /// How many bytes of `pending` have been reported as unowned.
    pub reported: u64,
    /// All the flow had counted, `pending` included.
    pub totals: Traffic,
    /// When the flow's first packet was captured.
    pub first: Timestamp,
    /// When its last packet was captured.
    pub last: Timestamp,
    /// How far it had come.
    pub state: FlowState,
    /// Its course, when the flow has left the table and the last of its course has not been reported.
    pub detail: Option<Box<Detail>>,
}

#[cfg(test)]
#[path = "entry_tests.rs"]
mod tests;
