//! The table of known processes in the order of their pids, and of those that ended in the latest sample.

use super::reading::CoreFigures;
use super::task::CpuTimes;
use crate::model::{Identity, ProcId, ProcessRecord, ProcessSample, Validity};
use crate::proc::parse::Image;
use std::sync::Arc;

/// A process in the table.
#[derive(Debug)]
pub struct Tracked {
    /// The record that users see.
    pub record: ProcessRecord,
    /// The data that the identity was made from.
    pub origin: IdentityOrigin,
    /// The machine's CPU time at the latest sample, clock ticks.
    pub machine_ticks: u64,
    /// The generation of user and group names with which its identity was made.
    pub names_generation: u32,
    /// The CPU times as they were reported, if walks over the kernel's tasks report them.
    pub cpu: CpuTimes,
    /// The state of the command line.
    pub command_line: CommandLine,
    /// The CPU time, nanoseconds, up to which the command line is known to be the one that was read.
    pub command_line_runtime: u64,
    /// Set if its control group is known.
    pub has_cgroup: bool,
    /// The number of the control group whose path the identity has, if a walk over the kernel's tasks has
    /// reported it; 0 if the path has to be read again.
    pub cgroup: u64,
    /// Set if its selection depends on the whole of its name, which is still to be read.
    pub is_candidate: bool,
    /// Set if it is delivered.
    pub selected: bool,
    /// Set if it was ever delivered, so that its end is reported as well.
    pub delivered: bool,
    /// The last sample and its validity, while the process cannot be read.
    pub last: Option<Box<(ProcessSample, Validity)>>,
    /// The round of its last visit.
    round: u32,
    ended: bool,
}

/// The state of a command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommandLine {
    /// It was not requested, or could not be read.
    Unknown,
    /// There is none.
    Empty,
    /// The identity has it.
    Known,
}

/// The data that an identity was made from. It is a copy beside the figures, because reading the identity
/// itself for every process in every sample would cost more in memory accesses than all parsing.
#[derive(Debug)]
pub struct IdentityOrigin {
    image: Image,
    owner: Option<(u32, u32)>,
    name: [u8; NAME_BYTES],
    length: usize,
}

/// The length of the longest name, that of a kernel thread (`TASK_COMM_LEN` and fs/proc/array.c,
/// proc_task_name).
const NAME_BYTES: usize = 64;

impl IdentityOrigin {
    /// Records the data that was read.
    pub fn new(core: &CoreFigures<'_>) -> IdentityOrigin {
        let mut name = [0; NAME_BYTES];
        for (to, from) in name.iter_mut().zip(core.stat.name) {
            *to = *from;
        }
        IdentityOrigin { image: core.stat.image(), owner: core.owner, name, length: core.stat.name.len() }
    }

    /// Returns true if the process runs the same program as then, as far as this can be determined.
    pub fn same_image(&self, core: &CoreFigures<'_>) -> bool {
        self.image == core.stat.image()
    }

    /// Returns true if name and owner are the same as then. A name too long to be kept never is.
    pub fn same_name_and_owner(&self, core: &CoreFigures<'_>) -> bool {
        self.owner == core.owner && self.name.get(..self.length).is_some_and(|name| name == core.stat.name)
    }
}

/// The outcome of a visit of a process.
pub enum SampleOutcome {
    /// It goes on, or its state cannot be determined now.
    Unchanged,
    /// It has ended, or never existed.
    Gone,
    /// It is new; a process that had the pid before has ended.
    Started(Box<Tracked>),
}

/// The table of known processes.
#[derive(Debug, Default)]
pub struct ProcessTable {
    entries: Vec<Tracked>,
    /// Found in this round, not yet among the entries.
    started: Vec<Tracked>,
    /// Found to have ended in this round, by id.
    ended: Vec<ProcessRecord>,
    /// Those of them that were never delivered, with their identities.
    passed: Vec<(ProcId, Arc<Identity>)>,
    round: u32,
    /// The position at which the next pid is expected if pids ascend.
    next: usize,
    /// The number of entries visited in this round, and of those that had ended.
    visited: usize,
    ending: usize,
}

impl Tracked {
    /// Creates an entry for a process that was just found.
    pub fn new(record: ProcessRecord, origin: IdentityOrigin, machine_ticks: u64) -> Tracked {
        Tracked {
            record,
            origin,
            machine_ticks,
            names_generation: 0,
            cpu: CpuTimes::default(),
            command_line: CommandLine::Unknown,
            command_line_runtime: 0,
            has_cgroup: false,
            cgroup: 0,
            is_candidate: false,
            selected: false,
            delivered: false,
            last: None,
            round: 0,
            ended: false,
        }
    }

    /// Records the path of the control group, and its number if that is known.
    pub fn set_cgroup(&mut self, path: Option<&[u8]>, number: u64) {
        (self.has_cgroup, self.cgroup) = (path.is_some(), number);
        let path = path.unwrap_or_default();
        if path != self.record.identity.cgroup {
            let identity = Identity { cgroup: path.to_vec(), ..Identity::clone(&self.record.identity) };
            self.record.identity = Arc::new(identity);
        }
    }

    /// Records that it cannot be read at present: none of the data read before is valid any more.
    pub fn block(&mut self) {
        let record = &mut self.record;
        if self.last.is_none() {
            self.last = Some(Box::new((record.sample, record.valid)));
        }
        record.sample = ProcessSample::unknown(record.sample.id);
        (record.valid, record.cpu_percent) = (Validity::default(), 0.0);
    }

    /// Returns the sample before the next one. If the process could not be read, this is the last one before
    /// that.
    pub fn unblock(&mut self) -> ProcessSample {
        self.last.take().map_or(self.record.sample, |last| last.0)
    }

    /// Returns the record of the process after its end, with its last figures.
    fn into_record(mut self) -> ProcessRecord {
        if let Some(last) = self.last {
            (self.record.sample, self.record.valid) = *last;
        }
        self.record
    }

    fn id(&self) -> ProcId {
        self.record.sample.id
    }
}

impl ProcessTable {
    /// Begins a round of visits, and drops the processes that ended in the former round.
    pub fn begin(&mut self) {
        self.ended.clear();
        self.passed.clear();
        self.round = self.round.wrapping_add(1);
        (self.next, self.visited, self.ending) = (0, 0, 0);
    }

    /// Visits the process that is listed with this pid. Pids that do not ascend take longer to find.
    pub fn visit(&mut self, pid: i32, look: impl FnOnce(i32, Option<&mut Tracked>) -> SampleOutcome) {
        let next = self.find(pid);
        match self.entries.get_mut(next).filter(|entry| entry.id().pid == pid) {
            Some(entry) if entry.round == self.round => {}
            Some(_) => self.visit_at(next, look),
            None => {
                if let SampleOutcome::Started(tracked) = look(pid, None) {
                    self.started.push(*tracked);
                }
            }
        }
        self.next = next;
    }

    /// Returns the process that has this pid, as of the last round. Pids that do not ascend take longer to
    /// find.
    pub fn known(&mut self, pid: i32) -> Option<&mut Tracked> {
        self.next = self.find(pid);
        self.entries.get_mut(self.next).filter(|entry| entry.id().pid == pid)
    }

    /// Returns true if the process that has this pid was visited in this round.
    pub fn was_visited(&mut self, pid: i32) -> bool {
        let round = self.round;
        self.known(pid).is_some_and(|entry| entry.round == round)
    }

    /// Records the outcome of a visit of a process, unless it was already visited in this round.
    pub fn settle(&mut self, pid: i32, outcome: SampleOutcome) {
        self.visit(pid, |_, _| outcome);
    }

    /// Returns true if there are known processes that were not visited.
    pub fn has_unvisited(&self) -> bool {
        self.visited < self.entries.len()
    }

    /// Calls `each` with every known process that was not visited. Most of them have ended, but a listing may
    /// have missed one.
    pub fn unvisited(&self, each: impl FnMut(i32)) {
        if self.has_unvisited() {
            let missing = self.entries.iter().filter(|entry| entry.round != self.round);
            missing.map(|entry| entry.id().pid).for_each(each);
        }
    }

    /// Returns the process with this id, if it is known.
    pub fn tracked_mut(&mut self, id: &ProcId) -> Option<&mut Tracked> {
        let position = self.entries.binary_search_by_key(id, Tracked::id).ok()?;
        self.entries.get_mut(position)
    }

    /// Ends the round: removes the processes that have ended and adds those that have started. More processes
    /// may be visited then, and the round ended again.
    pub fn finish(&mut self) {
        self.next = 0;
        if self.ending > 0 {
            for entry in self.entries.extract_if(.., |entry| entry.ended) {
                match entry.delivered {
                    true => self.ended.push(entry.into_record()),
                    false => self.passed.push((entry.id(), entry.into_record().identity)),
                }
            }
        }
        if !self.started.is_empty() {
            self.started.iter_mut().for_each(|entry| entry.round = self.round);
            self.visited += self.started.len();
            self.entries.append(&mut self.started);
            self.entries.sort_by_key(Tracked::id);
            // A directory that is not of the proc filesystem may list a name twice if it changes.
            self.entries.dedup_by_key(|entry| entry.id());
        }
    }

    fn visit_at(&mut self, position: usize, look: impl FnOnce(i32, Option<&mut Tracked>) -> SampleOutcome) {
        let Some(entry) = self.entries.get_mut(position) else { return };
        entry.round = self.round;
        self.visited += 1;
        let outcome = look(entry.id().pid, Some(entry));
        entry.ended = !matches!(outcome, SampleOutcome::Unchanged);
        self.ending += usize::from(entry.ended);
        if let SampleOutcome::Started(tracked) = outcome {
            self.started.push(*tracked);
        }
    }

    /// Returns the position of the first entry whose pid is not below this one.
    fn find(&self, pid: i32) -> usize {
        let below = |entry: &Tracked| entry.id().pid < pid;
        let behind = self.next.checked_sub(1).and_then(|last| self.entries.get(last));
        if behind.is_some_and(|entry| !below(entry)) {
            return self.entries.partition_point(below);
        }
        let ahead = self.entries.get(self.next..).unwrap_or_default();
        self.next + ahead.iter().take_while(|entry| below(entry)).count()
    }

    /// Returns every known process, by pid.
    pub fn iter(&self) -> impl Iterator<Item = &Tracked> {
        self.entries.iter()
    }

    /// Returns every known process, mutable, by pid.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Tracked> {
        self.entries.iter_mut()
    }

    /// Returns the record of the process with this id, known or ended in the latest round.
    pub fn record_mut(&mut self, id: &ProcId) -> Option<&mut ProcessRecord> {
        match self.entries.binary_search_by_key(id, Tracked::id) {
            Ok(position) => self.entries.get_mut(position).map(|entry| &mut entry.record),
            Err(_) => {
                let position = self.ended.binary_search_by_key(id, |record| record.sample.id).ok()?;
                self.ended.get_mut(position)
            }
        }
    }

    /// The processes that ended in the latest round, if they were ever delivered.
    pub fn ended(&self) -> &[ProcessRecord] {
        &self.ended
    }

    /// Removes and returns the same processes.
    pub fn take_ended(&mut self) -> Vec<ProcessRecord> {
        std::mem::take(&mut self.ended)
    }

    /// Removes and returns the processes that have ended and were never delivered.
    pub fn take_passed(&mut self) -> Vec<(ProcId, Arc<Identity>)> {
        std::mem::take(&mut self.passed)
    }
}
