//! Joins the ledger's accounts to process records, including those of ended processes, and decides when an
//! ended process has all its bytes.

use super::ledger::{Account, Ledger, add_connections};
use crate::model::{Identity, ProcId, ProcessRecord, ProcessSample, Selection, Traffic, Validity};
use crate::process::Sampler;
use crate::session::lookup::LatestIdentities;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest time for which an ended process is held back, in addition to the capture's read timeout.
const MAX_HELD: Duration = Duration::from_secs(2);

/// Limit of the recorded processes that have ended and were not selected, per period, and the length of a
/// period. Their last bytes may still select them.
const PASSED_LIMIT: usize = 8192;
const PASSED_PERIOD: Duration = Duration::from_secs(60);

/// Processes between two updates: bytes whose process has no record yet, and ended processes that wait for
/// their last bytes.
#[derive(Default)]
pub struct AccountMerger {
    /// Accounts of processes that no sample has seen.
    unclaimed: HashMap<ProcId, Unclaimed, foldhash::fast::RandomState>,
    closing: BTreeMap<ProcId, Closing>,
    /// Identities of the sampled processes that have ended and were not selected: those of the current period
    /// and those of the previous one.
    passed: [HashMap<ProcId, Arc<Identity>, foldhash::fast::RandomState>; 2],
    passed_since: Option<Instant>,
}

#[derive(Default)]
struct Unclaimed {
    account: Account,
    /// Set if the process was alive after an update.
    was_alive: bool,
}

struct Closing {
    record: ProcessRecord,
    /// Set if a sample found that the process had ended, which was before its bytes were last collected.
    was_sampled: bool,
    /// Time at which the process was found to have ended. Packets captured later are not its own.
    found: Instant,
}

impl AccountMerger {
    /// Adds the ledger's accounts to the records of the sampler and of the closing processes.
    pub fn collect(&mut self, ledger: &Ledger, sampler: &mut Sampler, selection: &Selection) {
        let drained = ledger.lock().drain();
        let drained = drained.map(|(process, account)| (process, Unclaimed { account, was_alive: false }));
        for (process, unclaimed) in std::mem::take(&mut self.unclaimed).into_iter().chain(drained) {
            let Unclaimed { account, was_alive } = unclaimed;
            if let Some(record) = sampler.get_mut(&process) {
                add(record, account);
                continue;
            }
            match self.closing.get_mut(&process) {
                Some(closing) => {
                    // The process's identity may become known with its last bytes.
                    if !closing.was_sampled && !closing.record.valid.has(Validity::USER) {
                        name(&mut closing.record, account.identity.as_ref());
                    }
                    add(&mut closing.record, account);
                }
                None if selection.matches_pid(process.pid) => {
                    let known = self.unclaimed.entry(process).or_default();
                    known.was_alive |= was_alive;
                    known.account.merge(account);
                }
                None => {}
            }
        }
    }

    /// Takes over the processes that have ended: those that the sampler reports, and those that no sample has
    /// seen and that have disappeared. Returns the latest time at which a closing process was found to have
    /// ended.
    ///
    /// A process may have been removed so long ago that the ledger has no record of it; then a socket has
    /// outlived it, and its bytes return to the ledger. `latest` contains the identities recorded at `since`
    /// or later.
    pub fn take_up_ended(
        &mut self,
        sampler: &mut Sampler,
        ledger: &Ledger,
        selection: &Selection,
        latest: &LatestIdentities,
        since: Instant,
    ) -> Option<Instant> {
        let found = Instant::now();
        self.record_passed(sampler, found);
        for record in sampler.take_ended() {
            self.closing.insert(record.sample.id, Closing { record, was_sampled: true, found });
        }
        if let Some(gone) = sampler.gone(self.unclaimed.keys().copied()) {
            let found = Instant::now();
            for id in gone {
                let Some(Unclaimed { account, was_alive }) = self.unclaimed.remove(&id) else { continue };
                let passed = self.passed.iter().find_map(|passed| passed.get(&id));
                let mut books = ledger.lock();
                if !was_alive && passed.is_none() && books.was_released(id) {
                    books.revoke(id, &account, found);
                    continue;
                }
                drop(books);
                let mut record = record_of(id, account, passed);
                make_latest(&mut record, latest, since, sampler);
                // A process that is known not to be selected need not wait for its last bytes.
                if !record.valid.has(Validity::USER) || selection.matches(id.pid, &record.identity) {
                    self.closing.insert(id, Closing { record, was_sampled: false, found });
                }
            }
            self.unclaimed.values_mut().for_each(|unclaimed| unclaimed.was_alive = true);
        }
        self.closing.values().map(|closing| closing.found).max()
    }

    fn record_passed(&mut self, sampler: &mut Sampler, now: Instant) {
        let [current, previous] = &mut self.passed;
        let since = *self.passed_since.get_or_insert(now);
        if current.len() >= PASSED_LIMIT || now.saturating_duration_since(since) >= PASSED_PERIOD {
            *previous = std::mem::take(current);
            self.passed_since = Some(now);
        }
        current.extend(sampler.take_passed());
    }

    /// Updates the ended processes with their last identities, if recorded at `since` or later, and with
    /// their last names as the eBPF programs report them.
    pub fn take_latest(&mut self, latest: &LatestIdentities, since: Instant, sampler: &Sampler) {
        for Closing { record, .. } in self.closing.values_mut() {
            make_latest(record, latest, since, sampler);
        }
    }

    /// Returns true if a closing process ended after the sample, possibly after its bytes were last
    /// collected.
    pub fn ended_since_sample(&self) -> bool {
        self.closing.values().any(|closing| !closing.was_sampled)
    }

    /// Removes the ended processes whose figures are final: those found before `complete`, the time up to
    /// which all captured packets had been counted at the last collection, and those held back for longer
    /// than `timeout` and 2 s. No more bytes are credited to them. A process that no sample has seen is
    /// delivered if its last identity is selected.
    pub fn take_final(
        &mut self,
        complete: Option<Instant>,
        now: Instant,
        timeout: Duration,
        ledger: &Ledger,
        selection: &Selection,
        into: &mut Vec<ProcessRecord>,
    ) {
        let mut books = ledger.lock();
        self.closing.retain(|id, closing| {
            let held = now.saturating_duration_since(closing.found);
            let is_final = Some(closing.found) <= complete || held > timeout + MAX_HELD;
            if is_final {
                let record = &closing.record;
                if closing.was_sampled || selection.matches(id.pid, &record.identity) {
                    books.close(*id, now);
                    into.push(record.clone());
                }
            }
            !is_final
        });
    }
}

/// Updates the record of an ended process with its last identity and name.
fn make_latest(record: &mut ProcessRecord, latest: &LatestIdentities, since: Instant, sampler: &Sampler) {
    latest.update(record, since);
    let given = sampler.given_name(&record.sample.id);
    if let Some(name) = given.filter(|name| *name != record.identity.name) {
        record.identity = Arc::new(Identity { name, ..Identity::clone(&record.identity) });
    }
}

/// Returns the record of a process that started and ended between two samples, or that they did not select:
/// its traffic, and its identity (`passed` if the account has none).
fn record_of(id: ProcId, account: Account, passed: Option<&Arc<Identity>>) -> ProcessRecord {
    let mut record = ProcessRecord {
        sample: ProcessSample::unknown(id),
        identity: Arc::default(),
        cpu_percent: 0.0,
        traffic: Traffic::default(),
        uncertain_bytes: 0,
        network_namespace: 0,
        connections: None,
        valid: Validity::NETWORK,
    };
    name(&mut record, account.identity.as_ref().or(passed));
    add(&mut record, account);
    record
}

/// Sets the identity of a process that no sample has seen, if it is known.
fn name(record: &mut ProcessRecord, identity: Option<&Arc<Identity>>) {
    let Some(identity) = identity else { return };
    record.valid |= Validity::USER;
    if !identity.cgroup.is_empty() {
        record.valid |= Validity::CGROUP;
    }
    record.identity = Arc::clone(identity);
}

/// Adds an account to the record of its process.
fn add(record: &mut ProcessRecord, account: Account) {
    record.traffic += account.traffic;
    record.uncertain_bytes += account.uncertain_bytes();
    add_connections(&mut record.connections, account.connections);
}

#[cfg(test)]
#[path = "merger_tests.rs"]
mod tests;
