//! Accounts the bytes of flows: to their owners, or by the reason for having none.

use crate::flow::{Binding, Departed, Flow, FlowId, FlowMetrics};
use crate::model::{Owner, Unowned};
use crate::session::accounting::LedgerContents;
use crate::session::flows::Recorder;
use crate::session::lookup::Answer;
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Flows that left the table while their owner was being looked up.
pub struct PendingDepartures {
    limit: usize,
    flows: HashMap<FlowId, Departed, RandomState>,
}

/// Sets the reason for having no owner on a flow that was looked up, and moves its bytes to that reason.
pub fn rebind(flow: &mut Flow, reason: Unowned, books: &mut LedgerContents) {
    let reported = flow.reported();
    books.uncount_unowned(Unowned::Pending, reported);
    flow.bind(Err(reason));
    books.count_unowned(reason, reported + flow.report_pending());
}

/// Credits the connection counts of a flow to its owner, if metrics are kept. Without an owner the counts
/// wait.
pub fn credit_course(detail: &mut FlowMetrics, owner: Option<Owner>, books: &mut LedgerContents) {
    let Some(owner) = owner else { return };
    detail.set_owner(owner);
    if detail.has_counts()
        && let Some(connections) = books.connections(owner.process)
    {
        detail.take_counts(connections);
    }
}

impl PendingDepartures {
    /// Returns a table of at most `limit` flows.
    pub fn new(limit: usize) -> PendingDepartures {
        PendingDepartures { limit, flows: HashMap::default() }
    }

    /// Accounts the remaining bytes of a flow that has left the table, or keeps the flow while its owner is
    /// being looked up.
    pub fn settle(
        &mut self,
        departed: Departed,
        books: &mut LedgerContents,
        recorder: Option<&mut Recorder>,
    ) {
        let pending = departed.pending;
        let unreported = pending.bytes() - departed.reported;
        match departed.binding {
            Binding::Owned(owner) => {
                books.credit(&owner, pending);
                conclude(departed, Some(owner), books, recorder);
            }
            Binding::Unowned(reason) => {
                books.count_unowned(reason, unreported);
                conclude(departed, None, books, recorder);
            }
            Binding::Unasked => {
                // The flow disappeared before a request about it was made, so none will be.
                books.uncount_unowned(Unowned::Pending, departed.reported);
                books.count_unowned(Unowned::NoSocket, pending.bytes());
                conclude(departed, None, books, recorder);
            }
            Binding::Asked => {
                books.count_unowned(Unowned::Pending, unreported);
                if self.flows.len() < self.limit {
                    self.keep(departed);
                } else {
                    books.uncount_unowned(Unowned::Pending, pending.bytes());
                    books.count_unowned(Unowned::QueueFull, pending.bytes());
                    conclude(departed, None, books, recorder);
                }
            }
        }
    }

    /// Returns true if no flow is kept.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    fn keep(&mut self, departed: Departed) {
        match self.flows.entry(departed.id) {
            Entry::Vacant(place) => {
                place.insert(departed);
            }
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                let before = known.pending;
                *known = departed;
                known.pending += before;
            }
        }
    }

    /// Accounts the bytes of a kept flow whose lookup is answered.
    pub fn answer(&mut self, answer: &Answer, books: &mut LedgerContents, recorder: Option<&mut Recorder>) {
        let Some(mut orphan) = self.flows.remove(&answer.flow) else { return };
        books.uncount_unowned(Unowned::Pending, orphan.pending.bytes());
        if let Some(detail) = orphan.detail.as_mut().filter(|_| answer.is_translated) {
            detail.set_translated();
        }
        match answer.owner {
            Ok(owner) => {
                books.credit(&owner, orphan.pending);
            }
            Err(reason) => books.count_unowned(reason, orphan.pending.bytes()),
        }
        conclude(orphan, answer.owner.ok(), books, recorder);
    }
}

/// Makes the last record of a flow that has left the table.
fn conclude(
    mut flow: Departed,
    owner: Option<Owner>,
    books: &mut LedgerContents,
    recorder: Option<&mut Recorder>,
) {
    if let (Some(detail), Some(recorder)) = (&mut flow.detail, recorder) {
        credit_course(detail, owner, books);
        recorder.depart(&flow, owner);
    }
}
