//! The processing of a frame: it is decoded and counted in its flow, whose bytes are credited to its owner
//! once a batch.
//!
//! The pipeline belongs to the capture thread. Per frame it takes no lock, makes no system call and allocates
//! only room for packets that are to be delivered; it touches everything shared once a batch, in
//! [`FramePipeline::publish`].

use super::flow_cache::{FlowCache, PacketFlows};
use super::locality::Locality;
use super::looped::Looped;
use super::packet_queue::{PacketBatch, PacketQueue};
use super::pending_departures::PendingDepartures;
use super::recheck::OwnerRecheck;
use super::steps::ClockSteps;
use super::tcp_reconciler::{ReconcilerStats, TcpReconciler};
use crate::decode::{decode, segment_limit, wire_size};
use crate::error::Result;
use crate::flow::{FlowId, FlowStats, FlowTable, FragmentTable};
use crate::kernel::Clocks;
use crate::model::{
    Address, Direction, FlowKey, Fragment, Frame, LinkType, LocalAddresses, Namespace, Packet, Protocol,
    TcpFlags, Timestamp, Undecoded, Unowned, WireSize,
};
use crate::session::flows::{EndedQueue, Recorder};
use crate::session::limits::FlowLimits;
use crate::tap::FrameHandler;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// Period in which the whole flow table is swept for old flows, in time of the capture.
const SWEEP_NANOSECONDS: u64 = 20_000_000_000;

/// The size of the headers of IPv4 and TCP without options (RFC 791, RFC 9293).
const MIN_HEADERS: u32 = 40;

/// Counters of frames before they reach a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FrameCounts {
    /// Captured frames.
    pub frames: u64,
    /// Their bytes, with offloaded frames as captured.
    pub bytes: u64,
    /// Frames that could not be decoded, by reason.
    pub undecoded: [u64; Undecoded::COUNT],
    /// Frames that are several packets on the wire.
    pub offloaded: u64,
    /// Estimated number of packets that these frames are counted as.
    pub offloaded_packets: u64,
    /// Estimated bytes of the headers of these packets that the frames do not have.
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
    /// The part of the room for requests that is reserved for answered flows.
    pub(super) reserved: usize,
    /// Flows that found the lookup queue full, oldest first.
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
    /// Returns a pipeline with these limits. `also_local` are this host's addresses in the session's own
    /// namespace in addition to those of its devices.
    ///
    /// # Errors
    /// Fails with `SystemResource` if memory for the flow table cannot be reserved.
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

    /// Makes the pipeline record flows. To be called before the first frame.
    ///
    /// # Errors
    /// The errors of [`FlowTable::keep_details`].
    pub fn record_flows(&mut self, recorder: Recorder) -> Result<()> {
        self.flows.keep_details()?;
        self.recorder = Some(recorder);
        Ok(())
    }

    /// Reports all ended flows, after the last batch.
    pub fn finish_flows(&mut self) {
        if let Some(recorder) = &mut self.recorder {
            recorder.finish(&mut self.flows, self.latest);
        }
    }

    /// Sets the current addresses of the devices of all namespaces. A namespace that is not listed has none.
    pub fn set_device_addresses(&mut self, addresses: &[(Namespace, Arc<LocalAddresses>)]) {
        self.cache.clear();
        self.locality.set(addresses);
    }

    /// Advances the time without a frame, so that flows age on a quiet link, too, and permits rechecks of
    /// owners. If the clock was set, the ages of flows stay the same. Not for savefiles: this machine's
    /// sockets do not change with the time of their packets.
    pub fn set_time(&mut self, clocks: &Clocks) {
        let now = clocks.time_of_day();
        if let Some(step) = self.steps.take(clocks) {
            self.flows.step_clock(step, now);
            self.swept = self.swept.moved(step);
        }
        self.latest = now;
        self.recheck.refill(now);
    }

    /// Removes old flows from a part of the table that corresponds to the passed time.
    pub(super) fn sweep(&mut self) {
        let passed = self.latest.since(self.swept).min(SWEEP_NANOSECONDS);
        let held = u128::from(self.flows.stats().slots);
        let slots = held * u128::from(passed) / u128::from(SWEEP_NANOSECONDS);
        if slots > 0 || self.latest < self.swept {
            self.swept = self.latest;
            self.flows.sweep(self.latest, slots as usize);
        }
    }

    /// Removes ended connections without a packet for `idle` nanoseconds.
    pub fn release_ended(&mut self, idle: u64) {
        self.flows.release_ended(self.latest, idle);
    }

    /// Counts one frame.
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
        if frame.wire_len > frame.packet_limit.min(self.min_offloaded(frame.link)) {
            self.count_offloaded(&packet, frame);
        } else {
            self.count(&packet, frame, WireSize::from(frame.link_len()));
        }
    }

    /// Returns the length above which a frame may be several packets though the device carries longer ones:
    /// an end of a connection may accept only smaller segments.
    #[inline]
    fn min_offloaded(&self, link: LinkType) -> u32 {
        u32::from(self.flows.min_segment()) + MIN_HEADERS + link.header_len()
    }

    /// Counts a frame that may be longer than a packet can be as the packets that it is on the wire.
    #[cold]
    fn count_offloaded(&mut self, packet: &Packet, frame: &Frame<'_>) {
        let flows = self.flows_of(packet, frame);
        let end = flows.ends().next();
        let segment = end.and_then(|(id, direction)| self.flows.segment_limit(id, direction));
        let is_one = segment.is_none() && frame.wire_len <= frame.packet_limit;
        let size = if is_one { frame.link_len().into() } else { wire_size(frame, segment) };
        let counted = self.count(packet, frame, size);
        if size.packets == 1 {
            return;
        }
        // An option that is not on the wire can remove more than the headers of two packets add.
        let estimated =
            WireSize { bytes: size.bytes.saturating_sub(frame.wire_len), packets: size.packets - 1 };
        self.counts.offloaded += 1;
        self.counts.offloaded_packets += u64::from(size.packets);
        self.counts.estimated_bytes += u64::from(estimated.bytes);
        for (id, direction) in counted.ends() {
            self.flows.record_estimate(id, direction, estimated);
        }
    }

    /// Returns the flows that have counted packets with the same endpoints.
    fn flows_of(&self, packet: &Packet, frame: &Frame<'_>) -> PacketFlows {
        let &Frame { namespace, passage, .. } = frame;
        if let Some(flows) = self.cache.get(packet, namespace, passage) {
            return flows;
        }
        let &Packet { source, destination, protocol, .. } = packet;
        let send = self.flows.find(&FlowKey { local: source, remote: destination, protocol, namespace });
        let receive = self.flows.find(&FlowKey { local: destination, remote: source, protocol, namespace });
        PacketFlows { send, receive, may_loop: false }
    }

    /// Counts a frame for each of its ends that is in the namespace where it was captured. Returns the flows
    /// that have counted it.
    ///
    /// A packet between two namespaces is captured in both, and a forwarded one also in those between. Each
    /// capture counts only the ends in its namespace, so no end is counted twice; a packet that only passes
    /// is `NotLocal` wherever it passes. Within one namespace a packet can pass several devices: it counts
    /// for its sender where it leaves, and for its receiver where it arrives.
    // For most frames the result is not used, and need not be made if the call is inlined.
    #[inline(always)]
    fn count(&mut self, packet: &Packet, frame: &Frame<'_>, size: WireSize) -> PacketFlows {
        let &Frame { time, namespace, passage, .. } = frame;
        let flags = packet.tcp_flags;
        let counted = match self.cache.get(packet, namespace, passage) {
            Some(flows)
                if !flows.may_loop
                    && self.flows.count_known(flows.send, flows.receive, size, flags, time) =>
            {
                flows
            }
            _ => self.count_anew(packet, frame, size),
        };
        if self.recorder.is_some() {
            for (id, direction) in counted.ends() {
                self.flows.observe(id, direction, flags, packet.has_payload, time);
            }
        }
        counted
    }

    fn count_anew(&mut self, packet: &Packet, frame: &Frame<'_>, size: WireSize) -> PacketFlows {
        let &Frame { time, namespace, passage, .. } = frame;
        // Packets that may be forwarded leave half of the table to others.
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
        let flows = PacketFlows { send, receive, may_loop: is_sent_to_group && !is_looped };
        if flags.has(TcpFlags::SYN)
            && let Some(limit) = segment_limit(frame)
        {
            for (id, direction) in flows.ends() {
                self.flows.limit_segments(id, direction, limit);
            }
        }
        if from_here || to_here {
            self.cache.set(packet, namespace, passage, flows);
        } else {
            self.without_flow[Unowned::NotLocal as usize] += u64::from(size.bytes);
        }
        flows
    }

    /// Compares connections that have ended before `moment`, up to which everything captured has been
    /// counted.
    pub fn complete(&mut self, ended: &EndedQueue, moment: Instant) {
        self.reconciler.take_in(ended.take(self.reconciler.room()));
        self.reconciler.compare(&mut self.flows, moment, &Clocks::now());
    }

    /// Returns the counters of the comparisons.
    pub fn completion_stats(&self) -> ReconcilerStats {
        self.reconciler.stats()
    }

    /// Returns the counters of frames before they reach a flow.
    pub fn counts(&self) -> FrameCounts {
        self.counts
    }

    /// Returns the counters of the flow table.
    pub fn flow_stats(&self) -> FlowStats {
        self.flows.stats()
    }
}

#[cfg(test)]
#[path = "frame_pipeline_tests.rs"]
mod tests;
