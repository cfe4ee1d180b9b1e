//! Finding the owner at a flow's first packet, while its socket lives: an exact look-up of the socket, then a short
//! search for the process where it is likely to be.
//!
//! Each look takes some microseconds and at most [`EFFORT`] system calls. What is not found so quickly is left to the
//! thorough search of [`super::Finder`], whose findings in turn are the hints of this one.

use super::early::{Early, EarlyOwners};
use super::hints::{Finding, Hints};
use super::holders::{Holders, Holding};
use super::likely::{End, Likely, Side};
use super::proc_fd;
use crate::model::{FlowKey, Namespace, Owner, ProcId, Quality, Timestamp};
use crate::netlink::{Happening, InetDiag, InetSocket, ProcessEvent};
use crate::process::{PidPath, ProcRoot, open_directory};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// When to look at an opening connection's socket, counted from its first packet: at once, since it may be over in a
/// moment; and again for when the search for its process was cut short.
const OPENER: [Duration; 3] = [Duration::ZERO, Duration::from_micros(500), Duration::from_millis(5)];
/// When to look at the called end: a socket gets its inode when the server accepts the connection, which may be over a
/// tenth of a millisecond later.
const CALLED: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_micros(60),
    Duration::from_micros(130),
    Duration::from_micros(300),
    Duration::from_millis(2),
    Duration::from_millis(20),
];
/// System calls made for one look before it is cut short, some 1.5 µs each; of them those for processes that take their
/// turn because nothing else is known, and those for the descriptors of any one process.
const EFFORT: u32 = 256;
const EFFORT_IN_TURN: u32 = 64;
const MOST_OF_A_PROCESS: u32 = 96;
/// Flows that wait for a further look. What comes on top is left to the thorough search.
const MOST_WAITING: usize = 4096;
/// Flows whose first packet was seen lately, so that a packet that passes several devices is looked at once.
const MOST_SEEN: usize = 1024;

/// `TCP_LISTEN` of include/net/tcp_states.h.
const LISTEN: u8 = 10;

/// What was done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FirstStats {
    /// First packets seen.
    pub packets: u64,
    /// Owners found.
    pub found: u64,
    /// Flows whose socket was gone already.
    pub too_late: u64,
    /// Flows whose socket was there, but not its process where it was looked for.
    pub not_found: u64,
    /// First packets for which there was no room to wait.
    pub crowded_out: u64,
}

/// A flow that is to be looked at.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    key: FlowKey,
    side: Side,
    first: Instant,
    seen: Timestamp,
    looks: usize,
}

impl Waiting {
    fn schedule(&self) -> &'static [Duration] {
        match self.side {
            Side::Opener => &OPENER,
            Side::Called => &CALLED,
        }
    }

    /// When to look next; `None` when it was looked at often enough.
    fn due(&self) -> Option<Instant> {
        self.schedule().get(self.looks).map(|&delay| self.first + delay)
    }
}

/// What one look has shown.
enum Sight {
    Owner(Owner),
    /// There is no such socket, and there will not be.
    Gone,
    /// Not accepted yet, or not found yet.
    Later,
}

/// The search. One thread has it.
pub struct FirstLook {
    root: Arc<ProcRoot>,
    early: Arc<EarlyOwners>,
    hints: Arc<Hints>,
    sockets: HashMap<Namespace, InetDiag>,
    likely: Likely,
    holders: Holders,
    waiting: BTreeMap<(Instant, u64), Waiting>,
    number: u64,
    seen: VecDeque<(FlowKey, Instant)>,
    stats: FirstStats,
    /// Whether every end of a process is told of, so that a pid stands for one process until then.
    is_told_of_ends: bool,
    suggestions: [Vec<i32>; 3],
    found: Vec<Holding>,
    entries: Vec<u8>,
    stat: Vec<u8>,
}

impl FirstLook {
    /// A search in a `/proc` tree that leaves what it finds in `early`.
    pub fn new(root: Arc<ProcRoot>, early: Arc<EarlyOwners>, hints: Arc<Hints>) -> FirstLook {
        FirstLook {
            root,
            early,
            hints,
            sockets: HashMap::new(),
            likely: Likely::default(),
            holders: Holders::default(),
            waiting: BTreeMap::new(),
            number: 0,
            seen: VecDeque::new(),
            stats: FirstStats::default(),
            is_told_of_ends: false,
            suggestions: Default::default(),
            found: Vec::new(),
            entries: vec![0; FEW_ENTRIES],
            stat: Vec::new(),
        }
    }

    /// Looks up sockets of this namespace with `diag` from now on.
    pub fn add_namespace(&mut self, namespace: Namespace, diag: InetDiag) {
        self.sockets.insert(namespace, diag);
    }

    /// Forgets a namespace and closes its socket.
    pub fn remove_namespace(&mut self, namespace: Namespace) {
        self.sockets.remove(&namespace);
    }

    /// Whether [`FirstLook::process_event`] is told of every event from now on.
    pub fn tell_events(&mut self, are_told: bool) {
        self.is_told_of_ends = are_told;
        self.likely.forget_identities();
        self.hints.tell_starts(are_told);
    }

    /// Events were lost.
    pub fn missed_events(&mut self) {
        self.likely.forget_identities();
        self.hints.missed_starts();
    }

    /// Takes in who a process is that was told of a moment ago.
    pub fn identify(&mut self, process: ProcId) {
        if self.is_told_of_ends {
            self.likely.identify(process);
        }
    }

    /// Takes in what has happened to a process.
    pub fn process_event(&mut self, event: &ProcessEvent, now: Instant) {
        match event.happening {
            Happening::Fork { parent } => {
                self.likely.forked(event.pid, parent, now);
                self.hints.started(event.pid);
            }
            Happening::Exec => self.likely.became_another(event.pid, now),
            Happening::Ids => {}
            Happening::Exit => self.likely.ended(event.pid),
        }
    }

    /// Takes in where the thorough search has found a flow's socket.
    pub(super) fn learn(&mut self, finding: &Finding) {
        self.likely.found(&finding.key, finding.side, finding.pid, finding.descriptor, finding.uid);
    }

    /// Takes in the list of all processes of a full scan; see [`Likely::set_crowd`].
    pub(super) fn learn_crowd(&mut self, crowd: Vec<(i32, u32)>) {
        self.likely.set_crowd(crowd);
    }

    /// Takes in which processes used the CPU lately; see [`Likely::set_busy`].
    pub(super) fn learn_busy(&mut self, busy: Vec<i32>) {
        self.likely.set_busy(busy);
    }

    /// A first packet of a flow was seen just now. It is looked at in [`FirstLook::look`].
    pub fn packet(&mut self, key: FlowKey, side: Side, now: Instant) {
        if self
            .seen
            .iter()
            .rev()
            .any(|(known, at)| *known == key && now.saturating_duration_since(*at) < REPEATED)
        {
            return;
        }
        self.seen.push_back((key, now));
        if self.seen.len() > MOST_SEEN {
            self.seen.pop_front();
        }
        self.stats.packets += 1;
        if self.waiting.len() >= MOST_WAITING {
            self.stats.crowded_out += 1;
            return;
        }
        self.wait(Waiting { key, side, first: now, seen: Timestamp::now(), looks: 0 });
    }

    /// Looks at the flows that are due at `now`, hands each owner found to `each`, and returns when to look again.
    pub fn look(&mut self, now: Instant, mut each: impl FnMut(&FlowKey, &Owner)) -> Option<Instant> {
        while let Some(entry) = self.waiting.first_entry() {
            let (due, _) = *entry.key();
            if due > now {
                return Some(due);
            }
            let mut waiting = entry.remove();
            match self.sight(&waiting, now) {
                Sight::Owner(owner) => {
                    self.stats.found += 1;
                    self.early.insert(waiting.key, Early { owner, side: waiting.side, seen: waiting.seen });
                    each(&waiting.key, &owner);
                }
                Sight::Gone => self.stats.too_late += 1,
                Sight::Later => {
                    waiting.looks += 1;
                    self.wait(waiting);
                }
            }
        }
        None
    }

    /// What was done so far.
    pub fn stats(&self) -> FirstStats {
        self.stats
    }

    fn wait(&mut self, waiting: Waiting) {
        let Some(due) = waiting.due() else {
            self.stats.not_found += 1;
            return;
        };
        self.number += 1;
        self.waiting.insert((due, self.number), waiting);
    }

    fn sight(&mut self, waiting: &Waiting, now: Instant) -> Sight {
        let Some(diag) = self.sockets.get_mut(&waiting.key.namespace) else { return Sight::Gone };
        let Ok(Some(socket)) = diag.find(&waiting.key) else { return Sight::Gone };
        if socket.state == LISTEN {
            // A connection that is being opened would have been found instead.
            return Sight::Gone;
        }
        if socket.inode == 0 {
            return if waiting.side == Side::Called && is_opening(&socket) {
                Sight::Later
            } else {
                Sight::Gone
            };
        }
        let quality = if socket.remote.port == 0 { Quality::Guessed } else { Quality::Exact };
        match self.holder(waiting, &socket, now) {
            Some((process, true)) if quality == Quality::Exact => {
                Sight::Owner(Owner { process, quality: Quality::Shared })
            }
            Some((process, _)) => Sight::Owner(Owner { process, quality }),
            None => Sight::Later,
        }
    }

    /// The process that holds a socket, and whether others do, too.
    fn holder(&mut self, waiting: &Waiting, socket: &InetSocket, now: Instant) -> Option<(ProcId, bool)> {
        let (pid, descriptor) =
            self.known_holder(socket.inode).or_else(|| self.search(waiting, socket, now))?;
        let (pid, shared) = self.youngest_of_family(pid, descriptor, socket.inode);
        let process = match self.likely.identity(pid) {
            Some(process) => process,
            None => {
                let process = proc_fd::kin(&self.root, pid, &mut self.stat)?.id;
                // Made sure of after the process was read, so that it is the one read.
                if !self.holds(pid, descriptor, socket.inode) {
                    return None;
                }
                self.identify(process);
                process
            }
        };
        self.likely.found(&waiting.key, waiting.side, pid, descriptor, socket.uid);
        Some((process, shared))
    }

    fn holds(&self, pid: i32, descriptor: i32, inode: u64) -> bool {
        proc_fd::socket_of(&self.root, pid, descriptor) == Ok(Some(inode))
    }

    /// A process that was seen to hold the socket when another one was sought.
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

    /// Of a process, the parent that it may have inherited its descriptor from and the children that inherited it, the
    /// youngest; whether there were several.
    fn youngest_of_family(&self, pid: i32, descriptor: i32, inode: u64) -> (i32, bool) {
        let holds = |pid| self.holds(pid, descriptor, inode);
        let mut youngest = (pid, self.likely.parent(pid).is_some_and(holds));
        while let Some(child) =
            self.likely.children(youngest.0).take(MOST_CHILDREN).find(|&child| holds(child))
        {
            youngest = (child, true);
        }
        youngest
    }

    /// Looks for the socket in processes that are likely to hold it.
    fn search(&mut self, waiting: &Waiting, socket: &InetSocket, now: Instant) -> Option<(i32, i32)> {
        let mut suggestions = std::mem::take(&mut self.suggestions);
        let found = self.search_suggested(&mut suggestions, waiting, socket, now);
        self.suggestions = suggestions;
        found
    }

    fn search_suggested(
        &mut self,
        [at_end, new, acquainted]: &mut [Vec<i32>; 3],
        waiting: &Waiting,
        socket: &InetSocket,
        now: Instant,
    ) -> Option<(i32, i32)> {
        let (end, inode) = (End::of(&waiting.key, waiting.side), socket.inode);
        let mut effort = EFFORT;
        self.likely.at_end(&end, at_end);
        self.likely.newest(now, new);
        let mut found = self.by_descriptors(at_end.iter().chain(new.iter()), &end, inode, &mut effort);
        // What is new has few descriptors.
        found = found.or_else(|| self.in_directories(new.iter().chain(at_end.iter()), inode, &mut effort));
        if found.is_none() && effort > 0 {
            self.likely.acquainted(socket.uid, acquainted);
            acquainted.retain(|pid| !new.contains(pid) && !at_end.contains(pid));
            found = self.by_descriptors(acquainted.iter(), &end, inode, &mut effort);
            // Whoever is left has a turn, too.
            let mut most = effort.saturating_sub(EFFORT_IN_TURN);
            found = found.or_else(|| self.in_directories(acquainted.iter(), inode, &mut most));
            effort = effort.min(EFFORT_IN_TURN);
        }
        while found.is_none() && effort > 0 {
            let pid = self.likely.next_in_turn(socket.uid)?;
            found = self.descriptor_of(pid, inode, &mut effort).map(|descriptor| (pid, descriptor));
        }
        found
    }

    /// Looks for the socket among the descriptors of these processes that are likely to be it.
    fn by_descriptors<'a>(
        &self,
        pids: impl Iterator<Item = &'a i32>,
        end: &End,
        inode: u64,
        effort: &mut u32,
    ) -> Option<(i32, i32)> {
        for &pid in pids {
            for descriptor in self.likely.descriptors(pid, end) {
                *effort = effort.checked_sub(1)?;
                if self.holds(pid, descriptor, inode) {
                    return Some((pid, descriptor));
                }
            }
        }
        None
    }

    /// Looks for the socket among all descriptors of these processes.
    fn in_directories<'a>(
        &mut self,
        mut pids: impl Iterator<Item = &'a i32>,
        inode: u64,
        effort: &mut u32,
    ) -> Option<(i32, i32)> {
        pids.find_map(|&pid| {
            let mut most = (*effort).min(MOST_OF_A_PROCESS);
            *effort -= most;
            let found = self.descriptor_of(pid, inode, &mut most).map(|descriptor| (pid, descriptor));
            *effort += most;
            found
        })
    }

    /// The descriptor by which a process holds a socket, if it is one of the next that `effort` allows to be read. What
    /// else is read is remembered.
    fn descriptor_of(&mut self, pid: i32, inode: u64, effort: &mut u32) -> Option<i32> {
        *effort = effort.saturating_sub(OPENING);
        let directory = open_directory(self.root.directory(), PidPath::new(pid).file("fd")).ok()?;
        let start = self.likely.cursor(pid).unwrap_or_else(|| likely_start(&directory));
        let mut end = None;
        let mut found = None;
        // Descriptor n stands at offset n + 2 of the directory (proc_readfd_common, fs/proc/fd.c).
        lseek(&directory, i64::from(start) + 2, Whence::SeekSet).ok()?;
        let holders = &mut self.holders;
        let mut is_opening = false;
        let _ = proc_fd::for_each_number(directory.as_fd(), &mut self.entries, |name, descriptor| {
            if *effort == 0 {
                end = Some(descriptor);
                return Err(Errno::EINTR);
            }
            *effort -= 1;
            match proc_fd::socket_inode(directory.as_fd(), name) {
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
        if holders.is_full() {
            holders.evict();
        }
        if is_opening {
            self.likely.saw_opening(pid);
        }
        // The next search goes on where this one ended, or begins anew.
        self.likely.set_cursor(pid, found.or(end).unwrap_or(0));
        found
    }
}

/// Where in an unknown process a new descriptor is likely to be. The lowest free number is given out, so that where all
/// are in use it is the count of them (which the size is since Linux 6.2; before it is 0).
fn likely_start(directory: &OwnedFd) -> i32 {
    let count = nix::sys::stat::fstat(directory).map_or(0, |stat| stat.st_size);
    i32::try_from(count).map_or(0, |count| (count - i32::from(LAST)).max(0))
}

/// Sockets whose inode numbers are that near to each other were opened at about the same time. Each CPU gives out 1024
/// in turn (`get_next_ino`, fs/inode.c of the kernel), also to pipes and the like.
const NEAR: u64 = 4096;
/// Of a process's descriptors so many of the last are looked at first.
const LAST: i16 = 64;
/// Room for some eighty descriptors: listing one costs the kernel about as much as reading its link.
const FEW_ENTRIES: usize = 2 * 1024;
/// Opening and listing a directory costs about as much as so many links.
const OPENING: u32 = 4;
/// So many of a process's youngest children are asked whether they inherited a socket.
const MOST_CHILDREN: usize = 16;
/// A packet of the same flow within this time is the same packet on another device, or repeats it.
const REPEATED: Duration = Duration::from_millis(50);

/// Whether a socket without an inode is one that a server has yet to accept.
fn is_opening(socket: &InetSocket) -> bool {
    const ESTABLISHED: u8 = 1;
    const SYN_RECV: u8 = 3;
    const CLOSE_WAIT: u8 = 8;
    const NEW_SYN_RECV: u8 = 12;
    matches!(socket.state, ESTABLISHED | SYN_RECV | CLOSE_WAIT | NEW_SYN_RECV)
}

#[cfg(test)]
#[path = "first_tests.rs"]
mod tests;
