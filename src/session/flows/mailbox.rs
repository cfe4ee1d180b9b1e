//! The mailbox between the threads: records of ended flows, records of living flows on request, and the
//! kernel's notices of closed sockets.

use crate::model::{FlowKey, FlowRecord, Namespace, Timestamp};
use crate::netlink::TcpInfo;
use crate::sync::{Condvar, Mutex};
use std::collections::VecDeque;
use std::time::Instant;

/// Limit of the notices that wait for the capture thread, some 150 bytes each.
const NOTICE_LIMIT: usize = 65_536;

/// A flow record, and what is needed to find the flow's socket.
#[derive(Clone, Copy, Debug)]
pub struct NamespacedRecord {
    /// The number of the flow's namespace in this session.
    pub namespace: Namespace,
    /// Set if the socket has other endpoints than the record.
    pub is_translated: bool,
    pub record: FlowRecord,
}

impl NamespacedRecord {
    /// Returns the key that identifies the flow among the living ones.
    pub fn key(&self) -> FlowKey {
        let FlowRecord { local, remote, protocol, .. } = self.record;
        FlowKey { local, remote, protocol, namespace: self.namespace }
    }
}

/// A closed TCP socket, and its last tcp_info.
#[derive(Clone, Copy, Debug)]
pub struct SocketEnd {
    /// Its endpoints.
    pub key: FlowKey,
    /// Time at which this became known.
    pub told: Timestamp,
    /// Its cookie.
    pub cookie: u64,
    /// Its last tcp_info.
    pub info: TcpInfo,
}

/// The mailbox between the capture thread, the early lookup thread and the update.
pub struct FlowMailbox {
    /// Limit of the records of ended flows that wait to be taken.
    limit: usize,
    ended: Mutex<EndedFlows>,
    notices: Mutex<Vec<SocketEnd>>,
    living: Mutex<Living>,
    shown: Condvar,
}

/// The records of ended flows, oldest first.
#[derive(Default)]
struct EndedFlows {
    records: VecDeque<NamespacedRecord>,
    /// Number of the records so far, and their number at the time when the living flows were last taken. Only
    /// the records up to then may be taken: the flows of later ones may have been delivered as living.
    added: u64,
    shown: u64,
    lost: u64,
}

/// The records of living flows on their way to the update that requested them.
#[derive(Default)]
struct Living {
    is_wanted: bool,
    /// The records, and the number of records of ended flows at that time.
    filled: Option<(Vec<NamespacedRecord>, u64)>,
    /// Set if the records in `filled` are the last because the capture has ended.
    is_over: bool,
}

impl FlowMailbox {
    /// Returns a mailbox with room for the records of `limit` ended flows.
    pub fn new(limit: usize) -> FlowMailbox {
        FlowMailbox {
            limit,
            ended: Mutex::default(),
            notices: Mutex::default(),
            living: Mutex::default(),
            shown: Condvar::default(),
        }
    }

    /// Adds records of ended flows, leaving `records` empty. Evicts the oldest beyond the limit.
    pub fn add_ended(&self, records: &mut Vec<NamespacedRecord>) {
        let mut ended = self.ended.lock();
        ended.added += records.len() as u64;
        ended.records.extend(records.drain(..));
        let beyond = ended.records.len().saturating_sub(self.limit);
        ended.records.drain(..beyond);
        ended.lost += beyond as u64;
    }

    /// Counts records of ended flows that were lost on their way to the mailbox.
    pub fn add_lost(&self, count: u64) {
        self.ended.lock().lost += count;
    }

    /// Stores the records of the living flows without a request.
    pub fn put(&self, records: Vec<NamespacedRecord>) {
        let mut living = self.living.lock();
        living.filled = Some((records, self.ended.lock().added));
    }

    /// Takes the records of the living flows that were stored last.
    pub(super) fn left(&self) -> Option<Vec<NamespacedRecord>> {
        let (records, added) = self.living.lock().filled.take()?;
        self.ended.lock().shown = added;
        Some(records)
    }

    /// Takes the records of the flows that had ended when the living flows were last taken, oldest first.
    pub(super) fn take_ended(&self) -> VecDeque<NamespacedRecord> {
        let mut ended = self.ended.lock();
        let later = usize::try_from(ended.added - ended.shown).unwrap_or(usize::MAX);
        let count = ended.records.len().saturating_sub(later);
        let rest = ended.records.split_off(count);
        std::mem::replace(&mut ended.records, rest)
    }

    /// Returns the number of records of ended flows that were lost because the caller did not take them in
    /// time.
    pub fn lost(&self) -> u64 {
        self.ended.lock().lost
    }

    /// Adds notices of closed sockets. Those beyond the limit are dropped, since they only complete records.
    pub fn add_notices(&self, new: impl Iterator<Item = SocketEnd>) {
        let mut notices = self.notices.lock();
        let room = NOTICE_LIMIT.saturating_sub(notices.len());
        notices.extend(new.take(room));
    }

    /// Takes all notices.
    pub(super) fn take_notices(&self) -> Vec<SocketEnd> {
        std::mem::take(&mut *self.notices.lock())
    }

    /// Requests the living flows and waits for them until `deadline`. Calls `wake` once the request is
    /// recorded. Returns `None` if they did not arrive in time, or if the capture has ended and its last
    /// flows have been taken before.
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

    /// Delivers the living flows if they are requested, or if they are the last.
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
