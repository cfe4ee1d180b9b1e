//! The source of holders that every Linux has: the descriptors of every process, `/proc/<pid>/fd`.
//!
//! What is learned is remembered, and every answer is made sure of: the process is read again, and so is its
//! descriptor. Processes that have started since are looked at before anything is answered, because a fork shares
//! sockets. What remains unknown is looked for first where it is likely to be: processes that are young, that hold
//! the socket's listener, that owned flows of the same user lately; only then everywhere. One thing can go unseen
//! until the next full scan: a descriptor that an older process was handed (SCM_RIGHTS, unix(7)) and now shares.
//!
//! The directory of another user's process opens with `CAP_DAC_READ_SEARCH`, and its links are read with
//! `CAP_SYS_PTRACE` (capabilities(7), proc_pid_fd(5)).

use super::holder_table::{HolderTable, Holding};
use super::proc_fd::{self, ENTRIES};
use super::thread_tables::ThreadTables;
use crate::blocking::{ReadKind, guarded};
use crate::capability;
use crate::error::{Code, Error};
use crate::model::{ProcId, Unowned};
use crate::owner::search_exchange::SearchExchange;
use crate::owner::source::{Held, Holder, HolderSource, Report, Sharing, SourceStatus, Turn, Wanted};
use crate::proc::{PidPath, ProcRoot, open_directory};
use hashbrown::HashMap;
use nix::errno::Errno;
use nix::sys::stat::fstat;
use std::collections::VecDeque;
use std::ffi::CStr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A process opens its first sockets soon after its start; it is looked at again until it is this old.
const YOUNG: Duration = Duration::from_secs(10);
/// Young processes looked at again, the youngest; after a burst of forks the others must wait for a full scan.
const MAX_YOUNG: usize = 256;
/// Processes remembered for having owned a flow lately.
const MAX_RECENT: usize = 64;
/// For so long a socket that a full scan has found without a holder is not worth another full scan.
const MISSED: Duration = Duration::from_secs(10);
/// Sockets remembered for that.
const MAX_MISSED: usize = 4096;
/// After a full scan that found nothing of what was wanted, the next one waits this many times as long as it took, twice
/// as long after each further one, and at most the longest rest: sockets that live shorter than a scan takes are not to
/// be found by scans.
const REST: u32 = 50;
const LONGEST_REST: Duration = Duration::from_secs(30);
/// What is wanted meanwhile is asked about again after this time at the latest.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What became of reading processes' descriptors since the last full scan began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Blind {
    /// Processes that may not be read.
    forbidden: usize,
    /// The last error that is neither that nor a process's end.
    failure: Option<Errno>,
}

/// What reading the descriptors of one process gave.
#[derive(Clone, Copy, Default)]
struct Scanned {
    is_forbidden: bool,
    /// The process's user, as `/proc/<pid>/fd` shows it.
    uid: Option<u32>,
    /// The highest inode number of its sockets.
    newest_socket: u64,
}

/// The descriptors of all processes.
pub(in crate::owner) struct Descriptors {
    hints: Arc<SearchExchange>,
    holders: HolderTable,
    /// Every process at the time of the latest listing, sorted.
    pids: Vec<i32>,
    listed_at: Option<Instant>,
    scanned_at: Option<Instant>,
    young: VecDeque<(i32, Instant)>,
    /// Latest last, with the user of the socket.
    recent: VecDeque<(i32, u32)>,
    missed: HashMap<u64, Instant, foldhash::fast::RandomState>,
    /// Full scans in a row that found nothing of what was wanted, and until when there is to be no other.
    fruitless: u32,
    resting_until: Option<Instant>,
    /// Why the processes could not be listed the last time.
    unlisted: Option<Errno>,
    blind: Blind,
    threads: ThreadTables,
    full_scans: u64,
    scanned: u64,
    likely: Vec<i32>,
    found: Vec<Holding>,
    pid_entries: Vec<u8>,
    entries: Vec<u8>,
    stat: Vec<u8>,
}

impl Descriptors {
    /// Finds out whether processes can be listed. `hints` tells which have started, and takes what scans show.
    pub fn probe(root: &ProcRoot, hints: Arc<SearchExchange>) -> Descriptors {
        let mut descriptors = Descriptors {
            hints,
            holders: HolderTable::default(),
            pids: Vec::new(),
            listed_at: None,
            scanned_at: None,
            young: VecDeque::new(),
            recent: VecDeque::new(),
            missed: HashMap::default(),
            fruitless: 0,
            resting_until: None,
            unlisted: None,
            blind: Blind::default(),
            threads: ThreadTables::new(root),
            full_scans: 0,
            scanned: 0,
            likely: Vec::new(),
            found: Vec::new(),
            pid_entries: vec![0; ENTRIES],
            entries: vec![0; ENTRIES],
            stat: Vec::new(),
        };
        descriptors.unlisted = descriptors.list_pids(root).err();
        descriptors.pids.clear();
        descriptors
    }

    fn list_pids(&mut self, root: &ProcRoot) -> nix::Result<()> {
        self.pids.clear();
        let (pids, entries) = (&mut self.pids, &mut self.pid_entries);
        guarded(root.tree(), 0, ReadKind::Root, || {
            let directory = open_directory(root.directory(), c".")?;
            proc_fd::for_each_number(directory.as_fd(), entries, |_, pid| {
                pids.push(pid);
                Ok(())
            })
        })?;
        pids.sort_unstable();
        Ok(())
    }

    /// Scans the processes that have started since the last time, and forgets those that are gone.
    fn catch_up(&mut self, wanted: &[Wanted], turn: &Turn<'_>) {
        if let Some(started) = self.hints.take_started().filter(|_| !self.pids.is_empty()) {
            self.listed_at = Some(turn.now);
            self.likely = started;
            self.likely.sort_unstable();
            self.likely.dedup();
            self.scan_started(wanted, turn);
            return;
        }
        let known = std::mem::take(&mut self.pids);
        self.listed_at = Some(turn.now);
        self.unlisted = self.list_pids(turn.root).err();
        if self.unlisted.is_some() {
            self.pids = known;
            return;
        }
        if known.is_empty() {
            // Everything is new, and the full scan that has to follow learns it.
            return;
        }
        if known.iter().any(|pid| self.pids.binary_search(pid).is_err()) {
            self.holders.retain(|pid| self.pids.binary_search(&pid).is_ok());
            self.recent.retain(|(pid, _)| self.pids.binary_search(pid).is_ok());
            self.young.retain(|(pid, _)| self.pids.binary_search(pid).is_ok());
        }
        self.likely.clear();
        self.likely.extend(self.pids.iter().filter(|pid| known.binary_search(pid).is_err()));
        self.scan_started(wanted, turn);
    }

    /// Scans the processes in `likely`, which have just started.
    fn scan_started(&mut self, wanted: &[Wanted], turn: &Turn<'_>) {
        if self.holders.is_full() {
            self.holders.evict();
        }
        while self.young.front().is_some_and(|(_, since)| turn.now.saturating_duration_since(*since) > YOUNG)
        {
            self.young.pop_front();
        }
        for &pid in self.likely.iter().rev().take(MAX_YOUNG).rev() {
            if self.young.len() >= MAX_YOUNG {
                self.young.pop_front();
            }
            self.young.push_back((pid, turn.now));
        }
        self.scan_listed(wanted, turn.root);
    }

    /// Learns the sockets of one process.
    fn scan(&mut self, pid: i32, wanted: &[Wanted], root: &ProcRoot) -> Scanned {
        self.scanned += 1;
        let mut scanned = Scanned::default();
        let Descriptors { holders, entries, threads, .. } = self;
        let mut read_table = |path: &CStr| {
            let directory = open_directory(root.directory(), path)?;
            scanned.uid = fstat(&directory).ok().map(|stat| stat.st_uid);
            proc_fd::for_each_number(directory.as_fd(), entries, |name, descriptor| {
                match proc_fd::socket_inode(directory.as_fd(), name) {
                    Ok(Some(inode)) => {
                        scanned.newest_socket = scanned.newest_socket.max(inode);
                        holders.record(Holding { inode, pid, descriptor }, || {
                            wanted.binary_search_by_key(&inode, |wanted| wanted.socket.inode).is_ok()
                        });
                    }
                    Ok(None) | Err(Errno::ENOENT | Errno::EINVAL) => {}
                    Err(errno) => return Err(errno),
                }
                Ok(())
            })
        };
        let scan = root.guarded(pid, || {
            let main = read_table(PidPath::new(pid).file("fd"));
            threads.find(root, pid);
            for thread in threads.found() {
                // A thread that has ended has no table any more.
                let _ = read_table(PidPath::new(*thread).file("fd"));
            }
            main
        });
        match scan {
            // A process that is gone, or a zombie, which has no descriptors any more.
            Ok(()) | Err(Errno::ENOENT | Errno::ESRCH) => {}
            Err(Errno::EACCES | Errno::EPERM) => scanned.is_forbidden = true,
            Err(errno) => self.blind.failure = Some(errno),
        }
        scanned
    }

    /// Scans the processes in `likely`, which are sorted, and the parents of those that hold what is wanted: a
    /// process that is likely for its youth may share with the older one that it was forked from.
    fn scan_listed(&mut self, wanted: &[Wanted], root: &ProcRoot) {
        let likely = std::mem::take(&mut self.likely);
        let mut forbidden = false;
        for &pid in &likely {
            forbidden |= self.scan(pid, wanted, root).is_forbidden;
        }
        for open in wanted.iter().filter(|wanted| wanted.held == Held::Unknown) {
            self.found.clear();
            self.holders.of(open.socket.inode, &mut self.found);
            for at in 0..self.found.len() {
                let Some(pid) = self.found.get(at).map(|holding| holding.pid) else { break };
                if !self.young.iter().any(|(young, _)| *young == pid) {
                    continue;
                }
                let Some(kin) = proc_fd::kin(root, pid, &mut self.stat) else { continue };
                let is_known = self.found.iter().any(|holding| holding.pid == kin.parent);
                if kin.parent > 0 && !is_known && likely.binary_search(&kin.parent).is_err() {
                    forbidden |= self.scan(kin.parent, wanted, root).is_forbidden;
                }
            }
        }
        self.likely = likely;
        // Only a full scan counts them; the same process may be tried many times in between.
        self.blind.forbidden = self.blind.forbidden.max(usize::from(forbidden));
    }

    /// Scans the processes that are likely to hold what is still wanted.
    fn scan_likely(&mut self, wanted: &[Wanted], turn: &Turn<'_>) {
        self.likely.clear();
        self.likely.extend(self.young.iter().map(|(pid, _)| *pid));
        for open in wanted.iter().filter(|wanted| wanted.held == Held::Unknown) {
            self.found.clear();
            // A descriptor that was checked in vain may have got another number in the same process.
            self.holders.of(open.socket.inode, &mut self.found);
            if let Some(listener) = open.listener {
                self.holders.of(listener, &mut self.found);
            }
            self.likely.extend(self.found.iter().map(|holding| holding.pid));
            let of_user = self.recent.iter().filter(|(_, uid)| *uid == open.socket.uid);
            self.likely.extend(of_user.map(|(pid, _)| *pid));
            self.likely.sort_unstable();
            self.likely.dedup();
        }
        self.scan_listed(wanted, turn.root);
    }

    /// Scans every process and forgets what was known before.
    fn scan_all(&mut self, wanted: &[Wanted], turn: &Turn<'_>) {
        self.full_scans += 1;
        self.scanned_at = Some(turn.now);
        self.holders.clear();
        self.blind = Blind::default();
        // Where starts are told of, the last listing may be long ago.
        if let Err(errno) = self.list_pids(turn.root) {
            self.unlisted = Some(errno);
        }
        let mut crowd = Vec::with_capacity(self.pids.len());
        for at in 0..self.pids.len() {
            let Some(&pid) = self.pids.get(at) else { break };
            let scanned = self.scan(pid, wanted, turn.root);
            self.blind.forbidden += usize::from(scanned.is_forbidden);
            crowd.extend(scanned.uid.map(|uid| (scanned.newest_socket, pid, uid)));
        }
        // Inode numbers grow, so that the highest one tells who opened a socket last.
        crowd.sort_unstable_by(|one, other| other.cmp(one));
        self.hints.set_crowd(crowd.into_iter().map(|(_, pid, uid)| (pid, uid)).collect());
    }

    /// Scans every process for what is wanted.
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

    /// How long no full scan is to be made, because the last ones brought nothing.
    fn rest(&self, now: Instant) -> Option<Duration> {
        let rest = self.resting_until?.saturating_duration_since(now);
        (!rest.is_zero()).then_some(rest)
    }

    /// Answers what is known, having made sure of it.
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

    /// The youngest of a socket's holders that is not process 1; of equally old ones that with the higher pid.
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
            if self.missed.len() >= MAX_MISSED {
                self.missed.clear();
            }
            self.missed.insert(missed.socket.inode, now);
        }
    }

    /// Whether a full scan would tell nothing that is not known.
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

    /// Why a socket that was looked for everywhere has no holder.
    fn reason(&self) -> Unowned {
        // With hidepid=invisible (proc(5)) not even the processes can be seen that may not be read; process 1 is
        // among them, and in every listing that is whole.
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
        self.hints.take_started();
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
                    "the descriptors of {forbidden} processes may not be read; {}",
                    capability::advice(&[capability::SYS_PTRACE, capability::DAC_READ_SEARCH])
                ),
            )),
        };
        report.sources.push(SourceStatus { name: "descriptors", fault });
        report.full_scans += self.full_scans;
        report.scanned_processes += self.scanned;
        report.remembered_holders += self.holders.len();
        report.forgotten_holders += self.holders.forgotten();
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
