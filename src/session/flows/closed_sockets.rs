//! Reads the kernel's notices of ended TCP connections in every captured namespace. The capture thread
//! compares these connections with what it has counted.
//!
//! This is a part of the early lookup thread, which looks up sockets in all those namespaces already.

use super::{FlowMailbox, SocketEnd};
use crate::kernel::Clocks;
use crate::model::tcp_state::{CLOSE, FIN_WAIT2, LISTEN, TIME_WAIT};
use crate::model::{FlowKey, Namespace, Protocol, Timestamp};
use crate::namespace::{Known, PerNamespace};
use crate::netlink::{CloseNotices, InetSocket, TcpInfo};
use crate::sync::Mutex;
use nix::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Limit of the notices that wait for the capture thread, some 100 bytes each.
const LIMIT: usize = 65_536;

/// Minimum time between two readings, so that notices are read several at a time and do not wake the thread
/// one by one.
const REST: Duration = Duration::from_millis(10);

/// Minimum payload that a connection has carried, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Carried {
    /// Bytes that the other end has acknowledged.
    pub sent: u64,
    /// Bytes received in order.
    pub received: u64,
}

/// A TCP connection that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// Its endpoints, seen from this end.
    pub key: FlowKey,
    /// The payload that it carried, if that may be compared.
    pub carried: Option<Carried>,
    /// The socket's cookie, and its last tcp_info.
    pub cookie: u64,
    pub info: TcpInfo,
    /// Time at which the notice was read.
    pub told: Timestamp,
    /// The same time by the clock that is never set.
    pub told_at: Instant,
    /// Time since which the end of every connection in this namespace has been reported, by the clock as it
    /// was set at `told`.
    pub all_told_since: Timestamp,
}

/// Ended connections that have not been compared yet.
#[derive(Default)]
pub struct EndedQueue {
    waiting: Mutex<Vec<Connection>>,
    lost: AtomicU64,
}

impl EndedQueue {
    /// Moves connections to the queue, leaving `connections` empty. Returns true if there was room for all;
    /// the others are lost.
    fn add(&self, connections: &mut Vec<Connection>) -> bool {
        let mut waiting = self.waiting.lock();
        let room = LIMIT.saturating_sub(waiting.len());
        let beyond = connections.len().saturating_sub(room);
        waiting.extend(connections.drain(..).take(room));
        self.lost.fetch_add(beyond as u64, Ordering::Relaxed);
        beyond == 0
    }

    /// Takes at most `most` connections, oldest first.
    pub fn take(&self, most: usize) -> Vec<Connection> {
        let mut waiting = self.waiting.lock();
        let count = waiting.len().min(most);
        waiting.drain(..count).collect()
    }

    /// Returns the number of notices that were lost for lack of room, here or in the kernel.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// The notices of ended connections in one namespace.
struct NoticeSource {
    ended: CloseNotices,
    all_told_since: Instant,
}

impl NoticeSource {
    /// Opens the socket in the namespace of the calling thread.
    fn open() -> Result<NoticeSource> {
        Ok(NoticeSource { ended: CloseNotices::open()?, all_told_since: Instant::now() })
    }

    /// Reads the available notices of the namespace with this number; those of attempts that led to no
    /// connection only if `wants_attempts`. Returns the number of lost notices, including those whose
    /// endpoints could not be looked up with `find`.
    fn read(
        &mut self,
        namespace: Namespace,
        wants_attempts: bool,
        find: &mut impl FnMut(&FlowKey) -> Result<Option<InetSocket>>,
        into: &mut Vec<Connection>,
    ) -> Result<u64> {
        let NoticeSource { ended, all_told_since } = self;
        let first = into.len();
        let mut obscure = 0;
        let dropped = ended.read(|socket, info| {
            let Some(connection) = connection(namespace, socket, info, *all_told_since) else { return };
            // The SYN counts as a byte once it is acknowledged.
            if !wants_attempts && info.acknowledged_bytes == 0 && info.received_bytes == 0 {
                return;
            }
            match find(&connection.key) {
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

/// Converts a notice to an ended connection; `None` for a socket that never had one.
fn connection(
    namespace: Namespace,
    socket: &InetSocket,
    info: &TcpInfo,
    all_told_since: Instant,
) -> Option<Connection> {
    let key = FlowKey { local: socket.local, remote: socket.remote, protocol: Protocol::TCP, namespace };
    // The kernel may count the SYN and the FIN with the bytes of the stream.
    let carried = Carried {
        sent: info.acknowledged_bytes.saturating_sub(2),
        received: info.received_bytes.saturating_sub(1),
    };
    // For a socket that was bound to a device, the kernel does not say if another connection lives in its
    // place; see `InetDiag`.
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

/// Returns true if the socket is a connection that lives in the place of an ended one. This is possible if a
/// process has kept the socket of a connection that was reset; the bytes counted there now belong to the new
/// connection. Any other socket is a listener, or the remainder of the ended connection itself.
fn lives(socket: &InetSocket) -> bool {
    match socket.state {
        LISTEN => false,
        FIN_WAIT2 | TIME_WAIT | CLOSE => socket.inode != 0,
        _ => true,
    }
}

/// Reads the notices of all namespaces.
pub struct EndedReader {
    sources: PerNamespace<NoticeSource>,
    /// Queue of the connections to compare, if they are compared.
    queue: Option<Arc<EndedQueue>>,
    /// Mailbox for notices that complete flow records, if flows are recorded.
    flows: Option<Arc<FlowMailbox>>,
    batch: Vec<Connection>,
    next: Instant,
}

impl EndedReader {
    /// Opens a reader with the namespace of the calling thread, which is the session's own. It follows the
    /// namespaces of `known`.
    ///
    /// # Errors
    /// The system's error; `EPERM` without CAP_NET_ADMIN.
    pub fn open(
        known: Known,
        queue: Option<Arc<EndedQueue>>,
        flows: Option<Arc<FlowMailbox>>,
    ) -> Result<EndedReader> {
        let sources = PerNamespace::with_home(NoticeSource::open()?, known);
        Ok(EndedReader { sources, queue, flows, batch: Vec::new(), next: Instant::now() })
    }

    /// Returns the time until the next reading; `None` if one is permitted now.
    pub fn rest(&self, now: Instant) -> Option<Duration> {
        self.next.checked_duration_since(now).filter(|rest| !rest.is_zero())
    }

    /// Returns the descriptors that become readable when notices arrive.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sources.iter().map(|(_, source)| source.ended.as_fd())
    }

    /// Reads the available notices, unless it is too early. `find` looks up a socket as `InetDiag::find`
    /// does, in the namespace of its endpoints.
    pub fn read(&mut self, now: Instant, mut find: impl FnMut(&FlowKey) -> Result<Option<InetSocket>>) {
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
        sources.retain(|namespace, source| {
            if ready.next() == Some(false) {
                return true;
            }
            let read = source.read(namespace, flows.is_some(), &mut find, batch);
            lost += *read.as_ref().unwrap_or(&0);
            read.inspect_err(|errno| warn!("notices of closed connections stopped: {errno}")).is_ok()
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
            sources.iter_mut().for_each(|(_, source)| source.all_told_since = now);
        }
    }

    /// Follows namespaces that appear and disappear.
    pub fn follow_namespaces(&mut self) {
        self.sources.follow_inside(NoticeSource::open, |entry, errno| {
            info!("notices of closed connections are unavailable in {}: {errno}", entry.path.display());
        });
    }
}

#[cfg(test)]
#[path = "closed_sockets_tests.rs"]
mod tests;
