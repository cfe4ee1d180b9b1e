//! Scans of descriptors: of processes that have started, of likely holders, and of all processes.

use super::descriptors::{Blind, Descriptors};
use super::holder_table::Holding;
use super::proc_fd;
use crate::blocking::{ReadKind, guarded};
use crate::owner::source::{Held, Turn, Wanted};
use crate::proc::{PidPath, ProcRoot, open_directory, socket_at};
use nix::errno::Errno;
use nix::sys::stat::fstat;
use std::ffi::CStr;
use std::os::fd::AsFd;
use std::time::Duration;

/// The age up to which a process counts as young. A process opens its first sockets soon after its start, so
/// young processes are scanned again.
const YOUNG: Duration = Duration::from_secs(10);
/// The limit of young processes, the youngest; after a burst of forks the others must wait for a full scan.
const MAX_YOUNG: usize = 256;
/// The result of reading the descriptors of one process.
#[derive(Clone, Copy, Default)]
struct Scanned {
    is_forbidden: bool,
    /// The process's user, as the owner of `/proc/<pid>/fd`.
    uid: Option<u32>,
    /// The highest inode number of its sockets.
    newest_socket: u64,
}

impl Descriptors {
    pub(super) fn list_pids(&mut self, root: &ProcRoot) -> nix::Result<()> {
        self.pids.clear();
        let (pids, listing) = (&mut self.pids, &mut self.listing);
        guarded(root.tree(), 0, ReadKind::Root, || {
            let directory = open_directory(root.directory(), c".")?;
            listing.numbers(directory.as_fd(), |_, pid| {
                pids.push(pid);
                Ok(())
            })
        })?;
        pids.sort_unstable();
        Ok(())
    }

    /// Scans the processes that have started since the last call, and removes those that have ended.
    pub(super) fn catch_up(&mut self, wanted: &[Wanted], turn: &Turn<'_>) {
        if let Some(started) = self.exchange.take_started().filter(|_| !self.pids.is_empty()) {
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
            // All processes are new; the full scan that must follow reads them.
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

    /// Records the sockets of one process.
    fn scan(&mut self, pid: i32, wanted: &[Wanted], root: &ProcRoot) -> Scanned {
        self.scanned += 1;
        let mut scanned = Scanned::default();
        let Descriptors { holders, listing, threads, .. } = self;
        let mut read_table = |path: &CStr| {
            let directory = open_directory(root.directory(), path)?;
            scanned.uid = fstat(&directory).ok().map(|stat| stat.st_uid);
            listing.numbers(directory.as_fd(), |name, descriptor| {
                match socket_at(directory.as_fd(), name) {
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
                // A thread that has ended no longer has a table.
                let _ = read_table(PidPath::new(*thread).file("fd"));
            }
            main
        });
        match scan {
            // The process has ended or is a zombie, which no longer has descriptors.
            Ok(()) | Err(Errno::ENOENT | Errno::ESRCH) => {}
            Err(Errno::EACCES | Errno::EPERM) => scanned.is_forbidden = true,
            Err(errno) => self.blind.failure = Some(errno),
        }
        scanned
    }

    /// Scans the processes in `likely`, which are sorted, and the parents of those that hold a wanted socket:
    /// a process that is likely because it is young may share the socket with the older process that forked
    /// it.
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

    /// Scans the processes that are likely to hold the sockets that are still wanted.
    pub(super) fn scan_likely(&mut self, wanted: &[Wanted], turn: &Turn<'_>) {
        self.likely.clear();
        self.likely.extend(self.young.iter().map(|(pid, _)| *pid));
        for open in wanted.iter().filter(|wanted| wanted.held == Held::Unknown) {
            self.found.clear();
            // A descriptor that failed verification may have another number in the same process now.
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

    /// Scans every process and replaces the table by the result.
    pub(super) fn scan_all(&mut self, wanted: &[Wanted], turn: &Turn<'_>) {
        self.full_scans += 1;
        self.scanned_at = Some(turn.now);
        self.holders.clear();
        self.blind = Blind::default();
        // If process starts are reported, the last listing may be old.
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
        // Inode numbers grow, so the highest one shows which process opened a socket last.
        crowd.sort_unstable_by(|one, other| other.cmp(one));
        self.exchange.set_crowd(crowd.into_iter().map(|(_, pid, uid)| (pid, uid)).collect());
    }
}
