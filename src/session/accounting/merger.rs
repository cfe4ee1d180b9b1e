//! Where bytes meet processes: credits the ledger's accounts to records, also to those of processes that ended, and
//! decides when an ended process has all its bytes.

use super::ledger::{Account, Ledger, add_connections};
use crate::model::{Identity, ProcId, ProcessRecord, ProcessSample, Selection, Traffic, Validity};
use crate::process::Sampler;
use crate::session::lookup::LatestIdentities;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest time that an ended process is held back, beyond the capture's read timeout.
const MAX_HELD: Duration = Duration::from_secs(2);

/// Most processes recorded that have ended and were not selected, of each period, and the length of a period: their last bytes
/// may select them yet.
const PASSED_LIMIT: usize = 8192;
const PASSED_PERIOD: Duration = Duration::from_secs(60);

/// Processes between two updates: bytes whose process has no record yet, and ended ones that wait for their last
/// bytes.
#[derive(Default)]
pub struct AccountMerger {
    /// Accounts of processes that no sample has seen.
    unclaimed: HashMap<ProcId, Unclaimed, foldhash::fast::RandomState>,
    closing: BTreeMap<ProcId, Closing>,
    /// Processes that samples knew, which have ended and were not selected, and who they were: those of the current period,
    /// and those of the previous one.
    passed: [HashMap<ProcId, Arc<Identity>, foldhash::fast::RandomState>; 2],
    passed_since: Option<Instant>,
}

#[derive(Default)]
struct Unclaimed {
    account: Account,
    /// True if the process was alive after an update.
    was_alive: bool,
}

struct Closing {
    record: ProcessRecord,
    /// Whether a sample found it to have ended, before what it did was last counted.
    was_sampled: bool,
    /// When it was found to have ended: what was captured later is not its own.
    found: Instant,
}

impl AccountMerger {
    /// Adds what the ledger holds to the records of the sampler and of the processes that are closing.
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
                    // Who it was may become known with its last bytes.
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

    /// Takes up the processes that have ended: those the sampler says, and those that no sample has seen and that are
    /// gone. Returns when the last of all that are closing was found to have ended.
    ///
    /// Bytes of a process that may have been removed so long ago that the ledger has no record of it go back to the ledger:
    /// a socket has outlived it. `latest` has the identities recorded at `since` or later.
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
                // Nobody waits for one that is known not to be selected.
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

    /// Gives processes that have ended the identities that they had last, of those recorded at `since` or later, and the
    /// names that the kernel's programs say they were given last.
    pub fn take_latest(&mut self, latest: &LatestIdentities, since: Instant, sampler: &Sampler) {
        for Closing { record, .. } in self.closing.values_mut() {
            make_latest(record, latest, since, sampler);
        }
    }

    /// Whether a process is closing that ended after the sample, maybe after it was last counted what it did.
    pub fn ended_since_sample(&self) -> bool {
        self.closing.values().any(|closing| !closing.was_sampled)
    }

    /// Removes the ended processes whose figures are final: those found before `complete`, up to which everything captured
    /// was counted when it was last collected, and those held back for longer than `timeout` and 2 s. No byte is credited to
    /// them any more. Those that no sample has seen are delivered if they are selected as what they were last.
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

/// Gives the record of a process that has ended the identity and the name that it had last.
fn make_latest(record: &mut ProcessRecord, latest: &LatestIdentities, since: Instant, sampler: &Sampler) {
    latest.update(record, since);
    let given = sampler.given_name(&record.sample.id);
    if let Some(name) = given.filter(|name| *name != record.identity.name) {
        record.identity = Arc::new(Identity { name, ..Identity::clone(&record.identity) });
    }
}

/// The record of a process that came and went between two samples, or was not selected by them: who it was, `passed` by what
/// samples knew, and its traffic.
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

/// Takes in who a process was that no sample has seen, if that is known.
fn name(record: &mut ProcessRecord, identity: Option<&Arc<Identity>>) {
    let Some(identity) = identity else { return };
    record.valid |= Validity::USER;
    if !identity.cgroup.is_empty() {
        record.valid |= Validity::CGROUP;
    }
    record.identity = Arc::clone(identity);
}

/// Adds what a process is owed to its record.
fn add(record: &mut ProcessRecord, account: Account) {
    record.traffic += account.traffic;
    record.uncertain_bytes += account.uncertain_bytes();
    add_connections(&mut record.connections, account.connections);
}

#[cfg(test)]
#[path = "merger_tests.rs"]
mod tests;
