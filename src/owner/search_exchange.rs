//! The exchange between the early lookup thread and the resolver's thorough search.

use super::early::Side;
use crate::model::FlowKey;
use crate::sync::Mutex;

/// The limit of findings, and of started processes, that wait to be taken. Further ones are dropped.
const LIMIT: usize = 16_384;

/// The limit of processes that are reported as users of the CPU.
const MAX_BUSY: usize = 16;

/// The place where the thorough search has found a flow's socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finding {
    pub key: FlowKey,
    pub side: Side,
    pub pid: i32,
    pub descriptor: i32,
    pub uid: u32,
}

/// The news for the early lookup; a list is present only if it is new.
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
    /// Findings and started processes that were dropped.
    dropped: u64,
    crowd: Option<Vec<(i32, u32)>>,
    busy: Option<Vec<i32>>,
    /// Processes that have started since the last call of `take_started`.
    started: Vec<i32>,
    /// Set if `started` has all of them.
    is_complete: bool,
    /// Set if process starts are reported at all.
    is_told: bool,
}

impl SearchExchange {
    pub(super) fn add_finding(&self, finding: Finding) {
        let mut told = self.told.lock();
        if told.findings.len() < LIMIT {
            told.findings.push(finding);
        } else {
            told.dropped += 1;
        }
    }

    /// Sets the list of all processes with their users, those that opened sockets last first.
    pub(super) fn set_crowd(&self, crowd: Vec<(i32, u32)>) {
        self.told.lock().crowd = Some(crowd);
    }

    /// Sets the processes that used the CPU recently, the busiest first. Only the first 16 are taken.
    pub fn set_busy(&self, pids: impl Iterator<Item = i32>) {
        self.told.lock().busy = Some(pids.take(MAX_BUSY).collect());
    }

    /// Takes the news for the early lookup since the last call.
    pub(super) fn take(&self) -> Taken {
        let mut told = self.told.lock();
        Taken {
            findings: std::mem::take(&mut told.findings),
            crowd: told.crowd.take(),
            busy: told.busy.take(),
        }
    }

    /// Sets whether every process that starts is reported from now on.
    pub fn tell_starts(&self, is_told: bool) {
        let mut told = self.told.lock();
        told.is_told = is_told;
        told.is_complete = false;
    }

    /// Records that a process has started.
    pub fn started(&self, pid: i32) {
        let mut told = self.told.lock();
        if told.started.len() < LIMIT {
            told.started.push(pid);
        } else {
            told.is_complete = false;
            told.dropped += 1;
        }
    }

    /// The number of findings and started processes that were dropped because too many waited to be taken.
    pub(super) fn dropped(&self) -> u64 {
        self.told.lock().dropped
    }

    /// Records that the starts of some processes may have been missed.
    pub fn missed_starts(&self) {
        self.told.lock().is_complete = false;
    }

    /// Returns the processes that have started since the last call. `None` if that is not known: the caller
    /// must then list all processes, and later calls return the starts after that.
    pub(super) fn take_started(&self) -> Option<Vec<i32>> {
        let mut told = self.told.lock();
        let started = std::mem::take(&mut told.started);
        let was_complete = std::mem::replace(&mut told.is_complete, true);
        (told.is_told && was_complete).then_some(started)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;
    use crate::owner::made_up::key;

    #[test]
    fn what_is_not_taken_in_time_is_dropped_and_counted() {
        let exchange = SearchExchange::default();
        exchange.tell_starts(true);
        exchange.take_started();
        let key = key(Protocol::TCP, "10.0.0.1:1", "10.0.0.2:80");
        for number in 0..LIMIT as i32 + 3 {
            exchange.add_finding(Finding { key, side: Side::Opener, pid: number, descriptor: 1, uid: 0 });
            exchange.started(number);
        }
        assert_eq!((exchange.take().findings.len(), exchange.dropped()), (LIMIT, 6));
        assert_eq!(exchange.take_started(), None, "some are missing");
        exchange.started(7);
        assert_eq!((exchange.take_started(), exchange.dropped()), (Some(vec![7]), 6));
    }
}
