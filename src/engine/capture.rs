//! The capture thread: waits for frames, runs the pipeline over them, and publishes once a batch.

use super::barrier::Activity;
use super::completion::CompletionStats;
use super::ended::EndedQueue;
use super::flows::FlowDesk;
use super::latest::LatestIdentities;
use super::ledger::Ledger;
use super::limits::FlowLimits;
use super::packets::PacketQueue;
use super::pipeline::{FrameCounts, Pipeline};
use super::poll::Poll;
use super::resolver::Desk;
use super::supervision::Supervision;
use crate::error::{Code, Error, Result};
use crate::flow::FlowStats;
use crate::kernel::Clocks;
use crate::owner::FirstStats;
use crate::sync::Mutex;
use crate::tap::{Note, Tap, TapStats};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

/// Frames read from one device before the batch is published, at most.
const FRAMES_PER_BATCH: usize = 8192;

/// How often devices and addresses are looked at again.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// How long beyond the read timeout the kernel may take to hand over a block.
const TIMEOUT_SLACK: Duration = Duration::from_millis(10);

/// Questions that a frame can bring up: it can be the first of a flow at both its ends.
const QUESTIONS_PER_FRAME: usize = 2;

/// How often to look whether there is room for more questions.
const ROOM_INTERVAL: Duration = Duration::from_millis(1);

/// How long beyond the read timeout a connection that has ended waits to be compared. A packet that is read only later
/// would count twice, so it is as long as the most that a busy machine may make the kernel's timers late.
const COMPARE_AFTER: Duration = Duration::from_secs(1);

/// The time for which a flow that has ended stays in the table after it was to be compared: packets that are repeated since
/// the first one was lost come within it.
const RELEASE_AFTER: Duration = Duration::from_secs(1);

/// Longest wait when nothing happens, so that old flows are let go on an idle machine, too.
const IDLE_WAIT: Duration = Duration::from_secs(1);

/// What the capture shows to the other threads, as of its last batch.
#[derive(Clone, Copy, Default)]
pub struct CaptureCounts {
    /// Frames before any flow.
    pub frames: FrameCounts,
    /// The flow table.
    pub flows: FlowStats,
    /// The devices.
    pub tap: TapStats,
    /// Connections compared.
    pub completion: CompletionStats,
}

/// What the capture thread shares with the session.
pub struct CaptureShared {
    /// The limits of flows and questions.
    limits: FlowLimits,
    /// Bytes by owner.
    pub ledger: Ledger,
    /// Questions and answers.
    pub desk: Desk,
    /// Waking and waiting.
    pub activity: Activity,
    /// Connections that have ended.
    pub ended: Arc<EndedQueue>,
    /// What the look at first packets has done.
    pub first: Mutex<FirstStats>,
    /// Counters of the last batch.
    pub counts: Mutex<CaptureCounts>,
    /// Why the capture ended before it was told to.
    pub failure: Mutex<Option<Error>>,
    /// Set to end the capture thread.
    pub stopping: AtomicBool,
    /// Ends the wait of the thread that looks at first packets, and of the one that reads the kernel's counters.
    stop_event: Mutex<Option<Arc<EventFd>>>,
    /// Records of flows.
    pub flows: Arc<FlowDesk>,
    /// What processes have become since the last sample.
    pub latest: Arc<LatestIdentities>,
}

impl CaptureShared {
    /// Nothing captured yet.
    ///
    /// # Errors
    /// `SystemResource` when no descriptor is left.
    pub fn new(limits: FlowLimits) -> Result<CaptureShared> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Error::system(Code::SystemResource, "creating an eventfd", errno))?;
        Ok(CaptureShared {
            limits,
            ledger: Ledger::default(),
            desk: Desk::new(limits.questions),
            activity: Activity::default(),
            ended: Arc::default(),
            first: Mutex::default(),
            counts: Mutex::default(),
            failure: Mutex::default(),
            stopping: AtomicBool::new(false),
            stop_event: Mutex::new(Some(Arc::new(event))),
            flows: Arc::new(FlowDesk::new(limits.ended)),
            latest: Arc::default(),
        })
    }

    /// What becomes readable when the session stops; `None` when it has been released.
    pub fn stop_event(&self) -> Option<Arc<EventFd>> {
        self.stop_event.lock().clone()
    }

    /// Has all threads end.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.activity.wake();
        self.desk.stop();
        if let Some(event) = &*self.stop_event.lock() {
            // It fails only with EAGAIN, when 2^64 - 2 wakes are unread: then the wait ends anyway.
            let _ = event.write(1);
        }
    }

    /// Closes the descriptors. The rest can be read from threads that have other descriptor tables.
    pub fn release_descriptors(&self) {
        self.activity.clear_waker();
        *self.stop_event.lock() = None;
    }

    /// Notes why the capture has ended.
    pub fn fail(&self, error: Error) {
        error!("{error}");
        *self.failure.lock() = Some(error);
        self.activity.end();
    }
}

/// The capture thread's own state.
pub struct Capture {
    /// Apart, like the pipeline: both are large, and what moves them takes as much stack.
    tap: Box<Tap>,
    pipeline: Box<Pipeline>,
    /// Longest time a captured frame stays in the kernel before it can be read.
    latency: Duration,
    /// Frames read from one device before the batch is published: no more than there is room for the questions of.
    frames_per_batch: usize,
    /// Room for questions without which the next frames of a savefile wait.
    room_per_batch: usize,
    shared: Arc<CaptureShared>,
    packets: Arc<PacketQueue>,
    poll: Arc<Poll>,
    supervision: Arc<Supervision>,
    refreshed: Instant,
    /// A moment before which everything captured has been read, and the questions that had been handed in by then, while
    /// these are being tried.
    drained: Option<(Instant, u64)>,
}

impl Capture {
    /// A capture that has not read anything.
    pub fn new(
        tap: Box<Tap>,
        pipeline: Box<Pipeline>,
        timeout: Duration,
        shared: Arc<CaptureShared>,
        packets: Arc<PacketQueue>,
        poll: Arc<Poll>,
        supervision: Arc<Supervision>,
    ) -> Capture {
        let limits = shared.limits;
        // A savefile is read on while half of the room is taken.
        let frames_per_batch = (limits.questions - limits.reserved()) / 2 / QUESTIONS_PER_FRAME;
        let frames_per_batch = frames_per_batch.min(FRAMES_PER_BATCH);
        Capture {
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

    /// Captures until told to stop, or until a savefile has been read and the owners of its flows are known.
    pub fn run(mut self) {
        let ended = self.read_until_end();
        // What was read before a failure counts, too.
        self.settle();
        self.pipeline.finish_flows();
        match ended {
            Ok(()) => self.shared.activity.end(),
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
            // Before their answers are fetched.
            let tried = self.shared.desk.tried();
            self.publish();
            // What is still to be read may belong to a connection that is to be compared.
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

    /// A savefile can wait, and so that its figures do not depend on how fast owners are found, it does.
    fn await_room(&self) {
        while !self.tap.is_live()
            && self.shared.desk.room() < self.room_per_batch
            && !self.shared.stopping.load(Ordering::Acquire)
        {
            std::thread::sleep(ROOM_INTERVAL);
        }
    }

    /// After the last frame: waits until nothing is being asked about any more.
    fn settle(&mut self) {
        while !self.shared.stopping.load(Ordering::Acquire) {
            self.publish();
            if self.shared.desk.is_idle() {
                return;
            }
            self.supervision.check(Instant::now());
            if self.tap.wait(IDLE_WAIT).is_err() {
                return;
            }
        }
    }

    /// Applies answers, credits bytes and hands in questions.
    fn publish(&mut self) {
        let CaptureShared { ledger, desk, counts, .. } = &*self.shared;
        if self.tap.is_live() {
            self.pipeline.set_time(&Clocks::now());
        }
        let mut requests = Vec::new();
        self.pipeline.publish(ledger, desk.take_answers().into_iter(), desk.room(), &mut requests);
        desk.ask(&mut requests);
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

    /// Reports how far everything captured has been counted, while an update asks for it. `began` is when the read began
    /// that has just found nothing more, `tried` the number of questions whose answers have been applied.
    fn report_complete(&mut self, began: Instant, tried: u64) {
        if self.shared.activity.asked().is_none() {
            self.drained = None;
            return;
        }
        // New questions come all the time, so only those that had been handed in are waited for.
        let read = || Some((began.checked_sub(self.latency)?, self.shared.desk.handed_in()));
        let Some((moment, questions)) = self.drained.or_else(read) else { return };
        self.drained = Some((moment, questions));
        if tried >= questions {
            self.shared.activity.completed(moment);
            self.drained = None;
        }
    }

    fn longest_wait(&self) -> Duration {
        match self.shared.activity.asked() {
            // While the resolver's answers are waited for, it wakes this thread.
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
            warn!("devices cannot be looked at: {error}");
        }
        self.tap.take_notes().iter().for_each(Note::log);
    }
}

#[cfg(test)]
#[path = "capture_tests.rs"]
mod tests;
