//! Tells the ledger who the owners of flows are, while they live to be asked.

use super::ledger::Ledger;
use crate::model::{ProcId, SampleSet};
use crate::process::{IdentityReader, ProcRoot};
use foldhash::fast::RandomState;
use std::collections::HashSet;
use std::sync::Arc;

/// Processes remembered for having been introduced.
const KNOWN_LIMIT: usize = 16_384;

/// Introduces each process once, as long as it is remembered.
pub struct Introducer {
    root: Arc<ProcRoot>,
    identities: IdentityReader,
    known: HashSet<ProcId, RandomState>,
    what: SampleSet,
}

impl Introducer {
    /// Nobody introduced yet. `what` says whether command lines are wanted.
    pub fn new(root: Arc<ProcRoot>, what: SampleSet) -> Introducer {
        Introducer { root, identities: IdentityReader::default(), known: HashSet::default(), what }
    }

    /// Introduces a process, if it is new and still lives.
    pub fn introduce(&mut self, process: ProcId, ledger: &Ledger) {
        if self.known.contains(&process) {
            return;
        }
        if self.known.len() >= KNOWN_LIMIT {
            self.known.clear();
        }
        self.known.insert(process);
        let found = self.identities.read(&self.root, process.pid, self.what);
        if let Some((_, identity)) = found.filter(|(found, _)| *found == process) {
            ledger.lock().introduce(process, Arc::new(identity));
        }
    }
}
