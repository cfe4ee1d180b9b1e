//! Where the holder of a new socket is likely to be found, by what was seen of sockets and processes before.
//!
//! Nothing here is believed: whoever asks reads the process's descriptors to make sure. Everything is bounded; the
//! oldest suggestions make room.

use crate::model::{Endpoint, FlowKey, Namespace, Protocol};
use foldhash::fast::RandomState;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Processes known to be young, and for how long a process is; it opens its first sockets soon after its start.
const MOST_YOUNG: usize = 1024;
const YOUNG: Duration = Duration::from_secs(10);
/// Processes remembered for having owned sockets lately.
const MOST_TRAILS: usize = 1024;
/// Processes remembered for one endpoint.
const MOST_AT_END: usize = 8;
/// Endpoints for which processes are remembered.
const MOST_ENDS: usize = 16_384;
/// Descriptors remembered of one process. Numbers are given out lowest first, so that they come again and again.
const MOST_DESCRIPTORS: usize = 8;

/// Which end of a connection is on this host, as far as its owner is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    /// The end that opened it, or sent the first datagram.
    Opener,
    /// The end that was called.
    Called,
}

/// What flows of one program have in common: whom it calls, or where it is called.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct End {
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

/// A process that was forked or became another program lately.
#[derive(Clone, Copy, Debug)]
pub(super) struct Young {
    pub pid: i32,
    pub parent: i32,
    since: Instant,
}

/// Where in a process sockets were found.
#[derive(Clone, Default, Debug)]
pub(super) struct Trail {
    uid: u32,
    /// Latest last.
    descriptors: VecDeque<i32>,
}

impl Trail {
    /// The numbers of descriptors that were sockets sought for, latest first.
    pub fn descriptors(&self) -> impl Iterator<Item = i32> {
        self.descriptors.iter().rev().copied()
    }
}

/// The suggestions.
#[derive(Default, Debug)]
pub(super) struct Likely {
    /// Latest last.
    young: VecDeque<Young>,
    trails: HashMap<i32, Trail, RandomState>,
    /// The processes with trails, latest used last.
    used: VecDeque<i32>,
    cursors: HashMap<i32, i32, RandomState>,
    ends: HashMap<End, VecDeque<i32>, RandomState>,
    /// All processes with their users, those that opened sockets last first; as of the latest full scan.
    crowd: Vec<(i32, u32)>,
    next_in_crowd: usize,
}

impl Likely {
    /// A process was forked.
    pub fn forked(&mut self, pid: i32, parent: i32, now: Instant) {
        self.young.push_back(Young { pid, parent, since: now });
        let is_old = |young: &Young| now.saturating_duration_since(young.since) > YOUNG;
        while self.young.len() > MOST_YOUNG || self.young.front().is_some_and(is_old) {
            self.young.pop_front();
        }
    }

    /// A process became another program: what it holds now is its own.
    pub fn became_another(&mut self, pid: i32, now: Instant) {
        let parent = self.take_young(pid).map_or(0, |young| young.parent);
        self.cursors.remove(&pid);
        self.trails.remove(&pid);
        self.forked(pid, parent, now);
    }

    /// A process has ended.
    pub fn ended(&mut self, pid: i32) {
        self.take_young(pid);
        self.trails.remove(&pid);
        self.cursors.remove(&pid);
    }

    fn take_young(&mut self, pid: i32) -> Option<Young> {
        let at = self.young.iter().rposition(|young| young.pid == pid)?;
        self.young.remove(at)
    }

    /// The parent of a young process.
    pub fn parent(&self, pid: i32) -> Option<i32> {
        self.young.iter().rev().find(|young| young.pid == pid).map(|young| young.parent)
    }

    /// The youngest children of a process, latest first.
    pub fn children(&self, parent: i32) -> impl Iterator<Item = i32> {
        self.young.iter().rev().filter(move |young| young.parent == parent).map(|young| young.pid)
    }

    /// A socket of this flow was found in a process.
    pub fn found(&mut self, key: &FlowKey, side: Side, pid: i32, descriptor: i32, uid: u32) {
        let end = End::of(key, side);
        if self.ends.len() >= MOST_ENDS && !self.ends.contains_key(&end) {
            self.ends.clear();
        }
        touch(self.ends.entry(end).or_default(), pid, MOST_AT_END);
        if let Some(forgotten) = touch(&mut self.used, pid, MOST_TRAILS) {
            self.trails.remove(&forgotten);
        }
        let trail = self.trails.entry(pid).or_default();
        trail.uid = uid;
        touch(&mut trail.descriptors, descriptor, MOST_DESCRIPTORS);
    }

    /// What is known of a process's descriptors.
    pub fn trail(&self, pid: i32) -> Option<&Trail> {
        self.trails.get(&pid)
    }

    /// Where reading a process's descriptors is to go on, if it was cut short.
    pub fn cursor(&self, pid: i32) -> Option<i32> {
        self.cursors.get(&pid).copied()
    }

    /// Reading a process's descriptors is to go on here.
    pub fn set_cursor(&mut self, pid: i32, cursor: i32) {
        if self.cursors.len() >= MOST_TRAILS && !self.cursors.contains_key(&pid) {
            self.cursors.clear();
        }
        self.cursors.insert(pid, cursor);
    }

    /// All processes with their users, as a full scan found them, those with the newest sockets first.
    pub fn set_crowd(&mut self, crowd: Vec<(i32, u32)>) {
        self.crowd = crowd;
        self.next_in_crowd = 0;
    }

    /// Adds the processes that are likely to hold a socket of this user for this flow, the likeliest first, each once.
    pub fn suggest(&self, key: &FlowKey, side: Side, uid: u32, now: Instant, into: &mut Vec<i32>) {
        let at_end = self.ends.get(&End::of(key, side)).into_iter().flatten().rev().copied();
        // Whoever was started a moment ago is likelier than whoever was there all the time.
        let is_new = |young: &&Young| now.saturating_duration_since(young.since) < NEW;
        let new = self.young.iter().rev().take_while(is_new).map(|young| young.pid);
        let of_user = |pid: &&i32| self.trails.get(pid).is_some_and(|trail| trail.uid == uid);
        let used = self.used.iter().rev().filter(of_user).copied();
        let young = self.young.iter().rev().map(|young| young.pid);
        for pid in at_end.chain(new).chain(used).chain(young).chain(self.freshest(uid)) {
            if !into.contains(&pid) {
                into.push(pid);
            }
            if into.len() >= MOST_SUGGESTED {
                return;
            }
        }
    }

    fn freshest(&self, uid: u32) -> impl Iterator<Item = i32> {
        self.crowd.iter().take(FRESHEST).filter(move |(_, user)| *user == uid).map(|(pid, _)| *pid)
    }

    /// The next process of this user in turn, of all there are. `None` when every one was looked at since the full scan.
    pub fn next_of_user(&mut self, uid: u32) -> Option<i32> {
        let rest = self.crowd.get(self.next_in_crowd..)?;
        match rest.iter().position(|(_, user)| *user == uid) {
            Some(at) => {
                self.next_in_crowd += at + 1;
                rest.get(at).map(|(pid, _)| *pid)
            }
            None => {
                self.next_in_crowd = 0;
                None
            }
        }
    }
}

/// Of so many processes with the newest sockets each is looked at for every new one.
const FRESHEST: usize = 32;
/// How long a process is likelier than all others to hold a new socket.
const NEW: Duration = Duration::from_millis(100);
/// More suggestions than this are not worth reading for one socket.
const MOST_SUGGESTED: usize = 128;

/// Puts `value` last and keeps at most `most`; returns the one forgotten for it.
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

    fn suggested(likely: &Likely, uid: u32, now: Instant) -> Vec<i32> {
        let mut pids = Vec::new();
        likely.suggest(&flow(1), Side::Opener, uid, now, &mut pids);
        pids
    }

    #[test]
    fn the_likeliest_comes_first_and_each_once() {
        let (mut likely, start) = (Likely::default(), Instant::now());
        likely.set_crowd(vec![(50, 7), (51, 8), (10, 7)]);
        likely.forked(30, 1, start);
        let elsewhere = key(Protocol::TCP, "10.0.0.1:1", "10.0.0.3:80");
        likely.found(&elsewhere, Side::Opener, 20, 3, 7);
        likely.found(&elsewhere, Side::Opener, 21, 3, 8);
        likely.found(&flow(2), Side::Opener, 10, 3, 7);
        let later = start + NEW;
        likely.forked(31, 1, later);
        assert_eq!(
            suggested(&likely, 7, later),
            [10, 31, 20, 30, 50],
            "caller, new, same user, young, fresh"
        );
        likely.ended(10);
        likely.ended(31);
        assert_eq!(suggested(&likely, 8, later)[..2], [10, 21], "that it called there is remembered");
    }

    #[test]
    fn a_process_that_becomes_another_stays_young_and_forgets() {
        let (mut likely, start) = (Likely::default(), Instant::now());
        likely.forked(30, 1, start);
        likely.forked(31, 1, start);
        likely.found(&flow(1), Side::Opener, 30, 5, 0);
        likely.became_another(30, start);
        assert_eq!(likely.children(1).collect::<Vec<_>>(), [30, 31]);
        assert!(likely.trail(30).is_none());
    }

    #[test]
    fn the_crowd_is_gone_through_in_turn() {
        let mut likely = Likely::default();
        likely.set_crowd(vec![(1, 0), (2, 7), (3, 0), (4, 7)]);
        let turns: Vec<_> = (0..4).map(|_| likely.next_of_user(7)).collect();
        assert_eq!(turns, [Some(2), Some(4), None, Some(2)]);
    }

    #[test]
    fn everything_is_bounded() {
        let (mut likely, start) = (Likely::default(), Instant::now());
        for number in 0..40_000 {
            likely.forked(number, 1, start);
            let remote = format!("10.{}.{}.{}:80", number >> 16, (number >> 8) & 255, number & 255);
            likely.found(&key(Protocol::TCP, "10.0.0.1:1", &remote), Side::Opener, number, number, 0);
            likely.found(&flow(1), Side::Opener, number, number, 0);
            likely.set_cursor(number, 1);
        }
        assert_eq!(likely.young.len(), MOST_YOUNG);
        assert_eq!((likely.trails.len(), likely.used.len()), (MOST_TRAILS, MOST_TRAILS));
        assert!(likely.ends.len() <= MOST_ENDS && likely.cursors.len() <= MOST_TRAILS);
        assert_eq!(likely.ends[&End::of(&flow(1), Side::Opener)].len(), MOST_AT_END);
        assert_eq!(suggested(&likely, 0, start).len(), MOST_SUGGESTED);
        likely.forked(1, 1, start + YOUNG * 2);
        assert_eq!(likely.young.len(), 1, "the others are old");
    }
}
