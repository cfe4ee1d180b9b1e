//! Sampling of all processes: lists them, reads them, and keeps one record for each as long as it lives.

use super::directory::{Listing, open_directory};
use super::machine::Machine;
use super::observer::Observer;
use super::parse;
use super::root::ProcRoot;
use super::table::Table;
use super::task;
use crate::error::{Code, Error, Result};
use crate::kernel::{Fault, TaskSource};
use crate::model::{ProcId, ProcessRecord, SampleSet, Selection};
use std::os::fd::{AsFd, OwnedFd};

/// Samples the processes of one `/proc` tree.
///
/// After a sample, the processes that it found to have ended can still be looked up and changed, so that its user can
/// credit them with what came late. In the steady state nothing is allocated.
#[derive(Debug)]
pub struct Sampler {
    directory: OwnedFd,
    listing: Listing,
    observer: Observer,
    machine: Machine,
    table: Table,
    /// Who tells the figures of all processes at once, as long as that works.
    tasks: Option<Box<dyn TaskSource>>,
    fault: Option<Fault>,
    /// Whether the tree has been listed beside such a walk.
    has_listed: bool,
    /// The pids that are looked for; when empty, all are.
    selected: Vec<i32>,
    buffer: Vec<u8>,
}

impl Sampler {
    /// A sampler that has not sampled anything yet. The groups of figures in `what` are read for
    /// processes of the selection; of others only what tells whether they have come to belong to it.
    ///
    /// # Errors
    /// `ProcessOpenDirectory` when the tree cannot be listed, `ProcessOpen` and `ProcessFormat` when the figures of
    /// the machine cannot be read.
    pub fn new(root: ProcRoot, what: SampleSet, mut selection: Selection) -> Result<Sampler> {
        selection.pids.sort_unstable();
        selection.pids.dedup();
        let selected = selection.pids.clone();
        let directory = open_directory(root.directory(), c".").map_err(listing_failed)?;
        let mut buffer = Vec::new();
        let machine = Machine::read(&root, &mut buffer)?;
        Ok(Sampler {
            directory,
            listing: Listing::in_small_steps(),
            observer: Observer::new(root, what, selection),
            machine,
            table: Table::default(),
            tasks: None,
            fault: None,
            has_listed: false,
            selected,
            buffer,
        })
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
        self.observer.follow_networks();
    }

    /// Why the walks over the kernel's tasks have ended, once.
    pub fn take_fault(&mut self) -> Option<Fault> {
        self.fault.take()
    }

    /// Reads every process there is; with pids in the selection, looks for these only. Those that have ended, also if
    /// only to make room for another process with their pid, leave the table and wait in
    /// [`take_ended`](Sampler::take_ended); what had ended before the former sample is forgotten. A process that is
    /// there but cannot be read is counted in [`unreadable`](Sampler::unreadable) and keeps its former record.
    ///
    /// # Errors
    /// `ProcessOpen` and `ProcessFormat` when the figures of the machine cannot be read: nothing is sampled then.
    /// `ProcessOpenDirectory` when the tree cannot be listed: processes not listed keep their former records.
    pub fn sample(&mut self) -> Result<()> {
        self.machine = Machine::read(self.observer.root(), &mut self.buffer)?;
        self.observer.begin(self.machine.cpu_ticks);
        self.table.begin();
        if !self.walk() {
            return self.list();
        }
        let Sampler { observer, table, .. } = self;
        table.visit_rest(|pid, known| observer.look(pid, known));
        table.finish();
        if self.has_listed {
            return Ok(());
        }
        // There are kernels whose walks leave out the first process of all. What is known but not told is looked for
        // in the tree every time, so once is enough.
        let listed = self.list();
        self.has_listed = listed.is_ok();
        listed
    }

    /// Takes the figures from a walk over the kernel's tasks. Returns whether that went well.
    fn walk(&mut self) -> bool {
        let Sampler { observer, table, selected, tasks: Some(tasks), .. } = self else { return false };
        let walked = tasks.walk(&mut |task| {
            let pid = task::pid(task.raw);
            if selected.is_empty() || selected.binary_search(&pid).is_ok() {
                table.visit(pid, |_, known| observer.take(task, known));
            }
        });
        if let Err(fault) = walked {
            (self.tasks, self.fault) = (None, Some(fault));
        }
        self.tasks.is_some()
    }

    /// Reads the processes that the tree lists and that have not been visited yet.
    fn list(&mut self) -> Result<()> {
        let Sampler { directory, listing, observer, table, selected, .. } = self;
        let mut visit = |pid| table.visit(pid, |pid, known| observer.look(pid, known));
        let listed = if selected.is_empty() {
            listing.names(directory.as_fd(), |name| {
                if let Some(pid) = pid(name) {
                    visit(pid);
                }
            })
        } else {
            selected.iter().copied().for_each(visit);
            Ok(())
        };
        if listed.is_ok() {
            table.visit_rest(|pid, known| observer.look(pid, known));
        }
        table.finish();
        listed.map_err(listing_failed)
    }

    /// The records of the selected processes as of the latest sample, by pid.
    pub fn processes(&self) -> impl Iterator<Item = &ProcessRecord> {
        self.table.iter().filter(|tracked| tracked.selected).map(|tracked| &tracked.record)
    }

    /// The same, to be changed. `valid` is made anew by every sample; traffic is left alone.
    pub fn processes_mut(&mut self) -> impl Iterator<Item = &mut ProcessRecord> {
        self.table.iter_mut().filter(|tracked| tracked.selected).map(|tracked| &mut tracked.record)
    }

    /// The record of a process of the latest sample, whether selected or not, or of one it found to have ended, to be
    /// changed.
    pub fn get_mut(&mut self, id: &ProcId) -> Option<&mut ProcessRecord> {
        self.table.record_mut(id)
    }

    /// The last records of the processes that the latest sample found to have ended, if they ever were selected; by
    /// pid.
    pub fn ended(&self) -> &[ProcessRecord] {
        self.table.ended()
    }

    /// Hands over the same.
    pub fn take_ended(&mut self) -> Vec<ProcessRecord> {
        self.table.take_ended()
    }

    /// The figures of the machine as of the latest sample.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The tree that is sampled.
    pub fn root(&self) -> &ProcRoot {
        self.observer.root()
    }

    /// How often a process was there but its `stat` could not be read (not permitted, out of descriptors, not in
    /// the format), since the sampler was made.
    pub fn unreadable(&self) -> u64 {
        self.observer.unreadable()
    }
}

fn pid(name: &[u8]) -> Option<i32> {
    i32::try_from(parse::decimal(name)?).ok().filter(|&pid| pid > 0)
}

fn listing_failed(errno: nix::errno::Errno) -> Error {
    Error::system(Code::ProcessOpenDirectory, "listing the proc filesystem", errno)
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
