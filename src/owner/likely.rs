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
