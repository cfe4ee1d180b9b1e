//! Releases flows soon after they have ended, and restores them for packets that come late.

use super::entry::{Binding, Flow, FlowId};
use super::metrics::FlowMetrics;
use super::state::FlowState;
use super::table::FlowTable;
use crate::model::{FlowKey, Owner, Protocol, TcpFlags, Timestamp, Unowned};

impl FlowTable {
    /// Releases connections that have ended and have counted nothing for `idle` nanoseconds, once their owner
    /// is known, or the reason for having none, and their last record was made. Their owners are kept for
    /// another minute.
    pub fn release_ended(&mut self, now: Timestamp, idle: u64) {
        self.late.expire(now);
        // Each flow is visited once, even if it is put back, and all of them if the clock was set back.
        for _ in 0..self.ended.len() {
            let Some(&(id, since)) = self.ended.front() else { return };
            if now >= since && now.since(since) < idle {
                return;
            }
            self.ended.pop_front();
            let Some(flow) = self.get(id).filter(|flow| flow.state().is_over()) else { continue };
            let is_reported = self.details.get(id.index as usize).is_none_or(FlowMetrics::is_told);
            if flow.idle(now) < idle || !is_answered(flow) || !is_reported {
                self.ended.push_back((id, now));
                continue;
            }
            if let Binding::Owned(owner) = flow.binding() {
                let hash = self.index.long_hash(flow.key());
                self.late.insert(hash, owner, now);
            }
            self.expired += 1;
            self.remove(id.index);
            self.vacant.push(id.index);
        }
    }

    /// Lists a flow that has just ended. An unanswered flow is not listed: it is limited and expires as
    /// unanswered.
    #[cold]
    pub(super) fn list_ended(&mut self, id: FlowId, now: Timestamp) {
        if self.get(id).is_some_and(|flow| !flow.is_unanswered()) {
            self.ended.push_back((id, now));
        }
    }

    /// Removes and returns the owner of a released connection, for a packet that belongs to no flow of the
    /// table. If the packet opens another connection between the same endpoints, the owner is dropped.
    pub(super) fn take_late(&mut self, key: &FlowKey, flags: TcpFlags) -> Option<Owner> {
        if self.late.is_empty() || key.protocol != Protocol::TCP {
            return None;
        }
        let owner = self.late.take(self.index.long_hash(key));
        owner.filter(|_| !flags.has(TcpFlags::SYN))
    }

    /// Makes a new flow the continuation of a connection that was released: it belongs to the same owner, and
    /// only its bytes are reported.
    pub(super) fn restore(&mut self, slot: u32, owner: Owner, now: Timestamp) {
        let flow = &mut self.slots[slot as usize];
        flow.bind(Ok(owner));
        let id = FlowId { index: slot, generation: flow.generation() };
        if let Some(detail) = self.details.get_mut(slot as usize) {
            *detail = FlowMetrics::reported(FlowState::Closed);
        }
        self.ended.push_back((id, now));
    }
}

/// Returns true if a flow's owner is known, or the reason for having none.
fn is_answered(flow: &Flow) -> bool {
    match flow.binding() {
        Binding::Owned(_) => true,
        Binding::Unasked | Binding::Asked => false,
        Binding::Unowned(reason) => !matches!(reason, Unowned::Pending | Unowned::QueueFull),
    }
}

#[cfg(test)]
#[path = "release_tests.rs"]
mod tests;
