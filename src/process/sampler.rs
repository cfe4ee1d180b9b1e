//! Sampling of all processes: lists them, reads them, and keeps one record for each as long as it lives.

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

/// How many reads that do not return a sample waits for, a quarter of a second each, before it goes on without what takes
/// the locks that are easily held, and how many before it goes on without reading.
const MAX_WAITS: usize = 4;
const MAX_WAITS_AT_ALL: usize = 8;

/// Samples the processes of one `/proc` tree.
///
/// After a sample, the processes that it found to have ended can still be looked up and changed, so that its user can
/// credit them with what came late. In the steady state nothing is allocated.
///
/// The files are read on a thread of its own, which is left behind when a read does not return ([`crate::blocking`]); the
/// sample goes on with another one.
#[derive(Debug)]
pub struct Sampler {
    root: Arc<ProcRoot>,
    /// The listing; none after one that did not return.
    directory: Option<Arc<OwnedFd>>,
    reader: Helper<FileReader, ReadTask>,
    books: SampleProgress,
    /// Where the books are while the reader has them, and none otherwise.
    lent: SharedSampleProgress,
    machine: Machine,
    /// Why a figure of the machine is not known.
    machine_fault: Option<Error>,
    /// Who tells the figures of all processes at once, as long as that works.
    tasks: Option<Box<dyn TaskSource>>,
    fault: Option<Fault>,
    /// Whether the tree has been listed beside such a walk.
    has_listed: bool,
    /// The pids that are looked for; when empty, all are.
    selected: Vec<i32>,
    /// Reads of this sample that did not return.
    waits: usize,
}

impl Sampler {
    /// A sampler that has not sampled anything yet. The groups of figures in `what` are read for
    /// processes of the selection; of others only what tells whether they have come to belong to it. Names longer than the
    /// kernel keeps need command lines, which are then read as well.
    ///
    /// # Errors
    /// `ProcessOpenDirectory` when the tree cannot be listed, `ProcessOpen` when an earlier read of it has not returned;
    /// `Thread` when the system refuses another thread.
    pub fn new(
        root: impl Into<Arc<ProcRoot>>,
        mut what: SampleSet,
        mut selection: Selection,
    ) -> Result<Sampler> {
        let root = root.into();
        if selection.has_long_names() {
            // The kernel has cut the names of processes; the whole ones are there.
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

    /// From now on takes the figures from walks over the kernel's tasks, which are to tell the groups of figures that
    /// this sampler was made for, by the numbers of its tree. When such a walk fails, that sample and all later ones
    /// read the tree again.
    pub fn take_from(&mut self, tasks: Box<dyn TaskSource>) {
        self.tasks = Some(tasks);
        self.has_listed = false;
    }

    /// From now on also tells which network namespace each process is in.
    pub fn follow_networks(&mut self) {
        self.books.updater.follow_networks();
    }

    /// Why the walks over the kernel's tasks have ended, once.
    pub fn take_fault(&mut self) -> Option<Fault> {
        self.fault.take()
    }

    /// Reads every process there is; with pids in the selection, looks for these only. Those that have ended, also if
    /// only to make room for another process with their pid, leave the table and wait in
    /// [`take_ended`](Sampler::take_ended); what had ended before the former sample is forgotten. A process that is
    /// there but cannot be read is counted in [`unreadable`](Sampler::unreadable) and keeps its former record; none of its
    /// figures is valid where a read of it has not returned. Such reads make a sample at most two seconds longer.
    ///
    /// # Errors
    /// `ProcessOpenDirectory` when the tree cannot be listed and no walk tells of processes: those not listed keep their
    /// former records. `Thread` when the system refuses another thread.
    pub fn sample(&mut self) -> Result<()> {
        self.waits = 0;
        blocking::sweep();
        // Where they cannot be read now, no time has passed.
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
        // There are kernels whose walks leave out the first process of all. What is known but not told is looked for
        // in the tree every time, so once is enough.
        // Where it may not be listed, the walk has told all the same.
        self.has_listed = self.list().is_ok();
        Ok(())
    }

    /// Takes the figures from a walk over the kernel's tasks. Returns whether that went well.
    fn walk(&mut self) -> bool {
        let Sampler { books, selected, tasks: Some(tasks), .. } = self else { return false };
        let SampleProgress { updater, table, due, extras } = books;
        let walked = tasks.walk(&mut |task| {
            let pid = task::pid(task.raw);
            if !selected.is_empty() && selected.binary_search(&pid).is_err() {
                return;
            }
            if task.raw.torn != 0 || task::has_lost_main_thread(task.raw) {
                // Its threads come and go while they are counted, or the main one has ended and another is to be found
                // that has what it had; its files are read under the kernel's locks.
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
            // The next one is last.
            let selected = self.selected.iter().rev().filter(|&&pid| !table.was_visited(pid));
            due.extend(selected.map(|&pid| (pid, None)));
            self.read(None)
        };
        self.books.table.finish();
        listed
    }

    /// The directory of the tree, to be listed from its start.
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
                    // The thread that lists it may have it for long.
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

    /// Reads the figures of the machine, if they can be read now. What is missing is logged when that changes.
    fn read_machine(&mut self) -> Result<bool> {
        let SamplePart::Machine(Some((machine, fault))) = self.run(|| SamplePart::Machine(None))? else {
            return Ok(false);
        };
        self.machine = machine;
        if fault != self.machine_fault {
            match &fault {
                Some(fault) => warn!("shares of the machine's CPU time or memory are not known: {fault}"),
                None => info!("shares of the machine's CPU time and memory are known again"),
            }
            self.machine_fault = fault;
        }
        Ok(true)
    }

    /// Lends the books out for a reading.
    fn read_books(&mut self, part: impl Fn(SharedSampleProgress) -> SamplePart) -> Result<SamplePart> {
        let lent = Arc::clone(&self.lent);
        std::mem::swap(&mut self.books, &mut *lent.lock());
        let outcome = catch_unwind(AssertUnwindSafe(|| self.run(|| part(Arc::clone(&lent)))));
        std::mem::swap(&mut self.books, &mut *lent.lock());
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Has the reader work until it is done, with another thread whenever one is left behind.
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

    /// Those of these processes that have ended. `None` where it cannot be told now.
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

    /// The same, to be changed. `valid` is made anew by every sample; traffic is left alone.
    pub fn processes_mut(&mut self) -> impl Iterator<Item = &mut ProcessRecord> {
        self.books.table.iter_mut().filter(|tracked| tracked.selected).map(|tracked| &mut tracked.record)
    }

    /// The record of a process of the latest sample, whether selected or not, or of one it found to have ended, to be
    /// changed.
    pub fn get_mut(&mut self, id: &ProcId) -> Option<&mut ProcessRecord> {
        self.books.table.record_mut(id)
    }

    /// The last records of the processes that the latest sample found to have ended, if they ever were selected; by
    /// pid.
    pub fn ended(&self) -> &[ProcessRecord] {
        self.books.table.ended()
    }

    /// Hands over the same.
    pub fn take_ended(&mut self) -> Vec<ProcessRecord> {
        self.books.table.take_ended()
    }

    /// Hands over who was found to have ended since this was last asked and was never selected, and who that was last.
    pub fn take_passed(&mut self) -> Vec<(ProcId, Arc<Identity>)> {
        self.books.table.take_passed()
    }

    /// The last name of a process that was given one since walks over the kernel's tasks began, whether it lives or has
    /// ended since the latest sample. `None` where there are no such walks, or where later names have displaced it.
    pub fn given_name(&self, id: &ProcId) -> Option<Vec<u8>> {
        let given = self.tasks.as_ref()?.given_name(id.pid.unsigned_abs())?;
        let is_its = task::start_ticks(given.start_ns, self.books.updater.facts()) == id.start_ticks;
        is_its.then(|| given.name().to_vec())
    }

    /// The figures of the machine as of the latest sample.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The tree that is sampled.
    pub fn root(&self) -> &ProcRoot {
        &self.root
    }

    /// How often a process was there but its `stat` could not be read (not permitted, out of descriptors, not in
    /// the format), since the sampler was made.
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
