//! The records of the eBPF programs: `probes/sockets.h` in Rust.

use crate::model::ProcId;
use aya::Pod;

/// The socket called connect(2).
pub(super) const CONNECTED: u32 = 1;
/// A listener made the socket.
pub(super) const ACCEPTED: u32 = 2;
/// The socket called listen(2).
pub(super) const LISTENER: u32 = 4;
/// The socket's owner is that of its listener: no process has used it since.
pub(super) const INHERITED: u32 = 8;
/// The kernel has destroyed the socket.
pub(super) const ENDED: u32 = 16;
/// The socket's owner is a holder that a walk over all descriptors found.
pub(super) const HELD: u32 = 32;
/// The walk found several holders of the socket.
pub(super) const SEVERAL_HOLDERS: u32 = 64;
/// More than one process has used the socket.
pub(super) const SHARED: u32 = 128;

/// No process has used the socket since it was created.
pub(super) const UNUSED: u32 = 1024;
/// The socket's endpoints are in the map `endpoint_owners`.
pub(super) const HAS_ENDPOINTS: u32 = 256;
/// The socket sent its first packet before it received one.
pub(super) const SENT_FIRST: u32 = 512;

/// The length in bytes of a thread's name, including NUL.
pub(super) const TASK_COMM_LEN: usize = 16;
/// The socket of these bytes has no record.
pub(super) const LOSS_NO_RECORD: u32 = 0;
/// The kernel has answered an ICMP message by itself.
pub(super) const LOSS_KERNEL_REPLY: u32 = 2;

/// The number of buckets of a histogram.
pub(super) const BUCKETS: usize = 32;

/// A process.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Process {
    pub start_ns: u64,
    pub tgid: u32,
    pub padding: u32,
}

impl Process {
    /// Returns the process as `/proc` names it, or `None` if there is none.
    pub(super) fn id(&self, ticks_per_second: u64) -> Option<ProcId> {
        let pid = i32::try_from(self.tgid).ok().filter(|&pid| pid > 0)?;
        let start_ticks = u128::from(self.start_ns) * u128::from(ticks_per_second) / 1_000_000_000;
        Some(ProcId { pid, start_ticks: start_ticks as u64 })
    }
}

/// Two endpoints in a network namespace.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Tuple {
    pub netns: u32,
    pub local_port: u16,
    pub remote_port: u16,
    pub local: [u8; 16],
    pub remote: [u8; 16],
    pub protocol: u8,
    pub padding: [u8; 7],
}

/// Bytes and packets in one direction.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct DirectionCounters {
    pub bytes: u64,
    pub packets: u64,
}

/// Bytes and packets in both directions.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Counts {
    pub sent: DirectionCounters,
    pub received: DirectionCounters,
}

/// Times from a request to its answer.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Latency {
    pub count: u64,
    pub sum_ns: u64,
    pub min_ns: u64,
    pub max_ns: u64,
}

/// The calls of a socket's users.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Calls {
    pub sends: u64,
    pub sent_ns: u64,
    pub receives: u64,
    pub unanswered: u32,
    pub padding: u32,
}

/// The record of a socket.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct SocketRecord {
    pub version: u32,
    pub flags: u32,
    pub owner: Process,
    pub link: [u32; 2],
    pub total: Counts,
    pub unread: u64,
    pub peer_digest: u32,
    pub error: u32,
    pub calls: Calls,
    pub smoothed_rtt_us: u32,
    pub retransmits: u32,
    pub in_shares: Counts,
    pub cgroup: u64,
    pub name: [u8; TASK_COMM_LEN],
    pub uid: u32,
    pub gid: u32,
    pub tuple: Tuple,
    pub latency: Latency,
    pub opened_ns: u64,
    pub connecting_ns: u64,
    pub established_ns: u64,
    pub ended_ns: u64,
    pub state: u8,
    pub last_state: u8,
    pub connects: u16,
    pub next_version: u32,
}

impl SocketRecord {
    /// Returns true if no eBPF program was changing the record during the copy. The kernel copies from front
    /// to back, and a change writes the last field before all others.
    pub(super) fn is_whole(&self) -> bool {
        self.version & 1 == 0 && self.version == self.next_version
    }
}

/// Variables that the reader sets for the eBPF programs.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Control {
    /// The period in which accounts are kept now.
    pub period: u32,
    /// Set if the map had no room for a record.
    pub is_full: u32,
}

/// The reason and the network namespace of bytes that are in no record.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct LossKey {
    pub netns: u32,
    pub reason: u32,
    pub period: u32,
}

/// The process whose times from a request to its answer are counted.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct LatencyKey {
    pub owner: Process,
    pub period: u32,
    pub padding: u32,
}

/// The user of an account at a socket that other processes use too.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct ShareKey {
    pub owner: Process,
    pub cookie: u64,
    pub period: u32,
    pub padding: u32,
}

/// The content of such an account.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Share {
    pub traffic: Counts,
    pub cgroup: u64,
    pub name: [u8; TASK_COMM_LEN],
    pub uid: u32,
    pub gid: u32,
    pub netns: u32,
    pub is_packet_socket: u32,
}

/// The owner of a pair of endpoints.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct EndpointOwner {
    /// The start of the process, in nanoseconds since boot.
    pub start_ns: u64,
    pub cookie: u64,
    /// The time at which the socket got the endpoints.
    pub since_ns: u64,
    /// The cookie of the socket that had the endpoints before, or 0.
    pub previous_cookie: u64,
    /// The time at which the socket ended, or 0.
    pub ended_ns: u64,
    pub cgroup: u64,
    pub name: [u8; TASK_COMM_LEN],
    pub tgid: u32,
    pub uid: u32,
    pub gid: u32,
    pub flags: u32,
}

/// Numbers of times by their length.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Buckets(pub [u64; BUCKETS]);

// SAFETY: each type consists of integers, with no padding but named fields, so that every bit pattern is a
// value.
unsafe impl Pod for Process {}
// SAFETY: as above.
unsafe impl Pod for Buckets {}
// SAFETY: as above.
unsafe impl Pod for Tuple {}
// SAFETY: as above.
unsafe impl Pod for DirectionCounters {}
// SAFETY: as above.
unsafe impl Pod for Counts {}
// SAFETY: as above.
unsafe impl Pod for SocketRecord {}
// SAFETY: as above.
unsafe impl Pod for ShareKey {}
// SAFETY: as above.
unsafe impl Pod for LossKey {}
// SAFETY: as above.
unsafe impl Pod for LatencyKey {}
// SAFETY: as above.
unsafe impl Pod for Control {}
// SAFETY: as above.
unsafe impl Pod for Share {}
// SAFETY: as above.
unsafe impl Pod for EndpointOwner {}

const _: () = {
    assert!(size_of::<Tuple>() == 48 && size_of::<SocketRecord>() == 304 && size_of::<EndpointOwner>() == 80);
    assert!(size_of::<ShareKey>() == 32 && size_of::<Share>() == 72);
};
