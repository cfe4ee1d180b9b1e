//! The handle of a session: opened with options, updated at the caller's pace, and closed with its threads
//! joined.

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

/// A running session. It captures as soon as it is open; its figures change only in [`Session::update`].
///
/// All its descriptors are in a table of its own, which children and programs of the host do not inherit. The
/// only exception is [`Session::descriptor`].
pub struct Session {
    /// Pid of the process that opened the session. A forked child has none of the session's threads.
    process: u32,
    /// `None` while the session's thread works on it.
    core: Option<Box<Core>>,
    units: Units,
    stats: StatsReader,
    descriptor: Arc<SessionFd>,
    thread: Worker,
    table: Option<Arc<PrivateTable>>,
}

impl Session {
    /// Opens a session and starts capturing. Without the privilege to capture packets, the session opens
    /// without them, and the log and the statistics say so.
    ///
    /// Namespaces and privileges are those of the calling thread.
    ///
    /// # Errors
    /// Fails with `InvalidArgument` if an option is out of range; with `LogFile`; with `Thread`; with
    /// `SystemResource`, also if the limit of the address space (`RLIMIT_AS`) is too low; with the errors of
    /// opening devices or a savefile, except for missing privileges; with the errors of
    /// [`crate::process::Sampler::new`].
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

    /// Runs `work` on the session's thread, where its descriptors are. A panic in `work` is resumed in the
    /// caller.
    fn run<T: Send + 'static>(&mut self, work: fn(&mut Core) -> T) -> Result<T> {
        if self.process != std::process::id() {
            let text = "the session was opened by the parent before a fork; open one in this process";
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

    /// Samples the processes and adds the bytes that they sent and received. The result stays until the next
    /// update: [`Session::processes`], [`Session::take_removed`], [`Session::take_packets`].
    ///
    /// The update does not wait for the last packets of ended processes, unless [`Options::wait_for_ended`]
    /// is set. Such a process is removed by the first update that finds everything counted that was captured
    /// before its end, or after the read timeout and 2 s. Until then it is among neither the living nor the
    /// removed processes. If flows are recorded, the update waits for the capture thread to deliver the
    /// living ones, a few milliseconds and at most 200 ms. If they are late, the previous records stay.
    ///
    /// # Errors
    /// The errors of [`crate::process::Sampler::sample`]. No bytes are lost then: the next update delivers
    /// them. Fails with `Forked` in a child of the process that opened the session.
    pub fn update(&mut self) -> Result<()> {
        self.descriptor.restart();
        let updated = self.run(Core::update)?;
        self.units = self.core.as_ref().map_or(self.units, |core| core.units());
        updated
    }

    /// Reports a capture that has ended by itself.
    ///
    /// # Errors
    /// Fails with `Savefile`, once, if the savefile broke off; with `SessionFailed`, from then on, if a
    /// thread has failed.
    pub fn health(&self) -> Result<()> {
        self.core.as_ref().ok_or_else(has_failed)?.health()
    }

    /// Returns the living selected processes as of the last update, by pid.
    pub fn processes(&self) -> impl Iterator<Item = &ProcessRecord> {
        self.core.iter().flat_map(|core| core.processes())
    }

    /// Returns the processes that have ended since the last call, with their last figures.
    pub fn take_removed(&mut self) -> Vec<ProcessRecord> {
        self.core.as_mut().map(|core| core.take_removed()).unwrap_or_default()
    }

    /// Returns the living flows of all processes as of the last update; none unless [`Options::flows`] is
    /// set.
    pub fn flows(&self) -> impl Iterator<Item = &FlowRecord> {
        self.core.iter().flat_map(|core| core.flows())
    }

    /// Returns the last records of the flows of all processes that have ended since the last call, oldest
    /// first. A flow is delivered a third of a second after its end, or later, when its owner is known.
    pub fn take_ended_flows(&mut self) -> Vec<FlowRecord> {
        self.core.as_mut().map(|core| core.take_ended_flows()).unwrap_or_default()
    }

    /// Takes at most `count` of the queued packets, oldest first.
    pub fn take_packets(&mut self, count: usize) -> Vec<PacketBatch> {
        let taken = self.core.as_mut().map(|core| core.take_packets(count)).unwrap_or_default();
        if self.core.as_ref().is_some_and(|core| core.packets.has_packets()) {
            self.descriptor.notify();
        }
        taken
    }

    /// Returns the log lines since the last call, if the options queue them.
    pub fn take_log_lines(&self) -> Vec<LogLine> {
        self.core.as_ref().map(|core| core.take_log_lines()).unwrap_or_default()
    }

    /// Returns the converter of the kernel's units, as of the last update.
    pub fn units(&self) -> Units {
        self.units
    }

    /// Returns a reader of the statistics, which works on any thread for as long as it is kept.
    pub fn stats_reader(&self) -> StatsReader {
        self.stats.clone()
    }

    /// Returns a descriptor that is readable until the next update if packets are queued, if the interval is
    /// over, if a savefile has been read to its end, or if the capture has failed. The first call creates it,
    /// in the descriptor table of the calling thread.
    ///
    /// # Errors
    /// Fails with `SystemResource` or `Thread` if the system refuses a descriptor or a thread.
    pub fn descriptor(&self) -> Result<BorrowedFd<'_>> {
        self.descriptor.get()
    }

    /// Returns the descriptor for other threads.
    pub fn shared_descriptor(&self) -> Arc<SessionFd> {
        Arc::clone(&self.descriptor)
    }

    /// Returns true if all of a savefile has been counted, or the capture has failed.
    pub fn has_ended(&self) -> bool {
        self.core.as_ref().is_none_or(|core| core.has_ended())
    }

    /// Ends the capture and joins the threads; dropping does the same. Returns the last log lines. Threads
    /// whose reads of `/proc` do not return are abandoned after at most a quarter of a second each, and end
    /// when their read returns.
    pub fn close(&mut self) -> Vec<LogLine> {
        self.run(Core::close).unwrap_or_default()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // The threads, including the log's, and the descriptors exist only in the parent.
            std::mem::forget((self.core.take(), self.table.take()));
            return;
        }
        if let Some(core) = self.core.take() {
            // A panic must not leave `drop`.
            let _ = catch_quietly(|| self.thread.run(move || drop(core)));
        }
    }
}

fn has_failed() -> Error {
    Error::new(Code::SessionFailed, "the thread of the session has ended")
}
