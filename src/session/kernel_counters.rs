//! Reads the bytes that eBPF programs count at sockets into the ledger: at every update, and often enough in
//! between that no record of an ended socket waits for long.

use super::flows::{FlowMailbox, NamespacedRecord};
use super::lookup::IdentityCache;
use super::pipeline::CaptureShared;
use crate::blocking::bounded;
use crate::error::{Code, Error, Result};
use crate::kernel::{Clocks, Counters, Credit};
use crate::model::{FlowPhase, Identity, Namespace, ProcId, Traffic, Unowned};
use crate::namespace::{Coverage, NamespaceChoice, current_inode};
use crate::sync::Mutex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tracing::warn;

/// Longest time between two readings by any thread. Records of ended sockets take room until then.
const INTERVAL: Duration = Duration::from_secs(1);

/// The reader of the kernel's counters.
pub struct KernelCounterReader {
    counters: Counters,
    identity_cache: IdentityCache,
    /// Inode of the home namespace.
    home: u64,
    choice: NamespaceChoice,
    coverage: Coverage,
    last: Instant,
    refreshed: Instant,
    /// Bytes in the ledger as pending: those of connections that no process has used yet.
    pending: u64,
    /// Set if the last reading failed, so that the failure is logged once.
    is_broken: bool,
    /// Number of figures that the reader has refused so far.
    refused: u64,
    /// Number of ended flows that the reader has lost so far.
    flows_lost: u64,
    /// Mailbox for flow records, if they were requested.
    flows: Option<Arc<FlowMailbox>>,
    /// Processes credited in this reading whose identities have not been published.
    credited: Vec<(ProcId, Identity)>,
}

impl KernelCounterReader {
    /// Counts in the chosen network namespaces; that of the calling thread is the session's own.
    ///
    /// # Errors
    /// Fails with `SystemResource` if the inode of that namespace cannot be read.
    pub fn new(
        counters: Counters,
        identity_cache: IdentityCache,
        choice: NamespaceChoice,
        flows: Option<Arc<FlowMailbox>>,
    ) -> Result<KernelCounterReader> {
        let home = current_inode().map_err(|errno| {
            Error::system(Code::SystemResource, "reading /proc/thread-self/ns/net", errno)
        })?;
        let now = Instant::now();
        let mut counting = KernelCounterReader {
            counters,
            identity_cache,
            home,
            coverage: Coverage::Every,
            choice,
            last: now,
            refreshed: now,
            pending: 0,
            is_broken: false,
            refused: 0,
            flows_lost: 0,
            flows,
            credited: Vec::new(),
        };
        counting.refresh();
        Ok(counting)
    }

    /// Credits the bytes counted since the last reading.
    pub fn read(&mut self, shared: &CaptureShared) {
        let now = Instant::now();
        self.last = now;
        if now.saturating_duration_since(self.refreshed) >= INTERVAL {
            self.refreshed = now;
            self.refresh();
        }
        let KernelCounterReader { counters, identity_cache, credited, pending, flows, flows_lost, .. } = self;
        let (mut living, mut ended) = (Vec::new(), Vec::new());
        let mut sum = Traffic::default();
        let mut books = shared.ledger.lock();
        let result = counters.read(Clocks::now(), |credit| match credit {
            Credit::Owned(owner, identity, traffic) => {
                sum += traffic;
                books.credit(&owner, traffic);
                let is_last = credited.last().is_some_and(|(last, _)| *last == owner.process);
                if !is_last && !identity_cache.knows(&owner.process) {
                    credited.push((owner.process, identity()));
                }
            }
            Credit::Unowned(reason, traffic) => {
                sum += traffic;
                books.count_unowned(reason, traffic.bytes());
            }
            Credit::Connections(process, news) => {
                if let Some(connections) = books.connections(process) {
                    *connections += news;
                }
            }
            Credit::Flow(record) => {
                let of = if record.phase == FlowPhase::Ended { &mut ended } else { &mut living };
                of.push(NamespacedRecord { namespace: Namespace::HOME, is_translated: false, record });
            }
        });
        if let Some(flows) = flows {
            flows.add_ended(&mut ended);
            flows.put(living);
            flows.add_lost(counters.flows_lost() - std::mem::replace(flows_lost, counters.flows_lost()));
        }
        books.uncount_unowned(Unowned::Pending, *pending);
        *pending = counters.pending();
        books.count_unowned(Unowned::Pending, *pending);
        drop(books);
        let mut counts = shared.counts.lock();
        counts.frames.frames += sum.send_packets + sum.receive_packets;
        counts.frames.bytes += sum.bytes();
        counts.flows.held = counters.held();
        drop(counts);
        for (process, identity) in self.credited.drain(..) {
            self.identity_cache.publish_as(process, identity, &shared.ledger);
        }
        let refused = std::mem::replace(&mut self.refused, self.counters.refused());
        if refused == 0 && self.refused > 0 {
            warn!("the kernel's record of a socket has an impossible counter; its bytes are not counted");
        }
        match result {
            Ok(()) => self.is_broken = false,
            Err(error) if !self.is_broken => {
                self.is_broken = true;
                warn!("reading the kernel's counters failed: {error}");
            }
            Err(_) => {}
        }
    }

    /// Returns true if sockets changed hands before the last reading. Then the next reading may bring bytes
    /// of processes that have ended since.
    pub fn has_moved(&self) -> bool {
        self.counters.has_moved()
    }

    /// Returns the namespaces that were counted in at the last reading.
    pub fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// Updates the set of those chosen namespaces that exist now.
    fn refresh(&mut self) {
        let (choice, home) = (self.choice.clone(), self.home);
        let inodes = match choice.is_wide() {
            true => bounded("capture-scan", move || choice.inodes(home)),
            false => Ok(choice.inodes(home)),
        };
        // If opening a path does not return, the coverage stays as it was.
        let Ok(inodes) = inodes else { return };
        self.coverage = inodes.clone().into();
        self.counters.set_namespaces(inodes);
    }

    fn is_due(&self) -> bool {
        self.last.elapsed() >= INTERVAL
    }
}

/// Reads from time to time until the session is to end.
pub fn keep_reading(counting: &Mutex<KernelCounterReader>, shared: &Arc<CaptureShared>) {
    let Some(stop) = shared.stop_event() else { return };
    while !shared.stopping.load(Ordering::Acquire) {
        let mut stop = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        // poll fails only if it is interrupted, and the loop is right then, too.
        let _ = poll(&mut stop, PollTimeout::from(INTERVAL.as_millis() as u16));
        let mut counting = counting.lock();
        if counting.is_due() {
            counting.read(shared);
        }
    }
}
