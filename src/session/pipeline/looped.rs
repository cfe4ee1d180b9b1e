//! Packets to groups (multicast, broadcast) that are sent from here: the copies that the kernel hands back to
//! receivers on this host.
//!
//! The kernel shows these copies to no capture. So they are derived from the sent packets, if a socket here
//! receives them. That is looked up first; until then the copies wait here.

use crate::flow::{FlowId, FlowTable};
use crate::model::{Direction, FlowKey, TcpFlags, Timestamp, Unowned, WireSize};
use crate::owner::LocalEnd;
use crate::session::lookup::Request;
use foldhash::fast::RandomState;
use std::collections::HashMap;

/// Limit of the groups known at once, each with a sender and port, some 130 bytes each. Packets to further
/// groups count as received by no socket.
const LIMIT: usize = 1024;

/// Time for which an answer is valid, in nanoseconds: receivers join and leave their groups.
const VALIDITY: u64 = 1_000_000_000;

/// Time for which a group stays known after its last request, in nanoseconds.
const MEMORY: u64 = 60_000_000_000;

/// The copies of the packets from one socket to one group.
#[derive(Default)]
struct Copies {
    /// The number that takes the place of a flow's identifier in requests.
    number: u32,
    /// Time of the last request for the receivers.
    asked: Option<Timestamp>,
    is_outstanding: bool,
    /// Set if the last answer was that a socket receives the copies.
    is_received: bool,
    /// Copies that wait for the first answer.
    waiting: Option<(WireSize, Timestamp)>,
}

/// The copies of all packets to groups.
#[derive(Default)]
pub struct Looped {
    copies: HashMap<FlowKey, Copies, RandomState>,
    by_number: HashMap<u32, FlowKey, RandomState>,
    due: Vec<FlowKey>,
    last: u32,
}

impl Looped {
    /// Accounts the copy of a packet to a group, by the flow of its receiver. Returns true if the copy is
    /// known to be received and is to be counted. Otherwise it may wait here.
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

    /// Adds the requests that are due, as far as there is room.
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

    /// Applies the answer to one of these requests. Waiting copies are counted in `flows` if a socket
    /// receives them, and dropped otherwise. Returns true if the request was one of these.
    pub fn answer<T>(&mut self, flow: FlowId, answer: &Result<T, Unowned>, flows: &mut FlowTable) -> bool {
        let Some(number) = flow.outside_number() else { return false };
        let Some(key) = self.by_number.remove(&number) else { return true };
        let Some(copies) = self.copies.get_mut(&key) else { return true };
        copies.is_outstanding = false;
        // Any other reason means that sockets exist, but no single owner is known.
        copies.is_received = !matches!(answer, Err(Unowned::NotLocal));
        if let Some((size, first)) = copies.waiting.take().filter(|_| copies.is_received) {
            flows.record(&key, Direction::Receive, size, TcpFlags::default(), first);
        }
        true
    }

    /// Removes groups without a recent packet.
    fn forget(&mut self, now: Timestamp) {
        let is_recent = |asked: Timestamp| now.since(asked) < MEMORY;
        self.copies.retain(|_, copies| copies.is_outstanding || copies.asked.is_some_and(is_recent));
    }
}
