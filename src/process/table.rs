//! The table of known processes, in the order of their pids, and of those that ended in the latest sample.

use super::parse::Image;
use crate::model::{ProcId, ProcessRecord};

/// A process in the table.
#[derive(Debug)]
pub struct Tracked {
    /// What users see.
    pub record: ProcessRecord,
    /// The program image of the latest sample, to notice an exec.
    pub image: Image,
    /// The machine's CPU time at the latest sample, clock ticks.
    pub machine_ticks: u64,
    /// The generation of user and group names its identity was made with.
    pub names_generation: u32,
    /// Whether the command line could be read.
    pub command_line_valid: bool,
    /// Whether it is delivered.
    pub selected: bool,
    /// Whether it ever was, so that its end is told as well.
    pub delivered: bool,
    ended: bool,
}

/// What came of looking at a process.
pub enum Outcome {
    /// It goes on, or nothing can be told of it now.
    Unchanged,
    /// It has ended, or never was.
    Gone,
    /// It is new; one that had the pid before has ended.
    Started(Box<Tracked>),
}

/// The table.
#[derive(Debug, Default)]
pub struct Table {
    entries: Vec<Tracked>,
    started: Vec<Tracked>,
    ended: Vec<ProcessRecord>,
}

impl Tracked {
    /// An entry of a process just found.
    pub fn new(record: ProcessRecord, image: Image, machine_ticks: u64) -> Tracked {
        Tracked {
            record,
            image,
            machine_ticks,
            names_generation: 0,
            command_line_valid: false,
            selected: false,
            delivered: false,
            ended: false,
        }
    }

    fn id(&self) -> ProcId {
        self.record.sample.id
    }
}

impl Table {
    /// Looks at every process that is known or in `listed`, whose pids ascend, and keeps the table accordingly.
    /// What had ended before is forgotten.
    pub fn update(&mut self, listed: &[i32], mut look: impl FnMut(i32, Option<&mut Tracked>) -> Outcome) {
        self.ended.clear();
        let mut any_ended = false;
        let mut listed = listed.iter().copied().peekable();
        let mut start = |outcome| {
            if let Outcome::Started(tracked) = outcome {
                self.started.push(*tracked);
            }
        };
        for entry in &mut self.entries {
            let pid = entry.id().pid;
            while let Some(other) = listed.next_if(|&other| other < pid) {
                start(look(other, None));
            }
            listed.next_if_eq(&pid);
            let outcome = look(pid, Some(entry));
            entry.ended = !matches!(outcome, Outcome::Unchanged);
            any_ended |= entry.ended;
            start(outcome);
        }
        for pid in listed {
            start(look(pid, None));
        }
        if any_ended {
            let ended = self.entries.extract_if(.., |entry| entry.ended);
            self.ended.extend(ended.filter(|entry| entry.delivered).map(|entry| entry.record));
        }
        if !self.started.is_empty() {
            self.entries.append(&mut self.started);
            self.entries.sort_by_key(|entry| entry.id().pid);
        }
    }

    /// Every known process, by pid.
    pub fn iter(&self) -> impl Iterator<Item = &Tracked> {
        self.entries.iter()
    }

    /// Every known process, by pid, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Tracked> {
        self.entries.iter_mut()
    }

    /// The process with this id.
    pub fn get(&self, id: &ProcId) -> Option<&Tracked> {
        self.entries.get(self.position(id)?)
    }

    /// The process with this id, to be changed.
    pub fn get_mut(&mut self, id: &ProcId) -> Option<&mut Tracked> {
        let position = self.position(id)?;
        self.entries.get_mut(position)
    }

    /// Hands over those that ended in the latest update.
    pub fn take_ended(&mut self) -> Vec<ProcessRecord> {
        std::mem::take(&mut self.ended)
    }

    fn position(&self, id: &ProcId) -> Option<usize> {
        self.entries.binary_search_by_key(id, Tracked::id).ok()
    }
}
