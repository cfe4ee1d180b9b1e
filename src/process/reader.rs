//! Reads the files of processes for a sample, on a thread that can be abandoned. The progress of the sample
//! is behind a lock that is never held during a read.

use super::cgroup::CgroupReader;
use super::identity::IdentityReader;
use super::machine::Machine;
use super::plan::{Files, ReadPlan};
use super::reading::{CoreFigures, Failure, FigureReader, ProcessDirectory, has_ended};
use super::stand_in::StandIns;
use super::table::{ProcessTable, SampleOutcome};
use super::updater::{Considered, ProcessUpdater};
use crate::blocking::{ReadKind, guarded};
use crate::error::Error;
use crate::model::{ProcId, ProcessSample, SampleSet};
use crate::proc::parse;
use crate::proc::{Listing, ProcRoot};
use crate::sync::Mutex;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// The known processes, and those that are still to be read in this sample.
#[derive(Debug)]
pub struct SampleProgress {
    /// Decides what is read, and records the results.
    pub updater: ProcessUpdater,
    /// The processes.
    pub table: ProcessTable,
    /// Processes to be read, the next one last, with the program image that a walk has reported, if any.
    pub due: Vec<(i32, Option<u64>)>,
    /// Additional files to be read of processes that a walk has reported, the next one last.
    pub extras: Vec<(ProcId, ReadPlan)>,
}

impl SampleProgress {
    /// Creates the progress of a sample without processes.
    pub fn new(updater: ProcessUpdater) -> SampleProgress {
        SampleProgress { updater, table: ProcessTable::default(), due: Vec::new(), extras: Vec::new() }
    }
}

/// The progress of a sample, shared with the thread that reads for it.
pub type SharedSampleProgress = Arc<Mutex<SampleProgress>>;

/// The work of a [`FileReader`].
pub struct ReadTask {
    /// The tree.
    pub root: Arc<ProcRoot>,
    /// The part of the sample to be read.
    pub part: SamplePart,
}

/// A part of a sample.
pub enum SamplePart {
    /// The figures of the machine; `None` if they cannot be read at present.
    Machine(Option<(Machine, Option<Error>)>),
    /// The processes that are due, those in the listing if there is one, and then the known ones that were
    /// not visited.
    Processes {
        /// The progress of the sample.
        books: SharedSampleProgress,
        /// The directory that is listed, from the position at which the last listing stopped.
        listing: Option<Arc<OwnedFd>>,
        /// The result of the listing: an error if it did not reach the end.
        listed: nix::Result<()>,
    },
    /// The additional files to be read.
    Extras(SharedSampleProgress),
    /// Processes to be checked; those that still exist are removed.
    Ends(Vec<ProcId>),
}

/// Buffers and facts for reading.
pub struct FileReader {
    listing: Listing,
    figures: FigureReader,
    identities: IdentityReader,
    cgroups: CgroupReader,
    stand_ins: StandIns,
    program: Vec<u8>,
    stat: Vec<u8>,
    text: Vec<u8>,
    pids: Vec<i32>,
}

impl FileReader {
    /// Creates a reader of the groups of figures in `what`.
    pub fn new(what: SampleSet) -> FileReader {
        FileReader {
            listing: Listing::in_small_steps(),
            figures: FigureReader::new(what),
            identities: IdentityReader::default(),
            cgroups: CgroupReader::default(),
            stand_ins: StandIns::default(),
            program: Vec::new(),
            stat: Vec::new(),
            text: Vec::new(),
            pids: Vec::new(),
        }
    }

    /// Reads the requested part and stores the results in it.
    pub fn work(&mut self, reading: &mut ReadTask) {
        let root = &reading.root;
        match &mut reading.part {
            SamplePart::Machine(machine) => {
                *machine = root.is_readable().then(|| Machine::read(root, &mut self.text));
            }
            SamplePart::Processes { books, listing, listed } => {
                self.read_due(root, books);
                if let Some(directory) = listing {
                    *listed = self.list(root, directory, books);
                }
                if listed.is_ok() {
                    with(books, |books| books.table.unvisited(|pid| books.due.push((pid, None))));
                    self.read_due(root, books);
                }
            }
            SamplePart::Extras(books) => self.read_extras(root, books),
            SamplePart::Ends(processes) => processes.retain(|id| has_ended(root, *id, &mut self.text)),
        }
    }

    /// Reads the processes that the tree lists and that have not been visited yet.
    fn list(
        &mut self,
        root: &ProcRoot,
        directory: &OwnedFd,
        books: &SharedSampleProgress,
    ) -> nix::Result<()> {
        loop {
            let FileReader { listing, pids, .. } = self;
            pids.clear();
            let more = guarded(root.tree(), 0, ReadKind::Root, || {
                listing.next_names(directory.as_fd(), |name| pids.extend(pid(name)))
            })?;
            // The next one to be read is last.
            with(books, |books| {
                let SampleProgress { table, due, .. } = books;
                let listed = pids.iter().rev().filter(|&&pid| !table.was_visited(pid));
                due.extend(listed.map(|&pid| (pid, None)));
            });
            self.read_due(root, books);
            if !more {
                return Ok(());
            }
        }
    }

    fn read_due(&mut self, root: &ProcRoot, books: &SharedSampleProgress) {
        let mut next = with(books, |books| books.due.last().copied());
        while let Some((pid, image)) = next {
            let looked = self.read_process(root, pid, image, books);
            next = with(books, |books| {
                match looked {
                    Ok(()) => {}
                    Err(Failure::Gone) => books.table.settle(pid, SampleOutcome::Gone),
                    Err(failure) => {
                        books.updater.failed(failure, books.table.known(pid));
                        books.table.settle(pid, SampleOutcome::Unchanged);
                    }
                }
                // The process is removed only now: if the thread is abandoned while it reads this process,
                // another thread retries it.
                books.due.pop();
                books.due.last().copied()
            });
        }
    }

    /// Reads the process's files, and updates the table unless this fails. `image` is the program image that
    /// a walk has reported of the process, if any.
    fn read_process(
        &mut self,
        root: &ProcRoot,
        pid: i32,
        image: Option<u64>,
        books: &SharedSampleProgress,
    ) -> std::result::Result<(), Failure> {
        let directory = ProcessDirectory::open(root, pid)?;
        let mut stat = std::mem::take(&mut self.stat);
        let looked = match directory.core(&mut stat) {
            Ok(mut core) => {
                let live = self.stand_ins.find(&directory, &mut core.stat);
                if let Some(image) = image {
                    core.stat.layout = [image, 0];
                }
                self.read_files(root, (&directory, live.as_ref()), &mut core, books)
            }
            Err(failure) => Err(failure),
        };
        self.stat = stat;
        looked
    }

    fn read_files(
        &mut self,
        root: &ProcRoot,
        (directory, live): (&ProcessDirectory, Option<&ProcessDirectory>),
        core: &mut CoreFigures<'_>,
        books: &SharedSampleProgress,
    ) -> std::result::Result<(), Failure> {
        let pid = core.stat.pid;
        let Considered { plan, mut started, is_maybe_thread } =
            with(books, |books| books.updater.consider(core, books.table.known(pid)));
        if is_maybe_thread && directory.is_other_thread(&mut self.text) {
            return Err(Failure::Gone);
        }
        let mut sample = core.sample();
        let files = self.files(root, (directory, live), core, plan, &mut sample)?;
        with(books, |books| {
            let SampleProgress { updater, table, .. } = books;
            match &mut started {
                Some(tracked) => updater.apply_files(core, &sample, &files, plan, tracked, false),
                None => {
                    if let Some(known) = table.known(pid) {
                        updater.apply_files(core, &sample, &files, plan, known, true);
                    }
                }
            }
            table.settle(pid, started.map_or(SampleOutcome::Unchanged, SampleOutcome::Started));
        });
        Ok(())
    }

    /// Reads the planned files, of the thread that stands in for the main thread if there is one. Figures go
    /// to `sample`.
    fn files<'r>(
        &'r mut self,
        root: &ProcRoot,
        (directory, live): (&ProcessDirectory, Option<&ProcessDirectory>),
        core: &CoreFigures<'_>,
        plan: ReadPlan,
        sample: &mut ProcessSample,
    ) -> std::result::Result<Files<'r>, Failure> {
        let FileReader { figures, identities, cgroups, program, .. } = self;
        let common = live.unwrap_or(directory);
        let facts = root.facts();
        let mut files = Files::default();
        if plan.command_line {
            files.command_line = Some(common.unless_gone(identities.command_line(common))?);
        }
        if plan.cgroup {
            files.cgroup = Some(common.unless_gone(cgroups.read(root, common, core))?.flatten());
        }
        if plan.network {
            files.network = common.unless_gone(common.network_namespace())?;
        }
        if plan.program {
            files.program = common.unless_gone(common.program(program))?;
        }
        if plan.figures {
            figures.read(directory, live, &core.stat, facts, sample)?;
        }
        if plan.proportional {
            figures.proportional(common, core.stat.has_memory(), sample);
        }
        if plan.descriptors {
            figures.descriptors(directory, facts, sample)?;
        }
        Ok(files)
    }

    fn read_extras(&mut self, root: &ProcRoot, books: &SharedSampleProgress) {
        while let Some((id, plan)) = with(books, |books| books.extras.last().copied()) {
            let mut stat = std::mem::take(&mut self.stat);
            // A process that is gone or hidden stays as the walk has reported it.
            let _ = self.read_extra(root, id, plan, &mut stat, books);
            self.stat = stat;
            with(books, |books| books.extras.pop());
        }
    }

    fn read_extra(
        &mut self,
        root: &ProcRoot,
        id: ProcId,
        plan: ReadPlan,
        stat: &mut Vec<u8>,
        books: &SharedSampleProgress,
    ) -> std::result::Result<(), Failure> {
        let directory = ProcessDirectory::open(root, id.pid)?;
        let core = directory.core(stat)?;
        if core.id() != id {
            return Err(Failure::Gone);
        }
        let mut sample = ProcessSample::unknown(id);
        let files = self.files(root, (&directory, None), &core, plan, &mut sample)?;
        with(books, |books| {
            let SampleProgress { updater, table, .. } = books;
            if let Some(tracked) = table.tracked_mut(&id) {
                updater.add_files(&core, &sample, &files, plan, tracked);
            }
        });
        Ok(())
    }
}

fn with<T>(books: &SharedSampleProgress, work: impl FnOnce(&mut SampleProgress) -> T) -> T {
    work(&mut books.lock())
}

/// Returns the pid that a name in the tree stands for.
pub fn pid(name: &[u8]) -> Option<i32> {
    i32::try_from(parse::decimal(name)?).ok().filter(|&pid| pid > 0)
}
