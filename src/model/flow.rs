//! A flow seen from one of its ends, who owns that end, and the bytes counted for it.

use super::address::Endpoint;
use super::packet::Protocol;
use super::process::ProcId;
use std::fmt;

/// One end of a flow: the protocol, this host's endpoint and the other one.
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
}

impl fmt::Debug for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}-{}", self.protocol, self.local, self.remote)
    }
}

/// Which way a packet went, seen from the local end of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// From the local endpoint.
    Send,
    /// To the local endpoint.
    Receive,
}

/// Bytes and packets each way. Bytes are lengths on the wire, link header included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    /// Bytes sent.
    pub send_bytes: u64,
    /// Bytes received.
    pub receive_bytes: u64,
    /// Packets sent.
    pub send_packets: u64,
    /// Packets received.
    pub receive_packets: u64,
}

impl Traffic {
    /// Counts one packet.
    #[inline]
    pub fn count(&mut self, direction: Direction, wire_len: u32) {
        match direction {
            Direction::Send => {
                self.send_bytes += u64::from(wire_len);
                self.send_packets += 1;
            }
            Direction::Receive => {
                self.receive_bytes += u64::from(wire_len);
                self.receive_packets += 1;
            }
        }
    }

    /// Whether nothing was counted.
    #[inline]
    pub fn is_empty(&self) -> bool {
        *self == Traffic::default()
    }

    /// Takes what was counted, leaving nothing.
    #[inline]
    pub fn take(&mut self) -> Traffic {
        std::mem::take(self)
    }

    /// Bytes of both directions.
    #[inline]
    pub fn bytes(&self) -> u64 {
        self.send_bytes + self.receive_bytes
    }
}

impl std::ops::AddAssign for Traffic {
    #[inline]
    fn add_assign(&mut self, other: Traffic) {
        self.send_bytes += other.send_bytes;
        self.receive_bytes += other.receive_bytes;
        self.send_packets += other.send_packets;
        self.receive_packets += other.receive_packets;
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
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
    /// Neither end is on this host: forwarded or overheard.
    NotLocal = 7,
    /// The protocol has no sockets that could be looked up.
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
