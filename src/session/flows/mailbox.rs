//! The mailbox between the threads: records of flows that have ended, those of living ones on request, and the kernel's
//! notices of sockets that have gone.

use crate::model::{FlowKey, FlowRecord, Namespace, Timestamp};
use crate::netlink::TcpInfo;
use crate::sync::{Condvar, Mutex};
use std::collections::VecDeque;
use std::time::Instant;

/// Notices that may wait for the capture thread, some 150 bytes each.
const NOTICE_LIMIT: usize = 65_536;

/// A flow's record, and the number of its namespace in this session.
#[derive(Clone, Copy, Debug)]
pub struct NamespacedRecord {
    pub namespace: Namespace,
    pub record: FlowRecord,
}

impl NamespacedRecord {
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

/// The mailbox itself.
pub struct FlowMailbox {
    /// Most records of ended flows that wait to be taken.
    limit: usize,
    ended: Mutex<EndedFlows>,
    notices: Mutex<Vec<SocketEnd>>,
    living: Mutex<Living>,
    shown: Condvar,
}

/// The records of ended flows, the oldest first.
#[derive(Default)]
struct EndedFlows {
    records: VecDeque<NamespacedRecord>,
    /// How many there have been, and how many of these there were when the living ones were seen last. Only those may be
    /// taken: others may have been seen as living.
    added: u64,
    shown: u64,
    lost: u64,
}

/// The records of living flows on their way to whoever has asked.
#[derive(Default)]
struct Living {
    is_wanted: bool,
    /// With how many records of ended flows there had been then.
    filled: Option<(Vec<NamespacedRecord>, u64)>,
    /// Whether those filled are the last, for the capture has ended.
    is_over: bool,
}

impl FlowMailbox {
    /// A mailbox with room for the records of `limit` ended flows.
    pub fn new(limit: usize) -> FlowMailbox {
        FlowMailbox {
            limit,
            ended: Mutex::default(),
            notices: Mutex::default(),
            living: Mutex::default(),
            shown: Condvar::default(),
        }
    }

    /// Leaves records of flows that have ended, leaving none. The oldest make room.
    pub fn add_ended(&self, records: &mut Vec<NamespacedRecord>) {
        let mut ended = self.ended.lock();
        ended.added += records.len() as u64;
        ended.records.extend(records.drain(..));
        let beyond = ended.records.len().saturating_sub(self.limit);
        ended.records.drain(..beyond);
        ended.lost += beyond as u64;
    }

    /// Counts records of ended flows that were lost on their way here.
    pub fn add_lost(&self, count: u64) {
        self.ended.lock().lost += count;
    }

    /// Leaves the living flows without having been asked.
    pub fn put(&self, records: Vec<NamespacedRecord>) {
        let mut living = self.living.lock();
        living.filled = Some((records, self.ended.lock().added));
    }

    /// Takes the living flows that were left last.
    pub(super) fn left(&self) -> Option<Vec<NamespacedRecord>> {
        let (records, added) = self.living.lock().filled.take()?;
        self.ended.lock().shown = added;
        Some(records)
    }

    /// Takes the records of flows that had ended when the living ones were seen last, the oldest first.
    pub(super) fn take_ended(&self) -> VecDeque<NamespacedRecord> {
        let mut ended = self.ended.lock();
        let later = usize::try_from(ended.added - ended.shown).unwrap_or(usize::MAX);
        let count = ended.records.len().saturating_sub(later);
        let rest = ended.records.split_off(count);
        std::mem::replace(&mut ended.records, rest)
    }

    /// Records of ended flows that were lost because nobody took them in time.
    pub fn lost(&self) -> u64 {
        self.ended.lock().lost
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
    pub(super) fn living(&self, deadline: Instant, wake: impl FnOnce()) -> Option<Vec<NamespacedRecord>> {
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
        drop(living);
        self.left()
    }

    /// Shows the living flows to whoever has asked, if anybody has; or because they are the last.
    pub(super) fn show(&self, is_last: bool, records: impl FnOnce() -> Vec<NamespacedRecord>) {
        if !self.living.lock().is_wanted && !is_last {
            return;
        }
        self.put(records());
        let mut living = self.living.lock();
        living.is_wanted = false;
        living.is_over |= is_last;
        drop(living);
        self.shown.notify_all();
    }
}
