//! The source of sockets that queries the kernel for the socket that the kernel itself would choose:
//! sock_diag(7).
//!
//! An exact lookup costs a few microseconds, independent of the number of sockets, and is always up to date.
//! Two questions need a list: which listeners have a connection's port after the connection itself has
//! closed, and which sockets share a port (`SO_REUSEPORT`, groups). Such lists are read at most once for all
//! flows of a round.
//!
//! An exact lookup names no device, so it does not find sockets bound to a device. For datagrams, and for
//! connections between link-local addresses, which the kernel always binds to their device, the list contains
//! them. For other connections there is a list of those that are bound to a device. It is read every few
//! seconds while flows without a socket are looked up.

use super::index::{NO_RANK, SocketIndex, TableKind};
use super::table::SocketRow;
use super::tables::CROWD;
use crate::error::{Code, Error};
use crate::model::tcp_state::{self, LISTEN};
use crate::model::{FlowKey, Protocol};
use crate::netlink::{InetDiag, InetSocket};
use crate::owner::source::{CandidateSocket, Looked, Match, Report, SocketSource, SourceStatus, Turn};
use nix::errno::Errno;
use std::time::{Duration, Instant};

/// The number of other peers that are tried to see if several sockets share a port: the kernel chooses among
/// the sockets by a hash of both endpoints, so that one of two sockets stays unseen in 1 of 64 cases. The
/// match counts as a guess in any case.
const PROBES: u16 = 6;

/// The maximum age of the list of listeners as a hint at the process that may have accepted a connection.
const HINT_AGE: Duration = Duration::from_secs(1);

/// The maximum age of the list of connections that are bound to a device: less than the time for which a flow
/// is looked up.
const BOUND_AGE: Duration = Duration::from_secs(3);

/// A list that takes less time than this is not put off, because it is read at most some twenty times a
/// second.
const SHORT: Duration = Duration::from_micros(500);

/// Exact lookups of datagram sockets in one round after which a list may be faster, and the cost of each.
const MANY: u32 = 64;
const QUESTION: Duration = Duration::from_micros(3);

/// Listed sockets, with the time at which the reading began.
struct List {
    protocol: Protocol,
    states: u32,
    /// Set if the list has only sockets that are bound to a device.
    is_of_bound: bool,
    index: SocketIndex,
    read_at: Option<Instant>,
    /// The duration of the latest reading.
    took: Duration,
}

/// The sockets of one network namespace.
pub(in crate::owner) struct SockDiag {
    diag: InetDiag,
    listeners: List,
    connections: List,
    /// Connections that are bound to a device.
    bound: List,
    udp: List,
    udplite: List,
    lists: u64,
    /// The round of the latest lookup, and the number of exact datagram lookups in it.
    round: Option<Instant>,
    questions: u32,
    fault: Option<Errno>,
}

impl SockDiag {
    /// Returns a source that queries `diag`, which belongs to the namespace.
    pub fn new(diag: InetDiag) -> SockDiag {
        let list = |protocol, states, kind| List {
            protocol,
            states,
            index: SocketIndex::new(kind),
            is_of_bound: false,
            read_at: None,
            took: Duration::ZERO,
        };
        SockDiag {
            diag,
            listeners: list(Protocol::TCP, tcp_state::mask(&[LISTEN]), TableKind::Tcp),
            connections: list(Protocol::TCP, u32::MAX, TableKind::Tcp),
            bound: List { is_of_bound: true, ..list(Protocol::TCP, u32::MAX, TableKind::Tcp) },
            udp: list(Protocol::UDP, u32::MAX, TableKind::Datagram),
            udplite: list(Protocol::UDPLITE, u32::MAX, TableKind::Datagram),
            lists: 0,
            round: None,
            questions: 0,
            fault: None,
        }
    }

    /// Records the kernel's error and passes the query on to the next source.
    fn elsewhere(&mut self, errno: Errno) -> Looked {
        self.fault = Some(errno);
        Looked::Elsewhere
    }

    fn find(&mut self, key: &FlowKey) -> Result<Option<InetSocket>, Looked> {
        match self.diag.find(key) {
            Ok(found) => {
                self.fault = None;
                Ok(found)
            }
            Err(errno) => Err(self.elsewhere(errno)),
        }
    }

    fn stream(
        &mut self,
        key: &FlowKey,
        since: Instant,
        turn: &Turn<'_>,
        sockets: &mut Vec<CandidateSocket>,
    ) -> Result<Looked, Looked> {
        let found = self.find(key)?;
        let exact = found.filter(|socket| socket.inode != 0 && socket.state != LISTEN);
        let exact = match exact.map(|socket| CandidateSocket { inode: socket.inode, uid: socket.uid }) {
            None if key.local.address.is_link_local_v6() => self.listed_connection(key, since, turn)?,
            None => self.bound_connection(key, turn),
            exact => exact,
        };
        if let Some(socket) = exact {
            let hint = turn.now.checked_sub(HINT_AGE).unwrap_or(turn.now).min(since);
            self.listeners(key, hint, turn, sockets)?;
            let listener = sockets.pop().map(|socket| socket.inode);
            sockets.clear();
            sockets.push(socket);
            return Ok(Looked::Found { by: Match::Own, listener });
        }
        self.listeners(key, since, turn, sockets)?;
        Ok(match found.map(|socket| socket.state) {
            _ if sockets.is_empty() => Looked::Missing,
            // The connection waits to be accepted.
            Some(state) if tcp_state::may_be_accepted(state) => Looked::Listener { is_seen: true },
            Some(LISTEN) | None => Looked::Found { by: Match::Listening, listener: None },
            // The connection has closed, but the listener's process still exists.
            _ => Looked::Found { by: Match::Indirect, listener: None },
        })
    }

    /// Looks up a connection in the list of all connections.
    fn listed_connection(
        &mut self,
        key: &FlowKey,
        since: Instant,
        turn: &Turn<'_>,
    ) -> Result<Option<CandidateSocket>, Looked> {
        let SockDiag { diag, connections, lists, .. } = self;
        if let Err(refused) = connections.refresh(diag, since, turn, lists) {
            return Err(self.refused(refused));
        }
        let mut found = Vec::new();
        connections.index.connected(key, 1, &mut found);
        Ok(found.pop())
    }

    /// Looks up a connection in the list of those that are bound to a device. A new one is found by a retry.
    fn bound_connection(&mut self, key: &FlowKey, turn: &Turn<'_>) -> Option<CandidateSocket> {
        let SockDiag { diag, bound, lists, .. } = self;
        let oldest = turn.now.checked_sub(BOUND_AGE).unwrap_or(turn.now);
        // While the budget forbids a new reading, the old list serves.
        let _ = bound.refresh(diag, oldest, turn, lists);
        let mut found = Vec::new();
        bound.index.connected(key, 1, &mut found);
        found.pop()
    }

    fn datagram(
        &mut self,
        key: &FlowKey,
        since: Instant,
        turn: &Turn<'_>,
        sockets: &mut Vec<CandidateSocket>,
    ) -> Result<Looked, Looked> {
        let is_group = key.local.address.is_multicast();
        let is_listed = is_group || self.prefers_list(key.protocol, turn);
        if !is_listed && let Some(socket) = self.find(key)? {
            if socket.remote.port != 0 {
                sockets.push(CandidateSocket { inode: socket.inode, uid: socket.uid });
                return Ok(Looked::Found { by: Match::Own, listener: None });
            }
            if self.is_alone(key, &socket)? {
                sockets.push(CandidateSocket { inode: socket.inode, uid: socket.uid });
                return Ok(Looked::Found { by: Match::Bound, listener: None });
            }
        }
        let SockDiag { diag, udp, udplite, lists, .. } = self;
        let list = if key.protocol == Protocol::UDP { udp } else { udplite };
        if let Err(refused) = list.refresh(diag, since, turn, lists) {
            return Err(self.refused(refused));
        }
        list.index.connected(key, CROWD, sockets);
        if !sockets.is_empty() {
            return Ok(Looked::Found { by: Match::Own, listener: None });
        }
        list.index.bound(key, is_group, CROWD, (0, &mut NO_RANK.clone()), sockets);
        Ok(if sockets.is_empty() {
            Looked::Missing
        } else {
            Looked::Found { by: Match::Bound, listener: None }
        })
    }

    /// Returns true if the exact lookups of this round have taken as long as the last reading of the list, so
    /// that the list answers the remaining ones in less time: a flood of datagrams comes from as many ports.
    fn prefers_list(&mut self, protocol: Protocol, turn: &Turn<'_>) -> bool {
        if self.round != Some(turn.now) {
            (self.round, self.questions) = (Some(turn.now), 0);
        }
        self.questions += 1;
        let list = if protocol == Protocol::UDP { &self.udp } else { &self.udplite };
        self.questions > MANY && QUESTION * self.questions > list.took
    }

    /// Returns true if no other socket shares the port of an unconnected one, as far as attempts with other
    /// peers show.
    fn is_alone(&mut self, key: &FlowKey, socket: &InetSocket) -> Result<bool, Looked> {
        for probe in 1..=PROBES {
            let mut other = *key;
            other.remote.port = key.remote.port.wrapping_add(probe.wrapping_mul(0x1235)).max(1);
            let found = self.find(&other)?;
            if found.is_some_and(|found| found.inode != socket.inode && found.remote.port == 0) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Adds the listeners of the flow's local endpoint.
    fn listeners(
        &mut self,
        key: &FlowKey,
        since: Instant,
        turn: &Turn<'_>,
        sockets: &mut Vec<CandidateSocket>,
    ) -> Result<(), Looked> {
        let SockDiag { diag, listeners, lists, .. } = self;
        if let Err(refused) = listeners.refresh(diag, since, turn, lists) {
            return Err(self.refused(refused));
        }
        listeners.index.bound(key, false, CROWD, (0, &mut NO_RANK.clone()), sockets);
        Ok(())
    }

    fn refused(&mut self, refused: ListRefusal) -> Looked {
        match refused {
            ListRefusal::Busy(after) => Looked::Busy(after),
            ListRefusal::Failed(errno) => self.elsewhere(errno),
        }
    }
}

enum ListRefusal {
    Busy(Duration),
    Failed(Errno),
}

impl List {
    /// Reads the list if it is older than `since`.
    fn refresh(
        &mut self,
        diag: &mut InetDiag,
        since: Instant,
        turn: &Turn<'_>,
        lists: &mut u64,
    ) -> Result<(), ListRefusal> {
        if self.read_at.is_some_and(|at| at >= since) {
            return Ok(());
        }
        // A short list may be read even if other work has used up the budget.
        if self.took >= SHORT {
            turn.budget.allow().map_err(ListRefusal::Busy)?;
        }
        let began = Instant::now();
        self.index.clear();
        let (index, is_of_bound) = (&mut self.index, self.is_of_bound);
        let dumped = diag.dump(self.protocol, self.states, |socket| {
            let InetSocket { local, remote, state, uid, inode, interface, .. } = *socket;
            if is_of_bound && interface == 0 {
                return;
            }
            index.insert(&SocketRow { local, remote, state, uid, inode });
        });
        *lists += 1;
        self.index.arrange();
        self.took = began.elapsed();
        self.read_at = dumped.is_ok().then_some(turn.now);
        dumped.map_err(ListRefusal::Failed)
    }
}

impl SocketSource for SockDiag {
    fn look_up(
        &mut self,
        key: &FlowKey,
        since: Instant,
        turn: &Turn<'_>,
        sockets: &mut Vec<CandidateSocket>,
    ) -> Looked {
        let mut own = Vec::new();
        let looked = match key.protocol {
            Protocol::TCP => self.stream(key, since, turn, &mut own),
            Protocol::UDP | Protocol::UDPLITE => self.datagram(key, since, turn, &mut own),
            _ => Err(Looked::Elsewhere),
        };
        if own.len() >= CROWD {
            return Looked::Crowd;
        }
        // A list that changes while it is read can contain a socket twice.
        own.sort_unstable_by_key(|socket| socket.inode);
        own.dedup_by_key(|socket| socket.inode);
        sockets.append(&mut own);
        looked.unwrap_or_else(|looked| looked)
    }

    fn takes(&mut self, key: &FlowKey) -> Option<bool> {
        let socket = match self.find(key).ok()? {
            Some(socket) if socket.state != LISTEN => socket,
            _ => return Some(false),
        };
        let is_connected = socket.remote.port != 0;
        Some(is_connected || socket.is_transparent || socket.local.address == key.local.address)
    }

    fn loops(&mut self, key: &FlowKey) -> Option<bool> {
        if !matches!(key.protocol, Protocol::UDP | Protocol::UDPLITE) {
            return None;
        }
        let sender = FlowKey { local: key.remote, remote: key.local, ..*key };
        Some(self.find(&sender).ok()?.is_none_or(|socket| socket.loops_multicast))
    }

    fn report(&self, report: &mut Report) {
        let fault = self
            .fault
            .map(|errno| Error::system(Code::SystemResource, "querying sockets with sock_diag", errno));
        report.sources.push(SourceStatus { name: "sock_diag", fault });
        report.table_loads += self.lists;
        report.dropped_rows += [&self.listeners, &self.connections, &self.bound, &self.udp, &self.udplite]
            .map(|list| list.index.dropped())
            .iter()
            .sum::<u64>();
    }
}
