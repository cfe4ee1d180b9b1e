//! The handle of a session: opened with options, updated as often as its owner likes, closed with its threads joined.

use super::core::Core;
use super::limits::FlowLimits;
use super::pipeline::PacketBatch;
use super::room;
use super::session_fd::{Readiness, SessionFd};
use super::stats::StatsReader;
use super::units::Units;
use crate::config::Options;
use crate::error::{Code, Error, Result};
use crate::log::LogLine;
use crate::model::{FlowRecord, ProcessRecord};
use crate::thread::{PrivateTable, Worker, catch_quietly};
use std::os::fd::BorrowedFd;
use std::panic::resume_unwind;
use std::sync::Arc;

/// A running session. It captures from its opening on; figures move on only in [`Session::update`].
///
/// All that it opens is in a descriptor table of its own, which children and programs of the host do not inherit; but for
/// [`Session::descriptor`].
pub struct Session {
    /// The process that opened it; in a forked child there is no thread of it.
    process: u32,
    /// Away while its thread works on it.
    core: Option<Box<Core>>,
    units: Units,
    stats: StatsReader,
    descriptor: Arc<SessionFd>,
    thread: Worker,
    table: Option<Arc<PrivateTable>>,
}

impl Session {
    /// Opens a session and starts capturing. Where packets may not be captured for want of a privilege the session
    /// opens without them, and the log and the statistics say so.
    ///
    /// Namespaces and privileges are those of the calling thread.
    ///
    /// # Errors
    /// `InvalidArgument` for options out of range; `LogFile`; what opening devices or a savefile returns but
    /// for missing privileges; what [`crate::process::Sampler::new`] returns; `Thread`; `SystemResource`, also where the limit
    /// of the address space (`RLIMIT_AS`) is too low.
    pub fn open(options: Options) -> Result<Session> {
        options.check()?;
        let limits = FlowLimits::of(&options);
        room::check(&options, limits)?;
        let table = PrivateTable::of_thread()?;
        let thread = table.start_worker("capture-session")?;
        let poll = Arc::new(Readiness::new(options.interval));
        let (shared, shared_because) = (Arc::clone(&poll), table.shared_because());
        let open = move || Core::open(options, limits, shared, shared_because).map(Box::new);
        let core = thread.run(open).unwrap_or_else(|| Err(has_failed()))?;
        Ok(Session {
            process: std::process::id(),
            units: core.units(),
            stats: core.stats_reader(),
            descriptor: Arc::new(SessionFd::new(poll)),
            core: Some(core),
            thread,
            table: Some(table),
        })
    }

    /// Runs `work` where the session's descriptors are. A panic in it goes on in the caller.
    fn run<T: Send + 'static>(&mut self, work: fn(&mut Core) -> T) -> Result<T> {
        if self.process != std::process::id() {
            let text = "the session was opened before a fork, by the parent; open one in this process";
            return Err(Error::new(Code::Forked, text));
        }
        let mut core = self.core.take().ok_or_else(has_failed)?;
        let work = move || {
            let outcome = catch_quietly(|| work(&mut core));
            (core, outcome)
        };
        let (core, outcome) = self.thread.run(work).ok_or_else(has_failed)?;
        self.core = Some(core);
        outcome.map_err(|text| resume_unwind(Box::new(text)))
    }

    /// Samples the processes and adds what they sent and received. The result stays until the next update:
    /// [`Session::processes`], [`Session::take_removed`], [`Session::take_packets`].
    ///
    /// It does not wait for the last packets of processes that have ended, unless [`Options::wait_for_ended`] says so: such
    /// a process is removed by the first update that finds everything counted which was captured before its end, or after
    /// the read timeout and 2 s, and is among neither the living nor the removed until then. Where flows are recorded it
    /// waits for the capture to show them, a few milliseconds and at most 200; those not shown by then stay as they were.
    ///
    /// # Errors
    /// What [`crate::process::Sampler::sample`] returns. No bytes are lost then: they come with the next update. `Forked` in
    /// a child of the process that opened the session.
    pub fn update(&mut self) -> Result<()> {
        self.descriptor.restart();
        let updated = self.run(Core::update)?;
        self.units = self.core.as_ref().map_or(self.units, |core| core.units());
        updated
    }

    /// Why the capture has ended by itself, if it has.
    ///
    /// # Errors
    /// `Savefile`, once, when the savefile broke off; `SessionFailed`, from then on, when a thread has failed.
    pub fn health(&self) -> Result<()> {
        self.core.as_ref().ok_or_else(has_failed)?.health()
    }

    /// The living processes of the selection as of the last update, by pid.
    pub fn processes(&self) -> impl Iterator<Item = &ProcessRecord> {
        self.core.iter().flat_map(|core| core.processes())
    }

    /// The processes that have ended since this was last called, with their last figures.
    pub fn take_removed(&mut self) -> Vec<ProcessRecord> {
        self.core.as_mut().map(|core| core.take_removed()).unwrap_or_default()
    }

    /// The flows that live, of all processes, as of the last update; none unless [`Options::flows`] asks for them.
    pub fn flows(&self) -> impl Iterator<Item = &FlowRecord> {
        self.core.iter().flat_map(|core| core.flows())
    }

    /// The last records of the flows that have ended since this was last called, of all processes, the oldest first. A
    /// flow is told of a third of a second after its end or later, when its owner is known.
    pub fn take_ended_flows(&mut self) -> Vec<FlowRecord> {
        self.core.as_mut().map(|core| core.take_ended_flows()).unwrap_or_default()
    }

    /// Up to `count` of the packets held, oldest first.
    pub fn take_packets(&mut self, count: usize) -> Vec<PacketBatch> {
        let taken = self.core.as_mut().map(|core| core.take_packets(count)).unwrap_or_default();
        if self.core.as_ref().is_some_and(|core| core.packets.has_packets()) {
            self.descriptor.notify();
        }
        taken
    }

    /// Lines of the log since this was last called, if the options asked for them to be queued.
    pub fn take_log_lines(&self) -> Vec<LogLine> {
        self.core.as_ref().map(|core| core.take_log_lines()).unwrap_or_default()
    }

    /// What turns the kernel's units into natural ones, as of the last update.
    pub fn units(&self) -> Units {
        self.units
    }

    /// Reads the statistics from any thread, for as long as the reader is kept.
    pub fn stats_reader(&self) -> StatsReader {
        self.stats.clone()
    }

    /// Readable when packets are held, when the interval is over, when a savefile has been read to its end, and when
    /// the capture has failed; until the next update. It is made when it is first asked for, in the descriptor table of the
    /// calling thread.
    ///
    /// # Errors
    /// `SystemResource` and `Thread` when the system refuses them.
    pub fn descriptor(&self) -> Result<BorrowedFd<'_>> {
        self.descriptor.get()
    }

    /// The descriptor, for other threads.
    pub fn shared_descriptor(&self) -> Arc<SessionFd> {
        Arc::clone(&self.descriptor)
    }

    /// Whether all of a savefile has been counted, or the capture has failed.
    pub fn has_ended(&self) -> bool {
        self.core.as_ref().is_none_or(|core| core.has_ended())
    }

    /// Ends the capture and joins the threads; dropping does the same. Returns the last lines of the log. Threads whose
    /// reads of `/proc` do not return are left behind: each waits for at most a quarter of a second, and ends when its read
    /// returns.
    pub fn close(&mut self) -> Vec<LogLine> {
        self.run(Core::close).unwrap_or_default()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // The threads, also the log's, and the descriptors are in the parent only.
            std::mem::forget((self.core.take(), self.table.take()));
            return;
        }
        if let Some(core) = self.core.take() {
            // A panic in it must not go on from here.
            let _ = catch_quietly(|| self.thread.run(move || drop(core)));
        }
    }
}

fn has_failed() -> Error {
    Error::new(Code::SessionFailed, "the thread of the session has ended")
}
