//! What happens to each frame: decoded, counted in its flow, and credited batch by batch to the flow's owner.
//!
//! It belongs to the capture thread. Per frame it takes no lock, makes no system call and allocates nothing but
//! room for packets that are to be delivered; everything shared is touched once a batch, in [`Pipeline::publish`].

use super::flow_cache::{FlowCache, PacketFlows};
use super::locality::Locality;
use super::looped::Looped;
use super::packet_queue::{PacketBatch, PacketQueue};
use super::pending_departures::PendingDepartures;
use super::recheck::OwnerRecheck;
use super::steps::ClockSteps;
use super::tcp_reconciler::{ReconcilerStats, TcpReconciler};
use crate::decode::{decode, has_payload, segment_limit, wire_size};
use crate::error::Result;
use crate::flow::{FlowId, FlowStats, FlowTable, FragmentTable};
use crate::kernel::Clocks;
use crate::model::{
    Address, Direction, FlowKey, Fragment, Frame, LocalAddresses, Namespace, Packet, Protocol, TcpFlags,
    Timestamp, Undecoded, Unowned, WireSize,
};
use crate::session::flows::{EndedQueue, Recorder};
use crate::session::limits::FlowLimits;
use crate::tap::FrameHandler;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

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
pub struct FramePipeline {
    pub(super) flows: FlowTable,
    pub(super) fragments: FragmentTable,
    pub(super) locality: Locality,
    pub(super) looped: Looped,
    pub(super) cache: FlowCache,
    pub(super) packets: Arc<PacketQueue>,
    pub(super) batch: PacketBatch,
    pub(super) counts: FrameCounts,
    /// Bytes without a flow since the last batch, by reason.
    pub(super) without_flow: [u64; Unowned::COUNT],
    pub(super) departures: PendingDepartures,
    /// The part of the room for questions that is left to flows that were answered.
    pub(super) reserved: usize,
    /// Flows that found the queue of questions full, the oldest first.
    pub(super) turned_away: VecDeque<FlowId>,
    pub(super) reconciler: TcpReconciler,
    pub(super) recheck: OwnerRecheck,
    pub(super) recorder: Option<Recorder>,
    pub(super) steps: ClockSteps,
    pub(super) latest: Timestamp,
    pub(super) swept: Timestamp,
}

impl FrameHandler for FramePipeline {
    fn frame(&mut self, frame: Frame<'_>) {
        FramePipeline::frame(self, &frame);
    }

    fn set_addresses(&mut self, addresses: &[(Namespace, Arc<LocalAddresses>)]) {
        self.set_device_addresses(addresses);
    }
}

impl FramePipeline {
    /// A pipeline within these limits. `also_local` are this host's addresses in the session's own
    /// namespace besides those of its devices.
    ///
    /// # Errors
    /// `SystemResource` when memory for the flow table cannot be reserved.
    pub fn new(
        limits: FlowLimits,
        also_local: &[Address],
        packets: Arc<PacketQueue>,
    ) -> Result<FramePipeline> {
        Ok(FramePipeline {
            flows: FlowTable::new(limits.held)?,
            fragments: FragmentTable::default(),
            locality: Locality::new(also_local),
            looped: Looped::default(),
            cache: FlowCache::default(),
            packets,
            batch: PacketBatch::default(),
            counts: FrameCounts::default(),
            without_flow: [0; Unowned::COUNT],
            departures: PendingDepartures::new(limits.questions),
            reserved: limits.reserved(),
            turned_away: VecDeque::new(),
            reconciler: TcpReconciler::default(),
            recheck: OwnerRecheck::default(),
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
        self.cache.clear();
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
        self.recheck.refill(now);
    }

    /// Lets old flows go, in as large a part of the table as time has passed.
    pub(super) fn sweep(&mut self) {
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
        let Some(PacketFlows { send, receive, .. }) = self.cache.get(packet, frame.namespace, frame.passage)
        else {
            return;
        };
        for (id, direction) in [(send, Direction::Send), (receive, Direction::Receive)] {
            if let Some(id) = id {
                self.flows.record_estimate(id, direction, estimated);
            }
        }
    }

    /// The flows that have counted packets with the same endpoints, if there are any.
    fn flows_of(&self, packet: &Packet, frame: &Frame<'_>) -> Option<PacketFlows> {
        let &Frame { namespace, passage, .. } = frame;
        if let Some(flows) = self.cache.get(packet, namespace, passage) {
            return Some(flows);
        }
        let &Packet { source, destination, protocol, .. } = packet;
        let send = self.flows.find(&FlowKey { local: source, remote: destination, protocol, namespace });
        let receive = self.flows.find(&FlowKey { local: destination, remote: source, protocol, namespace });
        (send.is_some() || receive.is_some()).then_some(PacketFlows { send, receive, may_loop: false })
    }

    /// Counts a frame for each of its ends that is in the namespace where it was captured.
    ///
    /// A packet between two namespaces is captured in both, and forwarded ones also in those between. Since each counts
    /// only what has an end there, no end is counted twice; what merely passes is `NotLocal` wherever it passes. Within one
    /// namespace a packet can pass several devices: where it leaves counts for its sender, where it arrives for its receiver.
    fn count(&mut self, packet: &Packet, frame: &Frame<'_>, size: WireSize) {
        let &Frame { time, namespace, passage, .. } = frame;
        let known = match self.cache.get(packet, namespace, passage) {
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
        let Some(PacketFlows { send, receive, .. }) = self.cache.get(packet, frame.namespace, frame.passage)
        else {
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
            self.cache.set(packet, namespace, passage, PacketFlows { send, receive, may_loop });
        } else {
            self.without_flow[Unowned::NotLocal as usize] += u64::from(size.bytes);
        }
    }

    /// Compares connections that have ended before `moment`, up to which all that was captured has been counted.
    pub fn complete(&mut self, ended: &EndedQueue, moment: Instant) {
        self.reconciler.take_in(ended.take(self.reconciler.room()));
        self.reconciler.compare(&mut self.flows, moment, &Clocks::now());
    }

    /// What comparing ended connections has brought.
    pub fn completion_stats(&self) -> ReconcilerStats {
        self.reconciler.stats()
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

#[cfg(test)]
#[path = "frame_pipeline_tests.rs"]
mod tests;
