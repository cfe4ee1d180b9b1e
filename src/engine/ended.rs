//! Reads the notices of TCP connections that have ended, in every namespace that is captured in, and leaves them for
//! the capture thread, which compares them with what it has counted.
//!
//! It is a part of the thread that looks at first packets, which has sockets in all those namespaces already.

use super::flows::{FlowDesk, SocketEnd};
use crate::kernel::Clocks;
use crate::model::{FlowKey, Namespace, Protocol, Timestamp};
use crate::namespace::{Follower, enter};
use crate::netlink::{Ended, InetDiag, InetSocket, TcpInfo};
use crate::sync::Mutex;
use nix::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Notices that may wait for the capture thread, some 100 bytes each.
const LIMIT: usize = 65_536;

/// Time between two readings, so that notices are read several at a time and the thread is not woken for each.
const REST: Duration = Duration::from_millis(10);

/// Payload that a connection has carried, bytes, at the least.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Carried {
    /// What the other end has acknowledged.
    pub sent: u64,
    /// What was received in order.
    pub received: u64,
}

/// A TCP connection that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// Its local end.
    pub key: FlowKey,
    /// What it carried, where that may be compared.
    pub carried: Option<Carried>,
    /// Its socket's cookie, and what the kernel knew of it last.
    pub cookie: u64,
    pub info: TcpInfo,
    /// When this was known.
    pub told: Timestamp,
    /// The same by the clock that is never set.
    pub told_at: Instant,
    /// Since when every connection's end in this namespace has been told, by the clock as it was set at `told`.
    pub all_told_since: Timestamp,
}

/// What is known of ended connections and not yet compared.
#[derive(Default)]
pub struct EndedQueue {
    waiting: Mutex<Vec<Connection>>,
    lost: AtomicU64,
}

impl EndedQueue {
    /// Adds connections, leaving none. Returns whether there was room for all; the others are lost.
    fn add(&self, connections: &mut Vec<Connection>) -> bool {
        let mut waiting = self.waiting.lock();
        let room = LIMIT.saturating_sub(waiting.len());
        let beyond = connections.len().saturating_sub(room);
        waiting.extend(connections.drain(..).take(room));
        self.lost.fetch_add(beyond as u64, Ordering::Relaxed);
        beyond == 0
    }

    /// Takes up to `most` connections, the oldest first.
    pub fn take(&self, most: usize) -> Vec<Connection> {
        let mut waiting = self.waiting.lock();
        let count = waiting.len().min(most);
        waiting.drain(..count).collect()
    }

    /// Notices that were lost, here or in the kernel, for want of room.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// What tells of ended connections in one namespace.
struct Source {
    namespace: Namespace,
    ended: Ended,
    diag: InetDiag,
    all_told_since: Instant,
}

impl Source {
    /// In the namespace of the calling thread, which the caller names.
    fn open(namespace: Namespace) -> Result<Source> {
        let (ended, diag) = (Ended::open()?, InetDiag::open()?);
        Ok(Source { namespace, ended, diag, all_told_since: Instant::now() })
    }

    /// Reads what there is; of attempts that no connection came of only if `wants_attempts`. Returns how many notices were
    /// lost, those that nothing can be said of included.
    fn read(&mut self, wants_attempts: bool, into: &mut Vec<Connection>) -> Result<u64> {
        let Source { namespace, ended, diag, all_told_since } = self;
        let first = into.len();
        let mut obscure = 0;
        let dropped = ended.read(|socket, info| {
            let Some(connection) = connection(*namespace, socket, info, *all_told_since) else { return };
            // The SYN counts, once it is acknowledged.
            if !wants_attempts && info.acknowledged_bytes == 0 && info.received_bytes == 0 {
                return;
            }
            match diag.find(&connection.key) {
                Ok(found) if found.is_some_and(|found| lives(&found)) => {}
                Ok(_) => into.push(connection),
                Err(_) => obscure += 1,
            }
        })?;
        let lost = u64::from(dropped) + obscure;
        if lost > 0 {
            *all_told_since = Instant::now();
            into.iter_mut().skip(first).for_each(|new| new.all_told_since = Timestamp::now());
        }
        Ok(lost)
    }
}

/// A notice as the end of a connection; `None` for a socket that never had one.
fn connection(
    namespace: Namespace,
    socket: &InetSocket,
    info: &TcpInfo,
    all_told_since: Instant,
) -> Option<Connection> {
    let key = FlowKey { local: socket.local, remote: socket.remote, protocol: Protocol::TCP, namespace };
    // The SYN and the FIN may be counted with the bytes of the stream.
    let carried = Carried {
        sent: info.acknowledged_bytes.saturating_sub(2),
        received: info.received_bytes.saturating_sub(1),
    };
    // Of one that was bound to a device the kernel does not say whether another lives in its place; see `InetDiag`.
    let carried = (socket.interface == 0).then_some(carried);
    let clocks = Clocks::now();
    let connection = Connection {
        key,
        carried,
        cookie: socket.cookie,
        info: *info,
        told: clocks.time_of_day(),
        told_at: clocks.at,
        all_told_since: clocks.time_at(all_told_since),
    };
    (key.remote.port != 0).then_some(connection)
}

/// Whether this is a connection that lives in the place of one that has ended, as it can when a program has kept the
/// socket of one that was reset; what is counted there now is its own. Else it is a listener, or what remains of the
/// connection itself.
fn lives(socket: &InetSocket) -> bool {
    /// Numbers of include/net/tcp_states.h.
    const FIN_WAIT2: u8 = 5;
    const TIME_WAIT: u8 = 6;
    const CLOSE: u8 = 7;
    const LISTEN: u8 = 10;
    match socket.state {
        LISTEN => false,
        FIN_WAIT2 | TIME_WAIT | CLOSE => socket.inode != 0,
        _ => true,
    }
}

/// Reads the notices of all namespaces.
pub struct EndedReader {
    sources: Vec<Source>,
    follower: Follower,
    /// Where connections go that are to be compared, if any are.
    queue: Option<Arc<EndedQueue>>,
    /// Where they go to complete the records of flows, if these are wanted.
    flows: Option<Arc<FlowDesk>>,
    batch: Vec<Connection>,
    next: Instant,
}

impl EndedReader {
    /// Begins with the namespace of the calling thread, which is the session's own.
    ///
    /// # Errors
    /// What the system says; `EPERM` without CAP_NET_ADMIN.
    pub fn open(
        follower: Follower,
        queue: Option<Arc<EndedQueue>>,
        flows: Option<Arc<FlowDesk>>,
    ) -> Result<EndedReader> {
        let sources = vec![Source::open(Namespace::HOME)?];
        Ok(EndedReader { sources, follower, queue, flows, batch: Vec::new(), next: Instant::now() })
    }

    /// How long nothing is to be read; `None` when it may be.
    pub fn rest(&self, now: Instant) -> Option<Duration> {
        self.next.checked_duration_since(now).filter(|rest| !rest.is_zero())
    }

    /// What becomes readable when there is something to read.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sources.iter().map(|source| source.ended.as_fd())
    }

    /// Reads what there is, unless it is too early.
    pub fn read(&mut self, now: Instant) {
        if self.rest(now).is_some() {
            return;
        }
        let mut watched: Vec<PollFd<'_>> =
            self.descriptors().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        if !poll(&mut watched, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
            return;
        }
        let ready: Vec<bool> = watched.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        self.next = now + REST;
        let EndedReader { sources, queue, flows, batch, .. } = self;
        let (mut ready, mut lost) = (ready.into_iter(), 0);
        sources.retain_mut(|source| {
            if ready.next() == Some(false) {
                return true;
            }
            let read = source.read(flows.is_some(), batch);
            lost += *read.as_ref().unwrap_or(&0);
            read.inspect_err(|errno| warn!("connections that end are not told of any more: {errno}")).is_ok()
        });
        if let Some(flows) = flows {
            let end =
                |it: &Connection| SocketEnd { key: it.key, told: it.told, cookie: it.cookie, info: it.info };
            flows.add_notices(batch.iter().map(end));
        }
        let Some(queue) = queue else {
            batch.clear();
            return;
        };
        queue.lost.fetch_add(lost, Ordering::Relaxed);
        if !queue.add(batch) {
            let now = Instant::now();
            sources.iter_mut().for_each(|source| source.all_told_since = now);
        }
    }

    /// Follows the coming and going of namespaces.
    pub fn follow_namespaces(&mut self) {
        let changes = self.follower.changes();
        self.sources.retain(|source| !changes.gone.contains(&source.namespace));
        for entry in &changes.come {
            match enter(entry, || Source::open(entry.namespace)) {
                Ok(Ok(source)) => self.sources.push(source),
                Ok(Err(errno)) => {
                    info!("connections in {} are not compared: {errno}", entry.path.display())
                }
                Err(error) => info!("{}: {error}", entry.path.display()),
            }
        }
    }
}

#[cfg(test)]
#[path = "ended_tests.rs"]
mod tests;
