//! Candidates for the holder of a new socket, ranked by earlier observations of sockets and processes.
//!
//! Candidates are only suggestions: the caller must read the process's descriptors to verify them. All but
//! the list of all processes is bounded: a full queue evicts its oldest entry, and a full map of endpoints,
//! identities or cursors evicts all of its entries.

use crate::bounded::{BoundedMap, Eviction};
use crate::model::{Endpoint, FlowKey, Namespace, ProcId, Protocol};
use foldhash::fast::RandomState;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// The limit of young processes, and the age up to which a process is young; it opens its first sockets soon
/// after its start.
const MAX_YOUNG: usize = 1024;
const YOUNG: Duration = Duration::from_secs(10);
/// The limit of processes that are kept as recent owners of sockets.
const MAX_TRAILS: usize = 1024;
/// The limit of processes for one endpoint.
const MAX_AT_END: usize = 8;
/// The limit of endpoints with processes.
const MAX_ENDS: usize = 16_384;
/// The limit of descriptors for one process or endpoint. The kernel assigns the lowest free number, so the
/// same numbers recur.
const MAX_DESCRIPTORS: usize = 4;
/// The limit of processes with a known identity.
const MAX_IDENTITIES: usize = 4096;

/// The end of a connection that is on this host, as far as its owner is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    /// The end that opened it, or sent the first datagram.
    Opener,
    /// The end that was called.
    Called,
}

/// The common property of flows of one program: the endpoint that it calls, or at which it is called.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(in crate::owner) struct End {
    namespace: Namespace,
    protocol: Protocol,
    side: Side,
    endpoint: Endpoint,
}

impl End {
    pub fn of(key: &FlowKey, side: Side) -> End {
        let endpoint = if side == Side::Opener { key.remote } else { key.local };
        End { namespace: key.namespace, protocol: key.protocol, side, endpoint }
    }
}

/// A process that was forked or executed another program recently.
#[derive(Clone, Copy, Debug)]
pub(in crate::owner) struct Young {
    pub pid: i32,
    pub parent: i32,
    since: Instant,
}

/// The descriptors of a process that were sockets.
#[derive(Clone, Default, Debug)]
struct Trail {
    uid: u32,
    /// Latest last.
    descriptors: VecDeque<i32>,
}

/// The processes that called an endpoint, or were called there, and their descriptors. Latest last.
#[derive(Clone, Default, Debug)]
struct AtEnd {
    processes: VecDeque<i32>,
    descriptors: VecDeque<i32>,
}

/// The candidates.
#[derive(Debug)]
pub(in crate::owner) struct Candidates {
    /// Latest last.
    young: VecDeque<Young>,
    trails: HashMap<i32, Trail, RandomState>,
    /// The processes with trails, latest used last.
    used: VecDeque<i32>,
    cursors: BoundedMap<i32, i32>,
    ends: BoundedMap<End, AtEnd>,
    identities: BoundedMap<i32, ProcId>,
    /// Processes that used the CPU recently, the busiest first.
    busy: Vec<i32>,
    /// Processes that were seen to have opened sockets a moment ago, latest last.
    opening: VecDeque<i32>,
    /// All processes with their users, those that opened sockets last first; as of the latest full scan.
    crowd: Vec<(i32, u32)>,
    /// The index of the next process in turn, in `crowd`, and in `young` from its end.
    next_in_crowd: usize,
    next_young: usize,
}

impl Default for Candidates {
    fn default() -> Candidates {
        Candidates {
            young: VecDeque::new(),
            trails: HashMap::default(),
            used: VecDeque::new(),
            cursors: BoundedMap::new(MAX_TRAILS, Eviction::All),
            ends: BoundedMap::new(MAX_ENDS, Eviction::All),
            identities: BoundedMap::new(MAX_IDENTITIES, Eviction::All),
            busy: Vec::new(),
            opening: VecDeque::new(),
            crowd: Vec::new(),
            next_in_crowd: 0,
            next_young: 0,
        }
    }
}

impl Candidates {
    /// The number of endpoints, identities and cursors that were evicted because a map was full.
    pub fn evicted(&self) -> u64 {
        self.ends.evicted() + self.identities.evicted() + self.cursors.evicted()
    }

    /// Records that a process was forked.
    pub fn forked(&mut self, pid: i32, parent: i32, now: Instant) {
        self.forget(pid);
        self.young.push_back(Young { pid, parent, since: now });
        let is_old = |young: &Young| now.saturating_duration_since(young.since) > YOUNG;
        while self.young.len() > MAX_YOUNG || self.young.front().is_some_and(is_old) {
            self.young.pop_front();
        }
    }

    /// Records that a process executed another program: the descriptors that it holds now are its own.
    pub fn became_another(&mut self, pid: i32, now: Instant) {
        let identity = self.identities.get(&pid).copied();
        let parent = self.take_young(pid).map_or(0, |young| young.parent);
        self.forked(pid, parent, now);
        identity.into_iter().for_each(|identity| self.identify(identity));
    }

    /// Records that a process has ended.
    pub fn ended(&mut self, pid: i32) {
        self.take_young(pid);
        self.forget(pid);
    }

    fn take_young(&mut self, pid: i32) -> Option<Young> {
        let at = self.young.iter().rposition(|young| young.pid == pid)?;
        self.young.remove(at)
    }

    fn forget(&mut self, pid: i32) {
        self.trails.remove(&pid);
        self.cursors.remove(&pid);
        self.identities.remove(&pid);
    }

    /// Records the identity of a process until the process ends. The caller may only use this if process ends
    /// are reported.
    pub fn identify(&mut self, process: ProcId) {
        self.identities.insert(process.pid, process);
    }

    /// Returns the recorded identity of a process.
    pub fn identity(&self, pid: i32) -> Option<ProcId> {
        self.identities.get(&pid).copied()
    }

    /// Drops all identities, because the ends of some processes may have been missed.
    pub fn forget_identities(&mut self) {
        self.identities.clear();
    }

    /// Returns the parent of a young process.
    pub fn parent(&self, pid: i32) -> Option<i32> {
        self.young.iter().rev().find(|young| young.pid == pid).map(|young| young.parent)
    }

    /// Returns the youngest children of a process, latest first.
    pub fn children(&self, parent: i32) -> impl Iterator<Item = i32> {
        self.young.iter().rev().filter(move |young| young.parent == parent).map(|young| young.pid)
    }

    /// Records that a socket of this flow was found in a process.
    pub fn found(&mut self, key: &FlowKey, side: Side, pid: i32, descriptor: i32, uid: u32) {
        if let Some(at_end) = self.ends.get_or_insert_with(End::of(key, side), AtEnd::default) {
            touch(&mut at_end.processes, pid, MAX_AT_END);
            touch(&mut at_end.descriptors, descriptor, MAX_DESCRIPTORS);
        }
        if let Some(forgotten) = touch(&mut self.used, pid, MAX_TRAILS) {
            self.trails.remove(&forgotten);
        }
        let trail = self.trails.entry(pid).or_default();
        trail.uid = uid;
        touch(&mut trail.descriptors, descriptor, MAX_DESCRIPTORS);
    }

    /// Returns the descriptors of a process that are likely to be a socket at this endpoint, the likeliest
    /// first: those that were wanted sockets in this process before, or else those of other processes at this
    /// endpoint, because the same program opens its files in the same order.
    pub fn descriptors(&self, pid: i32, end: &End) -> impl Iterator<Item = i32> {
        let own = self.trails.get(&pid).map(|trail| &trail.descriptors);
        let likely = own.or_else(|| self.ends.get(end).map(|at_end| &at_end.descriptors));
        likely.into_iter().flat_map(|descriptors| descriptors.iter().rev().copied())
    }

    /// Returns the descriptor at which an interrupted reading of a process continues.
    pub fn cursor(&self, pid: i32) -> Option<i32> {
        self.cursors.get(&pid).copied()
    }

    /// Sets the descriptor at which the reading of a process continues.
    pub fn set_cursor(&mut self, pid: i32, cursor: i32) {
        self.cursors.insert(pid, cursor);
    }

    /// Sets the list of all processes with their users from a full scan, those with the newest sockets first.
    pub fn set_crowd(&mut self, crowd: Vec<(i32, u32)>) {
        self.crowd = crowd;
        self.next_in_crowd = 0;
    }

    /// Sets the processes that used the CPU recently, the busiest first: a process that opens sockets uses
    /// the CPU.
    pub fn set_busy(&mut self, busy: Vec<i32>) {
        self.busy = busy;
    }

    /// Records that a process opened a socket a moment ago.
    pub fn saw_opening(&mut self, pid: i32) {
        touch(&mut self.opening, pid, MAX_AT_END);
    }

    /// Returns the processes that held sockets at this endpoint before, latest first.
    pub fn at_end(&self, end: &End, into: &mut Vec<i32>) {
        into.clear();
        let at_end = self.ends.get(end).into_iter().flat_map(|at_end| at_end.processes.iter().rev().copied());
        // A process that has ended no longer has a trail.
        into.extend(at_end.filter(|pid| self.trails.contains_key(pid)));
    }

    /// Returns young processes with the same parents as the processes in `of`, without these, latest first:
    /// workers with the same task.
    pub fn siblings(&self, of: &[i32], into: &mut Vec<i32>) {
        into.clear();
        let parents: Vec<i32> = of.iter().filter_map(|pid| self.parent(*pid)).collect();
        let is_sibling = |young: &&Young| parents.contains(&young.parent) && !of.contains(&young.pid);
        into.extend(self.young.iter().rev().filter(is_sibling).take(MAX_SIBLINGS).map(|young| young.pid));
    }

    /// Returns the processes that started a moment ago, latest first.
    pub fn newest(&self, now: Instant, into: &mut Vec<i32>) {
        into.clear();
        let is_new = |young: &&Young| now.saturating_duration_since(young.since) < NEW;
        into.extend(self.young.iter().rev().take_while(is_new).take(MAX_OF_A_KIND).map(|young| young.pid));
    }

    /// Returns processes that open sockets as this user, or are likely to, each once.
    pub fn acquainted(&self, uid: u32, into: &mut Vec<i32>) {
        into.clear();
        let of_user = |pid: &&i32| self.trails.get(pid).is_some_and(|trail| trail.uid == uid);
        let used = self.used.iter().rev().filter(of_user).take(MAX_OF_A_KIND).copied();
        let of_user = |(pid, user): &(i32, u32)| (*user == uid).then_some(*pid);
        let fresh = self.crowd.iter().take(MAX_OF_A_KIND).filter_map(of_user);
        let opening = self.opening.iter().rev().copied();
        for pid in opening.chain(self.busy.iter().copied()).chain(used).chain(fresh) {
            if !into.contains(&pid) {
                into.push(pid);
            }
        }
    }

    /// Returns the next process in turn, among the young ones and all of this user. `None` at the end of a
    /// round.
    pub fn next_in_turn(&mut self, uid: u32) -> Option<i32> {
        if self.next_young < self.next_in_crowd
            && let Some(pid) = self.next_young()
        {
            return Some(pid);
        }
        let next = self.next_of_user(uid).or_else(|| self.next_young());
        if next.is_none() {
            (self.next_young, self.next_in_crowd) = (0, 0);
        }
        next
    }

    fn next_young(&mut self) -> Option<i32> {
        let young = self.young.len().checked_sub(self.next_young + 1).and_then(|at| self.young.get(at))?;
        self.next_young += 1;
        Some(young.pid)
    }

    fn next_of_user(&mut self, uid: u32) -> Option<i32> {
        let rest = self.crowd.get(self.next_in_crowd..)?;
        let at = rest.iter().position(|(_, user)| *user == uid)?;
        let (pid, _) = rest.get(at)?;
        self.next_in_crowd += at + 1;
        Some(*pid)
    }
}

/// The time for which a new process is likelier than all others to hold a new socket.
const NEW: Duration = Duration::from_millis(100);
/// The limit of candidates of one kind that are worth reading for one socket.
const MAX_OF_A_KIND: usize = 16;
/// The limit of siblings. Only a descriptor or two of each are read.
const MAX_SIBLINGS: usize = 64;

/// Puts `value` last and keeps at most `most`; returns the value that was evicted for it.
fn touch(queue: &mut VecDeque<i32>, value: i32, most: usize) -> Option<i32> {
    if queue.back() == Some(&value) {
        return None;
    }
    if let Some(at) = queue.iter().position(|&known| known == value) {
        queue.remove(at);
    }
    queue.push_back(value);
    if queue.len() > most { queue.pop_front() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owner::made_up::key;

    fn flow(port: u16) -> FlowKey {
        key(Protocol::TCP, &format!("10.0.0.1:{port}"), "10.0.0.2:80")
    }

    fn at_end(likely: &Candidates) -> Vec<i32> {
        let mut pids = Vec::new();
        likely.at_end(&End::of(&flow(1), Side::Opener), &mut pids);
        pids
    }

    fn new(likely: &Candidates, now: Instant) -> Vec<i32> {
        let mut pids = Vec::new();
        likely.newest(now, &mut pids);
        pids
    }

    fn acquainted(likely: &Candidates, uid: u32) -> Vec<i32> {
        let mut pids = Vec::new();
        likely.acquainted(uid, &mut pids);
        pids
    }

    fn descriptors(likely: &Candidates, pid: i32) -> Vec<i32> {
        likely.descriptors(pid, &End::of(&flow(1), Side::Opener)).collect()
    }

    #[test]
    fn young_processes_of_the_same_parent_are_siblings() {
        let (mut likely, start) = (Candidates::default(), Instant::now());
        for (pid, parent) in [(30, 1), (31, 1), (40, 2), (32, 1)] {
            likely.forked(pid, parent, start);
        }
        let mut siblings = Vec::new();
        likely.siblings(&[31], &mut siblings);
        assert_eq!(siblings, [32, 30]);
        likely.siblings(&[31, 40, 99], &mut siblings);
        assert_eq!(siblings, [32, 30]);
        (100..300).for_each(|pid| likely.forked(pid, 1, start));
        likely.siblings(&[31], &mut siblings);
        assert_eq!((siblings.len(), siblings[0]), (MAX_SIBLINGS, 299));
    }

    #[test]
    fn the_likeliest_comes_first_and_each_once() {
        let (mut likely, start) = (Candidates::default(), Instant::now());
        likely.set_crowd(vec![(50, 7), (51, 8), (10, 7)]);
        likely.forked(30, 1, start);
        let elsewhere = key(Protocol::TCP, "10.0.0.1:1", "10.0.0.3:80");
        likely.found(&elsewhere, Side::Opener, 20, 3, 7);
        likely.found(&elsewhere, Side::Opener, 21, 3, 8);
        likely.found(&flow(2), Side::Opener, 10, 3, 7);
        let later = start + NEW;
        likely.forked(31, 1, later);
        assert_eq!((at_end(&likely), new(&likely, later)), (vec![10], vec![31]));
        likely.set_busy(vec![60, 61]);
        likely.saw_opening(61);
        assert_eq!(acquainted(&likely, 7), [61, 60, 10, 20, 50], "opening, busy, same user, fresh");
        likely.ended(10);
        likely.ended(31);
        assert_eq!((at_end(&likely), new(&likely, later)), (vec![], vec![]), "they have ended");
        assert_eq!(acquainted(&likely, 8), [61, 60, 21, 51]);
    }

    #[test]
    fn a_new_process_has_the_descriptors_of_others_that_did_the_same() {
        let (mut likely, start) = (Candidates::default(), Instant::now());
        likely.forked(30, 1, start);
        assert_eq!(descriptors(&likely, 30), [0; 0]);
        likely.found(&flow(2), Side::Opener, 20, 3, 7);
        likely.found(&flow(3), Side::Opener, 20, 5, 7);
        assert_eq!(descriptors(&likely, 30), [5, 3]);
        likely.found(&flow(4), Side::Opener, 30, 9, 7);
        assert_eq!((descriptors(&likely, 30), descriptors(&likely, 20)), (vec![9], vec![5, 3]));
    }

    #[test]
    fn who_a_process_is_is_known_until_it_ends() {
        let (mut likely, start) = (Candidates::default(), Instant::now());
        let process = ProcId { pid: 30, start_ticks: 7 };
        likely.forked(30, 1, start);
        likely.identify(process);
        likely.became_another(30, start);
        assert_eq!(likely.identity(30), Some(process), "a new program is the same process");
        likely.ended(30);
        assert_eq!(likely.identity(30), None);
        likely.identify(process);
        likely.forked(30, 1, start);
        assert_eq!(likely.identity(30), None, "it must have ended");
        likely.identify(process);
        likely.forget_identities();
        assert_eq!(likely.identity(30), None);
    }

    #[test]
    fn a_process_that_becomes_another_stays_young_and_forgets() {
        let (mut likely, start) = (Candidates::default(), Instant::now());
        likely.forked(30, 1, start);
        likely.forked(31, 1, start);
        likely.found(&flow(1), Side::Opener, 30, 5, 0);
        likely.became_another(30, start);
        assert_eq!(likely.children(1).collect::<Vec<_>>(), [30, 31]);
        assert!(at_end(&likely).is_empty(), "its sockets were another program's");
    }

    #[test]
    fn all_take_their_turn() {
        let (mut likely, start) = (Candidates::default(), Instant::now());
        let round = |likely: &mut Candidates| -> Vec<i32> {
            let mut pids: Vec<i32> = std::iter::from_fn(|| likely.next_in_turn(7)).collect();
            pids.sort_unstable();
            pids
        };
        assert_eq!(round(&mut likely), [0; 0]);
        likely.set_crowd(vec![(1, 0), (2, 7), (3, 0), (4, 7)]);
        assert_eq!(round(&mut likely), [2, 4]);
        (30..33).for_each(|pid| likely.forked(pid, 1, start));
        assert_eq!(round(&mut likely), [2, 4, 30, 31, 32], "young ones whoever their user is");
        assert_eq!(round(&mut likely), [2, 4, 30, 31, 32], "and again");
    }

    #[test]
    fn everything_is_bounded() {
        let (mut likely, start) = (Candidates::default(), Instant::now());
        for number in 0..40_000 {
            likely.forked(number, 1, start);
            let remote = format!("10.{}.{}.{}:80", number >> 16, (number >> 8) & 255, number & 255);
            likely.found(&key(Protocol::TCP, "10.0.0.1:1", &remote), Side::Opener, number, number, 0);
            likely.found(&flow(1), Side::Opener, number, number, 0);
            likely.set_cursor(number, 1);
            likely.saw_opening(number + 1_000_000);
            likely.identify(ProcId { pid: number, start_ticks: 1 });
        }
        assert_eq!(likely.young.len(), MAX_YOUNG);
        assert_eq!((likely.trails.len(), likely.used.len()), (MAX_TRAILS, MAX_TRAILS));
        assert!(likely.ends.len() <= MAX_ENDS && likely.cursors.len() <= MAX_TRAILS);
        assert!(likely.identities.len() <= MAX_IDENTITIES);
        assert!(likely.evicted() > 0);
        assert_eq!(likely.ends.get(&End::of(&flow(1), Side::Opener)).unwrap().processes.len(), MAX_AT_END);
        assert_eq!(new(&likely, start).len(), MAX_OF_A_KIND);
        assert_eq!(acquainted(&likely, 0).len(), MAX_OF_A_KIND + MAX_AT_END);
        likely.forked(1, 1, start + YOUNG * 2);
        assert_eq!(likely.young.len(), 1, "the others are old");
    }
}
