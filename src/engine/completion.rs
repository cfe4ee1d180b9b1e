//! Compares what was counted of TCP connections with what their sockets had carried when they ended, and has counted
//! what passed unseen, because a capture buffer was full.
//!
//! Of a connection the capture counts bytes on the wire, the socket the bytes of its stream, each once. What is missing
//! is known from below only: the packets seen held at the most their length without the shortest headers there are.
//! Packets seen twice hide as much of what was not seen, and headers not seen are not made up for. So a process is never
//! credited with more than passed, and of a connection's payload with no less.

use super::ended::{Carried, Connection};
use crate::flow::{FlowState, FlowTable};
use crate::kernel::Clocks;
use crate::model::{Address, FlowKey};
use foldhash::fast::RandomState;
use std::collections::{HashMap, VecDeque};
use std::time::Instant;

/// Connections held until what was captured of them has been read.
const LIMIT: usize = 65_536;

/// Room for connections that is kept while none is held.
const MAX_IDLE_CAPACITY: usize = 4096;

/// A TCP header without options (RFC 9293, 3.1).
const TCP_HEADER: u64 = 20;

/// What comparing has brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CompletionStats {
    /// Connections compared.
    pub checked: u64,
    /// Those of which something was missing.
    pub short: u64,
    /// Bytes counted for them after all.
    pub bytes: u64,
}

/// The connections that are to be compared. The capture thread has them.
#[derive(Default)]
pub struct Completion {
    waiting: VecDeque<Connection>,
    /// How many are waiting with the same endpoints.
    alike: HashMap<FlowKey, usize, RandomState>,
    stats: CompletionStats,
}

impl Completion {
    /// How many more connections can be taken in.
    pub fn room(&self) -> usize {
        LIMIT.saturating_sub(self.waiting.len())
    }

    /// Takes in connections in the order in which they were told.
    pub fn take_in(&mut self, connections: Vec<Connection>) {
        for connection in connections {
            *self.alike.entry(connection.key).or_default() += 1;
            self.waiting.push_back(connection);
        }
    }

    /// Compares the connections that were told before `moment`. All that was captured before then must have been
    /// counted. `clocks` are those of now.
    pub fn compare(&mut self, flows: &mut FlowTable, moment: Instant, clocks: &Clocks) {
        while self.waiting.front().is_some_and(|connection| connection.told_at < moment)
            && let Some(connection) = self.waiting.pop_front()
        {
            let alike = self.alike.remove(&connection.key).unwrap_or(1);
            if alike > 1 {
                self.alike.insert(connection.key, alike - 1);
            }
            if let Some((sent, received)) = unseen(&connection, alike, flows, clocks) {
                self.stats.checked += 1;
                self.stats.short += u64::from(sent + received > 0);
                self.stats.bytes += sent + received;
            }
        }
        // After a burst its room is not kept.
        if self.waiting.is_empty() && self.waiting.capacity() > MAX_IDLE_CAPACITY {
            self.waiting = VecDeque::new();
            self.alike = HashMap::default();
        }
    }

    /// What comparing has brought.
    pub fn stats(&self) -> CompletionStats {
        self.stats
    }
}

/// Counts what passed unseen of a connection, and says how much that is; `None` when it cannot be compared.
///
/// The flow of its endpoints must be its own, and that of no other connection before or after. It is not when it began
/// after the notice came, or when another notice has the same endpoints: each takes the flow, so that the next finds it
/// taken. A notice that was lost could be of any flow that began before. And of a socket that its program resets
/// (`SO_LINGER` of 0 seconds) the notice does not name the connection any more, so that those reset are left alone.
///
/// All of this goes by the time of day, which the flow's first packet bears. Where the clock was set back since the notice came,
/// what seems to have begun before it may have begun after the step.
fn unseen(
    connection: &Connection,
    alike: usize,
    flows: &mut FlowTable,
    clocks: &Clocks,
) -> Option<(u64, u64)> {
    let Connection { key, carried, told, told_at, all_told_since, .. } = connection;
    let since = clocks.time_at(*told_at)..=clocks.time_of_day();
    let id = flows.find(key)?;
    let flow = flows.get_mut(id).filter(|flow| flow.first() < *told && !since.contains(&flow.first()))?;
    let is_its_own = flow.take_whole() && alike == 1 && flow.first() >= *all_told_since;
    if !is_its_own || flow.state() == FlowState::Reset {
        return None;
    }
    let Carried { sent, received } = (*carried)?;
    // Segments of an offloaded frame are estimated, its payload is not: it counts with one set of headers.
    let seen = flows.captured(id);
    let headers = TCP_HEADER + ip_header(&key.local.address);
    let missing = |carried: u64, bytes: u64, packets: u64| {
        carried.saturating_sub(bytes.saturating_sub(packets.saturating_mul(headers)))
    };
    let sent = missing(sent, seen.send_bytes, seen.send_packets);
    let received = missing(received, seen.receive_bytes, seen.receive_packets);
    if sent + received > 0 {
        flows.count_unseen(id, sent, received);
    }
    Some((sent, received))
}

/// An IP header without options (RFC 791, RFC 8200).
fn ip_header(address: &Address) -> u64 {
    if address.is_v4() { 20 } else { 40 }
}

#[cfg(test)]
#[path = "completion_tests.rs"]
mod tests;
