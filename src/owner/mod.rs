//! Who owns a flow: finds the process behind the local end of a flow, through a chain of sources.
//!
//! A flow's local end has a socket, and the socket has holders: processes with a descriptor of it. Sources of sockets
//! and sources of holders each form a chain, best first; each is probed at start, and one that fails passes the
//! question on to the next. What every Linux has are the socket tables of `/proc/net` and the descriptors of
//! `/proc/<pid>/fd`. Everything is read on the caller's thread, within a [`Budget`] of CPU time; nothing here waits.
//!
//! # Which process it is
//!
//! - The socket with the flow's two endpoints, held by one process: [`Quality::Exact`].
//! - Several processes hold it (fork, passed descriptors, socket activation): the youngest that is not process 1,
//!   the higher pid among equally old ones: [`Quality::Shared`].
//! - No such socket, but an unconnected one bound to the local end: the most specific address wins. One such socket
//!   is owned as above, with [`Quality::Guessed`] in place of exact; several of them (`SO_REUSEPORT`, groups) only
//!   if one and the same process holds them all, else the flow is [`Unowned::Ambiguous`].
//! - A TCP connection that has no socket with an inode although there is a listener on its port, even when it was
//!   asked for again for a while (not accepted, or over already), and packets of a protocol of which there is a raw
//!   socket: the one process that holds the listener or raw socket, process 1 aside, [`Quality::Guessed`].
//!
//! # Which capability helps
//!
//! The tables need none. Other users' descriptors need `CAP_DAC_READ_SEARCH` to be listed and `CAP_SYS_PTRACE` to be
//! read; without them, and with `hidepid`, flows of other users end as [`Unowned::NotPermitted`].
//!
//! # Memory
//!
//! At most 262,144 sockets of each table (14 MiB a table; tables are read when a flow asks for one), 262,144
//! holdings (8.5 MiB), and for the length of one call what its queries need: at most 128 candidates each. What found
//! no room is counted in the [`Report`].

mod budget;
mod descriptors;
mod holders;
mod index;
mod proc_fd;
mod query;
mod source;
mod table;
mod tables;

#[cfg(test)]
mod made_up;

pub use budget::{Budget, Meter, ThreadMeter};
pub use query::{Outcome, Query};
pub use source::{Report, SourceStatus};
pub use table::{SocketRow, parse_table};

use crate::model::{Owner, ProcId, Quality, Unowned};
use crate::process::ProcRoot;
use descriptors::Descriptors;
use query::Tries;
use source::{Held, HolderSource, Looked, Match, Sharing, Socket, SocketSource, Turn, Wanted};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tables::Tables;

/// Finds the owners of flows. One thread at a time calls it, always in the network namespace of the flows.
pub struct Finder {
    root: Arc<ProcRoot>,
    budget: Budget,
    sockets: Vec<Box<dyn SocketSource>>,
    holders: Vec<Box<dyn HolderSource>>,
    plans: Vec<Plan>,
    candidates: Vec<Socket>,
    wanted: Vec<Wanted>,
}

/// The sockets that may own a query's flow.
struct Plan {
    query: usize,
    by: Match,
    listener: Option<u64>,
    candidates: Range<usize>,
}

impl Finder {
    /// Probes the sources of a `/proc` tree. What cannot be read is in the [`Report`]; with nothing readable every
    /// flow gets a reason for having no owner.
    pub fn new(root: Arc<ProcRoot>, budget: Budget) -> Finder {
        let sockets: Vec<Box<dyn SocketSource>> = vec![Box::new(Tables::probe(&root))];
        let holders: Vec<Box<dyn HolderSource>> = vec![Box::new(Descriptors::probe(&root))];
        Finder::with_sources(root, budget, sockets, holders)
    }

    fn with_sources(
        root: Arc<ProcRoot>,
        budget: Budget,
        sockets: Vec<Box<dyn SocketSource>>,
        holders: Vec<Box<dyn HolderSource>>,
    ) -> Finder {
        let (plans, candidates, wanted) = (Vec::new(), Vec::new(), Vec::new());
        Finder { root, budget, sockets, holders, plans, candidates, wanted }
    }

    /// Looks for the owners of all `queries` that are due at `now` and sets their outcomes.
    ///
    /// The batch is answered together: each socket table is read at most once, and only if a flow asks for it that
    /// was first seen after the table was last read; the descriptors of all processes are read at most once. What
    /// the budget does not allow yet is put off. `now` must not be later than the call.
    pub fn find(&mut self, queries: &mut [Query], now: Instant) {
        self.budget.begin(now);
        self.plans.clear();
        self.candidates.clear();
        for (index, query) in queries.iter_mut().enumerate().filter(|(_, query)| query.is_due(now)) {
            self.plan(index, query, now);
        }
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
            match decide(plan.by, candidates, &self.wanted) {
                Decision::Owner(owner) => query.outcome = Outcome::Owned(owner),
                Decision::None(Unowned::Ambiguous) => query.outcome = Outcome::Unowned(Unowned::Ambiguous),
                Decision::None(Unowned::Unreadable) => query.failed(Unowned::Unreadable, Tries::All, now),
                Decision::None(reason) => query.failed(reason, Tries::Twice, now),
                Decision::Busy(after) => query.put_off(after),
            }
        }
        self.budget.settle();
    }

    /// What has been read and done so far, and what is wrong with which source.
    pub fn report(&self) -> Report {
        let mut report = Report { cpu_time: self.budget.spent(), ..Report::default() };
        for source in &self.sockets {
            source.report(&mut report);
        }
        for source in &self.holders {
            source.report(&mut report);
        }
        report
    }

    /// Asks the sources of sockets; either makes a plan of what they say or sets the query's outcome.
    fn plan(&mut self, index: usize, query: &mut Query, now: Instant) {
        let start = self.candidates.len();
        let turn = Turn { root: &self.root, now, budget: &self.budget };
        let mut looked = Looked::Failed;
        for source in &mut self.sockets {
            looked = source.look_up(&query.key, query.due(), &turn, &mut self.candidates);
            if looked != Looked::Failed {
                break;
            }
        }
        let (by, listener) = match looked {
            Looked::Found { by, listener } => (by, listener),
            Looked::Listener if query.is_last_try() => (Match::Indirect, None),
            _ => {
                self.candidates.truncate(start);
                match looked {
                    Looked::Missing => query.failed(Unowned::NoSocket, Tries::Twice, now),
                    Looked::Crowd => query.outcome = Outcome::Unowned(Unowned::Ambiguous),
                    Looked::NoPorts => query.outcome = Outcome::Unowned(Unowned::NoPorts),
                    Looked::Failed => query.failed(Unowned::Unreadable, Tries::All, now),
                    Looked::Busy(after) => query.put_off(after),
                    Looked::Listener | Looked::Found { .. } => {
                        query.failed(Unowned::NoSocket, Tries::All, now);
                    }
                }
                return;
            }
        };
        self.plans.push(Plan { query: index, by, listener, candidates: start..self.candidates.len() });
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

enum Decision {
    Owner(Owner),
    None(Unowned),
    Busy(Duration),
}

/// The owner that the holders of all the sockets that match a flow leave, if they leave one.
fn decide(by: Match, candidates: &[Socket], wanted: &[Wanted]) -> Decision {
    let mut owner: Option<ProcId> = None;
    let (mut is_contested, mut is_shared) = (false, false);
    for candidate in candidates {
        let at = wanted.binary_search_by_key(&candidate.inode, |wanted| wanted.socket.inode);
        let held = at.ok().and_then(|at| wanted.get(at)).map_or(Held::Unknown, |wanted| wanted.held);
        let (process, sharing) = match held {
            Held::By(process, sharing) => (process, sharing),
            Held::Busy(after) => return Decision::Busy(after),
            Held::Nobody(reason) => return Decision::None(reason),
            Held::Unknown => return Decision::None(Unowned::NoHolder),
        };
        is_contested |= owner.is_some_and(|first| first != process) || sharing == Sharing::Several;
        is_shared |= sharing != Sharing::Sole;
        owner = Some(process);
    }
    let Some(process) = owner else { return Decision::None(Unowned::NoSocket) };
    if is_contested && (candidates.len() > 1 || by == Match::Indirect) {
        return Decision::None(Unowned::Ambiguous);
    }
    let quality = match by {
        Match::Indirect => Quality::Guessed,
        _ if is_shared => Quality::Shared,
        Match::Own => Quality::Exact,
        Match::Bound => Quality::Guessed,
    };
    Decision::Owner(Owner { process, quality })
}

#[cfg(test)]
mod tests;
