//! What happens to each frame: decoded, counted in its flow, and credited batch by batch to the flow's owner.
//!
//! It belongs to the capture thread. Per frame it takes no lock, makes no system call and allocates nothing but
//! room for packets that are to be delivered; everything shared is touched once a batch, in [`Pipeline::publish`].

use super::again::{SecondLooks, is_to_replace};
use super::completion::{Completion, CompletionStats};
use super::ended::EndedQueue;
use super::flows::Recorder;
use super::ledger::{Books, Ledger};
use super::limits::FlowLimits;
use super::locality::Locality;
use super::looped::Looped;
use super::packets::{PacketBatch, PacketQueue};
use super::paths::{Flows, Paths};
use super::resolver::{Answer, Request};
use super::settle::{Orphans, credit_course, rebind};
use super::steps::ClockSteps;
use crate::decode::{decode, has_payload, segment_limit, wire_size};
use crate::error::Result;
use crate::flow::{Binding, FlowId, FlowState, FlowStats, FlowTable, FragmentTable};
use crate::kernel::Clocks;
use crate::model::{
    Address, Direction, FlowKey, Fragment, Frame, LocalAddresses, Namespace, Packet, Protocol, TcpFlags,
    Timestamp, Undecoded, Unowned, WireSize,
};
use crate::owner::LocalEnd;
use crate::tap::FrameHandler;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// Flows that wait for the question who owns them; at most so many.
const TURNED_AWAY_LIMIT: usize = 65_536;

/// How long it takes to look at the whole flow table for flows that are to go, in time of the capture.
const SWEEP_NANOSECONDS: u64 = 20_000_000_000;

/// What was counted before any flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FrameCounts {
    /// Frames seen.
    pub frames: u64,
    /// Their bytes, as captured.
    pub bytes: u64,
    /// Frames that could not be decoded, by reason.
    pub undecoded: [u64; Undecoded::COUNT],
    /// Frames that are several packets on the wire.
    pub offloaded: u64,
    /// The packets that these are counted as, an estimate.
    pub offloaded_packets: u64,
    /// Bytes of the headers of these packets that the frames do not have, an estimate.
    pub estimated_bytes: u64,
}

/// The state between frames.
pub struct Pipeline {
    flows: FlowTable,
    fragments: FragmentTable,
    locality: Locality,
    looped: Looped,
    paths: Paths,
    packets: Arc<PacketQueue>,
    batch: PacketBatch,
    counts: FrameCounts,
    /// Bytes without a flow since the last batch, by reason.
    without_flow: [u64; Unowned::COUNT],
    orphans: Orphans,
    /// The part of the room for questions that is left to flows that were answered.
    reserved: usize,
    /// Flows that found the queue of questions full, the oldest first.
    turned_away: VecDeque<FlowId>,
    completion: Completion,
    again: SecondLooks,
    recorder: Option<Recorder>,
    steps: ClockSteps,
    latest: Timestamp,
    swept: Timestamp,
}

impl FrameHandler for Pipeline {
    fn frame(&mut self, frame: Frame<'_>) {
        Pipeline::frame(self, &frame);
    }

    fn set_addresses(&mut self, addresses: &[(Namespace, Arc<LocalAddresses>)]) {
        self.set_device_addresses(addresses);
    }
}

impl Pipeline {
    /// A pipeline within these limits. `also_local` are this host's addresses in the session's own
    /// namespace besides those of its devices.
    ///
    /// # Errors
    /// `SystemResource` when memory for the flow table cannot be reserved.
    pub fn new(limits: FlowLimits, also_local: &[Address], packets: Arc<PacketQueue>) -> Result<Pipeline> {
        Ok(Pipeline {
            flows: FlowTable::new(limits.held)?,
            fragments: FragmentTable::default(),
            locality: Locality::new(also_local),
            looped: Looped::default(),
            paths: Paths::default(),
            packets,
            batch: PacketBatch::default(),
            counts: FrameCounts::default(),
            without_flow: [0; Unowned::COUNT],
            orphans: Orphans::new(limits.questions),
            reserved: limits.reserved(),
            turned_away: VecDeque::new(),
            completion: Completion::default(),
            again: SecondLooks::default(),
            recorder: None,
            steps: ClockSteps::default(),
            latest: Timestamp::default(),
            swept: Timestamp::default(),
        })
    }

    /// Has flows recorded. Before the first frame.
    ///
    /// # Errors
    /// What [`FlowTable::keep_details`] returns.
    pub fn record_flows(&mut self, recorder: Recorder) -> Result<()> {
        self.flows.keep_details()?;
        self.recorder = Some(recorder);
        Ok(())
    }

    /// Tells of all flows that have ended, after the last batch.
    pub fn finish_flows(&mut self) {
        if let Some(recorder) = &mut self.recorder {
            recorder.finish(&mut self.flows, self.latest);
        }
    }

    /// The addresses of the devices of all namespaces, as they are now. One that is not listed has none.
    pub fn set_device_addresses(&mut self, addresses: &[(Namespace, Arc<LocalAddresses>)]) {
        self.paths.clear();
        self.locality.set(addresses);
    }

    /// Moves time on without a frame, so that flows age on a quiet link, too, and allows owners to be made sure of. Where the
    /// clock was set, flows stay as old as they are.
    /// Not for savefiles: this machine's sockets do not change with the time of their packets.
    pub fn set_time(&mut self, clocks: &Clocks) {
        let now = clocks.time_of_day();
        if let Some(step) = self.steps.take(clocks) {
            self.flows.step_clock(step, now);
            self.swept = self.swept.moved(step);
        }
        self.latest = now;
        self.again.refill(now);
    }

    /// Lets old flows go, in as large a part of the table as time has passed.
    fn sweep(&mut self) {
        let passed = self.latest.since(self.swept).min(SWEEP_NANOSECONDS);
        let held = u128::from(self.flows.stats().slots);
        let slots = held * u128::from(passed) / u128::from(SWEEP_NANOSECONDS);
        if slots > 0 || self.latest < self.swept {
            self.swept = self.latest;
            self.flows.sweep(self.latest, slots as usize);
        }
    }

    /// Lets connections go that have ended and of which nothing has come for `idle` nanoseconds.
    pub fn release_ended(&mut self, idle: u64) {
        self.flows.release_ended(self.latest, idle);
    }

    /// Takes in one frame.
    pub fn frame(&mut self, frame: &Frame<'_>) {
        self.counts.frames += 1;
        self.counts.bytes += u64::from(frame.wire_len);
        self.latest = frame.time;
        let mut packet = match decode(frame.link, frame.data) {
            Ok(packet) => packet,
            Err(reason) => {
                self.counts.undecoded[reason as usize] += 1;
                return;
            }
        };
        if packet.fragment != Fragment::Whole
            && !self.fragments.complete(&mut packet, frame.namespace, frame.time)
        {
            self.without_flow[Unowned::Fragment as usize] += u64::from(frame.link_len());
            return;
        }
        if self.packets.wants_packets() {
            self.batch.push(frame, &packet);
            if self.packets.is_full_batch(&self.batch) {
                self.packets.push(&mut self.batch);
            }
        }
        if frame.wire_len > frame.packet_limit {
            self.count_offloaded(&packet, frame);
        } else {
            self.count(&packet, frame, WireSize::from(frame.link_len()));
        }
    }

    /// Counts a frame that is longer than a packet can be as the packets it is on the wire.
    #[cold]
    fn count_offloaded(&mut self, packet: &Packet, frame: &Frame<'_>) {
        let flows = self.flows_of(packet, frame);
        let segment = flows.and_then(|flows| self.flows.segment_limit(flows.send.or(flows.receive)?));
        let size = wire_size(frame, segment);
        self.count(packet, frame, size);
        if size.packets == 1 {
            return;
        }
        // An option that is not on the wire can take more away than the headers of two packets add.
        let estimated =
            WireSize { bytes: size.bytes.saturating_sub(frame.wire_len), packets: size.packets - 1 };
        self.counts.offloaded += 1;
        self.counts.offloaded_packets += u64::from(size.packets);
        self.counts.estimated_bytes += u64::from(estimated.bytes);
        let Some(Flows { send, receive, .. }) = self.paths.get(packet, frame.namespace, frame.passage) else {
            return;
        };
        for (id, direction) in [(send, Direction::Send), (receive, Direction::Receive)] {
            if let Some(id) = id {
                self.flows.record_estimate(id, direction, estimated);
            }
        }
    }

    /// The flows that have counted packets with the same endpoints, if there are any.
    fn flows_of(&self, packet: &Packet, frame: &Frame<'_>) -> Option<Flows> {
        let &Frame { namespace, passage, .. } = frame;
        if let Some(flows) = self.paths.get(packet, namespace, passage) {
            return Some(flows);
        }
        let &Packet { source, destination, protocol, .. } = packet;
        let send = self.flows.find(&FlowKey { local: source, remote: destination, protocol, namespace });
        let receive = self.flows.find(&FlowKey { local: destination, remote: source, protocol, namespace });
        (send.is_some() || receive.is_some()).then_some(Flows { send, receive, may_loop: false })
    }

    /// Counts a frame for each of its ends that is in the namespace where it was captured.
    ///
    /// A packet between two namespaces is captured in both, and forwarded ones also in those between. Since each counts
    /// only what has an end there, no end is counted twice; what merely passes is `NotLocal` wherever it passes. Within one
    /// namespace a packet can pass several devices: where it leaves counts for its sender, where it arrives for its receiver.
    fn count(&mut self, packet: &Packet, frame: &Frame<'_>, size: WireSize) {
        let &Frame { time, namespace, passage, .. } = frame;
        let known = match self.paths.get(packet, namespace, passage) {
            Some(flows) if !flows.may_loop => {
                self.flows.count_known(flows.send, flows.receive, size, packet.tcp_flags, time)
            }
            _ => false,
        };
        if !known {
            self.count_anew(packet, frame, size);
        }
        if self.recorder.is_some() {
            self.observe(packet, frame);
        }
    }

    /// Notes the course of the flows that have just counted a packet.
    fn observe(&mut self, packet: &Packet, frame: &Frame<'_>) {
        let Some(Flows { send, receive, .. }) = self.paths.get(packet, frame.namespace, frame.passage) else {
            return;
        };
        let has_payload = has_payload(frame.link, frame.data);
        for (id, direction) in [(send, Direction::Send), (receive, Direction::Receive)] {
            if let Some(id) = id {
                self.flows.observe(id, direction, packet.tcp_flags, has_payload, frame.time);
            }
        }
    }

    fn count_anew(&mut self, packet: &Packet, frame: &Frame<'_>, size: WireSize) {
        let &Frame { time, namespace, passage, .. } = frame;
        // What may be forwarded leaves half of the table to others.
        let FlowStats { held, limit, .. } = self.flows.stats();
        let (from_here, to_here) = self.locality.ends_here(packet, namespace, passage, held < limit / 2);
        let is_sent_to_group = from_here
            && !to_here
            && matches!(packet.protocol, Protocol::UDP | Protocol::UDPLITE)
            && self.locality.is_group(namespace, &packet.destination.address);
        let (flags, protocol) = (packet.tcp_flags, packet.protocol);
        let send = from_here.then(|| {
            let key = FlowKey { local: packet.source, remote: packet.destination, protocol, namespace };
            self.flows.record(&key, Direction::Send, size, flags, time)
        });
        let key = FlowKey { local: packet.destination, remote: packet.source, protocol, namespace };
        let is_looped = is_sent_to_group && self.looped.is_received(&key, size, time);
        let receive =
            (to_here || is_looped).then(|| self.flows.record(&key, Direction::Receive, size, flags, time));
        if flags.has(TcpFlags::SYN)
            && let Some(limit) = segment_limit(frame)
        {
            [send, receive].into_iter().flatten().for_each(|id| self.flows.limit_segments(id, limit));
        }
        if from_here || to_here {
            let may_loop = is_sent_to_group && !is_looped;
            self.paths.set(packet, namespace, passage, Flows { send, receive, may_loop });
        } else {
            self.without_flow[Unowned::NotLocal as usize] += u64::from(size.bytes);
        }
    }

    /// Ends a batch: applies answers, credits what was counted, lets old flows go, and hands over the questions
    /// about new flows, of which the first `room` are taken.
    pub fn publish(
        &mut self,
        ledger: &Ledger,
        answers: impl Iterator<Item = Answer>,
        room: usize,
        requests: &mut Vec<Request>,
    ) {
        self.packets.push(&mut self.batch);
        let mut books = ledger.lock();
        // First, for the answers may be about flows that have just left the table.
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
                // An owner that had it and has ended is not the answer.
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
        self.again.ask(&mut self.flows, self.latest, room, requests);
        if let Some(recorder) = &mut self.recorder {
            recorder.publish(&mut self.flows, self.latest);
        }
    }

    /// Books what has left the flow table. Whose it is that came and went since the last batch is asked after all.
    fn settle_departed(&mut self, books: &mut Books, room: usize, requests: &mut Vec<Request>) {
        let Pipeline { flows, orphans, recorder, locality, reserved, .. } = self;
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
            orphans.settle(departed, books, recorder.as_mut());
        });
    }

    /// Puts the first `room` flows that found the queue full on the list of those to be asked about.
    fn ask_for_turned_away(&mut self, room: usize, books: &mut Books) {
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

    /// Puts flows that nobody was asked about, since they were unanswered, on the list of those to be asked about.
    fn ask_for_answered(&mut self, books: &mut Books) {
        for id in self.flows.take_answered() {
            let Some(flow) = self.flows.get_mut(id) else { continue };
            if let Binding::Unowned(reason @ (Unowned::NoSocket | Unowned::NotLocal)) = flow.binding() {
                books.uncount_unowned(reason, flow.reported());
                books.count_unowned(Unowned::Pending, flow.reported());
                self.flows.ask_again(id);
            }
        }
    }

    /// Credits every flow that counted something.
    fn credit_flows(&mut self, books: &mut Books) {
        let mut ask_again = Vec::new();
        self.flows.drain_dirty(|id, flow, detail| {
            let owner = match flow.binding() {
                Binding::Owned(owner) => {
                    if books.credit(&owner, flow.take_pending()) {
                        self.again.consider(id, flow, self.latest);
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

    fn apply(&mut self, answer: Answer, books: &mut Books) {
        if self.looped.answer(answer.flow, &answer.owner, &mut self.flows) {
            return;
        }
        let was_asked_again = self.again.take_asked(answer.flow);
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
                    // What passed before the answer stays where it was.
                    books.credit(&known, flow.take_pending());
                    flow.bind(Ok(found));
                }
                _ => {}
            }
        } else {
            self.orphans.answer(answer.flow, answer.owner, books, self.recorder.as_mut());
        }
    }

    /// Compares connections that have ended before `moment`, up to which all that was captured has been counted.
    pub fn complete(&mut self, ended: &EndedQueue, moment: Instant) {
        self.completion.take_in(ended.take(self.completion.room()));
        self.completion.compare(&mut self.flows, moment, &Clocks::now());
    }

    /// What comparing ended connections has brought.
    pub fn completion_stats(&self) -> CompletionStats {
        self.completion.stats()
    }

    /// What was counted before any flow.
    pub fn counts(&self) -> FrameCounts {
        self.counts
    }

    /// What the flow table did.
    pub fn flow_stats(&self) -> FlowStats {
        self.flows.stats()
    }
}

/// The reasons that bytes can have before they reach a flow.
const UNOWNED_BEFORE_FLOWS: [Unowned; 2] = [Unowned::Fragment, Unowned::NotLocal];

#[cfg(test)]
#[path = "pipeline_tests.rs"]
mod tests;
