//! Flows that live on are asked about again now and then, for their socket may have passed to another process: a server
//! that accepts, forks and leaves the connection to its child, or a descriptor that was handed on.
//!
//! Only flows with an owner that carry bytes are asked about, at most a few times in their life and so many a second;
//! what has ended by then costs nothing.

use crate::flow::{Binding, Flow, FlowId, FlowTable};
use crate::model::{Owner, Quality, Timestamp};
use crate::owner::LocalEnd;
use crate::session::lookup::Request;
use std::collections::HashSet;

const MILLISECOND: u64 = 1_000_000;

/// How old a flow is when it is asked about again. A server forks within a moment of accepting; the others are for
/// processes that take over later, after a login for instance.
const AGES: [u64; 3] = [1_500 * MILLISECOND, 5_000 * MILLISECOND, 30_000 * MILLISECOND];

/// Questions a second, and those that may be asked at once after a while without: few beside the thousands of new flows
/// a second whose owners are looked for at the same time.
const PER_SECOND: u64 = 250;

/// Which flows are to be asked about again, and which have been.
#[derive(Default)]
pub struct OwnerRecheck {
    /// What may still be asked.
    allowance: u64,
    refilled: Timestamp,
    /// Flows of this batch whose time has come.
    due: Vec<FlowId>,
    /// Flows whose answer is outstanding; no more than there are open questions.
    asked: HashSet<FlowId, foldhash::fast::RandomState>,
}

impl OwnerRecheck {
    /// Allows as many questions as the time is worth that has passed. Without this nothing is ever asked.
    pub fn refill(&mut self, now: Timestamp) {
        let nanoseconds = now.since(self.refilled).min(1_000 * MILLISECOND);
        let worth = nanoseconds * PER_SECOND / (1_000 * MILLISECOND);
        // What is not worth a question yet counts the next time, unless the clock was set back.
        if worth > 0 || now < self.refilled {
            self.refilled = now;
            self.allowance = (self.allowance + worth).min(PER_SECOND);
        }
    }

    /// Puts a flow that has just carried bytes on the list, if it is time to ask about it again.
    #[inline]
    pub fn consider(&mut self, id: FlowId, flow: &Flow, now: Timestamp) {
        let is_due = ages_passed(flow, now) > flow.looks() && !flow.state().is_over();
        if is_due && (self.due.len() as u64) < self.allowance && !self.asked.contains(&id) {
            self.due.push(id);
        }
    }

    /// Asks about the flows on the list as far as there is room. The others come up again with their next bytes.
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
                // What was found at an earlier packet is no answer.
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

    /// Whether this flow was asked about again and its answer outstanding, which it is no longer.
    pub fn take_asked(&mut self, id: FlowId) -> bool {
        !self.asked.is_empty() && self.asked.remove(&id)
    }
}

/// How many of the ages a flow has reached at which it is asked about.
#[inline]
fn ages_passed(flow: &Flow, now: Timestamp) -> u8 {
    let age = now.since(flow.first());
    AGES.iter().take_while(|&&due| age >= due).count() as u8
}

/// Whether a flow with an owner is to have the one that was found later.
pub fn is_to_replace(flow: &Flow, known: &Owner, found: &Owner) -> bool {
    match (known.quality, found.quality) {
        (Quality::Exact | Quality::Shared, Quality::Guessed) => false,
        // Between fork and exec a child holds all of its parent's sockets for a moment. What is still shared with the
        // same result at another time was handed on.
        (Quality::Exact, Quality::Shared) if known.process != found.process => flow.looks() > 1,
        _ => true,
    }
}
