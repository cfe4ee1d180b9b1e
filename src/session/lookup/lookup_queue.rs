//! The queue between the capture thread and the resolver: requests one way, answers the other.

use crate::flow::FlowId;
use crate::model::{FlowKey, Owner, Timestamp, Unowned};
use crate::owner::LocalEnd;
use crate::sync::{Condvar, Mutex};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Which flow is to be asked about.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The flow's name in its table.
    pub flow: FlowId,
    /// Its protocol and endpoints.
    pub key: FlowKey,
    /// When the first packet was captured that the question is about: the flow's first one, or a later one when its owner
    /// may have changed since. An owner found at an earlier packet is no answer.
    pub first: Timestamp,
    /// Whether the flow was over before anybody could ask: sockets that are there now are no answer.
    pub is_over: bool,
    /// Whether both ends have taken part in the flow. Where there are many questions, others come after these.
    pub is_answered: bool,
    /// Whose the local end is.
    pub local_end: LocalEnd,
}

/// What was found out.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The flow's name in its table.
    pub flow: FlowId,
    /// Its owner, or why there is none.
    pub owner: Result<Owner, Unowned>,
}

/// The queue between the capture thread and the resolver.
pub struct LookupQueue {
    /// Questions that may be open at once; flows that come on top are told that the queue is full.
    limit: usize,
    inbox: Mutex<Inbox>,
    arrived: Condvar,
    pub(super) answers: Mutex<Vec<Answer>>,
    /// Questions not finally answered, those that wait to be tried again included.
    pub(super) open: AtomicUsize,
    /// Questions handed in so far, and those of them that have been tried once, in the same order.
    handed_in: AtomicU64,
    pub(super) tried: AtomicU64,
    pub(super) under_way: Mutex<UnderWay>,
}

/// The questions that a resolver has taken, for another one to take if it is left behind.
#[derive(Default)]
pub(super) struct UnderWay {
    /// In the resolver's own order.
    pub(super) requests: Vec<(Request, Instant)>,
    /// How many of them have not been tried once.
    pub(super) untried: usize,
}

#[derive(Default)]
struct Inbox {
    requests: Vec<(Request, Instant)>,
    stopping: bool,
}

impl LookupQueue {
    /// A queue for `limit` open questions.
    pub fn new(limit: usize) -> LookupQueue {
        LookupQueue {
            limit,
            inbox: Mutex::default(),
            arrived: Condvar::default(),
            answers: Mutex::default(),
            open: AtomicUsize::default(),
            handed_in: AtomicU64::default(),
            tried: AtomicU64::default(),
            under_way: Mutex::default(),
        }
    }

    /// How many more questions may be handed in.
    pub fn room(&self) -> usize {
        self.limit.saturating_sub(self.open.load(Ordering::Relaxed))
    }

    /// Hands in questions, leaving `requests` empty.
    pub fn ask(&self, requests: &mut Vec<Request>) {
        if requests.is_empty() {
            return;
        }
        let now = Instant::now();
        self.open.fetch_add(requests.len(), Ordering::Relaxed);
        self.handed_in.fetch_add(requests.len() as u64, Ordering::Relaxed);
        self.inbox.lock().requests.extend(requests.drain(..).map(|request| (request, now)));
        self.arrived.notify_one();
    }

    /// Takes the answers there are.
    pub fn take_answers(&self) -> Vec<Answer> {
        std::mem::take(&mut *self.answers.lock())
    }

    /// How many questions have been handed in so far.
    pub fn handed_in(&self) -> u64 {
        self.handed_in.load(Ordering::Relaxed)
    }

    /// How many of the questions handed in have been tried once, the first ones. Their answers, where they are final, can
    /// be fetched.
    pub fn tried(&self) -> u64 {
        self.tried.load(Ordering::Acquire)
    }

    /// Whether every question was finally answered and every answer fetched.
    pub fn is_idle(&self) -> bool {
        self.open.load(Ordering::Acquire) == 0 && self.answers.lock().is_empty()
    }

    /// Questions not finally answered.
    pub fn waiting(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// How long the oldest of the questions has waited that nobody has taken.
    pub(super) fn waited(&self) -> Duration {
        self.inbox.lock().requests.first().map_or(Duration::ZERO, |(_, asked)| asked.elapsed())
    }

    /// Makes [`super::Resolver::run`] return.
    pub fn stop(&self) {
        self.inbox.lock().stopping = true;
        self.arrived.notify_all();
    }

    /// Waits for questions until `deadline`, and takes up to `most`. `None` when the queue is closed.
    pub(super) fn take_requests(
        &self,
        deadline: Option<Instant>,
        most: usize,
    ) -> Option<Vec<(Request, Instant)>> {
        let mut inbox = self.inbox.lock();
        while inbox.requests.is_empty() && !inbox.stopping {
            inbox = match deadline {
                None => self.arrived.wait(inbox),
                Some(deadline) if Instant::now() < deadline => self.arrived.wait_until(inbox, deadline),
                Some(_) => break,
            };
        }
        if inbox.stopping {
            return None;
        }
        let count = inbox.requests.len().min(most);
        let taken: Vec<_> = inbox.requests.drain(..count).collect();
        let mut under_way = self.under_way.lock();
        under_way.untried += taken.len();
        under_way.requests.extend(&taken);
        Some(taken)
    }

    /// Puts the questions of a resolver that was left behind on the queue again.
    pub(super) fn recover(&self) {
        let mut inbox = self.inbox.lock();
        let mut under_way = self.under_way.lock();
        let tried = under_way.requests.len() - under_way.untried;
        self.handed_in.fetch_add(tried as u64, Ordering::Relaxed);
        under_way.untried = 0;
        inbox.requests.append(&mut under_way.requests);
    }
}
