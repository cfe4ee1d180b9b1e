//! A flow seen from one of its ends, and the owner of that end.

use super::address::Endpoint;
use super::packet::Protocol;
use super::proc_id::ProcId;
use std::fmt;

/// A network namespace, by the number that the session has assigned to it. Two namespaces may use the same
/// addresses, so an endpoint is ambiguous without its namespace.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Namespace(pub u8);

impl Namespace {
    /// The namespace of the thread that opened the session.
    pub const HOME: Namespace = Namespace(0);
}

/// One end of a flow: the protocol, the endpoint on this host and the other endpoint, in a network namespace.
///
/// A packet between two processes of this host belongs to two keys, each the other's mirror, so every key has
/// exactly one owner.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// The endpoint on this host.
    pub local: Endpoint,
    /// The other endpoint, which may also be on this host.
    pub remote: Endpoint,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The namespace of the endpoints.
    pub namespace: Namespace,
}

impl fmt::Debug for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}-{}", self.protocol, self.local, self.remote)
    }
}

/// The quality of an owner.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(usize)]
pub enum Quality {
    /// Exactly one process holds the socket of the flow.
    Exact = 0,
    /// Several processes hold the socket. The documented rule chose one of them.
    Shared = 1,
    /// The socket was found by a wildcard (unconnected UDP, a listener), not by the flow's own table row, or
    /// the owner was inferred from recent history.
    Guessed = 2,
}

impl Quality {
    /// The number of qualities.
    pub const COUNT: usize = 3;
}

/// The process that a flow's local end belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Owner {
    /// The process.
    pub process: ProcId,
    /// The quality of that result.
    pub quality: Quality,
}

/// The reason that bytes have no owner.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(usize)]
pub enum Unowned {
    /// No lookup has begun yet, or it has not finished.
    Pending = 0,
    /// No socket table has a row for the flow: it closed before the lookup, or the kernel itself answers.
    NoSocket = 1,
    /// The socket exists, but none of the readable processes holds it.
    NoHolder = 2,
    /// Several sockets of different processes match, and nothing distinguishes them.
    Ambiguous = 3,
    /// Descriptors of other users' processes could not be read because a capability is missing.
    NotPermitted = 4,
    /// Too many new flows were waiting for a lookup at once.
    QueueFull = 5,
    /// A later fragment whose first fragment was not seen.
    Fragment = 6,
    /// Neither end is on this host: the packet was forwarded, possibly with an address of this host in place
    /// of one end's, or overheard.
    NotLocal = 7,
    /// The kernel itself sends and answers such messages, or the protocol has no sockets to look up.
    NoPorts = 8,
    /// The owner ended and was reported as removed before these bytes arrived.
    OwnerEnded = 9,
    /// The sources for the lookup could not be read, for a reason other than a missing capability.
    Unreadable = 10,
}

impl Unowned {
    /// The number of reasons.
    pub const COUNT: usize = 11;
}
