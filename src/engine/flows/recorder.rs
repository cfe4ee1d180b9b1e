//! The capture thread's part: notices flows that end, and makes the records.

use super::desk::{FlowDesk, Seen, SocketEnd};
use super::record::Sight;
use crate::flow::{Binding, Departed, Detail, FlowId, FlowState, FlowTable};
use crate::model::{CloseReason, FlowKey, FlowRecord, Namespace, Owner, Timestamp, Unowned};
use crate::namespace::Known;
use foldhash::fast::RandomState;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

const MILLISECOND: u64 = 1_000_000;

/// How long a flow that has ended waits for the kernel's notice and for its owner, and how long at the most for the
/// latter.
const SETTLING: u64 = 300 * MILLISECOND;
const LONGEST_SETTLING: u64 = 3_000 * MILLISECOND;

/// How long a notice waits for the packets of the end that it tells of. When they have not come then, there were none.
const NOTICE_KEPT: u64 = 2_000 * MILLISECOND;

/// Flows and notices that wait; of each at most so many.
const WAITING_LIMIT: usize = 65_536;

/// The recorder of one capture.
pub struct Recorder {
    desk: Arc<FlowDesk>,
    /// The inode of the own namespace; 0 where that is not known.
    home_inode: u64,
    /// The namespaces besides.
    known: Known,
    /// Flows that have ended, and when they are to be told.
    ending: VecDeque<(FlowId, Timestamp)>,
    notices: HashMap<FlowKey, SocketEnd, RandomState>,
    /// The same in the order in which they were told.
    order: VecDeque<(Timestamp, FlowKey)>,
    /// Records on their way to the desk.
    batch: Vec<Seen>,
}

impl Recorder {
    /// A recorder for a capture whose own namespace has this inode; 0 where that is not known.
    pub fn new(desk: Arc<FlowDesk>, home_inode: u64, known: Known) -> Recorder {
        Recorder {
            desk,
            home_inode,
            known,
            ending: VecDeque::new(),
            notices: HashMap::default(),
            order: VecDeque::new(),
            batch: Vec::new(),
        }
    }

    /// Looks whether a flow that has counted something has ended by that.
    #[inline]
    pub fn look(&mut self, id: FlowId, detail: &mut Detail, now: Timestamp) {
        // One that finds no room is told when it leaves the table.
        if detail.notice_end() && self.ending.len() < WAITING_LIMIT {
            self.ending.push_back((id, Timestamp(now.0.saturating_add(SETTLING))));
        }
    }

    /// Tells of a flow that has left the table, unless it has been told of; its owner may have been found since.
    pub fn depart(&mut self, departed: &Departed, owner: Option<Owner>) {
        let Some(detail) = departed.detail.as_ref().filter(|detail| !detail.is_told()) else { return };
        let mut sight = Sight::departed(departed, detail);
        sight.owner = owner.or(sight.owner);
        let record = sight.last_record(self.inode(&departed.key), self.notice_of(sight.key, sight.first));
        self.add(&departed.key, record);
    }

    /// At the end of a batch: tells of the flows whose time has come, and shows the living ones to whoever asks.
    pub fn publish(&mut self, flows: &mut FlowTable, now: Timestamp) {
        for notice in self.desk.take_notices() {
            self.notices.insert(notice.key, notice);
            self.order.push_back((notice.told, notice.key));
        }
        self.tell_ended(flows, now);
        self.drop_notices(flows, now);
        self.hand_over();
        self.desk.show(false, || self.living(flows, now));
    }

    /// After the last batch: tells of all flows that have ended, and shows the living ones for the last time.
    pub fn finish(&mut self, flows: &mut FlowTable, now: Timestamp) {
        for (id, _) in std::mem::take(&mut self.ending) {
            self.tell(flows, id);
        }
        self.hand_over();
        self.desk.show(true, || self.living(flows, now));
    }

    fn hand_over(&mut self) {
        if !self.batch.is_empty() {
            self.desk.add_ended(&mut self.batch);
        }
    }

    /// Those that there is memory for: the others are seen again later.
    fn living(&self, flows: &FlowTable, now: Timestamp) -> Vec<Seen> {
        let seen = |(id, flow, detail)| {
            let sight = Sight::held(id, flow, detail);
            let record = sight.record(self.inode(sight.key), now);
            Seen { namespace: sight.key.namespace, record }
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
        // Each is looked at once, also when it is put back, and all when the clock was set back.
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
            let age = detail.end().map_or(u64::MAX, |(ended, _)| now.since(ended));
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
            let sight = Sight::held(id, flow, detail);
            let record = sight.last_record(self.inode(sight.key), self.notice_of(sight.key, sight.first));
            self.add(flow.key(), record);
        }
    }

    /// Forgets old notices, and those that lie in the future since the clock was set back. A flow of theirs that has not ended
    /// is ended by them.
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
            {
                let reason = surprise(&notice, flow.last());
                flows.vanish(id, reason, told);
                self.tell(flows, id);
            }
            self.notices.remove(&key);
        }
    }

    /// How many notices wait, and in how many places.
    #[cfg(test)]
    pub fn waiting(&self) -> (usize, usize) {
        (self.notices.len(), self.order.len())
    }

    /// The notice of a flow's end: one that came after its first packet.
    fn notice_of(&self, key: &FlowKey, first: Timestamp) -> Option<&SocketEnd> {
        self.notices.get(key).filter(|notice| notice.told > first)
    }

    fn inode(&self, key: &FlowKey) -> u64 {
        match key.namespace {
            Namespace::HOME => self.home_inode,
            other => self.known.inode(other).unwrap_or(0),
        }
    }

    fn add(&mut self, key: &FlowKey, record: FlowRecord) {
        self.batch.push(Seen { namespace: key.namespace, record });
    }
}

/// Whether a flow in this state ends unexpectedly when its socket goes. Where this end has finished sending, the kernel
/// waits for the other end without the socket.
fn is_surprised(state: FlowState) -> bool {
    !state.is_over() && state != FlowState::FinSent
}

/// Why a socket went of which no packet says so, the latest having passed at `last`.
///
/// When the kernel sends again and again in vain it gives up where it would have sent once more. So it has given up if
/// it was sending again, and if its time for the next attempt has passed without one. A program that closes the socket
/// does so at another time: earlier.
fn surprise(notice: &SocketEnd, last: Timestamp) -> CloseReason {
    let timeout = u64::from(notice.info.timeout_us) * 1_000;
    // The kernel's timers are a little late, never early, but the clocks are read at different times.
    let has_passed = notice.told.since(last) >= timeout - timeout / 16;
    if notice.info.retrying > 0 && has_passed { CloseReason::TimedOut } else { CloseReason::Unknown }
}
