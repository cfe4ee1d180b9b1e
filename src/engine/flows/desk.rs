//! The desk between the threads: records of flows that have ended, those of living ones on request, and the kernel's
//! notices of sockets that have gone.

use crate::model::{FlowKey, FlowRecord, Namespace, Timestamp};
use crate::netlink::TcpInfo;
use crate::sync::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Notices that may wait for the capture thread, some 150 bytes each.
const NOTICE_LIMIT: usize = 65_536;

/// A flow's record, and the number of its namespace in this session.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub namespace: Namespace,
    pub record: FlowRecord,
}

impl Seen {
    /// The flow's name among those that live.
    pub fn key(&self) -> FlowKey {
        let FlowRecord { local, remote, protocol, .. } = self.record;
        FlowKey { local, remote, protocol, namespace: self.namespace }
    }
}

/// A TCP socket that has gone, and what the kernel knew of it last.
#[derive(Clone, Copy, Debug)]
pub struct SocketEnd {
    /// Its endpoints.
    pub key: FlowKey,
    /// When this was known.
    pub told: Timestamp,
    /// Its cookie.
    pub cookie: u64,
    /// What was known of it.
    pub info: TcpInfo,
}

/// The desk itself.
pub struct FlowDesk {
    /// Most records of ended flows that wait to be taken.
    limit: usize,
    ended: Mutex<VecDeque<Seen>>,
    lost: AtomicU64,
    notices: Mutex<Vec<SocketEnd>>,
    living: Mutex<Living>,
    shown: Condvar,
}

/// The records of living flows on their way to whoever has asked.
#[derive(Default)]
struct Living {
    is_wanted: bool,
    filled: Option<Vec<Seen>>,
    /// Whether those filled are the last, for the capture has ended.
    is_over: bool,
}

impl FlowDesk {
    /// A desk with room for the records of `limit` ended flows.
    pub fn new(limit: usize) -> FlowDesk {
        FlowDesk {
            limit,
            ended: Mutex::default(),
            lost: AtomicU64::new(0),
            notices: Mutex::default(),
            living: Mutex::default(),
            shown: Condvar::default(),
        }
    }

    /// Leaves records of flows that have ended, leaving none. The oldest make room.
    pub(super) fn add_ended(&self, records: &mut Vec<Seen>) {
        let mut ended = self.ended.lock();
        ended.extend(records.drain(..));
        let beyond = ended.len().saturating_sub(self.limit);
        ended.drain(..beyond);
        self.lost.fetch_add(beyond as u64, Ordering::Relaxed);
    }

    /// Takes the records of flows that have ended, the oldest first.
    pub(super) fn take_ended(&self) -> VecDeque<Seen> {
        std::mem::take(&mut *self.ended.lock())
    }

    /// Records of ended flows that were lost because nobody took them in time.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Leaves notices of sockets that have gone. What is beyond the limit is forgotten: it only completes records.
    pub fn add_notices(&self, new: impl Iterator<Item = SocketEnd>) {
        let mut notices = self.notices.lock();
        let room = NOTICE_LIMIT.saturating_sub(notices.len());
        notices.extend(new.take(room));
    }

    /// Takes the notices.
    pub(super) fn take_notices(&self) -> Vec<SocketEnd> {
        std::mem::take(&mut *self.notices.lock())
    }

    /// Asks for the living flows and waits until `deadline`. `wake` is called once the question stands. `None`: they did
    /// not come in time, or the capture has ended and they are those that came last.
    pub(super) fn living(&self, deadline: Instant, wake: impl FnOnce()) -> Option<Vec<Seen>> {
        let mut living = self.living.lock();
        if !living.is_over {
            living.filled = None;
            living.is_wanted = true;
            drop(living);
            wake();
            living = self.living.lock();
            while living.filled.is_none() && !living.is_over && Instant::now() < deadline {
                living = self.shown.wait_until(living, deadline);
            }
        }
        living.filled.take()
    }

    /// Shows the living flows to whoever has asked, if anybody has; or because they are the last.
    pub(super) fn show(&self, is_last: bool, records: impl FnOnce() -> Vec<Seen>) {
        if !self.living.lock().is_wanted && !is_last {
            return;
        }
        let records = records();
        let mut living = self.living.lock();
        living.filled = Some(records);
        living.is_wanted = false;
        living.is_over |= is_last;
        drop(living);
        self.shown.notify_all();
    }
}
