//! Finds the owner of a flow: the process behind the flow's local endpoint.
//!
//! The local endpoint of a flow has a socket, and the socket has holders: processes with a descriptor of it.
//! Two searches, each on its own thread, share their findings through [`SearchExchange`]:
//!
//! - [`EarlyLookup`] receives the first packet of each flow at once. It looks up that socket in the kernel,
//!   searches for it among the likely candidates within some hundred system calls, and records the owners
//!   that it finds in [`EarlyOwnerCache`].
//! - [`Finder`] answers the remaining queries through a chain of sources of sockets (sock_diag(7), the tables
//!   of `/proc/net`) and of holders (the descriptors of `/proc/<pid>/fd`), best first. Each source is probed
//!   at the start. A source that fails passes the query on to the next. All reads stay within a [`Budget`] of
//!   CPU time; nothing here waits.
//!
//! # Choice of the owner
//!
//! - One process holds the socket with the flow's two endpoints: [`Quality::Exact`].
//! - Several processes hold it (fork, passed descriptors, socket activation): the owner is the youngest that
//!   is not process 1, and the one with the higher pid among equally old ones: [`Quality::Shared`].
//! - There is no such socket, but an unconnected one is bound to the local endpoint: the most specific
//!   address wins. The owner of one such socket is chosen as above, with [`Quality::Guessed`] in place of
//!   exact. Several of them (`SO_REUSEPORT`) have an owner only if the same process holds them all; otherwise
//!   the flow is [`Unowned::Ambiguous`]. If a group's packets reach several sockets, each of which receives a
//!   copy, the owner is the youngest process: [`Quality::Shared`].
//! - A TCP connection has no socket with an inode although there is a listener on its port, even after
//!   retries for a while (it is not yet accepted, or has already closed), or packets belong to a protocol for
//!   which there is a raw socket: the owner is the one process that holds the listener or raw socket, not
//!   counting process 1, [`Quality::Guessed`]; the youngest of several, [`Quality::Shared`].
//! - No socket exists any more: the owner is the only process that was found within the last minute to call
//!   the same remote endpoint, or to be called at the same local endpoint, if it lived when the flow began:
//!   [`Quality::Guessed`].
//!
//! # Translated addresses
//!
//! A flow without a socket of its own may belong to a container whose address the host has replaced by one of
//! its own, or to a process whose socket has other endpoints than the packets on the wire. So the finder
//! checks [`Translations`] before it trusts anything but the flow's own socket. The result is either the
//! socket's pair of endpoints, by which the finder then looks up the flow, or another host:
//! [`Unowned::NotLocal`]. If the translation cannot be determined although packets are forwarded, the finder
//! neither takes a listener for the owner nor makes a guess.
//!
//! A flow whose local address is this host's only for packets that a routing rule selects (TPROXY) is looked
//! up if it has a socket of its own. Otherwise it is forwarded: it becomes [`Unowned::NotLocal`] and is not
//! retried. The same holds for a flow by which a group receives packets that were sent from here, if no
//! socket here has joined the group and bound the port.
//!
//! # Capabilities
//!
//! The tables need none. Translated addresses need `CAP_NET_ADMIN`. Other users' descriptors need
//! `CAP_DAC_READ_SEARCH` to be listed and `CAP_SYS_PTRACE` to be read; without them, and with `hidepid`,
//! flows of other users end as [`Unowned::NotPermitted`].
//!
//! # Memory
//!
//! At most 262,144 sockets of each table (14 MiB a table; a table is read when a flow needs it), 262,144
//! pairs of socket and holder for each of the two searches (8.5 MiB each), 65,536 owners found early (15
//! MiB), 16,384 endpoints with the process seen there (2 MiB), and for the duration of one call at most 128
//! candidates for each query. The [`Report`] counts the sockets and holders that exceeded the limits of the
//! finder, [`EarlyOwnerCache::evicted`] the owners.

mod budget;
mod decision;
mod early;
mod endpoint_owners;
mod holders;
mod namespace_sources;
mod query;
mod search_exchange;
mod sockets;
mod source;
mod translation;

#[cfg(test)]
mod made_up;

pub use budget::{Budget, Meter, ThreadMeter};
pub use early::{EarlyLookup, EarlyLookupStats, EarlyOwner, EarlyOwnerCache, Opening, Side};
pub use query::{LocalEnd, Outcome, Query};
pub use search_exchange::SearchExchange;
pub use sockets::{SocketRow, parse_table};
pub use source::{Report, SourceStatus};
pub use translation::{Behind, Translations};

use crate::model::{FlowKey, Namespace, Owner, ProcId, Quality, Unowned};
use crate::namespace::{Known, PerNamespace};
use crate::netlink::InetDiag;
use crate::proc::ProcRoot;
use crate::process::proc_id;
use decision::{Decision, decide};
use endpoint_owners::EndpointOwners;
use holders::Descriptors;
use namespace_sources::{NamespaceSources, is_always_looped};
use query::RetryPolicy;
use search_exchange::Finding;
use sockets::{Groups, SockDiag, Tables};
use source::{CandidateSocket, Held, Holder, HolderSource, Looked, Match, SocketSource, Turn, Wanted};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// Finds the owners of flows. One thread at a time calls it, always in the home namespace.
pub struct Finder {
    root: Arc<ProcRoot>,
    budget: Budget,
    exchange: Arc<SearchExchange>,
    endpoint_owners: EndpointOwners,
    namespaces: PerNamespace<NamespaceSources>,
    holders: Vec<Box<dyn HolderSource>>,
    plans: Vec<CandidateSockets>,
    /// Indexes of the queries whose flows have no socket.
    missing: Vec<usize>,
    candidates: Vec<CandidateSocket>,
    wanted: Vec<Wanted>,
    /// The process that was checked last, the time of that check, and its result.
    lived: Option<(ProcId, Instant, bool)>,
    stat: Vec<u8>,
}

/// The sockets that may own a query's flow.
struct CandidateSockets {
    query: usize,
    by: Match,
    listener: Option<u64>,
    candidates: Range<usize>,
}

impl Finder {
    /// Probes the sources of a `/proc` tree. Unreadable sources are listed in the [`Report`]; if no source is
    /// readable, every flow gets a reason for having no owner. `exchange` connects the finder with the early
    /// lookup.
    pub fn new(root: Arc<ProcRoot>, budget: Budget, exchange: Arc<SearchExchange>) -> Finder {
        let sockets: Vec<Box<dyn SocketSource>> = vec![Box::new(Tables::of_this_thread(&root))];
        let holders: Vec<Box<dyn HolderSource>> =
            vec![Box::new(Descriptors::probe(&root, Arc::clone(&exchange)))];
        Finder::with_sources(root, budget, exchange, sockets, holders)
    }

    fn with_sources(
        root: Arc<ProcRoot>,
        budget: Budget,
        exchange: Arc<SearchExchange>,
        sockets: Vec<Box<dyn SocketSource>>,
        holders: Vec<Box<dyn HolderSource>>,
    ) -> Finder {
        let groups = Some(Groups::of_this_thread(&root));
        let mut namespaces = PerNamespace::default();
        namespaces.set_home(NamespaceSources { sockets, groups, translations: None });
        Finder {
            root,
            budget,
            exchange,
            endpoint_owners: EndpointOwners::default(),
            namespaces,
            holders,
            plans: Vec::new(),
            missing: Vec::new(),
            candidates: Vec::new(),
            wanted: Vec::new(),
            lived: None,
            stat: Vec::new(),
        }
    }

    /// Makes the kernel the preferred source from now on, through `diag`, which was opened in the home
    /// namespace.
    pub fn ask_kernel(&mut self, diag: InetDiag) {
        if let Some(home) = self.namespaces.get_mut(Namespace::HOME) {
            home.sockets.insert(0, Box::new(SockDiag::new(diag)));
        }
    }

    /// Resolves the translated addresses of the home namespace through `translations`.
    pub fn translate(&mut self, translations: Translations) {
        if let Some(home) = self.namespaces.get_mut(Namespace::HOME) {
            home.translations = Some(translations);
        }
    }

    /// Serves the flows of the other namespaces of `known`, too, as far as [`Finder::follow_namespaces`] has
    /// opened their sources.
    pub fn follow(&mut self, known: Known) {
        self.namespaces.set_known(known);
    }

    /// Follows namespaces that appear and disappear.
    pub fn follow_namespaces(&mut self) {
        let root = &self.root;
        self.namespaces.follow(|entry| Some(NamespaceSources::open(entry, root)));
    }

    /// Returns true if sources of another namespace than the home namespace are open. They keep that
    /// namespace alive.
    pub fn has_other_namespaces(&self) -> bool {
        self.namespaces.has_others()
    }

    /// Reads the present holders before the first query, as far as the budget allows.
    pub fn prepare(&mut self, now: Instant) {
        self.budget.begin(now);
        let turn = Turn { root: &self.root, now, budget: &self.budget };
        for source in &mut self.holders {
            source.prepare(&turn);
        }
        self.budget.settle();
    }

    /// Records the owner of a flow that was found early, and returns true if it is right. A socket that was
    /// found by the flow's endpoints may have other flows than one whose addresses are translated.
    pub fn learn(&mut self, key: &FlowKey, early: &EarlyOwner, now: Instant) -> bool {
        let is_certain = early.is_translated
            || early.owner.quality != Quality::Guessed && !self.may_translate(key.namespace, now);
        let is_right = is_certain || !matches!(self.behind(key, now), Behind::Socket(_) | Behind::Elsewhere);
        if is_right {
            self.endpoint_owners.note(key, early.side, Some(early.owner.process), now);
        }
        is_right
    }

    fn may_translate(&mut self, namespace: Namespace, now: Instant) -> bool {
        self.translations(namespace).is_some_and(|translations| translations.may_translate(now))
    }

    /// Looks up the endpoints of the sockets behind all `queries` that are due at `now`, in the namespaces
    /// where addresses may be translated. Each is looked up once for a `now`.
    pub fn look_behind(&mut self, queries: &mut [Query], now: Instant) {
        for query in queries.iter_mut().filter(|query| query.is_due(now) && !query.is_known_missing()) {
            if self.may_translate(query.key.namespace, now) {
                self.look_behind_one(query, now);
            }
        }
    }

    /// Looks up the endpoints of the socket behind a query, unless that was done at `now` or with success.
    /// Returns true if there are other endpoints: of a socket, or of another host, which is the answer.
    fn look_behind_one(&mut self, query: &mut Query, now: Instant) -> bool {
        if query.is_translated() || query.local_end != LocalEnd::Own || query.looked_behind == Some(now) {
            return false;
        }
        query.looked_behind = Some(now);
        let behind = self.behind(&query.key, now);
        match behind {
            Behind::Socket(key) => query.translate(key),
            Behind::Elsewhere => query.outcome = Outcome::Unowned(Unowned::NotLocal),
            Behind::Same | Behind::Unknown => query.is_own = behind == Behind::Same,
        }
        matches!(behind, Behind::Socket(_) | Behind::Elsewhere)
    }

    fn behind(&mut self, key: &FlowKey, now: Instant) -> Behind {
        self.translations(key.namespace).map_or(Behind::Same, |translations| translations.behind(key, now))
    }

    fn translations(&mut self, namespace: Namespace) -> Option<&mut Translations> {
        self.namespaces.get_mut(namespace)?.translations.as_mut()
    }

    /// Looks up the owners of all `queries` that are due at `now` and sets their outcomes.
    ///
    /// The batch is answered together: each socket table is read at most once, and only if a flow needs it
    /// that was first seen after the table was last read; the descriptors of all processes are read at most
    /// once. Reads that the budget does not allow yet are put off. `now` must not be later than the call.
    ///
    /// Returns true if sockets of some of the flows turned out to have other endpoints than the flows have on
    /// the wire. Their queries then carry the socket's endpoints and are due.
    pub fn find(&mut self, queries: &mut [Query], now: Instant) -> bool {
        self.budget.begin(now);
        self.look_behind(queries, now);
        self.plans.clear();
        self.candidates.clear();
        let mut has_translated = false;
        for (index, query) in queries.iter_mut().enumerate().filter(|(_, query)| query.is_due(now)) {
            has_translated |= self.plan(index, query, now);
        }
        self.budget.exempt();
        self.want(queries);
        if !self.wanted.is_empty() {
            let turn = Turn { root: &self.root, now, budget: &self.budget };
            for source in &mut self.holders {
                source.look_up(&mut self.wanted, &turn);
            }
        }
        for plan in &self.plans {
            let candidates = self.candidates.get(plan.candidates.clone()).unwrap_or_default();
            let Some(query) = queries.get_mut(plan.query) else { continue };
            let is_indirect = matches!(plan.by, Match::Indirect | Match::Listening);
            let is_called = plan.listener.is_some() || is_indirect;
            let side = if is_called { Side::Called } else { Side::Opener };
            let is_group = query.key.local.address.is_multicast();
            let decision = decide(plan.by, is_group, candidates, &self.wanted);
            if let Decision::Owner(_, Holder { process, descriptor, .. }) = decision
                && let (Some(socket), true) = (candidates.first(), !is_indirect)
            {
                let finding = Finding { key: query.key, side, pid: process.pid, descriptor, uid: socket.uid };
                self.exchange.add_finding(finding);
            }
            match decision {
                Decision::Owner(owner, _) => query.outcome = Outcome::Owned(owner),
                Decision::None(Unowned::Ambiguous) => query.outcome = Outcome::Unowned(Unowned::Ambiguous),
                // A process that is ending can no longer be read, and its sockets will be gone in a moment.
                Decision::None(reason) => query.failed(reason, RetryPolicy::Usual, now),
                Decision::Busy(after) => query.put_off(after),
            }
            // A socket that is only bound can have many callers and many remote endpoints.
            if plan.by != Match::Bound {
                match decision {
                    Decision::Owner(owner, _) => {
                        self.endpoint_owners.note(&query.key, side, Some(owner.process), now)
                    }
                    // Before that, the missing holder may be a process that is ending.
                    Decision::None(_) if query.is_seasoned() => {
                        self.endpoint_owners.note(&query.key, side, None, now)
                    }
                    Decision::None(_) | Decision::Busy(_) => {}
                }
            }
        }
        // The guess comes last, because it uses the owners that this round has found.
        for index in std::mem::take(&mut self.missing) {
            let Some(query) = queries.get_mut(index) else { continue };
            match self.guess(query, now) {
                Some(owner) => query.outcome = Outcome::Owned(owner),
                None => query.missed(now),
            }
        }
        self.budget.settle();
        has_translated
    }

    /// Returns the counts of reads and work so far, and the fault of each source.
    pub fn report(&self) -> Report {
        let evicted = self.endpoint_owners.evicted() + self.exchange.dropped();
        let mut report = Report { cpu_time: self.budget.spent(), evicted, ..Report::default() };
        for source in self.namespaces.iter().flat_map(|(_, sources)| &sources.sockets) {
            source.report(&mut report);
        }
        for source in &self.holders {
            source.report(&mut report);
        }
        let translations: Vec<&Translations> =
            self.namespaces.iter().filter_map(|(_, sources)| sources.translations.as_ref()).collect();
        report.evicted += translations.iter().map(|translations| translations.evicted()).sum::<u64>();
        if !translations.is_empty() {
            let fault = translations.iter().find_map(|translations| translations.fault()).cloned();
            report.sources.push(SourceStatus { name: "conntrack", fault });
        }
        report
    }

    /// Queries the sources of sockets. Records the candidates of the query or sets its outcome. Returns true
    /// if the query has to be looked up again by other endpoints.
    fn plan(&mut self, index: usize, query: &mut Query, now: Instant) -> bool {
        if query.is_known_missing() {
            self.missing.push(index);
            return false;
        }
        let FlowKey { local, namespace, .. } = query.key;
        let sources = self.namespaces.get_mut(namespace);
        let is_here = match query.local_end {
            LocalEnd::Own => true,
            LocalEnd::Diverted => sources.is_some_and(|sources| sources.takes(&query.key)),
            LocalEnd::Looped => {
                is_always_looped(&local.address)
                    || sources.is_some_and(|sources| sources.loops(query, &self.root, now))
            }
        };
        if !is_here {
            query.outcome = Outcome::Unowned(Unowned::NotLocal);
            return false;
        }
        if query.local_end == LocalEnd::Diverted {
            query.local_end = LocalEnd::Own;
        }
        let start = self.candidates.len();
        let turn = Turn { root: &self.root, now, budget: &self.budget };
        let sources = self.namespaces.get_mut(query.key.namespace);
        let mut looked =
            sources.map_or(Looked::Failed, |sources| sources.look_up(query, &turn, &mut self.candidates));
        if query.local_end == LocalEnd::Looped && looked == Looked::Missing {
            self.candidates.truncate(start);
            query.outcome = Outcome::Unowned(Unowned::NotLocal);
            return false;
        }
        if looked.is_doubtful() && self.look_behind_one(query, now) {
            self.candidates.truncate(start);
            return query.is_translated();
        }
        // A listener proves nothing about a flow that may belong to another host.
        if !query.is_own
            && matches!(
                looked,
                Looked::Found { by: Match::Listening, .. } | Looked::Listener { is_seen: false }
            )
        {
            looked = Looked::Missing;
        }
        let (by, listener) = match looked {
            Looked::Found { by, listener } => (by, listener),
            Looked::Listener { .. } if query.is_last_try() => (Match::Indirect, None),
            _ => {
                self.candidates.truncate(start);
                match looked {
                    Looked::Missing => {
                        query.was_missing = true;
                        self.missing.push(index);
                    }
                    Looked::Crowd => query.outcome = Outcome::Unowned(Unowned::Ambiguous),
                    Looked::NoPorts => query.outcome = Outcome::Unowned(Unowned::NoPorts),
                    Looked::Failed | Looked::Elsewhere => {
                        query.failed(Unowned::Unreadable, RetryPolicy::Usual, now)
                    }
                    Looked::Busy(after) => query.put_off(after),
                    Looked::Listener { .. } | Looked::Found { .. } => {
                        query.failed(Unowned::NoSocket, RetryPolicy::Usual, now);
                    }
                }
                return false;
            }
        };
        self.plans.push(CandidateSockets {
            query: index,
            by,
            listener,
            candidates: start..self.candidates.len(),
        });
        false
    }

    /// Returns the only process that recently had flows like one that no longer has a socket, if it has lived
    /// since that flow began.
    fn guess(&mut self, query: &Query, now: Instant) -> Option<Owner> {
        if !query.is_seasoned() || !query.is_own {
            return None;
        }
        let (process, at) = self.endpoint_owners.only(&query.key, now)?;
        let has_lived = query.first_seen() <= at || self.lives(process, now);
        has_lived.then_some(Owner { process, quality: Quality::Guessed })
    }

    /// Returns true if a process lives, as of this round.
    fn lives(&mut self, process: ProcId, now: Instant) -> bool {
        if let Some((known, at, lived)) = self.lived
            && (known, at) == (process, now)
        {
            return lived;
        }
        let lives = proc_id(&self.root, process.pid, &mut self.stat) == Some(process);
        self.lived = Some((process, now, lives));
        lives
    }

    /// Collects the sockets of all plans, each once.
    fn want(&mut self, queries: &[Query]) {
        self.wanted.clear();
        for plan in &self.plans {
            let Some(since) = queries.get(plan.query).map(Query::due) else { continue };
            let candidates = self.candidates.get(plan.candidates.clone()).unwrap_or_default();
            let listener = plan.listener;
            self.wanted.extend(candidates.iter().map(|&socket| Wanted {
                socket,
                since,
                listener,
                held: Held::Unknown,
            }));
        }
        self.wanted.sort_unstable_by_key(|wanted| wanted.socket.inode);
        self.wanted.dedup_by(|again, kept| {
            let same = again.socket.inode == kept.socket.inode;
            if same {
                kept.since = kept.since.max(again.since);
                kept.listener = kept.listener.or(again.listener);
            }
            same
        });
    }
}

#[cfg(test)]
mod tests;
