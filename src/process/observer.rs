//! Looks at one process and brings its entry up to date: same process or another, figures, rate, identity.

use super::cgroup::Place;
use super::identity::IdentityReader;
use super::reading::{Core, Failure, FigureReader, ProcessDirectory};
use super::root::ProcRoot;
use super::table::{CommandLine, Origin, Outcome, Tracked};
use super::task::{self, CpuTimes};
use crate::kernel::{RawProcess, Task};
use crate::model::{Identity, ProcessRecord, ProcessSample, SampleSet, Selection, Traffic, Validity};
use std::sync::Arc;

/// In how many samples every command line is read again at least once, for a process may overwrite its own, and the
/// network namespace, for which a process may leave another one without executing a program.
const ROUNDS: u32 = 16;

/// Where what is not in the core of a process is read.
#[derive(Clone, Copy)]
enum View<'v> {
    /// In the files of its directory.
    Files(&'v ProcessDirectory),
    /// In what a walk over the kernel's tasks has told of it.
    Task(&'v Task<'v>),
}

/// What is needed to look at processes, and counters of the looking.
#[derive(Debug)]
pub struct Observer {
    root: ProcRoot,
    what: SampleSet,
    selection: Selection,
    figures: FigureReader,
    identities: IdentityReader,
    buffer: Vec<u8>,
    round: u32,
    machine_ticks: u64,
    unreadable: u64,
    /// Whether it is told which network namespace a process is in.
    follows_networks: bool,
}

impl Observer {
    /// An observer of the groups of figures in `what`, read for processes of the selection.
    pub fn new(root: ProcRoot, what: SampleSet, selection: Selection) -> Observer {
        Observer {
            root,
            what,
            selection,
            figures: FigureReader::new(what),
            identities: IdentityReader::default(),
            buffer: Vec::new(),
            round: 0,
            machine_ticks: 0,
            unreadable: 0,
            follows_networks: false,
        }
    }

    /// The tree that is read.
    pub fn root(&self) -> &ProcRoot {
        &self.root
    }

    /// How often a process was there but its `stat` could not be read.
    pub fn unreadable(&self) -> u64 {
        self.unreadable
    }

    /// From now on also tells which network namespace each process is in.
    pub fn follow_networks(&mut self) {
        self.follows_networks = true;
    }

    /// Begins a sample, with the machine's CPU time at this moment in clock ticks.
    pub fn begin(&mut self, machine_ticks: u64) {
        self.machine_ticks = machine_ticks;
        self.round = self.round.wrapping_add(1);
        self.identities.refresh_names();
    }

    /// Looks at the process with this pid, which `known` was at the last sample.
    pub fn look(&mut self, pid: i32, known: Option<&mut Tracked>) -> Outcome {
        match self.look_closely(pid, known) {
            Ok(outcome) => outcome,
            Err(Failure::Gone) => Outcome::Gone,
            Err(Failure::Unreadable) => {
                self.unreadable = self.unreadable.saturating_add(1);
                Outcome::Unchanged
            }
        }
    }

    /// Takes over what a walk over the kernel's tasks tells of a process, which `known` was at the last sample.
    pub fn take(&mut self, task: &Task<'_>, known: Option<&mut Tracked>) -> Outcome {
        let raw = task.raw;
        let taken = if raw.torn == 0 {
            self.take_whole(task, known)
        } else {
            // Its threads come and go while they are counted; its files are read under the kernel's locks.
            self.look_in_files(task::pid(raw), Some(raw), known)
        };
        // It has been seen by the walk: if it has ended since, the next one will tell.
        taken.unwrap_or(Outcome::Unchanged)
    }

    fn take_whole(&mut self, task: &Task<'_>, known: Option<&mut Tracked>) -> Result<Outcome, Failure> {
        let (raw, facts) = (task.raw, *self.root.facts());
        let id = task::id(raw, &facts);
        let known = known.filter(|known| known.record.sample.id == id);
        let cpu = CpuTimes::told(raw, known.as_ref().map(|known| known.cpu).unwrap_or_default());
        let core = task::core(task, cpu, &facts);
        match known {
            Some(known) => {
                known.cpu = cpu;
                self.update(View::Task(task), &core, known).map(|()| Outcome::Unchanged)
            }
            None => {
                let mut started = self.start(View::Task(task), &core)?;
                started.cpu = cpu;
                Ok(Outcome::Started(started))
            }
        }
    }

    fn look_closely(&mut self, pid: i32, known: Option<&mut Tracked>) -> Result<Outcome, Failure> {
        self.look_in_files(pid, None, known)
    }

    /// Reads the process's files; where a walk has told of it as well, the program it runs is known from there.
    fn look_in_files(
        &mut self,
        pid: i32,
        raw: Option<&RawProcess>,
        known: Option<&mut Tracked>,
    ) -> Result<Outcome, Failure> {
        let directory = ProcessDirectory::open(&self.root, pid)?;
        // Lent out for the time of this look, since the name that was read stays in it.
        let mut buffer = std::mem::take(&mut self.buffer);
        let outcome = match directory.core(&mut buffer) {
            Ok(mut core) => {
                if let Some(raw) = raw {
                    core.stat.layout = task::layout(raw);
                }
                match known.filter(|known| known.record.sample.id == core.id()) {
                    Some(known) => {
                        let hertz = self.root.facts().ticks_per_second;
                        known.cpu.keep_up(&mut core.stat, hertz);
                        self.update(View::Files(&directory), &core, known).map(|()| Outcome::Unchanged)
                    }
                    None => self.start(View::Files(&directory), &core).map(Outcome::Started),
                }
            }
            Err(failure) => Err(failure),
        };
        self.buffer = buffer;
        outcome
    }

    fn start(&mut self, view: View<'_>, core: &Core<'_>) -> Result<Box<Tracked>, Failure> {
        if let View::Files(directory) = view
            && !self.selection.pids.is_empty()
            && directory.is_other_thread(&mut Vec::new())
        {
            return Err(Failure::Gone);
        }
        let mut tracked = Tracked::new(blank_record(core.sample()), Origin::new(core), self.machine_ticks);
        let identity = self.identities.describe(&Identity::default(), core);
        tracked.names_generation = self.identities.generation();
        tracked.selected = self.selects(core, &identity);
        tracked.record.identity = Arc::new(identity);
        if tracked.selected {
            self.refresh_command_line(view, core, &mut tracked, true)?;
            self.refresh_cgroup(view, core, &mut tracked)?;
            self.refresh_network(view, core, &mut tracked, true)?;
        }
        let sample = self.sample(view, core, &tracked)?;
        store(&mut tracked, sample, None);
        Ok(Box::new(tracked))
    }

    fn update(&mut self, view: View<'_>, core: &Core<'_>, known: &mut Tracked) -> Result<(), Failure> {
        let new_image = !known.origin.same_image(core);
        let stale = known.names_generation != self.identities.generation();
        let renamed = !known.origin.same_name_and_owner(core);
        let mut changed = new_image;
        if new_image || renamed {
            known.origin = Origin::new(core);
        }
        if stale || renamed {
            let identity = self.identities.describe(&known.record.identity, core);
            known.names_generation = self.identities.generation();
            if identity != *known.record.identity {
                changed = true;
                known.selected = self.selects(core, &identity);
                known.record.identity = Arc::new(identity);
            }
        }
        if known.selected && (changed || self.command_line_is_due(view, core, known)) {
            self.refresh_command_line(view, core, known, new_image)?;
        }
        if known.selected {
            self.refresh_cgroup(view, core, known)?;
            self.refresh_network(view, core, known, changed)?;
        }
        let sample = self.sample(view, core, known)?;
        let machine_ticks = self.machine_ticks.saturating_sub(known.machine_ticks);
        let percent = cpu_percent(&known.record.sample, &sample, machine_ticks);
        known.machine_ticks = self.machine_ticks;
        store(known, sample, percent);
        Ok(())
    }

    fn selects(&self, core: &Core<'_>, identity: &Identity) -> bool {
        let owner_known = core.owner.is_some() || self.selection.users.is_empty();
        owner_known && self.selection.matches(core.stat.pid, identity)
    }

    /// A sample of all figures of a selected process, of those in `stat` only of another.
    fn sample(
        &mut self,
        view: View<'_>,
        core: &Core<'_>,
        tracked: &Tracked,
    ) -> Result<ProcessSample, Failure> {
        let mut sample = core.sample();
        if tracked.selected {
            let facts = self.root.facts();
            match view {
                View::Files(directory) => {
                    self.figures.read(directory, core.stat.has_memory(), facts, &mut sample)?;
                }
                View::Task(task) => {
                    if task::add_figures(task.raw, self.what, facts, &mut sample)
                        && let Some(directory) = open_again(&self.root, core)
                    {
                        self.figures.descriptors(&directory, facts, &mut sample)?;
                    }
                }
            }
            if tracked.command_line != CommandLine::Unknown {
                sample.valid |= Validity::COMMAND_LINE;
            }
            if tracked.has_cgroup {
                sample.valid |= Validity::CGROUP;
            }
        }
        Ok(sample)
    }

    /// Not all processes' turns come in the same sample. One without a command line may be within an exec, which
    /// is not over before the arguments are there.
    fn command_line_is_due(&self, view: View<'_>, core: &Core<'_>, known: &Tracked) -> bool {
        let has_run = match view {
            View::Files(_) => true,
            // Who has not run has not written to its memory either.
            View::Task(task) => task.raw.figures.runtime_ns != known.command_line_runtime,
        };
        has_run && self.has_turn(core) || known.command_line != CommandLine::Known
    }

    /// Whether it is this process's turn to be read what seldom changes.
    fn has_turn(&self, core: &Core<'_>) -> bool {
        core.stat.pid.unsigned_abs().wrapping_add(self.round).is_multiple_of(ROUNDS)
    }

    fn refresh_command_line(
        &mut self,
        view: View<'_>,
        core: &Core<'_>,
        tracked: &mut Tracked,
        new_image: bool,
    ) -> Result<(), Failure> {
        if !self.what.has(SampleSet::COMMAND_LINE) {
            return Ok(());
        }
        if !core.stat.has_memory() {
            // Kernel threads have none; a process that is about to end keeps the one it had.
            if tracked.command_line == CommandLine::Unknown {
                tracked.command_line = CommandLine::Empty;
            }
            return Ok(());
        }
        let mut opened = None;
        let Some(directory) = view.directory(&self.root, core, &mut opened) else { return Ok(()) };
        if let View::Task(task) = view {
            tracked.command_line_runtime = task.raw.figures.runtime_ns;
        }
        let known = &tracked.record.identity.command_line;
        let text = match directory.unless_gone(self.identities.command_line(directory))? {
            // The same image without arguments has just lost its memory, for it is about to end.
            Some(b"") if !new_image => Some(known.as_slice()),
            other => other,
        };
        tracked.command_line = match text {
            None => CommandLine::Unknown,
            Some(b"") => CommandLine::Empty,
            Some(_) => CommandLine::Known,
        };
        let text = text.unwrap_or_default();
        if text != known {
            let identity =
                Identity { command_line: text.to_vec(), ..Identity::clone(&tracked.record.identity) };
            tracked.record.identity = Arc::new(identity);
        }
        Ok(())
    }

    /// A process is moved to another group without a trace in what else is read of it: its file is read every time,
    /// unless a walk tells in which group it is. A group of the unified hierarchy keeps its path, and no other ever has
    /// its number.
    fn refresh_cgroup(
        &mut self,
        view: View<'_>,
        core: &Core<'_>,
        tracked: &mut Tracked,
    ) -> Result<(), Failure> {
        if !self.what.has(SampleSet::CGROUP) {
            return Ok(());
        }
        let number = match view {
            View::Files(_) => 0,
            View::Task(task) => task.raw.cgroup,
        };
        if number != 0 && number == tracked.cgroup {
            return Ok(());
        }
        if let View::Task(Task { cgroups: Some(cgroups), .. }) = view
            && let Some(path) = cgroups.path(number)
        {
            tracked.set_cgroup(Some(&path), number);
            return Ok(());
        }
        let mut opened = None;
        let Some(directory) = view.directory(&self.root, core, &mut opened) else { return Ok(()) };
        let place = directory.unless_gone(self.identities.cgroup(&self.root, directory, core))?.flatten();
        match place {
            Some(Place { path, is_unified: true }) => tracked.set_cgroup(Some(path), number),
            Some(Place { path, is_unified: false }) => tracked.set_cgroup(Some(path), 0),
            // It keeps the one that it had.
            None if core.stat.is_ending() => {}
            None => tracked.set_cgroup(None, 0),
        }
        Ok(())
    }

    /// The link to the network namespace is read when the process is new, has executed a program (what enters a
    /// namespace mostly does so for one) and now and then; a walk tells it every time. A process keeps the last that was
    /// known of it, for one that ends has none any more.
    fn refresh_network(
        &self,
        view: View<'_>,
        core: &Core<'_>,
        tracked: &mut Tracked,
        is_new: bool,
    ) -> Result<(), Failure> {
        if !self.follows_networks {
            return Ok(());
        }
        let now = match view {
            View::Task(task) => Some(task.raw.network_namespace.into()),
            View::Files(directory) if is_new || self.has_turn(core) => {
                directory.unless_gone(directory.network_namespace())?
            }
            View::Files(_) => None,
        };
        if let Some(inode) = now.filter(|&inode| inode != 0) {
            tracked.record.network_namespace = inode;
        }
        Ok(())
    }
}

impl<'v> View<'v> {
    /// The process's directory, put into `opened` where it has to be opened for this; `None` when it has ended or is
    /// hidden.
    fn directory<'d>(
        self,
        root: &ProcRoot,
        core: &Core<'_>,
        opened: &'d mut Option<ProcessDirectory>,
    ) -> Option<&'d ProcessDirectory>
    where
        'v: 'd,
    {
        match self {
            View::Files(directory) => Some(directory),
            View::Task(_) => {
                *opened = open_again(root, core);
                opened.as_ref()
            }
        }
    }
}

/// The directory of the process that a walk has told of; `None` when it has ended or is hidden.
fn open_again(root: &ProcRoot, core: &Core<'_>) -> Option<ProcessDirectory> {
    let directory = ProcessDirectory::open(root, core.stat.pid).ok()?;
    let is_same = directory.core(&mut Vec::new()).is_ok_and(|now| now.id() == core.id());
    is_same.then_some(directory)
}

/// Takes over a sample and the rate since the one before, if there is one to tell.
fn store(tracked: &mut Tracked, sample: ProcessSample, cpu_percent: Option<f64>) {
    tracked.delivered |= tracked.selected;
    let record = &mut tracked.record;
    record.sample = sample;
    record.valid = sample.valid;
    if cpu_percent.is_some() {
        record.valid |= Validity::CPU_PERCENT;
    }
    record.cpu_percent = cpu_percent.unwrap_or_default();
}

/// The process's share of the machine's CPU time between two samples. Counters that went backwards count as
/// having stood still. `None` when no tick has passed, so that there is no share.
fn cpu_percent(then: &ProcessSample, now: &ProcessSample, machine_ticks: u64) -> Option<f64> {
    if machine_ticks == 0 {
        return None;
    }
    let user = now.user_ticks.saturating_sub(then.user_ticks);
    let system = now.system_ticks.saturating_sub(then.system_ticks);
    // The machine's time is read first, so a process read last can seem to have had more than all of it.
    Some((user.saturating_add(system) as f64 * 100.0 / machine_ticks as f64).min(100.0))
}

fn blank_record(sample: ProcessSample) -> ProcessRecord {
    ProcessRecord {
        sample,
        identity: Arc::default(),
        cpu_percent: 0.0,
        traffic: Traffic::default(),
        uncertain_bytes: 0,
        network_namespace: 0,
        connections: None,
        valid: Validity::default(),
    }
}
