//! The capture thread: waits for frames, runs the pipeline over them, and publishes once a batch.

use super::drain_barrier::DrainBarrier;
use super::frame_pipeline::{FrameCounts, FramePipeline};
use super::packet_queue::PacketQueue;
use super::tcp_reconciler::ReconcilerStats;
use crate::error::{Code, Error, Result};
use crate::flow::FlowStats;
use crate::kernel::Clocks;
use crate::owner::EarlyLookupStats;
use crate::session::accounting::Ledger;
use crate::session::flows::{EndedQueue, FlowMailbox};
use crate::session::limits::FlowLimits;
use crate::session::lookup::{LatestIdentities, LookupQueue};
use crate::session::session_fd::Readiness;
use crate::session::supervision::Supervision;
use crate::sync::Mutex;
use crate::tap::{Note, Tap, TapStats};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

/// Limit of the frames read from one device before the batch is published.
const FRAMES_PER_BATCH: usize = 8192;

/// Interval at which devices and addresses are refreshed.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// Time in addition to the read timeout that the kernel may take to deliver a block.
const TIMEOUT_SLACK: Duration = Duration::from_millis(10);

/// Limit of the requests that a frame can cause: it can be the first of a flow at both its ends.
const QUESTIONS_PER_FRAME: usize = 2;

/// Interval at which a replay checks if there is room for more requests.
const ROOM_INTERVAL: Duration = Duration::from_millis(1);

/// Time in addition to the read timeout for which an ended connection waits to be compared. A packet read
/// after the comparison would count twice, so the time is as long as a busy machine may delay the kernel's
/// timers.
const COMPARE_AFTER: Duration = Duration::from_secs(1);

/// Time for which an ended flow stays in the table after its comparison was due. Retransmissions of a lost
/// packet arrive within it.
const RELEASE_AFTER: Duration = Duration::from_secs(1);

/// Longest wait without an event, so that old flows are removed on an idle machine, too.
const IDLE_WAIT: Duration = Duration::from_secs(1);

/// The capture's counters for the other threads, as of its last batch.
#[derive(Clone, Copy, Default)]
pub struct CaptureCounts {
    /// Counters of frames before they reach a flow.
    pub frames: FrameCounts,
    /// Counters of the flow table.
    pub flows: FlowStats,
    /// Counters of the devices.
    pub tap: TapStats,
    /// Counters of compared connections.
    pub completion: ReconcilerStats,
}

/// The values that the capture thread shares with the session.
pub struct CaptureShared {
    /// The limits of flows and requests.
    limits: FlowLimits,
    /// Bytes by owner.
    pub ledger: Ledger,
    /// Requests and answers.
    pub lookup_queue: LookupQueue,
    /// Wakes the capture thread and lets the update wait for it.
    pub barrier: DrainBarrier,
    /// Ended connections.
    pub ended: Arc<EndedQueue>,
    /// Counters of the early lookup.
    pub first: Mutex<EarlyLookupStats>,
    /// Counters of the last batch.
    pub counts: Mutex<CaptureCounts>,
    /// The reason why the capture ended before it was stopped.
    pub failure: Mutex<Option<Error>>,
    /// Set to end the threads.
    pub stopping: AtomicBool,
    /// Ends the wait of the early lookup thread, and that of the thread that reads the kernel's counters.
    stop_event: Mutex<Option<Arc<EventFd>>>,
    /// Flow records.
    pub flows: Arc<FlowMailbox>,
    /// Identities that processes have got since the last sample.
    pub latest: Arc<LatestIdentities>,
}

impl CaptureShared {
    /// Returns the values of a capture that has not counted anything.
    ///
    /// # Errors
    /// Fails with `SystemResource` if no descriptor is left.
    pub fn new(limits: FlowLimits) -> Result<CaptureShared> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Error::system(Code::SystemResource, "creating an eventfd", errno))?;
        Ok(CaptureShared {
            limits,
            ledger: Ledger::default(),
            lookup_queue: LookupQueue::new(limits.questions),
            barrier: DrainBarrier::default(),
            ended: Arc::default(),
            first: Mutex::default(),
            counts: Mutex::default(),
            failure: Mutex::default(),
            stopping: AtomicBool::new(false),
            stop_event: Mutex::new(Some(Arc::new(event))),
            flows: Arc::new(FlowMailbox::new(limits.ended)),
            latest: Arc::default(),
        })
    }

    /// Returns the event that becomes readable when the session stops; `None` after its release.
    pub fn stop_event(&self) -> Option<Arc<EventFd>> {
        self.stop_event.lock().clone()
    }

    /// Makes all threads end.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.barrier.wake();
        self.lookup_queue.stop();
        if let Some(event) = &*self.stop_event.lock() {
            // It fails only with EAGAIN, if 2^64 - 2 wakes are unread: then the wait ends anyway.
            let _ = event.write(1);
        }
    }

    /// Closes the descriptors. The other values remain readable from threads with other descriptor tables.
    pub fn release_descriptors(&self) {
        self.barrier.clear_waker();
        *self.stop_event.lock() = None;
    }

    /// Records the reason why the capture has ended.
    pub fn fail(&self, error: Error) {
        error!("{error}");
        *self.failure.lock() = Some(error);
        self.barrier.end();
    }
}

/// The state of the capture thread.
pub struct CaptureThread {
    /// Boxed, like the pipeline: both are large, and moving them takes as much stack.
    tap: Box<Tap>,
    pipeline: Box<FramePipeline>,
    /// Longest time that a captured frame stays in the kernel before it can be read.
    latency: Duration,
    /// Limit of the frames read from one device before the batch is published, so that there is room for all
    /// their requests.
    frames_per_batch: usize,
    /// Minimum room for requests; with less, a savefile is not read on.
    room_per_batch: usize,
    shared: Arc<CaptureShared>,
    packets: Arc<PacketQueue>,
    poll: Arc<Readiness>,
    supervision: Arc<Supervision>,
    refreshed: Instant,
    /// A time before which everything captured has been read, and the number of requests made by then, while
    /// these are being tried.
    drained: Option<(Instant, u64)>,
}

impl CaptureThread {
    /// Returns a capture that has not read anything.
    pub fn new(
        tap: Box<Tap>,
        pipeline: Box<FramePipeline>,
        timeout: Duration,
        shared: Arc<CaptureShared>,
        packets: Arc<PacketQueue>,
        poll: Arc<Readiness>,
        supervision: Arc<Supervision>,
    ) -> CaptureThread {
        let limits = shared.limits;
        // A savefile is read on while at most half of the room is taken.
        let frames_per_batch = (limits.questions - limits.reserved()) / 2 / QUESTIONS_PER_FRAME;
        let frames_per_batch = frames_per_batch.min(FRAMES_PER_BATCH);
        CaptureThread {
            tap,
            pipeline,
            latency: timeout + TIMEOUT_SLACK,
            frames_per_batch,
            room_per_batch: frames_per_batch * QUESTIONS_PER_FRAME + limits.reserved(),
            shared,
            packets,
            poll,
            supervision,
            refreshed: Instant::now(),
            drained: None,
        }
    }

    /// Captures until it is stopped, or until a savefile has been read and the owners of its flows are known.
    pub fn run(mut self) {
        let ended = self.read_until_end();
        // Frames read before a failure count, too.
        self.settle();
        self.pipeline.finish_flows();
        match ended {
            Ok(()) => self.shared.barrier.end(),
            Err(error) => self.shared.fail(error),
        }
        self.poll.notify();
    }

    fn read_until_end(&mut self) -> Result<()> {
        let mut more = false;
        while !self.shared.stopping.load(Ordering::Acquire) {
            if more {
                self.await_room();
            } else {
                self.tap.wait(self.longest_wait())?;
            }
            let began = Instant::now();
            let progress = self.tap.read(self.frames_per_batch, &mut *self.pipeline)?;
            if !progress.more
                && let Some(moment) = began.checked_sub(self.latency + COMPARE_AFTER)
            {
                self.pipeline.complete(&self.shared.ended, moment);
            }
            // The number is read before the answers are taken.
            let tried = self.shared.lookup_queue.tried();
            self.publish();
            // Unread frames may belong to a connection that is to be compared.
            if !progress.more || !self.tap.is_live() {
                let idle = self.latency + COMPARE_AFTER + RELEASE_AFTER;
                self.pipeline.release_ended(idle.as_nanos() as u64);
            }
            if progress.ended {
                info!("the savefile was read to its end");
                return Ok(());
            }
            more = progress.more;
            if !more {
                self.report_complete(began, tried);
            }
            if self.refreshed.elapsed() >= REFRESH_INTERVAL {
                self.refresh();
            }
        }
        Ok(())
    }

    /// Waits for room for requests. Only a savefile can wait, and it does so that its figures do not depend
    /// on the speed of the lookups.
    fn await_room(&self) {
        while !self.tap.is_live()
            && self.shared.lookup_queue.room() < self.room_per_batch
            && !self.shared.stopping.load(Ordering::Acquire)
        {
            std::thread::sleep(ROOM_INTERVAL);
        }
    }

    /// Waits after the last frame until every request is answered.
    fn settle(&mut self) {
        while !self.shared.stopping.load(Ordering::Acquire) {
            self.publish();
            if self.shared.lookup_queue.is_idle() {
                return;
            }
            self.supervision.check(Instant::now());
            if self.tap.wait(IDLE_WAIT).is_err() {
                return;
            }
        }
    }

    /// Applies answers, credits bytes and makes requests.
    fn publish(&mut self) {
        let CaptureShared { ledger, lookup_queue, counts, .. } = &*self.shared;
        if self.tap.is_live() {
            self.pipeline.set_time(&Clocks::now());
        }
        let mut requests = Vec::new();
        self.pipeline.publish(
            ledger,
            lookup_queue.take_answers().into_iter(),
            lookup_queue.room(),
            &mut requests,
        );
        lookup_queue.ask(&mut requests);
        if self.packets.has_packets() {
            self.poll.notify();
        }
        *counts.lock() = CaptureCounts {
            frames: self.pipeline.counts(),
            flows: self.pipeline.flow_stats(),
            tap: self.tap.stats(),
            completion: self.pipeline.completion_stats(),
        };
    }

    /// Reports the time up to which everything captured has been counted, while an update requests it.
    /// `began` is the time at which the read began that has just found nothing more; `tried` is the number of
    /// requests whose answers have been applied.
    fn report_complete(&mut self, began: Instant, tried: u64) {
        if self.shared.barrier.asked().is_none() {
            self.drained = None;
            return;
        }
        // New requests arrive all the time, so only those made by then are waited for.
        let read = || Some((began.checked_sub(self.latency)?, self.shared.lookup_queue.handed_in()));
        let Some((moment, questions)) = self.drained.or_else(read) else { return };
        self.drained = Some((moment, questions));
        if tried >= questions {
            self.shared.barrier.completed(moment);
            self.drained = None;
        }
    }

    fn longest_wait(&self) -> Duration {
        match self.shared.barrier.asked() {
            // While this thread waits for answers, the resolver wakes it.
            Some(asked) if self.drained.is_none() => {
                let due = asked + self.latency;
                due.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
            }
            _ => IDLE_WAIT,
        }
    }

    fn refresh(&mut self) {
        self.refreshed = Instant::now();
        self.supervision.check(self.refreshed);
        if let Err(error) = self.tap.begin_refresh() {
            warn!("refreshing the devices failed: {error}");
        }
        self.tap.take_notes().iter().for_each(Note::log);
    }
}

#[cfg(test)]
#[path = "capture_thread_tests.rs"]
mod tests;
