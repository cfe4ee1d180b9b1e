//! What the thread that looks at first packets and the one that searches thoroughly tell each other.

use super::early::Side;
use crate::model::FlowKey;
use crate::sync::Mutex;

/// Findings and started processes that wait to be taken. What comes on top is not told.
const LIMIT: usize = 16_384;

/// Of the processes that used the CPU so many are told of.
const MAX_BUSY: usize = 16;

/// Where the thorough search has found a flow's socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finding {
    pub key: FlowKey,
    pub side: Side,
    pub pid: i32,
    pub descriptor: i32,
    pub uid: u32,
}

/// What the look at first packets is to know; lists only where they are new.
pub(super) struct Taken {
    pub findings: Vec<Finding>,
    pub crowd: Option<Vec<(i32, u32)>>,
    pub busy: Option<Vec<i32>>,
}

/// The exchange between the early lookup and the thorough search.
#[derive(Default, Debug)]
pub struct SearchExchange {
    told: Mutex<Exchanged>,
}

#[derive(Default, Debug)]
struct Exchanged {
    findings: Vec<Finding>,
    crowd: Option<Vec<(i32, u32)>>,
    busy: Option<Vec<i32>>,
    /// Processes that have started since they were last asked for.
    started: Vec<i32>,
    /// Whether `started` has all of them.
    is_complete: bool,
    /// Whether starts are told of at all.
    is_told: bool,
}

impl SearchExchange {
    pub(super) fn add_finding(&self, finding: Finding) {
        let mut told = self.told.lock();
        if told.findings.len() < LIMIT {
            told.findings.push(finding);
        }
    }

    /// All processes with their users, those that opened sockets last first.
    pub(super) fn set_crowd(&self, crowd: Vec<(i32, u32)>) {
        self.told.lock().crowd = Some(crowd);
    }

    /// The processes that used the CPU lately, the busiest first. Only the first few are taken.
    pub fn set_busy(&self, pids: impl Iterator<Item = i32>) {
        self.told.lock().busy = Some(pids.take(MAX_BUSY).collect());
    }

    /// What is meant for the look at first packets since the last time.
    pub(super) fn take(&self) -> Taken {
        let mut told = self.told.lock();
        Taken {
            findings: std::mem::take(&mut told.findings),
            crowd: told.crowd.take(),
            busy: told.busy.take(),
        }
    }

    /// Whether every process that starts is told of from now on.
    pub fn tell_starts(&self, is_told: bool) {
        let mut told = self.told.lock();
        told.is_told = is_told;
        told.is_complete = false;
    }

    /// A process has started.
    pub fn started(&self, pid: i32) {
        let mut told = self.told.lock();
        if told.started.len() < LIMIT {
            told.started.push(pid);
        } else {
            told.is_complete = false;
        }
    }

    /// Processes may have started that were not told of.
    pub fn missed_starts(&self) {
        self.told.lock().is_complete = false;
    }

    /// The processes that have started since this was last called; `None` when that is not known, and all have to be
    /// listed, which makes it known again.
    pub(super) fn take_started(&self) -> Option<Vec<i32>> {
        let mut told = self.told.lock();
        let started = std::mem::take(&mut told.started);
        let was_complete = std::mem::replace(&mut told.is_complete, true);
        (told.is_told && was_complete).then_some(started)
    }
}
