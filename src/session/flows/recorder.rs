//! The capture thread's part of the flow records: detects flows that end, and makes the records.

use super::mailbox::{FlowMailbox, NamespacedRecord, SocketEnd};
use super::record::TableFlow;
use crate::flow::{Binding, Departed, FlowId, FlowMetrics, FlowState, FlowTable};
use crate::model::{CloseReason, FlowKey, Namespace, Owner, Timestamp, Unowned};
use crate::namespace::Known;
use foldhash::fast::RandomState;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

const MILLISECOND: u64 = 1_000_000;

/// Time for which an ended flow waits for the kernel's notice and for its owner, and the longest time for
/// which it waits for its owner.
const SETTLING: u64 = 300 * MILLISECOND;
const LONGEST_SETTLING: u64 = 3_000 * MILLISECOND;

/// Time for which a notice waits for the packets of the end that it reports. If they have not arrived by
/// then, there were none.
const NOTICE_KEPT: u64 = 2_000 * MILLISECOND;

/// Limit of the waiting flows, and of the waiting notices.
const WAITING_LIMIT: usize = 65_536;

/// The recorder of one capture.
pub struct Recorder {
    mailbox: Arc<FlowMailbox>,
    /// The inode of the session's own namespace; 0 if it is unknown.
    home_inode: u64,
    /// The other namespaces.
    known: Known,
    /// Ended flows, and the times at which their records are due.
    ending: VecDeque<(FlowId, Timestamp)>,
    notices: HashMap<FlowKey, SocketEnd, RandomState>,
    /// The keys of the notices, in the order in which the notices were read.
    order: VecDeque<(Timestamp, FlowKey)>,
    /// Records on their way to the mailbox.
    batch: Vec<NamespacedRecord>,
}

impl Recorder {
    /// Returns a recorder for a capture whose own namespace has this inode; 0 if the inode is unknown.
    pub fn new(mailbox: Arc<FlowMailbox>, home_inode: u64, known: Known) -> Recorder {
        Recorder {
            mailbox,
            home_inode,
            known,
            ending: VecDeque::new(),
            notices: HashMap::default(),
            order: VecDeque::new(),
            batch: Vec::new(),
        }
    }

    /// Schedules the record of a flow if the packets that it has just counted have ended it.
    #[inline]
    pub fn look(&mut self, id: FlowId, detail: &mut FlowMetrics, now: Timestamp) {
        // A flow for which there is no room is reported when it leaves the table.
        if detail.notice_end() && self.ending.len() < WAITING_LIMIT {
            self.ending.push_back((id, Timestamp(now.0.saturating_add(SETTLING))));
        }
    }

    /// Reports a flow that has left the table, unless it has been reported before. Its owner may have been
    /// found since.
    pub fn depart(&mut self, departed: &Departed, owner: Option<Owner>) {
        let Some(detail) = departed.detail.as_ref().filter(|detail| !detail.is_told()) else { return };
        let mut sight = TableFlow::departed(departed, detail);
        sight.owner = owner.or(sight.owner);
        self.add(&sight);
    }

    /// Ends a batch: reports the flows that are due, and delivers the living flows if they are requested.
    pub fn publish(&mut self, flows: &mut FlowTable, now: Timestamp) {
        for notice in self.mailbox.take_notices() {
            self.notices.insert(notice.key, notice);
            self.order.push_back((notice.told, notice.key));
        }
        self.tell_ended(flows, now);
        self.drop_notices(flows, now);
        self.hand_over();
        self.mailbox.show(false, || self.living(flows, now));
    }

    /// Reports all ended flows after the last batch, and delivers the living flows for the last time.
    pub fn finish(&mut self, flows: &mut FlowTable, now: Timestamp) {
        for (id, _) in std::mem::take(&mut self.ending) {
            self.tell(flows, id);
        }
        self.hand_over();
        self.mailbox.show(true, || self.living(flows, now));
    }

    fn hand_over(&mut self) {
        if !self.batch.is_empty() {
            self.mailbox.add_ended(&mut self.batch);
        }
    }

    /// Returns the records of as many living flows as memory can be allocated for. The others are included
    /// later.
    fn living(&self, flows: &FlowTable, now: Timestamp) -> Vec<NamespacedRecord> {
        let seen = |(id, flow, detail)| {
            let sight = TableFlow::held(id, flow, detail);
            let record = sight.record(self.inode(sight.key), now);
            NamespacedRecord {
                namespace: sight.key.namespace,
                is_translated: sight.detail.is_translated(),
                record,
            }
        };
        let mut living = Vec::new();
        for flow in flows.detailed().filter(|(_, _, detail)| !detail.is_told()) {
            if living.try_reserve(1).is_err() {
                break;
            }
            living.push(seen(flow));
        }
        living
    }

    fn tell_ended(&mut self, flows: &mut FlowTable, now: Timestamp) {
        // Each flow is checked once, even if it is put back. All are checked if the clock was set back.
        for _ in 0..self.ending.len() {
            let Some(&(id, due)) = self.ending.front() else { return };
            if now < due && due.since(now) <= SETTLING {
                return;
            }
            self.ending.pop_front();
            let Some((flow, detail)) = flows.detail_mut(id) else { continue };
            let is_searched = match flow.binding() {
                Binding::Unasked | Binding::Asked => true,
                Binding::Owned(_) => false,
                Binding::Unowned(reason) => matches!(reason, Unowned::Pending | Unowned::QueueFull),
            };
            let Some((ended, _)) = detail.end() else { continue };
            let age = now.since(ended);
            if is_searched && detail.owner().is_none() && age < LONGEST_SETTLING {
                self.ending.push_back((id, Timestamp(now.0.saturating_add(SETTLING))));
            } else {
                self.tell(flows, id);
            }
        }
    }

    fn tell(&mut self, flows: &mut FlowTable, id: FlowId) {
        let Some((flow, detail)) = flows.detail_mut(id) else { return };
        if detail.tell() {
            let sight = TableFlow::held(id, flow, detail);
            self.add(&sight);
        }
    }

    /// Drops old notices, and those in the future since the clock was set back. A notice ends its flow if the
    /// flow has not ended yet.
    fn drop_notices(&mut self, flows: &mut FlowTable, now: Timestamp) {
        while let Some(&(told, key)) = self.order.front()
            && (now.0.abs_diff(told.0) > NOTICE_KEPT || self.order.len() > WAITING_LIMIT)
        {
            self.order.pop_front();
            let Some(notice) = self.notices.get(&key).filter(|notice| notice.told == told).copied() else {
                continue;
            };
            if let Some(id) = flows.find(&key)
                && let Some((flow, detail)) = flows.detail_mut(id)
                && flow.first() < told
                && is_surprised(flow.state())
                && !detail.is_told()
                && !detail.is_translated()
            {
                let (reason, when) = surprise(&notice, flow.last());
                flows.vanish(id, reason, when);
                self.tell(flows, id);
            }
            self.notices.remove(&key);
        }
    }

    /// Returns the number of waiting notices, and of the entries in their order.
    #[cfg(test)]
    pub fn waiting(&self) -> (usize, usize) {
        (self.notices.len(), self.order.len())
    }

    /// Returns the notice of a flow's end, if it was read after the flow's first packet.
    fn notice_of(&self, flow: &TableFlow<'_>) -> Option<&SocketEnd> {
        let notice = self.notices.get(flow.key).filter(|notice| notice.told > flow.first);
        notice.filter(|_| !flow.detail.is_translated())
    }

    fn inode(&self, key: &FlowKey) -> u64 {
        match key.namespace {
            Namespace::HOME => self.home_inode,
            other => self.known.inode(other).unwrap_or(0),
        }
    }

    /// Adds the last record of a flow.
    fn add(&mut self, flow: &TableFlow<'_>) {
        let record = flow.last_record(self.inode(flow.key), self.notice_of(flow));
        let is_translated = flow.detail.is_translated();
        self.batch.push(NamespacedRecord { namespace: flow.key.namespace, is_translated, record });
    }
}

/// Returns true if a flow in this state ends unexpectedly when its socket disappears. After this end has
/// finished sending, the kernel waits for the other end without the socket.
fn is_surprised(state: FlowState) -> bool {
    !state.is_over() && state != FlowState::FinSent
}

/// Returns the reason and the time of the end of a connection whose socket disappeared without a packet that
/// shows it. The latest packet passed at `last`.
///
/// If retransmissions remain unanswered, the kernel gives up at the time when it would have sent the next
/// one. So it has given up if it was retransmitting and the time of the next attempt has passed without one.
/// A process that closes the socket does so earlier. It can also close the socket later, which the notice is
/// about.
fn surprise(notice: &SocketEnd, last: Timestamp) -> (CloseReason, Timestamp) {
    let timeout = u64::from(notice.info.timeout_us) * 1_000;
    // The kernel's timers are a little late, never early, but the clocks are read at different times.
    let has_passed = notice.told.since(last) >= timeout - timeout / 16;
    match notice.info.retrying > 0 && has_passed {
        true => (CloseReason::TimedOut, Timestamp(last.0.saturating_add(timeout)).min(notice.told)),
        false => (CloseReason::Unknown, notice.told),
    }
}
