//! One socket table in memory, sorted so that the sockets of a flow are found by binary search.

use super::table::SocketRow;
use crate::model::{Address, Endpoint, FlowKey, tcp_state};
use crate::owner::source::CandidateSocket;
use foldhash::fast::RandomState;
use std::hash::BuildHasher;

/// The limit of sockets kept of one table, 56 bytes each: at most 14 MiB. Rows without an inode take no
/// space, so that a server's hundreds of thousands of TIME_WAIT rows do not crowd out its live sockets.
pub(in crate::owner) const LIMIT: usize = 1 << 18;

/// The meaning of the columns of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::owner) enum TableKind {
    /// Connections, and listeners, which are recognized by their state.
    Tcp,
    /// Ports at both ends (UDP, UDP-Lite).
    Datagram,
    /// The local port is the echo identifier; the end that answers has none.
    Ping,
    /// The local port is the protocol number; there is no remote port.
    Raw,
}

#[derive(Clone, Copy)]
struct Row {
    order: u64,
    inode: u64,
    uid: u32,
    local: Address,
    remote: Address,
}

/// The sockets of one table, sorted by local port, remote port and a hash of the remote address, in that
/// order; sockets that are not connected are therefore the first of their port.
pub(in crate::owner) struct SocketIndex {
    kind: TableKind,
    rows: Vec<Row>,
    hasher: RandomState,
    dropped: u64,
}

/// The quality of the match between a socket's local address and a flow's; lower is better.
type Rank = u8;

impl SocketIndex {
    pub fn new(kind: TableKind) -> SocketIndex {
        SocketIndex { kind, rows: Vec::new(), hasher: RandomState::default(), dropped: 0 }
    }

    /// Removes all rows.
    pub fn clear(&mut self) {
        self.rows.clear();
    }

    /// Adds a row, if a process can have its socket. [`SocketIndex::arrange`] must follow before any lookup.
    pub fn insert(&mut self, row: &SocketRow) {
        let SocketRow { local, mut remote, state, uid, inode } = *row;
        let connected = !is_unconnected(&remote);
        let usable = inode != 0 && (self.kind != TableKind::Tcp || connected || state == tcp_state::LISTEN);
        if !usable {
            return;
        }
        if self.rows.len() >= LIMIT {
            self.dropped += 1;
            return;
        }
        if self.kind == TableKind::Ping && connected {
            remote.port = 0;
        }
        let order = self.order(local.port, &remote);
        self.rows.push(Row { order, inode, uid, local: local.address, remote: remote.address });
    }

    /// Sorts the rows added since [`SocketIndex::clear`] for lookups.
    pub fn arrange(&mut self) {
        self.rows.sort_unstable_by_key(|row| row.order);
    }

    /// Rows left out so far because the table was full.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Adds the sockets connected to the flow's remote endpoint, at most `most`.
    pub fn connected(&self, flow: &FlowKey, most: usize, sockets: &mut Vec<CandidateSocket>) {
        if is_unconnected(&flow.remote) {
            return;
        }
        let matching = self
            .equal(self.order(flow.local.port, &flow.remote))
            .filter(|row| row.remote == flow.remote.address)
            .filter(|row| row.local == flow.local.address || row.local.is_unspecified());
        sockets.extend(matching.map(Row::socket).take(most));
    }

    /// Adds the unconnected sockets bound to the flow's local endpoint, at most `most`: all that can match if
    /// `all`, otherwise only those of the best rank. `best` is the best rank found so far, here or in another
    /// table; a better rank removes the sockets added from `start` on.
    pub fn bound(
        &self,
        flow: &FlowKey,
        all: bool,
        most: usize,
        (start, best): (usize, &mut Rank),
        sockets: &mut Vec<CandidateSocket>,
    ) {
        for row in self.equal(u64::from(flow.local.port) << 48) {
            let Some(rank) = rank(&row.local, &flow.local.address) else { continue };
            let rank = if all && rank < SENDER { 0 } else { rank };
            if rank < *best {
                *best = rank;
                sockets.truncate(start);
            }
            if rank == *best && sockets.len() < start + most {
                sockets.push(row.socket());
            }
        }
    }

    fn equal(&self, order: u64) -> impl Iterator<Item = &Row> {
        let start = self.rows.partition_point(|row| row.order < order);
        self.rows.get(start..).unwrap_or_default().iter().take_while(move |row| row.order == order)
    }

    /// The hash is keyed at random, so that a peer with many addresses cannot pile up rows under one value.
    fn order(&self, local_port: u16, remote: &Endpoint) -> u64 {
        let port = u64::from(local_port) << 48;
        if is_unconnected(remote) {
            return port;
        }
        port | u64::from(remote.port) << 32 | (self.hasher.hash_one(remote.address) & 0xffff_ffff)
    }
}

impl Row {
    fn socket(&self) -> CandidateSocket {
        CandidateSocket { inode: self.inode, uid: self.uid }
    }
}

fn is_unconnected(remote: &Endpoint) -> bool {
    remote.port == 0 && remote.address.is_unspecified()
}

/// The rank of a socket bound to a group if the flow's own address is not one: the socket can only be the
/// sender, because the packets that it receives are addressed to the group.
const SENDER: Rank = 3;

/// Worse than every rank.
pub(in crate::owner) const NO_RANK: Rank = Rank::MAX;

/// Returns the rank of a bound address: the exact address before its family's wildcard before the IPv6
/// wildcard for IPv4. The tables do not show if a socket is for IPv6 only; if a port has wildcards of both
/// families, it must be.
fn rank(bound: &Address, flow: &Address) -> Option<Rank> {
    let wildcard = if flow.is_v4() { Address::UNSPECIFIED_V4 } else { Address::UNSPECIFIED_V6 };
    if bound == flow {
        Some(0)
    } else if *bound == wildcard {
        Some(1)
    } else if flow.is_v4() && *bound == Address::UNSPECIFIED_V6 {
        Some(2)
    } else if bound.is_multicast() && !flow.is_multicast() && bound.is_v4() == flow.is_v4() {
        Some(SENDER)
    } else {
        None
    }
}
