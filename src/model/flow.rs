//! A flow seen from one of its ends, and who owns that end.

use super::address::Endpoint;
use super::packet::Protocol;
use super::proc_id::ProcId;
use std::fmt;

/// A network namespace, by the number that the session has given it. Two namespaces may use the same addresses, so
/// that an endpoint names nothing without its namespace.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Namespace(pub u8);

impl Namespace {
    /// That of the thread which opened the session.
    pub const HOME: Namespace = Namespace(0);
}

/// One end of a flow: the protocol, this host's endpoint and the other one, in a network namespace.
///
/// A packet between two processes of this host touches two keys, each the other's mirror, so that every
/// key has exactly one owner.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// The endpoint on this host.
    pub local: Endpoint,
    /// The other endpoint, which may also be on this host.
    pub remote: Endpoint,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The namespace that the endpoints are of.
    pub namespace: Namespace,
}

impl fmt::Debug for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}-{}", self.protocol, self.local, self.remote)
    }
}

/// How sure an owner is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(usize)]
pub enum Quality {
    /// One process holds the very socket of the flow.
    Exact = 0,
    /// Several processes hold the socket; the stated rule chose one of them.
    Shared = 1,
    /// The socket was found by a wildcard (unconnected UDP, a listener), not by the flow's own row.
    Guessed = 2,
}

impl Quality {
    /// How many qualities there are.
    pub const COUNT: usize = 3;
}

/// The process that a flow's local end belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Owner {
    /// The process.
    pub process: ProcId,
    /// How sure that is.
    pub quality: Quality,
}

/// Why bytes have no owner.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(usize)]
pub enum Unowned {
    /// No owner has been looked for yet, or the search goes on.
    Pending = 0,
    /// No socket table has a row for the flow: it closed before it could be seen, or the kernel itself answers.
    NoSocket = 1,
    /// The socket exists, but no process that could be read holds it.
    NoHolder = 2,
    /// Several sockets of different processes match, and nothing tells them apart.
    Ambiguous = 3,
    /// Descriptors of other users' processes could not be read for want of a capability.
    NotPermitted = 4,
    /// Too many new flows waited for their owner at once.
    QueueFull = 5,
    /// A later fragment whose first fragment was not seen.
    Fragment = 6,
    /// Neither end is on this host: forwarded, also with an address of this host in place of one of them, or overheard.
    NotLocal = 7,
    /// The kernel sends and answers such messages itself, or the protocol has no sockets that could be looked up.
    NoPorts = 8,
    /// The owner ended and was reported as removed before these bytes arrived.
    OwnerEnded = 9,
    /// What would tell the owner could not be read, for another cause than a missing capability.
    Unreadable = 10,
}

impl Unowned {
    /// How many reasons there are.
    pub const COUNT: usize = 11;
}
