//! Decides what a sample reads of each process, and updates its entry: same process or another, figures,
//! rate, identity.
//!
//! No file of `/proc` is read here, so that this can be done under a lock.

use super::identity::IdentityReader;
use super::plan::{Files, ReadPlan, identity_validity, set_network, take_command_line, take_identity};
use super::reading::{CoreFigures, Failure};
use super::table::{CommandLine, IdentityOrigin, SampleOutcome, Tracked};
use super::task::{self, CpuTimes};
use crate::kernel::Task;
use crate::model::{Identity, ProcessRecord, ProcessSample, SampleSet, Selection, Traffic, Validity};
use crate::proc::SystemFacts;
use std::sync::Arc;

/// The number of samples within which every command line is read again at least once, because a process may
/// overwrite its own, and the network namespace, because a process may enter another one without executing a
/// program.
const ROUNDS: u32 = 16;

/// The source of the figures outside the core of a process.
#[derive(Clone, Copy)]
enum FigureSource<'v> {
    /// The files of its directory.
    Files,
    /// The report of a walk over the kernel's tasks.
    Task(&'v Task<'v>),
}

/// The decision about a process whose core was read.
pub struct Considered {
    /// The files to be read.
    pub plan: ReadPlan,
    /// Its entry, if it is new.
    pub started: Option<Box<Tracked>>,
    /// Set if it is still to be verified that this is a process and not a thread of one.
    pub is_maybe_thread: bool,
}

/// Decides what is read of processes, updates their entries, and counts failures.
#[derive(Debug)]
pub struct ProcessUpdater {
    facts: SystemFacts,
    what: SampleSet,
    selection: Selection,
    identities: IdentityReader,
    round: u32,
    machine_ticks: u64,
    unreadable: u64,
    /// Set if the network namespace of each process is reported.
    follows_networks: bool,
}

impl ProcessUpdater {
    /// Creates an updater of the groups of figures in `what`, which are read for processes of the selection.
    pub fn new(facts: SystemFacts, what: SampleSet, selection: Selection) -> ProcessUpdater {
        ProcessUpdater {
            facts,
            what,
            selection,
            identities: IdentityReader::default(),
            round: 0,
            machine_ticks: 0,
            unreadable: 0,
            follows_networks: false,
        }
    }

    /// The system facts with which processes are read.
    pub fn facts(&self) -> &SystemFacts {
        &self.facts
    }

    /// The number of times that a process existed but its `stat` could not be read.
    pub fn unreadable(&self) -> u64 {
        self.unreadable
    }

    /// Makes later samples report the network namespace of each process as well.
    pub fn follow_networks(&mut self) {
        self.follows_networks = true;
    }

    /// Begins a sample, with the machine's current CPU time in clock ticks.
    pub fn begin(&mut self, machine_ticks: u64) {
        self.machine_ticks = machine_ticks;
        self.round = self.round.wrapping_add(1);
        self.identities.refresh_names();
    }

    /// Records that a process exists but could not be read. If a read of it has not returned, it has no valid
    /// figures.
    pub fn failed(&mut self, failure: Failure, known: Option<&mut Tracked>) {
        self.unreadable = self.unreadable.saturating_add(1);
        if let Some(known) = known.filter(|_| failure == Failure::Blocked) {
            known.block();
            take_command_line(None, false, known);
            known.set_cgroup(None, 0);
        }
    }

    /// Records the report of a walk over the kernel's tasks about a process, whose entry of the last sample
    /// is `known`. Returns the outcome and the additional files to be read.
    pub fn apply_task(
        &mut self,
        task: &Task<'_>,
        known: Option<&mut Tracked>,
    ) -> (SampleOutcome, Option<ReadPlan>) {
        let (raw, facts) = (task.raw, self.facts);
        let id = task::id(raw, &facts);
        let known = known.filter(|known| known.record.sample.id == id);
        let cpu = CpuTimes::told(raw, known.as_ref().map(|known| known.cpu).unwrap_or_default());
        let core = task::core(task, cpu, &facts);
        let (outcome, plan) = match known {
            Some(known) => {
                known.cpu = cpu;
                let plan = self.update(FigureSource::Task(task), &core, known);
                self.finish_task(task, &core, known, true);
                (SampleOutcome::Unchanged, plan)
            }
            None => {
                let (mut started, plan) = self.start(FigureSource::Task(task), &core);
                started.cpu = cpu;
                self.finish_task(task, &core, &mut started, false);
                (SampleOutcome::Started(started), plan)
            }
        };
        (outcome, Some(plan).filter(ReadPlan::reads_files))
    }

    /// Decides what is to be read of a process whose core was read, and whose entry of the last sample is
    /// `known`.
    pub fn consider(&mut self, core: &mut CoreFigures<'_>, known: Option<&mut Tracked>) -> Considered {
        match known.filter(|known| known.record.sample.id == core.id()) {
            Some(known) => {
                known.cpu.keep_up(&mut core.stat, self.facts.ticks_per_second);
                let plan = self.update(FigureSource::Files, core, known);
                Considered { plan, started: None, is_maybe_thread: false }
            }
            None => {
                let (started, plan) = self.start(FigureSource::Files, core);
                let is_maybe_thread = !self.selection.pids.is_empty();
                Considered { plan, started: Some(started), is_maybe_thread }
            }
        }
    }

    /// Records the data read from the files of a process; `sample` has its figures.
    pub fn apply_files(
        &self,
        core: &CoreFigures<'_>,
        sample: &ProcessSample,
        files: &Files<'_>,
        plan: ReadPlan,
        tracked: &mut Tracked,
        is_known: bool,
    ) {
        take_identity(core, files, plan, tracked);
        self.decide(core, tracked);
        self.finish(*sample, tracked, is_known);
    }

    /// Decides the selection of a process that depends on the whole of its name, if that was read.
    fn decide(&self, core: &CoreFigures<'_>, tracked: &mut Tracked) {
        let identity = &tracked.record.identity;
        let is_known = tracked.command_line == CommandLine::Known || !identity.program.is_empty();
        if tracked.is_candidate && is_known {
            tracked.is_candidate = false;
            tracked.selected = self.selection.matches(core.stat.pid, identity);
        }
    }

    /// Records the data read from the files of a process in addition to a walk's report.
    pub fn add_files(
        &self,
        core: &CoreFigures<'_>,
        sample: &ProcessSample,
        files: &Files<'_>,
        plan: ReadPlan,
        tracked: &mut Tracked,
    ) {
        take_identity(core, files, plan, tracked);
        self.decide(core, tracked);
        tracked.delivered |= tracked.selected;
        let record = &mut tracked.record;
        if sample.valid.has(Validity::DESCRIPTORS) {
            record.sample.descriptors = sample.descriptors;
        }
        record.sample.proportional_bytes = sample.proportional_bytes;
        let identity_bits = Validity::COMMAND_LINE | Validity::CGROUP;
        for valid in [&mut record.sample.valid, &mut record.valid] {
            *valid = Validity(valid.0 & !identity_bits.0 | sample.valid.0);
        }
        let bits = identity_validity(tracked);
        tracked.record.sample.valid |= bits;
        tracked.record.valid |= bits;
    }

    fn start(&mut self, view: FigureSource<'_>, core: &CoreFigures<'_>) -> (Box<Tracked>, ReadPlan) {
        let mut tracked =
            Tracked::new(blank_record(core.sample()), IdentityOrigin::new(core), self.machine_ticks);
        let identity = self.identities.describe(&Identity::default(), core);
        tracked.names_generation = self.identities.generation();
        self.select(core, &identity, &mut tracked);
        tracked.record.identity = Arc::new(identity);
        let plan = match tracked.selected || tracked.is_candidate {
            true => self.plan(view, core, &mut tracked, true, true),
            false => ReadPlan::default(),
        };
        (Box::new(tracked), plan)
    }

    fn update(&mut self, view: FigureSource<'_>, core: &CoreFigures<'_>, known: &mut Tracked) -> ReadPlan {
        let new_image = !known.origin.same_image(core);
        let stale = known.names_generation != self.identities.generation();
        let renamed = !known.origin.same_name_and_owner(core);
        let mut changed = new_image;
        if new_image || renamed {
            known.origin = IdentityOrigin::new(core);
        }
        if stale || renamed {
            let identity = self.identities.describe(&known.record.identity, core);
            known.names_generation = self.identities.generation();
            if identity != *known.record.identity {
                changed = true;
                self.select(core, &identity, known);
                known.record.identity = Arc::new(identity);
            }
        }
        if new_image && !renamed {
            let identity = Arc::clone(&known.record.identity);
            self.select(core, &identity, known);
        }
        if !known.selected && !known.is_candidate {
            return ReadPlan::default();
        }
        self.plan(view, core, known, new_image, changed || known.is_candidate)
    }

    /// Returns the files to be read of a selected process.
    fn plan(
        &self,
        view: FigureSource<'_>,
        core: &CoreFigures<'_>,
        tracked: &mut Tracked,
        is_new_image: bool,
        has_changed: bool,
    ) -> ReadPlan {
        let mut plan = ReadPlan {
            is_new_image,
            figures: matches!(view, FigureSource::Files),
            program: tracked.is_candidate,
            ..ReadPlan::default()
        };
        self.plan_command_line(view, core, tracked, has_changed, &mut plan);
        self.plan_cgroup(view, tracked, &mut plan);
        self.plan_network(view, core, tracked, has_changed, &mut plan);
        if let FigureSource::Task(task) = view {
            plan.descriptors = task::lacks_descriptors(task.raw, self.what);
            plan.proportional = self.what.has(SampleSet::PROPORTIONAL);
        }
        plan
    }

    /// Decides the selection of a process, or makes it a candidate.
    fn select(&self, core: &CoreFigures<'_>, identity: &Identity, tracked: &mut Tracked) {
        let owner_known = core.owner.is_some() || self.selection.users.is_empty();
        let pid = core.stat.pid;
        tracked.is_candidate = owner_known && self.selection.depends_on_whole_name(pid, identity);
        tracked.selected = owner_known && !tracked.is_candidate && self.selection.matches(pid, identity);
    }

    /// Stores the sample of a walk.
    fn finish_task(&self, task: &Task<'_>, core: &CoreFigures<'_>, tracked: &mut Tracked, is_known: bool) {
        let mut sample = core.sample();
        if tracked.selected || tracked.is_candidate {
            task::add_figures(task.raw, self.what, &self.facts, &mut sample);
        }
        self.finish(sample, tracked, is_known);
    }

    /// Stores a sample, and for a known process the rate since the one before.
    fn finish(&self, mut sample: ProcessSample, tracked: &mut Tracked, is_known: bool) {
        if tracked.selected || tracked.is_candidate {
            sample.valid |= identity_validity(tracked);
        }
        let mut percent = None;
        let before = tracked.unblock();
        if is_known {
            // 0 means that it was not known.
            let then = Some(tracked.machine_ticks).filter(|&ticks| ticks != 0).unwrap_or(u64::MAX);
            let machine_ticks = self.machine_ticks.saturating_sub(then);
            percent = cpu_percent(&before, &sample, machine_ticks);
            tracked.machine_ticks = self.machine_ticks;
        }
        store(tracked, sample, percent);
    }

    /// Returns true if the command line is to be read. The processes' turns are spread over the samples. A
    /// process without a command line may be within an exec, which does not end before the arguments are
    /// there.
    fn command_line_is_due(&self, view: FigureSource<'_>, core: &CoreFigures<'_>, known: &Tracked) -> bool {
        let has_run = match view {
            FigureSource::Files => true,
            // A process that has not run has not written to its memory either.
            FigureSource::Task(task) => task.raw.figures.runtime_ns != known.command_line_runtime,
        };
        has_run && self.has_turn(core) || known.command_line != CommandLine::Known
    }

    /// Returns true if it is this process's turn for the data that seldom changes.
    fn has_turn(&self, core: &CoreFigures<'_>) -> bool {
        core.stat.pid.unsigned_abs().wrapping_add(self.round).is_multiple_of(ROUNDS)
    }

    fn plan_command_line(
        &self,
        view: FigureSource<'_>,
        core: &CoreFigures<'_>,
        tracked: &mut Tracked,
        has_changed: bool,
        plan: &mut ReadPlan,
    ) {
        let is_due = has_changed || self.command_line_is_due(view, core, tracked);
        if !self.what.has(SampleSet::COMMAND_LINE) || !is_due {
            return;
        }
        if !core.stat.has_memory() {
            // Kernel threads have none; a process that is about to end keeps the one it had.
            if tracked.command_line == CommandLine::Unknown {
                tracked.command_line = CommandLine::Empty;
            }
            return;
        }
        plan.command_line = true;
        if plan.is_new_image {
            // Unknown until it has been read.
            tracked.command_line = CommandLine::Unknown;
        }
        if let FigureSource::Task(task) = view {
            tracked.command_line_runtime = task.raw.figures.runtime_ns;
        }
    }

    /// Plans the read of the control group. A process can be moved to another group without a trace in the
    /// other data that is read of it. Therefore its file is read every time, unless a walk reports the number
    /// of its group. A group of the unified hierarchy keeps its path, and no other ever has its number.
    fn plan_cgroup(&self, view: FigureSource<'_>, tracked: &mut Tracked, plan: &mut ReadPlan) {
        if !self.what.has(SampleSet::CGROUP) {
            return;
        }
        plan.group_number = match view {
            FigureSource::Files => 0,
            FigureSource::Task(task) => task.raw.cgroup,
        };
        let number = plan.group_number;
        if number != 0 && number == tracked.cgroup {
            return;
        }
        if let FigureSource::Task(Task { cgroups: Some(cgroups), .. }) = view
            && let Some(path) = cgroups.path(number)
        {
            tracked.set_cgroup(Some(&path), number);
            return;
        }
        plan.cgroup = true;
    }

    /// Plans the read of the link to the network namespace: it is read if the process is new or has executed
    /// a program (most processes enter a namespace in order to do so), and now and then. A walk reports it
    /// every time. A process keeps its last known namespace, because an ending process no longer has one.
    fn plan_network(
        &self,
        view: FigureSource<'_>,
        core: &CoreFigures<'_>,
        tracked: &mut Tracked,
        has_changed: bool,
        plan: &mut ReadPlan,
    ) {
        if !self.follows_networks {
            return;
        }
        match view {
            FigureSource::Task(task) => set_network(tracked, task.raw.network_namespace.into()),
            FigureSource::Files => plan.network = has_changed || self.has_turn(core),
        }
    }
}

/// Stores a sample and the rate since the one before, if there is one.
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

/// Returns the process's share of the machine's CPU time between two samples. Counters that went backwards
/// count as having stood still. Returns `None` if no tick has passed, so that there is no share.
fn cpu_percent(then: &ProcessSample, now: &ProcessSample, machine_ticks: u64) -> Option<f64> {
    if machine_ticks == 0 {
        return None;
    }
    let user = now.user_ticks.saturating_sub(then.user_ticks);
    let system = now.system_ticks.saturating_sub(then.system_ticks);
    // The machine's time is read first, so a process read last can seem to have used more than all of it.
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
