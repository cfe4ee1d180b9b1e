//! Rechecks the owners of long-lived flows from time to time, since a socket may have passed to another
//! process: a server accepts, forks and leaves the connection to its child, or a descriptor is handed on.
//!
//! Only flows with an owner that carry bytes are rechecked, at most a few times in their life and a limited
//! number per second. Flows that have ended by then cost nothing.

use crate::flow::{Binding, Flow, FlowId, FlowTable};
use crate::model::{Owner, Quality, Timestamp};
use crate::owner::LocalEnd;
use crate::session::lookup::Request;
use std::collections::HashSet;

const MILLISECOND: u64 = 1_000_000;

/// The ages at which a flow is rechecked. A server forks within a moment of accepting; the later ages are for
/// processes that take over later, after a login for instance.
const AGES: [u64; 3] = [1_500 * MILLISECOND, 5_000 * MILLISECOND, 30_000 * MILLISECOND];

/// Limit of the rechecks per second, and of those that may be made at once after a pause: few beside the
/// thousands of new flows a second that are looked up at the same time.
const PER_SECOND: u64 = 250;

/// The flows that are to be rechecked, and those that are being rechecked.
#[derive(Default)]
pub struct OwnerRecheck {
    /// Number of rechecks that may still be made.
    allowance: u64,
    refilled: Timestamp,
    /// Flows of this batch that are due.
    due: Vec<FlowId>,
    /// Flows whose answer is outstanding; at most as many as there are open requests.
    asked: HashSet<FlowId, foldhash::fast::RandomState>,
}

impl OwnerRecheck {
    /// Permits as many rechecks as the passed time is worth. Without a call of this function, none are ever
    /// made.
    pub fn refill(&mut self, now: Timestamp) {
        let nanoseconds = now.since(self.refilled).min(1_000 * MILLISECOND);
        let worth = nanoseconds * PER_SECOND / (1_000 * MILLISECOND);
        // Time that is not worth a recheck yet counts the next time, unless the clock was set back.
        if worth > 0 || now < self.refilled {
            self.refilled = now;
            self.allowance = (self.allowance + worth).min(PER_SECOND);
        }
    }

    /// Schedules a recheck of a flow that has just carried bytes, if one is due.
    #[inline]
    pub fn consider(&mut self, id: FlowId, flow: &Flow, now: Timestamp) {
        let is_due = ages_passed(flow, now) > flow.looks() && !flow.state().is_over();
        if is_due && (self.due.len() as u64) < self.allowance && !self.asked.contains(&id) {
            self.due.push(id);
        }
    }

    /// Adds requests for the due flows as far as there is room. The others become due again with their next
    /// bytes.
    pub fn ask(&mut self, flows: &mut FlowTable, now: Timestamp, room: usize, requests: &mut Vec<Request>) {
        for id in self.due.drain(..) {
            if requests.len() >= room {
                continue;
            }
            let Some(flow) = flows.get_mut(id) else { continue };
            if matches!(flow.binding(), Binding::Owned(_)) {
                self.asked.insert(id);
                self.allowance -= 1;
                flow.set_looks(ages_passed(flow, now));
                // An owner found at an earlier packet is no answer.
                requests.push(Request {
                    flow: id,
                    key: *flow.key(),
                    first: now,
                    is_over: false,
                    is_answered: true,
                    local_end: LocalEnd::Own,
                });
            }
        }
    }

    /// Returns true if the flow was being rechecked, and marks it as answered.
    pub fn take_asked(&mut self, id: FlowId) -> bool {
        !self.asked.is_empty() && self.asked.remove(&id)
    }
}

/// Returns the number of recheck ages that a flow has reached.
#[inline]
fn ages_passed(flow: &Flow, now: Timestamp) -> u8 {
    let age = now.since(flow.first());
    AGES.iter().take_while(|&&due| age >= due).count() as u8
}

/// Returns true if the owner found later is to replace the known one.
pub fn is_to_replace(flow: &Flow, known: &Owner, found: &Owner) -> bool {
    match (known.quality, found.quality) {
        (Quality::Exact | Quality::Shared, Quality::Guessed) => false,
        // Between fork and exec, a child shares all sockets of its parent for a moment. A socket that is
        // still shared at another time, with the same result, was handed on.
        (Quality::Exact, Quality::Shared) if known.process != found.process => flow.looks() > 1,
        _ => true,
    }
}
