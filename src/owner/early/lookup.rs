//! Finds the owner at a flow's first packet, while its socket lives: an exact lookup of the socket, then a
//! short search for the process among the likely candidates.
//!
//! Each attempt takes some microseconds and a bounded number of system calls. The remaining flows are left to
//! the thorough search of [`crate::owner::Finder`], whose findings in turn are hints for this search.

use super::candidates::Side;
use super::owner_cache::{EarlyOwner, EarlyOwnerCache};
use super::search::{Search, Sought};
use crate::model::tcp_state::{LISTEN, may_be_accepted};
use crate::model::{FlowKey, Owner, ProcId, Quality, Timestamp};
use crate::namespace::{Known, PerNamespace};
use crate::netlink::{Happening, InetDiag, InetSocket, ProcessEvent};
use crate::owner::search_exchange::{Finding, SearchExchange};
use crate::owner::translation::{Behind, Translations};
use crate::proc::ProcRoot;
use nix::errno::Errno;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::warn;

/// The times of the attempts for the socket that opens a connection, counted from its first packet: at once,
/// because the connection may close in a moment; and again if the search for its process was cut short.
const OPENER: [Duration; 3] = [Duration::ZERO, Duration::from_micros(500), Duration::from_millis(5)];
/// The times of the attempts for the called end: a socket gets its inode when the server accepts the
/// connection, which may close a tenth of a millisecond later.
const CALLED: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_micros(60),
    Duration::from_micros(130),
    Duration::from_micros(300),
    Duration::from_millis(2),
    Duration::from_millis(20),
];
/// The limit of flows that wait for a further attempt. Flows beyond it are left to the thorough search.
const MAX_WAITING: usize = 4096;
/// The limit of flows whose first packet was seen recently, so that a packet that passes several devices is
/// looked up once.
const MAX_SEEN: usize = 1024;

/// Counts of the early lookup so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EarlyLookupStats {
    /// First packets seen.
    pub packets: u64,
    /// Owners found.
    pub found: u64,
    /// Flows whose socket no longer existed.
    pub too_late: u64,
    /// Flows whose socket existed, but whose process was not found among the candidates.
    pub not_found: u64,
    /// First packets dropped because the waiting list was full.
    pub crowded_out: u64,
    /// Recorded properties of candidates that were evicted because there were too many.
    pub candidates_evicted: u64,
}

/// The first packet of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// The flow.
    pub key: FlowKey,
    /// The end of the flow that is on this host.
    pub side: Side,
    /// The index of the device on which the packet was seen, or 0.
    pub device: u32,
    /// The sequence number of TCP, which distinguishes a repeated packet from another connection's.
    pub sequence: Option<u32>,
    /// The time at which the packet was captured.
    pub time: Timestamp,
}

/// A flow that waits for an attempt.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    opening: Opening,
    first: Instant,
    looks: usize,
}

impl Waiting {
    fn schedule(&self) -> &'static [Duration] {
        match self.opening.side {
            Side::Opener => &OPENER,
            Side::Called => &CALLED,
        }
    }

    /// Returns the time of the next attempt; `None` after the last one.
    fn due(&self) -> Option<Instant> {
        self.schedule().get(self.looks).map(|&delay| self.first + delay)
    }
}

/// The result of one attempt.
enum LookupResult {
    Owner {
        owner: Owner,
        /// Set if the socket has other endpoints than the flow has on the wire.
        is_translated: bool,
    },
    /// There is no such socket, and there will not be.
    Gone,
    /// The socket is not accepted yet, or its process is not found yet.
    Later,
}

/// The sources for the sockets of a namespace.
struct NamespaceSockets {
    diag: InetDiag,
    translations: Translations,
}

impl NamespaceSockets {
    /// Finds the socket of a flow, also behind translated addresses or bound to the device, and the endpoints
    /// by which it was found.
    fn find(&mut self, key: &FlowKey, device: u32, now: Instant) -> Option<(InetSocket, FlowKey)> {
        let devices = if device == 0 { 1 } else { 2 };
        for device in [0, device].into_iter().take(devices) {
            let found = self.diag.find_on(key, device).ok()?;
            if let Some(socket) = found.filter(|socket| socket.state != LISTEN) {
                return Some((socket, *key));
            }
        }
        // A connection that is being opened would have been found instead of the listener.
        let Behind::Socket(own) = self.translations.behind(key, now) else { return None };
        let found = self.diag.find(&own).ok()??;
        (found.state != LISTEN).then_some((found, own))
    }
}

/// The early lookup. One thread owns it.
pub struct EarlyLookup {
    early: Arc<EarlyOwnerCache>,
    exchange: Arc<SearchExchange>,
    root: Arc<ProcRoot>,
    sockets: PerNamespace<NamespaceSockets>,
    search: Search,
    waiting: BTreeMap<(Instant, u64), Waiting>,
    number: u64,
    seen: VecDeque<(Opening, Instant)>,
    stats: EarlyLookupStats,
}

impl EarlyLookup {
    /// Returns a search in a `/proc` tree that records its findings in `early`.
    pub fn new(
        root: Arc<ProcRoot>,
        early: Arc<EarlyOwnerCache>,
        exchange: Arc<SearchExchange>,
    ) -> EarlyLookup {
        EarlyLookup {
            early,
            exchange,
            root: Arc::clone(&root),
            sockets: PerNamespace::default(),
            search: Search::new(root),
            waiting: BTreeMap::new(),
            number: 0,
            seen: VecDeque::new(),
            stats: EarlyLookupStats::default(),
        }
    }

    /// Looks up the sockets of the session's own namespace with `diag`, and behind its `translations`, from
    /// now on.
    pub fn ask_kernel(&mut self, diag: InetDiag, translations: Translations) {
        self.sockets.set_home(NamespaceSockets { diag, translations });
    }

    /// Looks up the sockets of the other namespaces of `known`, too, as far as
    /// [`EarlyLookup::follow_namespaces`] has opened them.
    pub fn follow(&mut self, known: Known) {
        self.sockets.set_known(known);
    }

    /// Follows namespaces that appear and disappear.
    pub fn follow_namespaces(&mut self) {
        let root = &self.root;
        let open = || {
            let (diag, translations) = (InetDiag::open()?, Translations::open(Arc::clone(root), false));
            Ok(NamespaceSockets { diag, translations })
        };
        self.sockets.follow_inside(open, |entry, errno: Errno| {
            warn!("sockets in {} are not looked up early: {errno}", entry.path.display());
        });
    }

    /// Returns the socket of a connection as [`InetDiag::find`] does.
    ///
    /// # Errors
    /// Fails as [`InetDiag::find`] does; with `ENOTCONN` if the sockets of the namespace cannot be looked up.
    pub fn find_socket(&mut self, key: &FlowKey) -> nix::Result<Option<InetSocket>> {
        self.sockets.get_mut(key.namespace).ok_or(Errno::ENOTCONN)?.diag.find(key)
    }

    /// Sets whether every event is reported to [`EarlyLookup::process_event`] from now on.
    pub fn tell_events(&mut self, are_told: bool) {
        self.search.tell_ends(are_told);
        self.exchange.tell_starts(are_told);
    }

    /// Records that events were lost.
    pub fn missed_events(&mut self) {
        self.search.likely.forget_identities();
        self.exchange.missed_starts();
    }

    /// Records the identity of a process that was reported a moment ago.
    pub fn identify(&mut self, process: ProcId) {
        self.search.identify(process);
    }

    /// Records an event of a process.
    pub fn process_event(&mut self, event: &ProcessEvent, now: Instant) {
        match event.happening {
            Happening::Fork { parent } => {
                self.search.likely.forked(event.pid, parent, now);
                self.exchange.started(event.pid);
            }
            Happening::Exec => self.search.likely.became_another(event.pid, now),
            Happening::Ids | Happening::Renamed => {}
            Happening::Exit => self.search.likely.ended(event.pid),
        }
    }

    /// Takes the findings of the thorough search and of the process samples since the last call.
    pub fn learn(&mut self) {
        let taken = self.exchange.take();
        let likely = &mut self.search.likely;
        for Finding { key, side, pid, descriptor, uid } in taken.findings {
            likely.found(&key, side, pid, descriptor, uid);
        }
        taken.crowd.into_iter().for_each(|crowd| likely.set_crowd(crowd));
        taken.busy.into_iter().for_each(|busy| likely.set_busy(busy));
    }

    /// Records a first packet that was seen just now. [`EarlyLookup::look`] looks up its flow.
    pub fn packet(&mut self, opening: Opening, now: Instant) {
        let is_recent = |(_, at): &&(Opening, Instant)| now.saturating_duration_since(*at) < REPEATED;
        let is_same = |known: &Opening| (known.key, known.sequence) == (opening.key, opening.sequence);
        if self.seen.iter().rev().take_while(is_recent).any(|(known, _)| is_same(known)) {
            return;
        }
        self.seen.push_back((opening, now));
        if self.seen.len() > MAX_SEEN {
            self.seen.pop_front();
        }
        self.stats.packets += 1;
        if self.waiting.len() >= MAX_WAITING {
            self.stats.crowded_out += 1;
            self.early.miss(opening.key, opening.time, now);
            return;
        }
        self.wait(Waiting { opening, first: now, looks: 0 }, now);
    }

    /// Looks up the flows that are due at `now`, passes each owner found to `each`, and returns the time of
    /// the next attempt.
    pub fn look(&mut self, now: Instant, mut each: impl FnMut(&FlowKey, &Owner)) -> Option<Instant> {
        while let Some(entry) = self.waiting.first_entry() {
            let (due, _) = *entry.key();
            if due > now {
                return Some(due);
            }
            let mut waiting = entry.remove();
            match self.sight(&waiting, now) {
                LookupResult::Owner { owner, is_translated } if !self.is_followed(&waiting.opening) => {
                    self.stats.found += 1;
                    let Opening { key, side, time, .. } = waiting.opening;
                    self.early.insert(key, EarlyOwner { owner, side, is_translated, seen: time }, now);
                    each(&key, &owner);
                }
                LookupResult::Owner { .. } | LookupResult::Gone => {
                    self.stats.too_late += 1;
                    self.early.miss(waiting.opening.key, waiting.opening.time, now);
                }
                LookupResult::Later => {
                    waiting.looks += 1;
                    self.wait(waiting, now);
                }
            }
        }
        None
    }

    /// Expires the owners that no lookup will need any more.
    pub fn expire(&self, now: Instant) {
        self.early.expire(now);
    }

    /// The counts so far.
    pub fn stats(&self) -> EarlyLookupStats {
        EarlyLookupStats { candidates_evicted: self.search.likely.evicted(), ..self.stats }
    }

    fn wait(&mut self, waiting: Waiting, now: Instant) {
        let Some(due) = waiting.due() else {
            self.stats.not_found += 1;
            self.early.miss(waiting.opening.key, waiting.opening.time, now);
            return;
        };
        self.number += 1;
        self.waiting.insert((due, self.number), waiting);
    }

    /// Returns true if another connection has since begun between the same endpoints: the socket there is
    /// that connection's.
    fn is_followed(&self, opening: &Opening) -> bool {
        let latest = self.seen.iter().rev().find(|(known, _)| known.key == opening.key);
        latest.is_some_and(|(latest, _)| latest.sequence != opening.sequence)
    }

    fn sight(&mut self, waiting: &Waiting, now: Instant) -> LookupResult {
        let Opening { key: wire, side, device, .. } = waiting.opening;
        let Some(sockets) = self.sockets.get_mut(wire.namespace) else { return LookupResult::Gone };
        let Some((socket, key)) = sockets.find(&wire, device, now) else { return LookupResult::Gone };
        if socket.inode == 0 {
            return if side == Side::Called && may_be_accepted(socket.state) {
                LookupResult::Later
            } else {
                LookupResult::Gone
            };
        }
        let quality = if socket.remote.port == 0 { Quality::Guessed } else { Quality::Exact };
        let (inode, uid) = (socket.inode, socket.uid);
        match self.search.holder(&Sought { key, side, inode, uid }, now) {
            Some((process, is_shared)) => {
                let is_exact = quality == Quality::Exact;
                let quality = if is_exact && is_shared { Quality::Shared } else { quality };
                LookupResult::Owner { owner: Owner { process, quality }, is_translated: key != wire }
            }
            None => LookupResult::Later,
        }
    }
}

/// The time within which a packet of the same flow, with the same sequence number, is the same packet on
/// another device, or a repetition.
const REPEATED: Duration = Duration::from_millis(50);

#[cfg(test)]
#[path = "lookup_tests.rs"]
mod tests;
