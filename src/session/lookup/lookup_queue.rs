//! The queue between the capture thread and the resolver: requests one way, answers the other.

use crate::flow::FlowId;
use crate::model::{FlowKey, Owner, Timestamp, Unowned};
use crate::owner::LocalEnd;
use crate::sync::{Condvar, Mutex};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A request for the owner of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The flow's identifier in its table.
    pub flow: FlowId,
    /// Its protocol and endpoints.
    pub key: FlowKey,
    /// Capture time of the first packet that the request is about: the flow's first one, or a later one if
    /// its owner may have changed since. An owner found at an earlier packet is no answer.
    pub first: Timestamp,
    /// Set if the flow had ended before the request could be made: sockets that exist now are no answer.
    pub is_over: bool,
    /// Set if both ends have taken part in the flow. In a crowd of requests, such a request is preferred to
    /// others.
    pub is_answered: bool,
    /// Relation of the local endpoint to this host.
    pub local_end: LocalEnd,
}

/// The answer to a request.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The flow's identifier in its table.
    pub flow: FlowId,
    /// Its owner, or the reason for having none.
    pub owner: Result<Owner, Unowned>,
    /// Set if the owner's socket has other endpoints than the flow has on the wire.
    pub is_translated: bool,
}

/// The queue between the capture thread and the resolver.
pub struct LookupQueue {
    /// Limit of the open requests; further flows get the reason that the queue is full.
    limit: usize,
    inbox: Mutex<Inbox>,
    arrived: Condvar,
    pub(super) answers: Mutex<Vec<Answer>>,
    /// Requests without a final answer, including those that wait for a retry.
    pub(super) open: AtomicUsize,
    /// Requests made so far, and those of them that have been tried once, in the same order.
    handed_in: AtomicU64,
    pub(super) tried: AtomicU64,
    pub(super) under_way: Mutex<UnderWay>,
}

/// The requests that a resolver has taken, so that another one can take them if this one is abandoned.
#[derive(Default)]
pub(super) struct UnderWay {
    /// In the resolver's own order.
    pub(super) requests: Vec<(Request, Instant)>,
    /// Number of the requests that have not been tried once.
    pub(super) untried: usize,
}

#[derive(Default)]
struct Inbox {
    requests: Vec<(Request, Instant)>,
    stopping: bool,
}

impl LookupQueue {
    /// Returns a queue for `limit` open requests.
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

    /// Returns the number of requests that may still be added.
    pub fn room(&self) -> usize {
        self.limit.saturating_sub(self.open.load(Ordering::Relaxed))
    }

    /// Adds requests, leaving `requests` empty.
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

    /// Takes the available answers.
    pub fn take_answers(&self) -> Vec<Answer> {
        std::mem::take(&mut *self.answers.lock())
    }

    /// Returns the number of requests made so far.
    pub fn handed_in(&self) -> u64 {
        self.handed_in.load(Ordering::Relaxed)
    }

    /// Returns how many of the requests have been tried once, counted from the first. Their answers, as far
    /// as they are final, can be taken.
    pub fn tried(&self) -> u64 {
        self.tried.load(Ordering::Acquire)
    }

    /// Returns true if every request has its final answer and every answer was taken.
    pub fn is_idle(&self) -> bool {
        self.open.load(Ordering::Acquire) == 0 && self.answers.lock().is_empty()
    }

    /// Returns the number of requests without a final answer.
    pub fn waiting(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Returns the age of the oldest request that the resolver has not taken.
    pub(super) fn waited(&self) -> Duration {
        self.inbox.lock().requests.first().map_or(Duration::ZERO, |(_, asked)| asked.elapsed())
    }

    /// Makes [`super::Resolver::run`] return.
    pub fn stop(&self) {
        self.inbox.lock().stopping = true;
        self.arrived.notify_all();
    }

    /// Waits for requests until `deadline`, and takes at most `most`. Returns `None` if the queue is closed.
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

    /// Puts the requests of an abandoned resolver back on the queue.
    pub(super) fn recover(&self) {
        let mut inbox = self.inbox.lock();
        let mut under_way = self.under_way.lock();
        let tried = under_way.requests.len() - under_way.untried;
        self.handed_in.fetch_add(tried as u64, Ordering::Relaxed);
        under_way.untried = 0;
        inbox.requests.append(&mut under_way.requests);
    }
}
