//! Packets to groups (multicast, broadcast) that are sent from here: the copies that the kernel hands back to receivers on
//! this host.
//!
//! The kernel shows these copies to no capture. So they are taken from the packets that were sent, if somebody here
//! receives them, which is asked about first; until then they wait here.

use crate::flow::{FlowId, FlowTable};
use crate::model::{Direction, FlowKey, TcpFlags, Timestamp, Unowned, WireSize};
use crate::owner::LocalEnd;
use crate::session::lookup::Request;
use foldhash::fast::RandomState;
use std::collections::HashMap;

/// Groups with a sender and port that are known at once, some 130 bytes each. What is sent to others is received by nobody.
const LIMIT: usize = 1024;

/// The time for which an answer holds, in nanoseconds: receivers come, and leave their groups.
const VALIDITY: u64 = 1_000_000_000;

/// For how long after its last question a group is known, in nanoseconds.
const MEMORY: u64 = 60_000_000_000;

/// The copies of what is sent from one socket to one group.
#[derive(Default)]
struct Copies {
    /// The number that stands in place of a flow's in questions.
    number: u32,
    /// When it was asked last whether somebody receives them.
    asked: Option<Timestamp>,
    is_outstanding: bool,
    /// The last answer.
    is_received: bool,
    /// What waits for the first answer.
    waiting: Option<(WireSize, Timestamp)>,
}

/// The copies of all that is sent to groups.
#[derive(Default)]
pub struct Looped {
    copies: HashMap<FlowKey, Copies, RandomState>,
    by_number: HashMap<u32, FlowKey, RandomState>,
    due: Vec<FlowKey>,
    last: u32,
}

impl Looped {
    /// Takes in the copy of a packet that was sent to a group, by the flow that a receiver of it has. Returns whether it is
    /// known to be received, and is to be counted; else it may wait here.
    pub fn is_received(&mut self, key: &FlowKey, size: WireSize, now: Timestamp) -> bool {
        if self.copies.len() >= LIMIT && !self.copies.contains_key(key) {
            self.forget(now);
            if self.copies.len() >= LIMIT {
                return false;
            }
        }
        let copies = self.copies.entry(*key).or_default();
        let is_due = copies.asked.is_none_or(|asked| now.since(asked) >= VALIDITY || now < asked);
        if is_due && !copies.is_outstanding {
            copies.is_outstanding = true;
            self.due.push(*key);
        }
        if !copies.is_received && copies.is_outstanding {
            let (waiting, _) = copies.waiting.get_or_insert((WireSize { bytes: 0, packets: 0 }, now));
            waiting.bytes = waiting.bytes.saturating_add(size.bytes);
            waiting.packets = waiting.packets.saturating_add(size.packets);
        }
        copies.is_received
    }

    /// Adds the questions that are due, as far as there is room.
    pub fn ask(&mut self, now: Timestamp, room: usize, requests: &mut Vec<Request>) {
        let count = self.due.len().min(room.saturating_sub(requests.len()));
        for key in self.due.drain(..count) {
            let Some(copies) = self.copies.get_mut(&key) else { continue };
            self.last = self.last.wrapping_add(1);
            (copies.asked, copies.number) = (Some(now), self.last);
            self.by_number.insert(copies.number, key);
            let flow = FlowId::outside(copies.number);
            let local_end = LocalEnd::Looped;
            requests.push(Request { flow, key, first: now, is_over: false, is_answered: false, local_end });
        }
    }

    /// Takes in the answer to one of these questions: what has waited is counted in `flows` if somebody receives it, and
    /// forgotten otherwise. Returns whether it was one of them.
    pub fn answer<T>(&mut self, flow: FlowId, answer: &Result<T, Unowned>, flows: &mut FlowTable) -> bool {
        let Some(number) = flow.outside_number() else { return false };
        let Some(key) = self.by_number.remove(&number) else { return true };
        let Some(copies) = self.copies.get_mut(&key) else { return true };
        copies.is_outstanding = false;
        // Any other reason means that there are sockets, but no single owner is known.
        copies.is_received = !matches!(answer, Err(Unowned::NotLocal));
        if let Some((size, first)) = copies.waiting.take().filter(|_| copies.is_received) {
            flows.record(&key, Direction::Receive, size, TcpFlags::default(), first);
        }
        true
    }

    /// Forgets the groups to which nothing has been sent for a while.
    fn forget(&mut self, now: Timestamp) {
        let is_recent = |asked: Timestamp| now.since(asked) < MEMORY;
        self.copies.retain(|_, copies| copies.is_outstanding || copies.asked.is_some_and(is_recent));
    }
}
