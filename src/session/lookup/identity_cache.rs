//! Publishes the identities of flow owners in the ledger, and reads them while the processes live.

use crate::blocking::{Abandoned, Errand, Helper};
use crate::model::{Identity, ProcId, SampleSet};
use crate::proc::ProcRoot;
use crate::process::IdentityReader;
use crate::session::accounting::Ledger;
use foldhash::fast::RandomState;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Limit of the processes recorded as published, in the current and in the previous period each, and the
/// length of a period. A process that owns no new flow for that long is published once more.
const KNOWN_LIMIT: usize = 8192;
const KNOWN_PERIOD: Duration = Duration::from_secs(60);

/// Limit of the prefetched identities; they are those of the last seconds.
const MET_LIMIT: usize = 1024;

/// Limit of the prefetches within [`INTERVAL`], some 20 µs each. If more processes start, the others are read
/// only when they are needed.
const MAX_MET: u32 = 256;
const INTERVAL: Duration = Duration::from_millis(250);

/// Limit of the attempts to read a process whose reads do not return: one for each kind of read, and one
/// more.
const MAX_READS: usize = 4;

/// Publishes the identity of each process once, for as long as the process stays recorded.
pub struct IdentityCache {
    root: Arc<ProcRoot>,
    identities: IdentityReader,
    /// The helper that reads for a thread that may not be abandoned.
    helper: Option<Helper<IdentityReader, Errand<IdentityReader>>>,
    /// Published processes of the current period, and of the previous one.
    known: [HashSet<ProcId, RandomState>; 2],
    known_since: Instant,
    /// Prefetched identities, latest last.
    met: VecDeque<(ProcId, Arc<Identity>)>,
    met_in_interval: u32,
    interval: Option<Instant>,
    what: SampleSet,
}

impl IdentityCache {
    /// Returns an empty cache. `what` selects command lines and control groups.
    pub fn new(root: Arc<ProcRoot>, what: SampleSet) -> IdentityCache {
        IdentityCache {
            root,
            identities: IdentityReader::default(),
            helper: None,
            known: Default::default(),
            known_since: Instant::now(),
            met: VecDeque::new(),
            met_in_interval: 0,
            interval: None,
            what,
        }
    }

    /// Returns an empty cache for a thread that cannot be abandoned in a read that does not return.
    pub fn with_helper(root: Arc<ProcRoot>, what: SampleSet) -> IdentityCache {
        let helper = Helper::of_errands("capture-names", IdentityReader::default);
        IdentityCache { helper: Some(helper), ..IdentityCache::new(root, what) }
    }

    /// Reads the identity of a process that has just executed a program or changed its name, since the
    /// process may have ended by the time when the identity is to be published. Returns `None` if it has
    /// ended already, or if too many are prefetched at once.
    pub fn prefetch(&mut self, pid: i32, now: Instant) -> Option<(ProcId, Arc<Identity>)> {
        if self.interval.is_none_or(|since| now.saturating_duration_since(since) >= INTERVAL) {
            (self.interval, self.met_in_interval) = (Some(now), 0);
        }
        if self.met_in_interval >= MAX_MET {
            return None;
        }
        self.met_in_interval += 1;
        let (process, identity) = self.read(pid)?;
        // Its identity has changed, so it has to be published again.
        self.known.iter_mut().for_each(|known| {
            known.remove(&process);
        });
        if self.met.len() >= MET_LIMIT {
            self.met.pop_front();
        }
        let identity = Arc::new(identity);
        self.met.push_back((process, Arc::clone(&identity)));
        Some((process, identity))
    }

    /// Returns true if a process is recorded as published, and keeps it recorded.
    pub fn knows(&mut self, process: &ProcId) -> bool {
        let [current, previous] = &mut self.known;
        if current.contains(process) {
            return true;
        }
        let is_known = previous.contains(process);
        if is_known && current.len() < KNOWN_LIMIT {
            current.insert(*process);
        }
        is_known
    }

    /// Publishes the identity of a new process, if it was prefetched or the process still lives.
    pub fn publish(&mut self, process: ProcId, ledger: &Ledger) {
        self.publish_or(process, ledger, |_| None);
    }

    /// Publishes the identity of a new process. If it was not prefetched and the process has ended, publishes
    /// `identity` with the names of its user and group.
    pub fn publish_as(&mut self, process: ProcId, identity: Identity, ledger: &Ledger) {
        self.publish_or(process, ledger, |identities| Some(identities.name(identity)));
    }

    fn publish_or(
        &mut self,
        process: ProcId,
        ledger: &Ledger,
        or: impl FnOnce(&mut IdentityReader) -> Option<Identity>,
    ) {
        if !self.is_new(process, Instant::now()) {
            return;
        }
        if let Some((_, identity)) = self.met.iter().rev().find(|(met, _)| *met == process) {
            ledger.lock().set_identity(process, Arc::clone(identity));
            return;
        }
        let found = self.read(process.pid);
        let found = found.filter(|(found, _)| *found == process).map(|(_, identity)| identity);
        if let Some(identity) = found.or_else(|| or(&mut self.identities)) {
            ledger.lock().set_identity(process, Arc::new(identity));
        }
    }

    /// Records that a process is published. Returns true if it was not recorded before.
    fn is_new(&mut self, process: ProcId, now: Instant) -> bool {
        let [current, previous] = &mut self.known;
        if current.len() >= KNOWN_LIMIT || now.saturating_duration_since(self.known_since) >= KNOWN_PERIOD {
            *previous = std::mem::take(current);
            self.known_since = now;
        }
        current.insert(process) && !previous.contains(&process)
    }

    /// Reads the identity of the process that has this pid now.
    fn read(&mut self, pid: i32) -> Option<(ProcId, Identity)> {
        let Some(helper) = &mut self.helper else {
            return self.identities.read(&self.root, pid, self.what);
        };
        for _ in 0..MAX_READS {
            let (root, what) = (Arc::clone(&self.root), self.what);
            match helper.call(move |identities| identities.read(&root, pid, what)) {
                Ok(found) => return found,
                // The next attempt leaves out the read that did not return.
                Err(Abandoned::Reading) => {}
                Err(Abandoned::NoThread(_)) => return None,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use capture_test_support::proc_tree::ProcTree;

    /// Returns a cache on an empty tree, in which no process is found.
    fn empty_cache() -> IdentityCache {
        let tree = ProcTree::new();
        IdentityCache::new(Arc::new(ProcRoot::open(tree.path()).unwrap()), SampleSet::ALL)
    }

    #[test]
    fn one_that_is_asked_about_in_every_period_stays_known() {
        let mut identity_cache = empty_cache();
        let began = Instant::now();
        let process = |pid| ProcId { pid, start_ticks: 1 };
        identity_cache.is_new(process(1), began);
        for period in 1..10 {
            // Another process begins the period.
            identity_cache.is_new(
                process(100 + period as i32),
                began + (KNOWN_PERIOD + Duration::from_secs(1)) * period,
            );
            assert!(identity_cache.knows(&process(1)), "in period {period}");
        }
    }

    #[test]
    fn a_process_is_new_once_for_as_long_as_it_is_met() {
        let mut identity_cache = empty_cache();
        let began = Instant::now();
        let process = |pid| ProcId { pid, start_ticks: 1 };
        assert!(identity_cache.is_new(process(1), began) && identity_cache.is_new(process(2), began));
        for period in 1..10 {
            let now = began + KNOWN_PERIOD * period + Duration::from_secs(1);
            assert!(!identity_cache.is_new(process(1), now) && identity_cache.knows(&process(1)));
        }
        assert!(!identity_cache.knows(&process(2)));
        let now = began + KNOWN_PERIOD * 10;
        for pid in 0..4 * KNOWN_LIMIT as i32 {
            identity_cache.is_new(process(pid), now);
        }
        assert!(identity_cache.known.iter().all(|known| known.len() <= KNOWN_LIMIT));
    }
}
