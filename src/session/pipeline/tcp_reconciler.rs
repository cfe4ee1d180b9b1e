//! Compares the counted bytes of ended TCP connections with the bytes that their sockets carried, and
//! recovers bytes that the capture lost because a buffer was full.
//!
//! The capture counts a connection's bytes on the wire; the socket counts the bytes of its stream, each once.
//! This gives only a lower bound of the lost bytes: the captured packets had at most the payload that the
//! shortest possible headers leave. Packets captured twice hide the same number of lost bytes, and lost
//! headers are not recovered. So a process is never credited with more bytes than passed, nor with less than
//! the connection's payload.

use crate::flow::{FlowState, FlowTable};
use crate::kernel::Clocks;
use crate::model::{Address, FlowKey};
use crate::session::flows::{Carried, Connection};
use foldhash::fast::RandomState;
use std::collections::{HashMap, VecDeque};
use std::time::Instant;

/// Limit of the connections that wait until their captured packets have been read.
const LIMIT: usize = 65_536;

/// Capacity that is kept while no connection waits.
const MAX_IDLE_CAPACITY: usize = 4096;

/// The size of a TCP header without options (RFC 9293, 3.1).
const TCP_HEADER: u64 = 20;

/// Counters of the comparisons.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReconcilerStats {
    /// Connections compared.
    pub checked: u64,
    /// Those of which bytes were missing.
    pub short: u64,
    /// Recovered bytes.
    pub bytes: u64,
}

/// The connections to be compared. They belong to the capture thread.
#[derive(Default)]
pub struct TcpReconciler {
    waiting: VecDeque<Connection>,
    /// Number of waiting connections by endpoints.
    alike: HashMap<FlowKey, usize, RandomState>,
    stats: ReconcilerStats,
}

impl TcpReconciler {
    /// Returns the number of connections that may still be added.
    pub fn room(&self) -> usize {
        LIMIT.saturating_sub(self.waiting.len())
    }

    /// Adds connections in the order of their notices.
    pub fn take_in(&mut self, connections: Vec<Connection>) {
        for connection in connections {
            *self.alike.entry(connection.key).or_default() += 1;
            self.waiting.push_back(connection);
        }
    }

    /// Compares the connections whose notices were read before `moment`. Everything captured before then must
    /// have been counted. `clocks` are the current ones.
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
        // The capacity that a burst needed is not kept.
        if self.waiting.is_empty() && self.waiting.capacity() > MAX_IDLE_CAPACITY {
            self.waiting = VecDeque::new();
            self.alike = HashMap::default();
        }
    }

    /// Returns the counters of the comparisons.
    pub fn stats(&self) -> ReconcilerStats {
        self.stats
    }
}

/// Counts the bytes of a connection that the capture lost. Returns their number; `None` if the connection
/// cannot be compared.
///
/// The flow of its endpoints must be its own, and not that of another connection before or after. It is not
/// its own if it began after the notice was read, or if another notice has the same endpoints: each notice
/// takes the flow, so that the next finds it taken. A lost notice could be of any flow that began before the
/// loss. If a process resets a connection (`SO_LINGER` of 0 seconds), the notice does not name the connection
/// any more, so reset ones are left alone.
///
/// These rules use the time of day, which the flow's first packet bears. If the clock was set back since the
/// notice, a flow that seems to have begun before it may have begun after the step.
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
    // The segments of an offloaded frame are estimated, its payload is not: it counts with one set of
    // headers.
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

/// Returns the size of an IP header without options (RFC 791, RFC 8200).
fn ip_header(address: &Address) -> u64 {
    if address.is_v4() { 20 } else { 40 }
}

#[cfg(test)]
#[path = "tcp_reconciler_tests.rs"]
mod tests;
