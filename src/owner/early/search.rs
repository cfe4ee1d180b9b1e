//! A short search for the process that holds a socket, among the likely candidates.

use super::candidates::{Candidates, End, Side};
use crate::model::{FlowKey, ProcId};
use crate::owner::holders::{HolderTable, Holding, proc_fd};
use crate::proc::{Listing, PidPath, ProcRoot, open_directory, socket_at};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

/// Limits of the system calls of one attempt, some 1.5 µs each: all of them; those for processes that are
/// read in turn because nothing else is known; and those for the descriptors of any one process.
const EFFORT: u32 = 256;
const EFFORT_IN_TURN: u32 = 64;
const MAX_OF_A_PROCESS: u32 = 96;

/// A socket whose holder is wanted, with its flow.
#[derive(Clone, Copy, Debug)]
pub(in crate::owner) struct Sought {
    pub key: FlowKey,
    pub side: Side,
    pub inode: u64,
    pub uid: u32,
}

/// The search.
pub(in crate::owner) struct Search {
    root: Arc<ProcRoot>,
    /// The candidates that are searched first.
    pub likely: Candidates,
    holders: HolderTable,
    /// Set if every end of a process is reported, so that a pid denotes one process until then.
    is_told_of_ends: bool,
    /// Buffers for candidates of four kinds.
    suggestions: [Vec<i32>; 4],
    found: Vec<Holding>,
    /// Lists some eighty descriptors at a time: listing one costs the kernel about as much as reading its link.
    listing: Listing,
    stat: Vec<u8>,
}

impl Search {
    /// Returns a search in a `/proc` tree that knows no process yet.
    pub fn new(root: Arc<ProcRoot>) -> Search {
        Search {
            root,
            likely: Candidates::default(),
            holders: HolderTable::default(),
            is_told_of_ends: false,
            suggestions: Default::default(),
            found: Vec::new(),
            listing: Listing::in_small_steps(),
            stat: Vec::new(),
        }
    }

    /// Sets whether every process's end is reported to [`Candidates`] from now on.
    pub fn tell_ends(&mut self, are_told: bool) {
        self.is_told_of_ends = are_told;
        self.likely.forget_identities();
    }

    /// Records the identity of a process that was reported a moment ago.
    pub fn identify(&mut self, process: ProcId) {
        if self.is_told_of_ends {
            self.likely.identify(process);
        }
    }

    /// Returns the process that holds a socket, and true if other processes hold it too.
    pub fn holder(&mut self, sought: &Sought, now: Instant) -> Option<(ProcId, bool)> {
        let (pid, descriptor) = self.known_holder(sought.inode).or_else(|| self.search(sought, now))?;
        let (pid, shared) = self.youngest_of_family(pid, descriptor, sought.inode);
        let process = match self.likely.identity(pid) {
            Some(process) => process,
            None => {
                let process = proc_fd::kin(&self.root, pid, &mut self.stat)?.id;
                // The check follows the reading of the process, so that the holder is the process that was
                // read.
                if !self.holds(pid, descriptor, sought.inode) {
                    return None;
                }
                self.identify(process);
                process
            }
        };
        self.likely.found(&sought.key, sought.side, pid, descriptor, sought.uid);
        Some((process, shared))
    }

    fn holds(&self, pid: i32, descriptor: i32, inode: u64) -> bool {
        proc_fd::socket_of(&self.root, pid, descriptor) == Ok(Some(inode))
    }

    /// Returns a process that was seen to hold the socket during the search for another one.
    fn known_holder(&mut self, inode: u64) -> Option<(i32, i32)> {
        self.found.clear();
        self.holders.of(inode, &mut self.found);
        for holding in &self.found {
            self.holders.remove(holding);
            if self.holds(holding.pid, holding.descriptor, inode) {
                return Some((holding.pid, holding.descriptor));
            }
        }
        None
    }

    /// Returns the youngest among a process and its descendants that inherited the descriptor; and true if
    /// there is more than one holder among these and the process's parent.
    fn youngest_of_family(&self, pid: i32, descriptor: i32, inode: u64) -> (i32, bool) {
        let holds = |pid| self.holds(pid, descriptor, inode);
        let mut youngest = (pid, self.likely.parent(pid).is_some_and(holds));
        while let Some(child) =
            self.likely.children(youngest.0).take(MAX_CHILDREN).find(|&child| holds(child))
        {
            youngest = (child, true);
        }
        youngest
    }

    /// Searches for the socket in processes that are likely to hold it.
    fn search(&mut self, sought: &Sought, now: Instant) -> Option<(i32, i32)> {
        let mut suggestions = std::mem::take(&mut self.suggestions);
        let found = self.search_suggested(&mut suggestions, sought, now);
        self.suggestions = suggestions;
        found
    }

    fn search_suggested(
        &mut self,
        [at_end, siblings, new, acquainted]: &mut [Vec<i32>; 4],
        sought: &Sought,
        now: Instant,
    ) -> Option<(i32, i32)> {
        let (end, inode) = (End::of(&sought.key, sought.side), sought.inode);
        let mut effort = EFFORT;
        self.likely.at_end(&end, at_end);
        self.likely.newest(now, new);
        self.likely.siblings(at_end, siblings);
        let by_number = at_end.iter().chain(new.iter()).chain(siblings.iter());
        let mut found = self.by_descriptors(by_number, &end, inode, &mut effort);
        // New processes have few descriptors.
        found = found.or_else(|| self.in_directories(new.iter().chain(at_end.iter()), inode, &mut effort));
        if found.is_none() && effort > 0 {
            self.likely.acquainted(sought.uid, acquainted);
            acquainted.retain(|pid| !new.contains(pid) && !at_end.contains(pid));
            found = self.by_descriptors(acquainted.iter(), &end, inode, &mut effort);
            // Part of the effort is kept for the remaining processes, which are read in turn.
            let mut most = effort.saturating_sub(EFFORT_IN_TURN);
            found = found.or_else(|| self.in_directories(acquainted.iter(), inode, &mut most));
            effort = effort.min(EFFORT_IN_TURN);
        }
        while found.is_none() && effort > 0 {
            let pid = self.likely.next_in_turn(sought.uid)?;
            found = self.descriptor_of(pid, inode, &mut effort).map(|descriptor| (pid, descriptor));
        }
        found
    }

    /// Searches for the socket among the likely descriptors of these processes. Other sockets that are found
    /// are recorded: they may be wanted next.
    fn by_descriptors<'a>(
        &mut self,
        pids: impl Iterator<Item = &'a i32>,
        end: &End,
        inode: u64,
        effort: &mut u32,
    ) -> Option<(i32, i32)> {
        for &pid in pids {
            for descriptor in self.likely.descriptors(pid, end) {
                *effort = effort.checked_sub(1)?;
                match proc_fd::socket_of(&self.root, pid, descriptor) {
                    Ok(Some(other)) if other == inode => return Some((pid, descriptor)),
                    Ok(Some(other)) => {
                        self.holders.record(Holding { inode: other, pid, descriptor }, || false)
                    }
                    _ => {}
                }
            }
        }
        None
    }

    /// Searches for the socket among all descriptors of these processes.
    fn in_directories<'a>(
        &mut self,
        mut pids: impl Iterator<Item = &'a i32>,
        inode: u64,
        effort: &mut u32,
    ) -> Option<(i32, i32)> {
        pids.find_map(|&pid| {
            let mut most = (*effort).min(MAX_OF_A_PROCESS);
            *effort -= most;
            let found = self.descriptor_of(pid, inode, &mut most).map(|descriptor| (pid, descriptor));
            *effort += most;
            found
        })
    }

    /// Returns the descriptor by which a process holds a socket, if it is one of the next that `effort`
    /// allows to be read. Other sockets that are read are recorded.
    fn descriptor_of(&mut self, pid: i32, inode: u64, effort: &mut u32) -> Option<i32> {
        *effort = effort.saturating_sub(OPENING);
        let root = Arc::clone(&self.root);
        let known = self.likely.cursor(pid);
        let (holders, listing) = (&mut self.holders, &mut self.listing);
        let mut end = None;
        let mut found = None;
        let mut is_opening = false;
        let listed = root.guarded(pid, || {
            let directory = open_directory(root.directory(), PidPath::new(pid).file("fd"))?;
            let start = known.unwrap_or_else(|| likely_start(&directory));
            // Descriptor n is at offset n + 2 of the directory (proc_readfd_common, fs/proc/fd.c).
            lseek(&directory, i64::from(start) + 2, Whence::SeekSet)?;
            let _ = listing.numbers(directory.as_fd(), |name, descriptor| {
                if *effort == 0 {
                    end = Some(descriptor);
                    return Err(Errno::EINTR);
                }
                *effort -= 1;
                match socket_at(directory.as_fd(), name) {
                    Ok(Some(other)) if other == inode => {
                        found = Some(descriptor);
                        Err(Errno::EINTR)
                    }
                    Ok(Some(other)) => {
                        is_opening |= other.abs_diff(inode) < NEAR;
                        holders.record(Holding { inode: other, pid, descriptor }, || false);
                        Ok(())
                    }
                    _ => Ok(()),
                }
            });
            Ok(())
        });
        listed.ok()?;
        if holders.is_full() {
            holders.evict();
        }
        if is_opening {
            self.likely.saw_opening(pid);
        }
        // The next search continues where this one ended, or starts over.
        self.likely.set_cursor(pid, found.or(end).unwrap_or(0));
        found
    }
}

/// Returns the number of the descriptor at which the reading of an unknown process starts. The kernel assigns
/// the lowest free number, so if all are in use a new descriptor's number is the count of descriptors (the
/// directory's size since Linux 6.2; 0 before).
fn likely_start(directory: &OwnedFd) -> i32 {
    let count = nix::sys::stat::fstat(directory).map_or(0, |stat| stat.st_size);
    i32::try_from(count).map_or(0, |count| (count - i32::from(LAST)).max(0))
}

/// The maximum distance of the inode numbers of sockets that were opened at about the same time. Each CPU
/// assigns 1024 in turn (`get_next_ino`, fs/inode.c of the kernel), also to pipes and the like.
const NEAR: u64 = 4096;
/// The number of a process's last descriptors that are read first.
const LAST: i16 = 64;
/// The cost of opening and listing a directory, as a number of links.
const OPENING: u32 = 4;
/// The limit of a process's youngest children that are checked for an inherited socket.
const MAX_CHILDREN: usize = 16;
