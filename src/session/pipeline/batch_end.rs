//! The end of a batch: applies answers, credits bytes to owners, and makes requests for the owners of new
//! flows.

use super::frame_pipeline::FramePipeline;
use super::pending_departures::{credit_course, rebind};
use super::recheck::is_to_replace;
use crate::flow::{Binding, FlowState};
use crate::model::Unowned;
use crate::owner::LocalEnd;
use crate::session::accounting::{Ledger, LedgerContents};
use crate::session::lookup::{Answer, Request};

/// Limit of the flows that found the lookup queue full and wait for a request.
const TURNED_AWAY_LIMIT: usize = 65_536;

impl FramePipeline {
    /// Ends a batch: applies answers, credits the counted bytes, removes old flows, and adds requests for the
    /// owners of new flows to `requests`, of which the first `room` are accepted.
    pub fn publish(
        &mut self,
        ledger: &Ledger,
        answers: impl Iterator<Item = Answer>,
        room: usize,
        requests: &mut Vec<Request>,
    ) {
        self.packets.push(&mut self.batch);
        let mut books = ledger.lock();
        // This comes first, since the answers may be about flows that have just left the table.
        self.settle_departed(&mut books, room, requests);
        for answer in answers {
            self.apply(answer, &mut books);
        }
        for (reason, bytes) in UNOWNED_BEFORE_FLOWS.map(|reason| (reason, self.without_flow[reason as usize]))
        {
            books.count_unowned(reason, bytes);
        }
        self.without_flow = [0; Unowned::COUNT];
        self.credit_flows(&mut books);
        self.ask_for_turned_away(room, &mut books);
        self.ask_for_answered(&mut books);
        self.sweep();
        self.settle_departed(&mut books, room, requests);
        let (locality, reserved) = (&self.locality, self.reserved);
        self.flows.drain_fresh(|id, flow| {
            let key = *flow.key();
            let local_end = locality.local_end(&key);
            let is_answered = flow.state().is_answered();
            let is_last = !is_answered || local_end != LocalEnd::Own;
            let reserved = if is_last { reserved } else { 0 };
            if flow.is_unanswered() {
                let is_own = local_end == LocalEnd::Own;
                let reason = if is_own { Unowned::NoSocket } else { Unowned::NotLocal };
                rebind(flow, reason, &mut books);
            } else if requests.len() + reserved < room {
                // An owner that had the flow and has ended is not the answer.
                let first = if flow.was_credited() { self.latest } else { flow.first() };
                requests.push(Request { flow: id, key, first, is_over: false, is_answered, local_end });
            } else {
                rebind(flow, Unowned::QueueFull, &mut books);
                if self.turned_away.len() < TURNED_AWAY_LIMIT {
                    self.turned_away.push_back(id);
                }
            }
        });
        drop(books);
        self.looped.ask(self.latest, room, requests);
        self.recheck.ask(&mut self.flows, self.latest, room, requests);
        if let Some(recorder) = &mut self.recorder {
            recorder.publish(&mut self.flows, self.latest);
        }
    }

    /// Accounts the flows that have left the table. A flow that appeared and disappeared since the last batch
    /// is still looked up.
    fn settle_departed(&mut self, books: &mut LedgerContents, room: usize, requests: &mut Vec<Request>) {
        let FramePipeline { flows, departures, recorder, locality, reserved, .. } = self;
        flows.drain_departed(|mut departed| {
            let key = departed.key;
            let is_unanswered = departed.state == FlowState::SynReceived;
            let is_answered = departed.state.is_answered();
            let reserved = if is_answered { 0 } else { *reserved };
            if departed.binding == Binding::Unasked && !is_unanswered && requests.len() + reserved < room {
                departed.binding = Binding::Asked;
                requests.push(Request {
                    flow: departed.id,
                    key,
                    first: departed.first,
                    is_over: true,
                    is_answered,
                    local_end: locality.local_end(&key),
                });
            }
            departures.settle(departed, books, recorder.as_mut());
        });
    }

    /// Schedules requests for the first `room` flows that found the queue full.
    fn ask_for_turned_away(&mut self, room: usize, books: &mut LedgerContents) {
        let count = self.turned_away.len().min(room);
        for id in self.turned_away.drain(..count) {
            let Some(flow) = self.flows.get_mut(id) else { continue };
            if flow.binding() == Binding::Unowned(Unowned::QueueFull) {
                books.uncount_unowned(Unowned::QueueFull, flow.reported());
                books.count_unowned(Unowned::Pending, flow.reported());
                self.flows.ask_again(id);
            }
        }
    }

    /// Schedules requests for flows that were not looked up because they were unanswered.
    fn ask_for_answered(&mut self, books: &mut LedgerContents) {
        for id in self.flows.take_answered() {
            let Some(flow) = self.flows.get_mut(id) else { continue };
            if let Binding::Unowned(reason @ (Unowned::NoSocket | Unowned::NotLocal)) = flow.binding() {
                books.uncount_unowned(reason, flow.reported());
                books.count_unowned(Unowned::Pending, flow.reported());
                self.flows.ask_again(id);
            }
        }
    }

    /// Credits all flows that counted something.
    fn credit_flows(&mut self, books: &mut LedgerContents) {
        let mut ask_again = Vec::new();
        self.flows.drain_dirty(|id, flow, detail| {
            let owner = match flow.binding() {
                Binding::Owned(owner) => {
                    if books.credit(&owner, flow.take_pending()) {
                        self.recheck.consider(id, flow, self.latest);
                        Some(owner)
                    } else {
                        ask_again.push(id);
                        None
                    }
                }
                Binding::Unasked | Binding::Asked => {
                    books.count_unowned(Unowned::Pending, flow.report_pending());
                    None
                }
                Binding::Unowned(reason) => {
                    books.count_unowned(reason, flow.report_pending());
                    None
                }
            };
            if let (Some(detail), Some(recorder)) = (detail, &mut self.recorder) {
                credit_course(detail, owner, books);
                recorder.look(id, detail, self.latest);
            }
        });
        for id in ask_again {
            self.flows.ask_again(id);
        }
    }

    fn apply(&mut self, answer: Answer, books: &mut LedgerContents) {
        if self.looped.answer(answer.flow, &answer.owner, &mut self.flows) {
            return;
        }
        let was_asked_again = self.recheck.take_asked(answer.flow);
        if let Some(flow) = self.flows.get_mut(answer.flow) {
            match (flow.binding(), answer.owner) {
                (Binding::Asked, Ok(owner)) => {
                    books.uncount_unowned(Unowned::Pending, flow.reported());
                    let pending = flow.take_pending();
                    flow.bind(Ok(owner));
                    books.credit(&owner, pending);
                    if let Some((_, detail)) = self.flows.detail_mut(answer.flow) {
                        credit_course(detail, Some(owner), books);
                    }
                }
                (Binding::Asked, Err(reason)) => rebind(flow, reason, books),
                (Binding::Owned(known), Ok(found))
                    if was_asked_again && is_to_replace(flow, &known, &found) =>
                {
                    // Bytes that passed before the answer stay with the known owner.
                    books.credit(&known, flow.take_pending());
                    flow.bind(Ok(found));
                }
                _ => {}
            }
        } else {
            self.departures.answer(&answer, books, self.recorder.as_mut());
        }
        if answer.is_translated {
            self.flows.set_translated(answer.flow);
        }
    }
}

/// The reasons for having no owner that bytes can have before they reach a flow.
const UNOWNED_BEFORE_FLOWS: [Unowned; 2] = [Unowned::Fragment, Unowned::NotLocal];
