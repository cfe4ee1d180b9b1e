//! Sampling of all processes: lists them, reads them, and keeps one record for each as long as it lives.

use super::directory::{Listing, open_directory};
use super::machine::Machine;
use super::observer::Observer;
use super::parse;
use super::root::{PidPath, ProcRoot};
use super::table::Table;
use crate::error::{Code, Error, Result};
use crate::model::{ProcId, ProcessRecord, SampleSet, Selection};
use std::os::fd::{AsFd, OwnedFd};

/// Samples the processes of one `/proc` tree.
///
/// A sample is taken in two steps, [`list`](Sampler::list) and [`sample`](Sampler::sample), so that between them
/// its user can look after the processes that have ended. In the steady state neither allocates.
#[derive(Debug)]
pub struct Sampler {
    directory: OwnedFd,
    listing: Listing,
    observer: Observer,
    machine: Machine,
    table: Table,
    pids: Vec<i32>,
    missing: Vec<ProcId>,
    buffer: Vec<u8>,
}

impl Sampler {
    /// A sampler that has not listed or sampled anything yet. The groups of figures in `what` are read for
    /// processes of the selection; of others only what tells whether they have come to belong to it.
    ///
    /// # Errors
    /// `ProcessOpenDirectory` when the tree cannot be listed, `ProcessOpen` and `ProcessFormat` when the figures of
    /// the machine cannot be read.
    pub fn new(root: ProcRoot, what: SampleSet, mut selection: Selection) -> Result<Sampler> {
        selection.pids.sort_unstable();
        selection.pids.dedup();
        let directory = open_directory(root.directory(), c".").map_err(listing_failed)?;
        let mut buffer = Vec::new();
        let machine = Machine::read(&root, &mut buffer)?;
        Ok(Sampler {
            directory,
            listing: Listing::default(),
            observer: Observer::new(root, what, selection),
            machine,
            table: Table::default(),
            pids: Vec::new(),
            missing: Vec::new(),
            buffer,
        })
    }

    /// Lists the processes there are; with pids in the selection, looks for these only.
    ///
    /// # Errors
    /// `ProcessOpenDirectory` when the tree cannot be listed; nothing is listed then.
    pub fn list(&mut self) -> Result<()> {
        self.pids.clear();
        let pids = &mut self.pids;
        let selected = &self.observer.selection().pids;
        if selected.is_empty() {
            let listed = self.listing.names(self.directory.as_fd(), |name| pids.extend(pid(name)));
            listed.map_err(|errno| {
                pids.clear();
                listing_failed(errno)
            })?;
            // The kernel lists them in this order already; made-up trees do not.
            pids.sort_unstable();
        } else {
            let root = self.observer.root();
            let there = |pid: &i32| root.stat(PidPath::new(*pid).directory()).is_ok();
            pids.extend(selected.iter().copied().filter(there));
        }
        self.find_missing();
        Ok(())
    }

    /// Whether a known process is not in the list.
    pub fn has_missing(&self) -> bool {
        !self.missing.is_empty()
    }

    /// The known processes that are not in the list: they have ended since the latest sample.
    pub fn missing(&self) -> &[ProcId] {
        &self.missing
    }

    /// Reads every process that is listed or known. Those that have ended, also if only to make room for another
    /// process with their pid, leave the table for [`take_ended`](Sampler::take_ended); what had ended before the
    /// former sample is forgotten. A process that can be listed but not read is counted in
    /// [`unreadable`](Sampler::unreadable) and keeps its former record.
    ///
    /// # Errors
    /// `ProcessOpen` and `ProcessFormat` when the figures of the machine cannot be read; nothing is sampled then.
    pub fn sample(&mut self) -> Result<()> {
        self.machine = Machine::read(self.observer.root(), &mut self.buffer)?;
        self.observer.begin(self.machine.cpu_ticks);
        self.table.update(&self.pids, |pid, known| self.observer.look(pid, known));
        Ok(())
    }

    /// The records of the selected processes as of the latest sample, by pid.
    pub fn processes(&self) -> impl Iterator<Item = &ProcessRecord> {
        self.table.iter().filter(|tracked| tracked.selected).map(|tracked| &tracked.record)
    }

    /// The same, to be changed. `valid` is made anew by every sample; traffic is left alone.
    pub fn processes_mut(&mut self) -> impl Iterator<Item = &mut ProcessRecord> {
        self.table.iter_mut().filter(|tracked| tracked.selected).map(|tracked| &mut tracked.record)
    }

    /// The record of a process of the latest sample, whether selected or not.
    pub fn get(&self, id: &ProcId) -> Option<&ProcessRecord> {
        self.table.get(id).map(|tracked| &tracked.record)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, id: &ProcId) -> Option<&mut ProcessRecord> {
        self.table.get_mut(id).map(|tracked| &mut tracked.record)
    }

    /// The last records of the processes that the latest sample found to have ended, if they ever were selected.
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

    fn find_missing(&mut self) {
        self.missing.clear();
        let mut listed = self.pids.iter().copied().peekable();
        for tracked in self.table.iter() {
            let id = tracked.record.sample.id;
            while listed.next_if(|&pid| pid < id.pid).is_some() {}
            if listed.next_if_eq(&id.pid).is_none() {
                self.missing.push(id);
            }
        }
    }
}

fn pid(name: &[u8]) -> Option<i32> {
    i32::try_from(parse::decimal(name)?).ok().filter(|&pid| pid > 0)
}

fn listing_failed(errno: nix::errno::Errno) -> Error {
    Error::system(Code::ProcessOpenDirectory, "listing the proc filesystem", errno)
}
