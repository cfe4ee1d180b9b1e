//! The counters of a session and its losses, readable from any thread at any time.

use super::accounting::LedgerTotals;
use super::pipeline::{CaptureShared, PacketQueue};
use crate::config::Engine;
use crate::log::Log;
use crate::model::{ProbeState, ProgramSet, Undecoded};
use crate::owner::{EarlyLookupStats, EarlyOwnerCache};
use crate::sync::Mutex;
use nix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters of a session since it was opened, unless a field says otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Counted frames.
    pub frames: u64,
    /// Their bytes, with offloaded frames as captured.
    pub frame_bytes: u64,
    /// Frames that could not be decoded, by reason.
    pub undecoded: [u64; Undecoded::COUNT],
    /// Frames that are several packets on the wire.
    pub offloaded_frames: u64,
    /// Estimated number of packets that these frames are counted as.
    pub offloaded_packets: u64,
    /// Estimated bytes of the headers of these packets that the frames do not have.
    pub estimated_bytes: u64,
    /// Frames lost because a capture buffer was full.
    pub lost_in_kernel: u64,
    /// Frames lost by a device or its driver.
    pub lost_in_device: u64,
    /// Packets lost because the caller did not take them in time.
    pub lost_packets: u64,
    /// Log lines lost because the caller did not take them in time, or because they could not be written.
    pub lost_log_lines: u64,
    /// Bytes that new devices had carried before they were captured.
    pub bytes_before_capture: u64,
    /// Devices being captured now.
    pub devices: u64,
    /// Devices being opened or closed now, beside the capture.
    pub devices_pending: u64,
    /// Flows in the table now.
    pub flows: u64,
    /// Flows that expired.
    pub flows_expired: u64,
    /// Flows evicted for new ones.
    pub flows_evicted: u64,
    /// Flows waiting for their owner now.
    pub flows_waiting: u64,
    /// Bytes with and without an owner.
    pub bytes: LedgerTotals,
    /// Results of early lookups.
    pub first: EarlyLookupStats,
    /// Owners found by early lookups that were evicted, possibly before their flow was captured.
    pub first_forgotten: u64,
    /// TCP connections whose end showed if all of their bytes had been captured.
    pub connections_checked: u64,
    /// Those of which packets had been lost.
    pub connections_short: u64,
    /// Minimum number of bytes of such packets; they are counted with the captured ones.
    pub bytes_completed: u64,
    /// Ends of connections that were not reported because too many arrived at once; these were not checked.
    pub ends_lost: u64,
    /// Records of ended flows that were lost because the caller did not take them in time.
    pub lost_flows: u64,
    /// Processes that could not be read or parsed.
    pub processes_skipped: u64,
    /// Duration of the last update, in nanoseconds.
    pub update_ns: u64,
    /// Times at which the last two updates began to sample, the latest first, in nanoseconds of
    /// CLOCK_MONOTONIC; 0 for an update that has not been.
    pub sampled_ns: [u64; 2],
    /// Set once a savefile was read to its end and all of it is counted.
    pub replay_finished: bool,
    /// Capabilities that would give more data, one bit for each number.
    pub missing_capabilities: u64,
    /// The engine in use; never [`Engine::Auto`].
    pub engine: Engine,
    /// State of the eBPF programs that record the users of sockets and count their bytes.
    pub socket_probes: ProbeState,
    /// The active parts of these eBPF programs.
    pub socket_programs: ProgramSet,
    /// State of the BPF iterator that samples all processes at once.
    pub sample_probes: ProbeState,
}

/// Counters kept by updates.
#[derive(Default)]
pub struct UpdateCounts {
    pub(super) sample_probes: Mutex<ProbeState>,
    pub(super) processes_skipped: AtomicU64,
    pub(super) update_ns: AtomicU64,
    pub(super) sampled_ns: Mutex<[u64; 2]>,
}

impl UpdateCounts {
    /// Records that an update begins to sample now.
    pub(super) fn begin_sample(&self) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        let mut times = self.sampled_ns.lock();
        *times = [now.as_nanos() as u64, times[0]];
    }
}

/// Reads the statistics of a session, also while an update runs.
#[derive(Clone)]
pub struct StatsReader {
    pub(super) shared: Arc<CaptureShared>,
    pub(super) early: Arc<EarlyOwnerCache>,
    pub(super) packets: Arc<PacketQueue>,
    pub(super) log: Arc<Log>,
    pub(super) updates: Arc<UpdateCounts>,
    pub(super) missing_capabilities: u64,
    pub(super) is_replay: bool,
    pub(super) engine: Engine,
    pub(super) socket_probes: ProbeState,
    pub(super) socket_programs: ProgramSet,
}

impl StatsReader {
    /// Returns the current statistics; those of the capture as of its last batch.
    pub fn read(&self) -> Stats {
        let counts = *self.shared.counts.lock();
        let (frames, flows, tap, completion) = (counts.frames, counts.flows, counts.tap, counts.completion);
        Stats {
            frames: frames.frames,
            frame_bytes: frames.bytes,
            undecoded: frames.undecoded,
            offloaded_frames: frames.offloaded,
            offloaded_packets: frames.offloaded_packets,
            estimated_bytes: frames.estimated_bytes,
            lost_in_kernel: tap.dropped_by_kernel,
            lost_in_device: tap.dropped_by_device,
            lost_packets: self.packets.lost(),
            lost_log_lines: self.log.lost(),
            bytes_before_capture: tap.bytes_before_capture,
            devices: tap.devices_open.into(),
            devices_pending: tap.devices_pending.into(),
            flows: flows.held,
            flows_expired: flows.expired,
            flows_evicted: flows.evicted,
            flows_waiting: self.shared.lookup_queue.waiting() as u64,
            bytes: self.shared.ledger.lock().totals(),
            first: *self.shared.first.lock(),
            first_forgotten: self.early.evicted(),
            connections_checked: completion.checked,
            connections_short: completion.short,
            bytes_completed: completion.bytes,
            ends_lost: self.shared.ended.lost(),
            lost_flows: self.shared.flows.lost(),
            processes_skipped: self.updates.processes_skipped.load(Ordering::Relaxed),
            update_ns: self.updates.update_ns.load(Ordering::Relaxed),
            sampled_ns: *self.updates.sampled_ns.lock(),
            replay_finished: self.is_replay && self.shared.barrier.has_ended(),
            missing_capabilities: self.missing_capabilities,
            engine: self.engine,
            socket_probes: self.socket_probes,
            socket_programs: self.socket_programs,
            sample_probes: *self.updates.sample_probes.lock(),
        }
    }
}
