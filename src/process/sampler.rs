//! Samples all processes: lists them, reads them, and keeps one record for each as long as it lives.

use super::machine::Machine;
use super::reader::{FileReader, ReadTask, SamplePart, SampleProgress, SharedSampleProgress};
use super::task;
use super::updater::ProcessUpdater;
use crate::blocking::{self, Abandoned, Helper, Hurry};
use crate::error::{Code, Error, Result};
use crate::kernel::{Fault, TaskSource};
use crate::model::{Identity, ProcId, ProcessRecord, SampleSet, Selection};
use crate::proc::{ProcRoot, open_directory};
use crate::sync::Mutex;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use tracing::{info, warn};

/// The number of reads that do not return for which a sample waits, a quarter of a second each: before it
/// goes on without the reads that take easily held locks, and before it goes on without reading at all.
const MAX_WAITS: usize = 4;
const MAX_WAITS_AT_ALL: usize = 8;

/// Samples the processes of one `/proc` tree.
///
/// After a sample, the processes that it found to have ended can still be looked up and changed, so that the
/// caller can credit them with late traffic. In the steady state nothing is allocated.
///
/// The files are read on a separate thread, which is abandoned if a read does not return
/// (`blocking`); the sample goes on with another thread.
#[derive(Debug)]
pub struct Sampler {
    root: Arc<ProcRoot>,
    /// The directory for the listing; `None` after a listing that did not return.
    directory: Option<Arc<OwnedFd>>,
    reader: Helper<FileReader, ReadTask>,
    books: SampleProgress,
    /// The progress while the reader works on it; empty otherwise.
    lent: SharedSampleProgress,
    machine: Machine,
    /// The reason why a figure of the machine is unknown.
    machine_fault: Option<Error>,
    /// The source that reports the figures of all processes at once, as long as that works.
    tasks: Option<Box<dyn TaskSource>>,
    fault: Option<Fault>,
    /// Set if the tree has been listed in addition to a walk of that source.
    has_listed: bool,
    /// The pids to be sampled; if empty, all are.
    selected: Vec<i32>,
    /// Reads of this sample that did not return.
    waits: usize,
}

impl Sampler {
    /// Creates a sampler that has not sampled anything yet. The groups of figures in `what` are read for the
    /// processes of the selection. For other processes only the data is read that decides whether they belong
    /// to the selection by then. Names longer than the kernel keeps need command lines, which are then read
    /// as well.
    ///
    /// # Errors
    /// Fails with `ProcessOpenDirectory` if the tree cannot be listed, with `ProcessOpen` if an earlier read
    /// of it has not returned, and with `Thread` if the system refuses another thread.
    pub fn new(
        root: impl Into<Arc<ProcRoot>>,
        mut what: SampleSet,
        mut selection: Selection,
    ) -> Result<Sampler> {
        let root = root.into();
        if selection.has_long_names() {
            // The kernel has cut the names of processes; the command lines have the whole names.
            what |= SampleSet::COMMAND_LINE;
        }
        selection.pids.sort_unstable();
        selection.pids.dedup();
        let selected = selection.pids.clone();
        let directory = open_directory(root.directory(), c".").map_err(listing_failed)?;
        let updater = ProcessUpdater::new(*root.facts(), what, selection);
        let none = ProcessUpdater::new(*root.facts(), SampleSet::default(), Selection::default());
        let mut sampler = Sampler {
            root,
            directory: Some(Arc::new(directory)),
            reader: Helper::new("capture-files", move || FileReader::new(what), FileReader::work),
            books: SampleProgress::new(updater),
            lent: Arc::new(Mutex::new(SampleProgress::new(none))),
            machine: Machine::default(),
            machine_fault: None,
            tasks: None,
            fault: None,
            has_listed: false,
            selected,
            waits: 0,
        };
        let unread = "the figures of the machine cannot be read: an earlier read of /proc has not returned";
        if !sampler.read_machine()? {
            return Err(Error::new(Code::ProcessOpen, unread));
        }
        Ok(sampler)
    }

    /// Takes the figures of later samples from walks over the kernel's tasks. The walks have to report the
    /// groups of figures of this sampler, with the pids of its tree. If a walk fails, that sample and all
    /// later ones read the tree again.
    pub fn take_from(&mut self, tasks: Box<dyn TaskSource>) {
        self.tasks = Some(tasks);
        self.has_listed = false;
    }

    /// Makes later samples report the network namespace of each process as well.
    pub fn follow_networks(&mut self) {
        self.books.updater.follow_networks();
    }

    /// Returns the reason why the walks over the kernel's tasks have ended, once.
    pub fn take_fault(&mut self) -> Option<Fault> {
        self.fault.take()
    }

    /// Reads every process; with pids in the selection, only these. Processes that have ended, including
    /// those whose pid another process has taken over, leave the table and wait in
    /// [`take_ended`](Sampler::take_ended); those that an earlier sample found to have ended are dropped. A
    /// process that exists but cannot be read is counted in [`unreadable`](Sampler::unreadable) and keeps its
    /// former record; if a read of it has not returned, none of its figures is valid. Such reads make a
    /// sample at most two seconds longer.
    ///
    /// # Errors
    /// Fails with `ProcessOpenDirectory` if the tree cannot be listed and no walk reports processes: those
    /// not listed keep their former records. Fails with `Thread` if the system refuses another thread.
    pub fn sample(&mut self) -> Result<()> {
        self.waits = 0;
        blocking::sweep();
        // If they cannot be read now, no time counts as passed.
        self.read_machine()?;
        self.books.updater.begin(self.machine.cpu_ticks);
        self.books.table.begin();
        self.books.due.clear();
        self.books.extras.clear();
        if !self.walk() {
            return self.list();
        }
        self.read(None)?;
        self.books.table.finish();
        self.read_extras()?;
        if self.has_listed {
            return Ok(());
        }
        // The walks of some kernels leave out the very first process. Known processes that a walk does not
        // report are looked up in the tree every time, so listing it once is enough. If the tree may not be
        // listed, the walk has reported the processes nevertheless.
        self.has_listed = self.list().is_ok();
        Ok(())
    }

    /// Takes the figures from a walk over the kernel's tasks. Returns true on success.
    fn walk(&mut self) -> bool {
        let Sampler { books, selected, tasks: Some(tasks), .. } = self else { return false };
        let SampleProgress { updater, table, due, extras } = books;
        let walked = tasks.walk(&mut |task| {
            let pid = task::pid(task.raw);
            if !selected.is_empty() && selected.binary_search(&pid).is_err() {
                return;
            }
            if task.raw.torn != 0 || task::has_lost_main_thread(task.raw) {
                // Either its threads started and ended while they were counted, or the main thread has ended
                // and another thread that still has its state is to be found. The files of the process are
                // read under the kernel's locks.
                due.push((pid, Some(task.raw.image)));
                return;
            }
            table.visit(pid, |_, known| {
                let (outcome, plan) = updater.apply_task(task, known);
                extras.extend(plan.map(|plan| (task::id(task.raw, updater.facts()), plan)));
                outcome
            });
        });
        if let Err(fault) = walked {
            (self.tasks, self.fault) = (None, Some(fault));
        }
        self.tasks.is_some()
    }

    /// Reads the processes that the tree lists and that have not been visited yet.
    fn list(&mut self) -> Result<()> {
        let listed = if self.selected.is_empty() {
            self.open_listing().and_then(|directory| self.read(Some(directory)))
        } else {
            let SampleProgress { table, due, .. } = &mut self.books;
            // The next one to be read is last.
            let selected = self.selected.iter().rev().filter(|&&pid| !table.was_visited(pid));
            due.extend(selected.map(|&pid| (pid, None)));
            self.read(None)
        };
        self.books.table.finish();
        listed
    }

    /// Returns the directory of the tree, to be listed from its start.
    fn open_listing(&mut self) -> Result<Arc<OwnedFd>> {
        let directory = match self.directory.take() {
            Some(directory) => directory,
            None => Arc::new(open_directory(self.root.directory(), c".").map_err(listing_failed)?),
        };
        lseek(&directory, 0, Whence::SeekSet).map_err(listing_failed)?;
        self.directory = Some(Arc::clone(&directory));
        Ok(directory)
    }

    /// Reads the processes that are due, those that are listed and those that were not visited.
    fn read(&mut self, listing: Option<Arc<OwnedFd>>) -> Result<()> {
        if listing.is_none() && self.books.due.is_empty() && !self.books.table.has_unvisited() {
            return Ok(());
        }
        let part = |books| SamplePart::Processes { books, listing: listing.clone(), listed: Ok(()) };
        match self.read_books(part)? {
            SamplePart::Processes { listed: Err(errno), .. } => {
                if errno == Errno::EAGAIN {
                    // The thread that lists it may keep it for long.
                    self.directory = None;
                }
                Err(listing_failed(errno))
            }
            _ => Ok(()),
        }
    }

    fn read_extras(&mut self) -> Result<()> {
        if self.books.extras.is_empty() {
            return Ok(());
        }
        self.read_books(SamplePart::Extras).map(|_| ())
    }

    /// Reads the figures of the machine, if they can be read now. Logs changes of what is missing.
    fn read_machine(&mut self) -> Result<bool> {
        let SamplePart::Machine(Some((machine, fault))) = self.run(|| SamplePart::Machine(None))? else {
            return Ok(false);
        };
        self.machine = machine;
        if fault != self.machine_fault {
            match &fault {
                Some(fault) => warn!("percentages of CPU time or memory are unavailable: {fault}"),
                None => info!("percentages of CPU time and memory are available again"),
            }
            self.machine_fault = fault;
        }
        Ok(true)
    }

    /// Lends the progress to the reader for a part of the sample.
    fn read_books(&mut self, part: impl Fn(SharedSampleProgress) -> SamplePart) -> Result<SamplePart> {
        let lent = Arc::clone(&self.lent);
        std::mem::swap(&mut self.books, &mut *lent.lock());
        let outcome = catch_unwind(AssertUnwindSafe(|| self.run(|| part(Arc::clone(&lent)))));
        std::mem::swap(&mut self.books, &mut *lent.lock());
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Runs the reader until it is done, with another thread whenever one is abandoned.
    fn run(&mut self, part: impl Fn() -> SamplePart) -> Result<SamplePart> {
        loop {
            let hurry = match self.waits {
                ..MAX_WAITS => Hurry::None,
                MAX_WAITS..MAX_WAITS_AT_ALL => Hurry::Locks,
                _ => Hurry::All,
            };
            match self.reader.run(hurry, ReadTask { root: Arc::clone(&self.root), part: part() }) {
                Ok(reading) => return Ok(reading.part),
                Err(Abandoned::Reading) => self.waits += 1,
                Err(Abandoned::NoThread(error)) => return Err(error),
            }
        }
    }

    /// Returns those of these processes that have ended, or `None` if this cannot be determined now.
    pub fn gone(&mut self, processes: impl Iterator<Item = ProcId>) -> Option<Vec<ProcId>> {
        let processes: Vec<ProcId> = processes.collect();
        if processes.is_empty() {
            return Some(processes);
        }
        match self.run(|| SamplePart::Ends(processes.clone())) {
            Ok(SamplePart::Ends(gone)) => Some(gone),
            _ => None,
        }
    }

    /// The records of the selected processes as of the latest sample, by pid.
    pub fn processes(&self) -> impl Iterator<Item = &ProcessRecord> {
        self.books.table.iter().filter(|tracked| tracked.selected).map(|tracked| &tracked.record)
    }

    /// The same records, mutable. Every sample sets `valid` anew and leaves traffic unchanged.
    pub fn processes_mut(&mut self) -> impl Iterator<Item = &mut ProcessRecord> {
        self.books.table.iter_mut().filter(|tracked| tracked.selected).map(|tracked| &mut tracked.record)
    }

    /// Returns the mutable record of a process of the latest sample, selected or not, or of one that the
    /// sample found to have ended.
    pub fn get_mut(&mut self, id: &ProcId) -> Option<&mut ProcessRecord> {
        self.books.table.record_mut(id)
    }

    /// The last records of the processes that the latest sample found to have ended, if they were ever
    /// selected; by pid.
    pub fn ended(&self) -> &[ProcessRecord] {
        self.books.table.ended()
    }

    /// Removes and returns the same records.
    pub fn take_ended(&mut self) -> Vec<ProcessRecord> {
        self.books.table.take_ended()
    }

    /// Removes and returns the processes that the latest sample found to have ended and that were never
    /// selected, with their last identities.
    pub fn take_passed(&mut self) -> Vec<(ProcId, Arc<Identity>)> {
        self.books.table.take_passed()
    }

    /// Returns the last name that was given to a process since walks over the kernel's tasks began, if it
    /// lives or has ended since the latest sample. Returns `None` without such walks, and if later names have
    /// displaced it.
    pub fn given_name(&self, id: &ProcId) -> Option<Vec<u8>> {
        let given = self.tasks.as_ref()?.given_name(id.pid.unsigned_abs())?;
        let is_its = task::start_ticks(given.start_ns, self.books.updater.facts()) == id.start_ticks;
        is_its.then(|| given.name().to_vec())
    }

    /// The figures of the machine as of the latest sample.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The sampled tree.
    pub fn root(&self) -> &ProcRoot {
        &self.root
    }

    /// The number of times since the sampler was created that a process existed but its `stat` could not be
    /// read (not permitted, out of descriptors, not in the format, an earlier read has not returned).
    pub fn unreadable(&self) -> u64 {
        self.books.updater.unreadable()
    }
}

fn listing_failed(errno: nix::errno::Errno) -> Error {
    Error::system(Code::ProcessOpenDirectory, "listing the proc filesystem", errno)
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
