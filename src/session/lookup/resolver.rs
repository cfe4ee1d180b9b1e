//! The resolver thread, which finds owners beside the capture. It takes requests, resolves them in batches,
//! and leaves the answers for the capture thread.

use super::identity_cache::IdentityCache;
use super::kernel_owners::KernelOwners;
use super::lookup_queue::{Answer, LookupQueue, Request};
use crate::kernel::{Claim, Clocks, Found};
use crate::model::{Quality, Unowned};
use crate::namespace::Known;
use crate::owner::{EarlyOwner, EarlyOwnerCache, Finder, LocalEnd, Outcome, Query, Report, SourceStatus};
use crate::session::accounting::Ledger;
use crate::session::pipeline::DrainBarrier;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// Number of open requests above which those about unanswered flows are given up early.
const CROWD: usize = 4096;

/// Limit of the requests resolved together. A batch shares one reading of the tables.
const BATCH: usize = 4096;

/// Longest wait while the resolver has a socket open in another namespace, which keeps that namespace alive.
const HOLDING_WAIT: Duration = Duration::from_secs(1);

/// Longest wait while eBPF programs record sockets, since these records have to be released from time to
/// time.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The state of the resolver.
pub struct Resolver {
    finder: Finder,
    early: Arc<EarlyOwnerCache>,
    identity_cache: IdentityCache,
    known: Known,
    /// The records of sockets and their users, if eBPF programs make them.
    kernel: Option<KernelOwners>,
    /// Set if nothing is looked up.
    is_disabled: bool,
    /// Open requests and their queries, index by index.
    requests: Vec<Request>,
    queries: Vec<Query>,
    /// Indexes of the queries whose socket no process has used since it was created.
    unused: Vec<usize>,
    /// The states of the sources when their faults were last logged.
    sources: Vec<SourceStatus>,
    /// The number of evictions that was logged last.
    evicted: u64,
}

impl Resolver {
    /// Returns a resolver that answers from `early`, and otherwise with `finder`, also for the namespaces
    /// of `known`.
    pub fn new(
        mut finder: Finder,
        early: Arc<EarlyOwnerCache>,
        identity_cache: IdentityCache,
        known: Known,
    ) -> Resolver {
        finder.follow(known.clone());
        Resolver {
            finder,
            early,
            identity_cache,
            known,
            kernel: None,
            is_disabled: false,
            requests: Vec::new(),
            queries: Vec::new(),
            unused: Vec::new(),
            sources: Vec::new(),
            evicted: 0,
        }
    }

    /// From now on, reads the eBPF programs' records before anything else.
    pub fn ask_records(&mut self, kernel: KernelOwners) {
        self.kernel = Some(kernel);
    }

    /// From now on, looks nothing up: flows have no owner.
    pub fn disable(&mut self) {
        self.is_disabled = true;
    }

    /// Answers requests until the queue is closed, beginning with those of an abandoned resolver.
    pub fn run(mut self, queue: &LookupQueue, ledger: &Ledger, barrier: &DrainBarrier) {
        queue.recover();
        self.finder.prepare(Instant::now());
        self.log_faults();
        let mut deadline = self.kernel.is_some().then(|| Instant::now() + SWEEP_INTERVAL);
        while let Some(new) = queue.take_requests(deadline, BATCH) {
            let untried = new.len();
            self.finder.follow_namespaces();
            let now = Instant::now();
            for (request, asked) in new {
                self.requests.push(request);
                let mut query = Query::new(request.key, asked).with_local_end(request.local_end);
                // A socket found by its local endpoint alone is no answer for packets that may be another
                // host's.
                let is_own = request.local_end == LocalEnd::Own;
                if self.is_disabled {
                    query.outcome = Outcome::Unowned(Unowned::NoSocket);
                }
                let may_be = |early: &EarlyOwner| is_own || early.owner.quality != Quality::Guessed;
                let early = self.early.get(&request.key, request.first, request.is_over);
                if let Some(early) = early.filter(may_be)
                    && self.finder.learn(&request.key, &early, now)
                {
                    query.answer_early(&early);
                }
                self.queries.push(query);
            }
            self.hurry();
            self.finder.look_behind(&mut self.queries, now);
            let mut listeners = self.ask_kernel(now, ledger);
            while self.finder.find(&mut self.queries, now) {
                listeners.extend(self.ask_kernel(now, ledger));
            }
            self.retry_unused(now);
            self.log_faults();
            for (index, found) in listeners {
                if let Some(query) = self.queries.get_mut(index)
                    && !matches!(query.outcome, Outcome::Owned(_))
                {
                    self.identity_cache.publish_as(found.owner.process, found.identity, ledger);
                    query.outcome = Outcome::Owned(found.owner);
                }
            }
            for query in &self.queries {
                if let Outcome::Owned(owner) = query.outcome {
                    self.identity_cache.publish(owner.process, ledger);
                }
            }
            self.hand_out(queue, untried);
            self.release_records(queue);
            barrier.wake();
            let let_go = self.finder.has_other_namespaces().then(|| now + HOLDING_WAIT);
            let sweep = self.kernel.is_some().then(|| now + SWEEP_INTERVAL);
            deadline = self.next_look(now).into_iter().chain(let_go).chain(sweep).min();
        }
    }

    /// Marks the requests about unanswered flows as hurried in a crowd of requests, so that they are given up
    /// early.
    fn hurry(&mut self) {
        let is_crowd = self.queries.len() > CROWD;
        for (query, request) in self.queries.iter_mut().zip(&self.requests) {
            query.set_hurried(is_crowd && !request.is_answered);
        }
    }

    /// Answers the due queries that the eBPF programs' records can answer. If no process has used a socket
    /// since its listener created it, the query is retried, like one whose socket is not found. If no process
    /// has used a socket since it was created, its holder is searched for. In the end the records' answer
    /// stands; for a listener's socket only if no holder is found. These answers are returned with the
    /// indexes of their queries.
    fn ask_kernel(&mut self, now: Instant, ledger: &Ledger) -> Vec<(usize, Found)> {
        let mut listeners = Vec::new();
        let Some(kernel) = &mut self.kernel else {
            self.drop_those_over(now);
            return listeners;
        };
        let clocks = Clocks::now();
        for (index, (query, request)) in self
            .queries
            .iter_mut()
            .zip(&self.requests)
            .enumerate()
            .filter(|(_, (query, _))| query.is_due(now) && !query.is_known_missing())
        {
            let found = kernel.find(request, &query.key, &self.known, &clocks, query.first_seen());
            let Some(found) = found else { continue };
            match found.claim {
                Claim::Listener if !query.is_seasoned() => query.not_yet(now),
                Claim::Listener if !request.is_over => listeners.push((index, found)),
                Claim::Creator if !query.is_seasoned() => self.unused.push(index),
                _ => {
                    self.identity_cache.publish_as(found.owner.process, found.identity, ledger);
                    query.outcome = Outcome::Owned(found.owner);
                }
            }
        }
        self.drop_those_over(now);
        listeners
    }

    /// Retries the queries of sockets that no process has used yet and whose holder is ambiguous among
    /// sockets bound to the same port. The first call on the socket will resolve it.
    fn retry_unused(&mut self, now: Instant) {
        for index in self.unused.drain(..) {
            if let Some(query) = self.queries.get_mut(index)
                && query.outcome == Outcome::Unowned(Unowned::Ambiguous)
            {
                query.not_yet(now);
            }
        }
    }

    /// Releases the kernel's records that no request needs any more.
    fn release_records(&self, queue: &LookupQueue) {
        let Some(kernel) = &self.kernel else { return };
        if let Err(error) = kernel.sweep(&Clocks::now(), queue.waited()) {
            debug!("releasing the kernel's records of closed sockets failed: {error}");
        }
    }

    /// Ends the due queries of flows that are over. Only the records and the early lookup know their owners.
    fn drop_those_over(&mut self, now: Instant) {
        let asked = self.queries.iter_mut().zip(&self.requests);
        for (query, request) in asked.filter(|(query, request)| request.is_over && query.is_due(now)) {
            let reason =
                if request.local_end == LocalEnd::Own { Unowned::NoSocket } else { Unowned::NotLocal };
            query.outcome = Outcome::Unowned(reason);
        }
    }

    /// Leaves the final answers in the queue and keeps the other queries.
    fn hand_out(&mut self, queue: &LookupQueue, untried: usize) {
        let mut answers = Vec::new();
        let mut index = 0;
        let mut under_way = queue.under_way.lock();
        under_way.untried -= untried;
        while let (Some(query), Some(request)) = (self.queries.get(index), self.requests.get(index)) {
            let owner = match query.outcome {
                Outcome::Owned(owner) => Ok(owner),
                Outcome::Unowned(reason) => Err(reason),
                Outcome::Retry { .. } => {
                    index += 1;
                    continue;
                }
            };
            answers.push(Answer { flow: request.flow, owner, is_translated: query.is_translated() });
            self.queries.swap_remove(index);
            self.requests.swap_remove(index);
            under_way.requests.swap_remove(index);
        }
        drop(under_way);
        if !answers.is_empty() {
            debug!(answered = answers.len(), waiting = self.queries.len(), "owners looked up");
        }
        let answered = answers.len();
        // Answers are available before their requests stop counting; see `tried` and `is_idle`.
        queue.answers.lock().append(&mut answers);
        queue.open.fetch_sub(answered, Ordering::Release);
        queue.tried.fetch_add(untried as u64, Ordering::Release);
    }

    /// Returns the time at which the first waiting query is to be retried.
    fn next_look(&self, now: Instant) -> Option<Instant> {
        let waits = self.queries.iter().filter_map(|query| match query.outcome {
            Outcome::Retry { after, .. } => Some(query.due().max(now + after)),
            _ => None,
        });
        // Not earlier than a timer is worth setting for.
        waits.min().map(|due| due.max(now + Duration::from_millis(1)))
    }

    /// Logs the faults of the sources, each once until it changes, and evictions.
    fn log_faults(&mut self) {
        let Report { sources, evicted, .. } = self.finder.report();
        if evicted > self.evicted {
            debug!(evicted, "caches of the owner search are full");
            self.evicted = evicted;
        }
        for source in sources.iter().filter(|source| !self.sources.contains(source)) {
            if let Some(fault) = &source.fault {
                warn!(source = source.name, fault = %fault, "owner lookups are incomplete");
            }
        }
        self.sources = sources;
    }
}

#[cfg(test)]
#[path = "resolver_tests.rs"]
mod tests;
