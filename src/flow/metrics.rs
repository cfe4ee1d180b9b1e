//! Metrics of a flow in addition to its bytes, kept if flow records are requested: times, counts of data, and
//! the reason of its end.

use super::state::FlowState;
use crate::model::{
    CloseReason, Connections, Direction, Histogram, Owner, ResponseTimes, Role, TcpFlags, Timestamp,
};

/// The metrics of one flow. They belong to the flow's slot of the table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlowMetrics {
    /// The time of the answer to a connection that this end opened; 0 before.
    answered: Timestamp,
    /// The time at which the handshake was complete; 0 before.
    established: Timestamp,
    /// The time at which it ended; 0 before.
    ended: Timestamp,
    /// The time at which data was last sent without anything received since; 0 if there is none.
    asked: Timestamp,
    response: ResponseTimes,
    /// The owner that was credited last. The flow itself drops an owner that has ended, because later bytes
    /// are not that owner's.
    owner: Option<Owner>,
    role: Role,
    reason: CloseReason,
    marks: u16,
    /// Counts since they were last taken: data sent, data received, and responses by their time.
    sends: u32,
    receives: u32,
    buckets: [u16; Histogram::BUCKETS],
}

/// The time within which a socket has taken an RST that was captured, in nanoseconds. What it sends until then
/// may have been sent before.
const REACTION: u64 = 20_000_000;

/// The opening was seen.
const OPENING: u16 = 0x01;
/// Events to be counted when the counts are taken.
const CONNECT: u16 = 0x02;
const ACCEPT: u16 = 0x04;
const CLOSE: u16 = 0x08;
const RESPONSES: u16 = 0x10;
/// Its closing was counted or is to be counted.
const CLOSING: u16 = 0x20;
/// Its end was noticed by the caller that reports it.
const NOTICED: u16 = 0x40;
/// Its last record was made.
const TOLD: u16 = 0x80;
/// Since the last receive, something was sent that the other end has to answer, or that answers nothing, such
/// as a probe.
const UNANSWERED: u16 = 0x100;
/// The latest packet received is to be acknowledged.
const OWES_ACK: u16 = 0x200;
/// Its first packet was an RST.
const BEGAN_RESET: u16 = 0x400;

/// Its socket has other endpoints.
const TRANSLATED: u16 = 0x800;

impl FlowMetrics {
    /// Creates the metrics of a flow whose first packet, which took it to `state`, is yet to be counted.
    pub(super) fn new(state: FlowState) -> FlowMetrics {
        let (role, marks) = match state {
            FlowState::SynSent => (Role::Opened, CONNECT),
            FlowState::SynReceived => (Role::Accepted, 0),
            FlowState::SendOnly => (Role::Opened, OPENING),
            FlowState::ReceiveOnly => (Role::Accepted, OPENING),
            FlowState::Reset => (Role::Unknown, BEGAN_RESET),
            _ => (Role::Unknown, 0),
        };
        FlowMetrics {
            answered: Timestamp(0),
            established: Timestamp(0),
            ended: Timestamp(0),
            asked: Timestamp(0),
            response: ResponseTimes::default(),
            owner: None,
            role,
            reason: CloseReason::Unknown,
            marks,
            sends: 0,
            receives: 0,
            buckets: [0; Histogram::BUCKETS],
        }
    }

    /// Creates the metrics of a flow in this state whose last record was made and whose end was counted.
    pub(super) fn reported(state: FlowState) -> FlowMetrics {
        FlowMetrics { marks: CLOSING | NOTICED | TOLD, ..FlowMetrics::new(state) }
    }

    /// Records that the flow's socket has other endpoints than the flow: what is known of a socket with the
    /// flow's endpoints is about another flow.
    pub fn set_translated(&mut self) {
        self.marks |= TRANSLATED;
    }

    /// Returns true if the flow's socket has other endpoints than the flow.
    pub fn is_translated(&self) -> bool {
        self.marks & TRANSLATED != 0
    }

    /// Records one packet, which has taken the flow to `state`.
    pub(super) fn observe(
        &mut self,
        state: FlowState,
        direction: Direction,
        flags: TcpFlags,
        has_payload: bool,
        now: Timestamp,
    ) {
        if has_payload {
            self.data(direction, now);
        }
        match state {
            FlowState::SendOnly | FlowState::ReceiveOnly | FlowState::TwoWay => {}
            _ => self.segment(state, direction, flags, has_payload, now),
        }
    }

    fn data(&mut self, direction: Direction, now: Timestamp) {
        match direction {
            Direction::Send => {
                self.sends = self.sends.saturating_add(1);
                self.asked = now;
            }
            Direction::Receive => {
                self.receives = self.receives.saturating_add(1);
                let asked = std::mem::take(&mut self.asked);
                if asked != Timestamp(0) {
                    let took = now.since(asked);
                    self.response.count(took);
                    let bucket = &mut self.buckets[Histogram::bucket(took)];
                    *bucket = bucket.saturating_add(1);
                    self.marks |= RESPONSES;
                }
            }
        }
    }

    fn segment(
        &mut self,
        state: FlowState,
        direction: Direction,
        flags: TcpFlags,
        has_payload: bool,
        now: Timestamp,
    ) {
        let is_answer = flags.has(TcpFlags::SYN | TcpFlags::ACK);
        if flags.has(TcpFlags::SYN) && !is_answer {
            self.marks |= OPENING;
        }
        if is_answer
            && direction == Direction::Receive
            && self.role == Role::Opened
            && self.answered == Timestamp(0)
        {
            self.answered = now;
        }
        if state == FlowState::Established && self.established == Timestamp(0) {
            let is_answered = self.answered != Timestamp(0);
            self.established = if is_answered { self.answered } else { now };
            if self.role == Role::Accepted {
                self.marks |= ACCEPT;
            }
        }
        let breaks_off = flags.has(TcpFlags::RST);
        if breaks_off || flags.has(TcpFlags::FIN) && direction == Direction::Send {
            self.close();
        }
        if state.is_over() && self.ended == Timestamp(0) {
            let never_was = self.established == Timestamp(0) && self.role == Role::Opened;
            self.reason = match (state, direction) {
                (FlowState::Closed, _) => CloseReason::Orderly,
                // The part before the RST was not seen: it may have been a connection or only an attempt.
                _ if self.marks & BEGAN_RESET != 0 => CloseReason::Unknown,
                (_, Direction::Receive) if never_was => CloseReason::Refused,
                (_, Direction::Receive) => CloseReason::Reset,
                (_, Direction::Send) if self.is_abort(flags) => CloseReason::Aborted,
                (_, Direction::Send) => CloseReason::Unknown,
            };
            self.ended = now;
        }
        if !breaks_off {
            self.note_answer(direction, flags.has(TcpFlags::SYN) || flags.has(TcpFlags::FIN) || has_payload);
        }
    }

    /// Returns true if an RST that was sent can only mean that the process aborted the connection. The kernel
    /// also sends an RST if the other end has not answered for too long, and one without an ACK in reply to
    /// packets for a socket that no longer exists.
    fn is_abort(&self, flags: TcpFlags) -> bool {
        let was_open = self.established != Timestamp(0) || self.role == Role::Unknown;
        was_open && flags.has(TcpFlags::ACK) && self.marks & UNANSWERED == 0
    }

    /// Records which end owes the other an answer, after a packet that does or does not have to be
    /// acknowledged (`takes_space`).
    fn note_answer(&mut self, direction: Direction, takes_space: bool) {
        match direction {
            Direction::Receive if takes_space => {
                self.marks = self.marks & !UNANSWERED | OWES_ACK;
            }
            Direction::Receive => self.marks &= !(UNANSWERED | OWES_ACK),
            Direction::Send if takes_space || self.marks & OWES_ACK == 0 => self.marks |= UNANSWERED,
            Direction::Send => self.marks &= !OWES_ACK,
        }
    }

    /// Marks its closing to be counted, once.
    fn close(&mut self) {
        if self.marks & CLOSING == 0 {
            self.marks |= CLOSE | CLOSING;
        }
    }

    /// Records that its socket has disappeared, although no packet said so.
    pub(super) fn vanish(&mut self, reason: CloseReason, when: Timestamp) {
        self.close();
        if self.ended == Timestamp(0) {
            (self.reason, self.ended) = (reason, when);
        }
    }

    /// Returns true if a packet that this end has just sent shows that its socket has ignored the RST that
    /// ended the flow: otherwise it would send nothing but RSTs. The RST is another host's, forged or mangled.
    pub(super) fn disproves_end(&self, direction: Direction, flags: TcpFlags, now: Timestamp) -> bool {
        let is_late = self.ended != Timestamp(0) && now > self.ended && now.since(self.ended) > REACTION;
        direction == Direction::Send && !flags.has(TcpFlags::RST) && is_late
    }

    /// Records that it has not ended. Its closing is not counted again.
    pub(super) fn revive(&mut self) {
        if self.marks & CLOSE != 0 {
            self.marks &= !(CLOSE | CLOSING);
        }
        self.marks &= !NOTICED;
        (self.ended, self.reason) = (Timestamp(0), CloseReason::Unknown);
    }

    /// Returns true if a packet that opened it was seen.
    pub fn saw_opening(&self) -> bool {
        self.marks & OPENING != 0
    }

    /// The role of this end: which end opened the flow.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The time of the answer to a connection that this end opened.
    pub fn answered(&self) -> Option<Timestamp> {
        Some(self.answered).filter(|time| *time != Timestamp(0))
    }

    /// The time at which the handshake was complete.
    pub fn established(&self) -> Option<Timestamp> {
        Some(self.established).filter(|time| *time != Timestamp(0))
    }

    /// The time and reason of its end.
    pub fn end(&self) -> Option<(Timestamp, CloseReason)> {
        (self.ended != Timestamp(0)).then_some((self.ended, self.reason))
    }

    /// Times from request to response.
    pub fn response(&self) -> ResponseTimes {
        self.response
    }

    /// The owner that was credited last.
    pub fn owner(&self) -> Option<Owner> {
        self.owner
    }

    /// Records the credited owner.
    pub fn set_owner(&mut self, owner: Owner) {
        self.owner = Some(owner);
    }

    /// Returns true if it has ended and this was not noticed before; the next call returns false.
    #[inline]
    pub fn notice_end(&mut self) -> bool {
        let is_news = self.ended != Timestamp(0) && self.marks & NOTICED == 0;
        if is_news {
            self.marks |= NOTICED;
        }
        is_news
    }

    /// Records that its last record was made. Returns true on the first call.
    pub fn tell(&mut self) -> bool {
        let was_told = self.is_told();
        self.marks |= TOLD;
        !was_told
    }

    /// Returns true if its last record was made.
    pub fn is_told(&self) -> bool {
        self.marks & TOLD != 0
    }

    /// Returns true if there are counts to be taken.
    #[inline]
    pub fn has_counts(&self) -> bool {
        self.marks & (CONNECT | ACCEPT | CLOSE | RESPONSES) != 0 || self.sends | self.receives != 0
    }

    /// Adds the counts since the last call to a process's counts, and resets them.
    pub fn take_counts(&mut self, into: &mut Connections) {
        let marked = |mark: u16| u64::from(self.marks & mark != 0);
        into.connects += marked(CONNECT);
        into.accepts += marked(ACCEPT);
        into.closes += marked(CLOSE);
        into.sends += u64::from(std::mem::take(&mut self.sends));
        into.receives += u64::from(std::mem::take(&mut self.receives));
        if self.marks & RESPONSES != 0 {
            for (count, bucket) in into.response.0.iter_mut().zip(&mut self.buckets) {
                *count += u64::from(std::mem::take(bucket));
            }
        }
        self.marks &= !(CONNECT | ACCEPT | CLOSE | RESPONSES);
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
