//! The source of holders that every Linux has: the descriptors of every process, `/proc/<pid>/fd`.
//!
//! The source caches what it has read, and verifies every answer: it reads the process and its descriptor
//! again. It scans processes that have started since before it answers, because a fork shares sockets. It
//! searches for the remaining sockets first among the likely candidates: processes that are young, that hold
//! the socket's listener, or that recently owned flows of the same user; only then everywhere. One case can
//! stay unseen until the next full scan: an older process that received a descriptor (SCM_RIGHTS, unix(7))
//! and now shares the socket.
//!
//! The directory of another user's process opens with `CAP_DAC_READ_SEARCH`, and its links are read with
//! `CAP_SYS_PTRACE` (capabilities(7), proc_pid_fd(5)).

use super::holder_table::{HolderTable, Holding};
use super::proc_fd;
use super::thread_tables::ThreadTables;
use crate::bounded::{BoundedMap, Eviction};
use crate::capability;
use crate::error::{Code, Error};
use crate::model::{ProcId, Unowned};
use crate::owner::search_exchange::SearchExchange;
use crate::owner::source::{Held, Holder, HolderSource, Report, Sharing, SourceStatus, Turn, Wanted};
use crate::proc::{Listing, ProcRoot};
use nix::errno::Errno;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The limit of processes that are kept as recent owners.
const MAX_RECENT: usize = 64;
/// The time for which a socket without a holder in a full scan does not cause another full scan.
const MISSED: Duration = Duration::from_secs(10);
/// The limit of such sockets.
const MAX_MISSED: usize = 4096;
/// The pause after a full scan that found none of the wanted sockets, as a multiple of the scan's duration.
/// After n such scans in a row it is 2ⁿ - 1 times as long, and at most the longest rest: scans cannot find
/// sockets that live shorter than a scan takes.
const REST: u32 = 50;
const LONGEST_REST: Duration = Duration::from_secs(30);
/// The longest delay before the sockets that are wanted during such a pause are looked up again.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The failures of reading processes' descriptors since the last full scan began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Blind {
    /// Processes whose descriptors may not be read.
    pub(super) forbidden: usize,
    /// The last error other than a missing permission or the end of a process.
    pub(super) failure: Option<Errno>,
}

/// The descriptors of all processes.
pub(in crate::owner) struct Descriptors {
    pub(super) exchange: Arc<SearchExchange>,
    pub(super) holders: HolderTable,
    /// Every process at the time of the latest listing, sorted.
    pub(super) pids: Vec<i32>,
    pub(super) listed_at: Option<Instant>,
    pub(super) scanned_at: Option<Instant>,
    pub(super) young: VecDeque<(i32, Instant)>,
    /// Recent owners, the latest last, with the user of the socket.
    pub(super) recent: VecDeque<(i32, u32)>,
    missed: BoundedMap<u64, Instant>,
    /// Full scans in a row that found none of the wanted sockets, and the end of the pause after them.
    fruitless: u32,
    resting_until: Option<Instant>,
    /// The error of the last listing of processes, if it failed.
    pub(super) unlisted: Option<Errno>,
    pub(super) blind: Blind,
    pub(super) threads: ThreadTables,
    pub(super) full_scans: u64,
    pub(super) scanned: u64,
    pub(super) likely: Vec<i32>,
    pub(super) found: Vec<Holding>,
    pub(super) listing: Listing,
    pub(super) stat: Vec<u8>,
}

impl Descriptors {
    /// Checks if processes can be listed. `exchange` reports the processes that have started, and takes the
    /// results of scans.
    pub fn probe(root: &ProcRoot, exchange: Arc<SearchExchange>) -> Descriptors {
        let mut descriptors = Descriptors {
            exchange,
            holders: HolderTable::default(),
            pids: Vec::new(),
            listed_at: None,
            scanned_at: None,
            young: VecDeque::new(),
            recent: VecDeque::new(),
            missed: BoundedMap::new(MAX_MISSED, Eviction::All),
            fruitless: 0,
            resting_until: None,
            unlisted: None,
            blind: Blind::default(),
            threads: ThreadTables::new(root),
            full_scans: 0,
            scanned: 0,
            likely: Vec::new(),
            found: Vec::new(),
            listing: Listing::default(),
            stat: Vec::new(),
        };
        descriptors.unlisted = descriptors.list_pids(root).err();
        descriptors.pids.clear();
        descriptors
    }

    /// Scans every process for the wanted sockets.
    fn scan_for(&mut self, wanted: &mut [Wanted], turn: &Turn<'_>) {
        let sought = wanted.iter().filter(|wanted| wanted.held == Held::Unknown).count();
        let began = Instant::now();
        self.scan_all(wanted, turn);
        let took = began.elapsed();
        self.answer(wanted, turn.root);
        self.remember_missed(wanted, turn.now);
        let missing = wanted.iter().filter(|wanted| wanted.held == Held::Unknown).count();
        self.fruitless = if missing < sought { 0 } else { self.fruitless.saturating_add(1) };
        let doubled = 1u32.checked_shl(self.fruitless).unwrap_or(u32::MAX);
        let rest = took.saturating_mul(REST).saturating_mul(doubled - 1).min(LONGEST_REST);
        self.resting_until = Some(turn.now + rest);
    }

    /// Returns the rest of the pause between full scans, if the last ones found nothing.
    fn rest(&self, now: Instant) -> Option<Duration> {
        let rest = self.resting_until?.saturating_duration_since(now);
        (!rest.is_zero()).then_some(rest)
    }

    /// Answers from the table, after verification.
    fn answer(&mut self, wanted: &mut [Wanted], root: &ProcRoot) {
        for wanted in wanted.iter_mut().filter(|wanted| wanted.held == Held::Unknown) {
            if let Some(holder) = self.choose(wanted.socket.inode, root) {
                wanted.held = Held::By(holder);
                let recent = (holder.process.pid, wanted.socket.uid);
                self.recent.retain(|known| *known != recent);
                if self.recent.len() >= MAX_RECENT {
                    self.recent.pop_front();
                }
                self.recent.push_back(recent);
            }
        }
    }

    /// Returns the youngest of a socket's holders that is not process 1; of equally old ones that with the
    /// higher pid.
    fn choose(&mut self, inode: u64, root: &ProcRoot) -> Option<Holder> {
        self.found.clear();
        self.holders.of(inode, &mut self.found);
        let mut chosen: Option<(ProcId, i32)> = None;
        let (mut others, mut init) = (0, false);
        for holding in &self.found {
            let kin = proc_fd::kin(root, holding.pid, &mut self.stat);
            let still = proc_fd::socket_of(root, holding.pid, holding.descriptor) == Ok(Some(inode))
                || self.threads.hold(root, holding.pid, holding.descriptor, inode);
            let Some(kin) = kin.filter(|_| still) else {
                self.holders.remove(holding);
                continue;
            };
            if holding.pid == 1 {
                init = true;
            } else {
                others += 1;
            }
            let age = |process: &ProcId| (process.pid != 1, process.start_ticks, process.pid);
            if chosen.is_none_or(|(chosen, _)| age(&chosen) < age(&kin.id)) {
                chosen = Some((kin.id, holding.descriptor));
            }
        }
        let sharing = match (others, init) {
            (0, true) | (1, false) => Sharing::Sole,
            (1, true) => Sharing::WithInit,
            _ => Sharing::Several,
        };
        let (process, descriptor) = chosen?;
        Some(Holder { process, descriptor, sharing })
    }

    fn remember_missed(&mut self, wanted: &[Wanted], now: Instant) {
        if self.failure().is_some() {
            return;
        }
        for missed in wanted.iter().filter(|wanted| wanted.held == Held::Unknown) {
            self.missed.insert(missed.socket.inode, now);
        }
    }

    /// Returns true if a full scan would find nothing new.
    fn is_settled(&self, wanted: &Wanted, now: Instant) -> bool {
        self.scanned_at.is_some_and(|at| at >= wanted.since)
            || self
                .missed
                .get(&wanted.socket.inode)
                .is_some_and(|at| now.saturating_duration_since(*at) < MISSED)
    }

    fn failure(&self) -> Option<Errno> {
        self.unlisted.or(self.blind.failure)
    }

    /// Returns the reason why a socket has no holder after a search everywhere.
    fn reason(&self) -> Unowned {
        // With hidepid=invisible (proc(5)) the processes that may not be read are not even visible. Process 1
        // is one of them, and every complete listing contains it.
        let hidden = self.pids.first() != Some(&1);
        if self.failure().is_some() {
            Unowned::Unreadable
        } else if hidden || self.blind.forbidden > 0 {
            Unowned::NotPermitted
        } else {
            Unowned::NoHolder
        }
    }
}

impl HolderSource for Descriptors {
    fn prepare(&mut self, turn: &Turn<'_>) {
        self.listed_at = Some(turn.now);
        self.exchange.take_started();
        if turn.budget.allow().is_ok() {
            self.scan_all(&[], turn);
        }
    }

    fn look_up(&mut self, wanted: &mut [Wanted], turn: &Turn<'_>) {
        let stale =
            |listed_at: Option<Instant>, wanted: &Wanted| listed_at.is_none_or(|at| at < wanted.since);
        if wanted.iter().any(|wanted| wanted.held == Held::Unknown && stale(self.listed_at, wanted)) {
            match turn.budget.allow() {
                Ok(()) => self.catch_up(wanted, turn),
                Err(after) => put_off(wanted, after, |wanted| stale(self.listed_at, wanted)),
            }
        }
        self.answer(wanted, turn.root);
        if self.full_scans > 0 && is_open(wanted) {
            match turn.budget.allow() {
                Ok(()) => self.scan_likely(wanted, turn),
                Err(after) => put_off(wanted, after, |_| true),
            }
            self.answer(wanted, turn.root);
        }
        let unsettled = |source: &Descriptors, wanted: &Wanted| {
            wanted.held == Held::Unknown && !source.is_settled(wanted, turn.now)
        };
        if wanted.iter().any(|wanted| unsettled(self, wanted)) {
            match turn.budget.allow() {
                Ok(()) => match self.rest(turn.now) {
                    Some(rest) => put_off(wanted, rest.min(TIMEOUT), |wanted| unsettled(self, wanted)),
                    None => self.scan_for(wanted, turn),
                },
                Err(after) => put_off(wanted, after, |wanted| !self.is_settled(wanted, turn.now)),
            }
        }
        let reason = self.reason();
        for wanted in wanted.iter_mut().filter(|wanted| wanted.held == Held::Unknown) {
            wanted.held = Held::Nobody(reason);
        }
    }

    fn report(&self, report: &mut Report) {
        let fault = match (self.failure(), self.blind.forbidden) {
            (Some(errno), _) => {
                Some(Error::system(Code::ProcessOpenDirectory, "reading processes' descriptors", errno))
            }
            (None, 0) => None,
            (None, forbidden) => Some(Error::new(
                Code::ProcessOpenDirectory,
                format!(
                    "reading the descriptors of {forbidden} processes is not permitted; {}",
                    capability::advice(&[capability::SYS_PTRACE, capability::DAC_READ_SEARCH])
                ),
            )),
        };
        report.sources.push(SourceStatus { name: "descriptors", fault });
        report.full_scans += self.full_scans;
        report.scanned_processes += self.scanned;
        report.remembered_holders += self.holders.len();
        report.forgotten_holders += self.holders.forgotten();
        report.evicted += self.missed.evicted();
    }
}

fn is_open(wanted: &[Wanted]) -> bool {
    wanted.iter().any(|wanted| wanted.held == Held::Unknown)
}

fn put_off(wanted: &mut [Wanted], after: Duration, which: impl Fn(&Wanted) -> bool) {
    for wanted in wanted.iter_mut().filter(|wanted| wanted.held == Held::Unknown && which(wanted)) {
        wanted.held = Held::Busy(after);
    }
}
