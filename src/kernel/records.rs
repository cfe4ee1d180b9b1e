//! Records as the programs in the kernel lay them out: `probes/sockets.h` in Rust.

use crate::model::ProcId;
use aya::Pod;

/// The socket called connect(2).
pub(super) const CONNECTED: u32 = 1;
/// A listener made the socket.
pub(super) const ACCEPTED: u32 = 2;
/// The socket called listen(2).
pub(super) const LISTENER: u32 = 4;
/// Its user is its listener's: nobody has used it since.
pub(super) const INHERITED: u32 = 8;
/// The kernel has destroyed it.
pub(super) const ENDED: u32 = 16;
/// Its user is who held a descriptor of it when the probes were loaded.
pub(super) const HELD: u32 = 32;
/// Several processes held one.
pub(super) const SEVERAL: u32 = 64;
/// More than one process has used it.
pub(super) const SWITCHED: u32 = 128;

/// No process has used it since it was created.
pub(super) const UNUSED: u32 = 1024;
/// Its endpoints are known.
pub(super) const NAMED: u32 = 256;
/// Its first packet was one that it sent.
pub(super) const BEGAN: u32 = 512;

/// Bytes of a process's name, NUL included.
pub(super) const NAME: usize = 16;
/// The socket of these bytes has no record.
pub(super) const LOSS_UNKNOWN: u32 = 0;
/// The kernel has answered an ICMP message by itself.
pub(super) const LOSS_ANSWERED: u32 = 2;

/// Number of buckets of a histogram.
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
    /// The process as `/proc` names it; `None` when there is none.
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

/// Bytes and packets one way.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Way {
    pub bytes: u64,
    pub packets: u64,
}

/// Bytes and packets both ways.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Counts {
    pub sent: Way,
    pub received: Way,
}

/// Times from a request to its answer.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Latency {
    pub count: u64,
    pub sum_ns: u64,
    pub least_ns: u64,
    pub most_ns: u64,
}

/// What a socket's users have done with it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Calls {
    pub sends: u64,
    pub sent_ns: u64,
    pub receives: u64,
    pub unanswered: u32,
    pub padding: u32,
}

/// All that is known of a socket.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct SocketRecord {
    pub version: u32,
    pub flags: u32,
    pub owner: Process,
    pub link: [u32; 2],
    pub total: Counts,
    pub unread: u64,
    pub peer: u32,
    pub error: u32,
    pub calls: Calls,
    pub smoothed_rtt_us: u32,
    pub retransmits: u32,
    pub apart: Counts,
    pub cgroup: u64,
    pub name: [u8; NAME],
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
    pub entered: u32,
}

impl SocketRecord {
    /// Whether the copy was made while no program was changing the record. The kernel copies from front to back; the last
    /// field is the first that a change writes.
    pub(super) fn is_whole(&self) -> bool {
        self.version & 1 == 0 && self.version == self.entered
    }
}

/// What the reader sets for the programs.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Control {
    /// In which accounts are kept now.
    pub period: u32,
    /// Whether there was no room for a record.
    pub is_full: u32,
}

/// Where bytes went that are in no record, and in which network namespace.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct LossKey {
    pub netns: u32,
    pub why: u32,
    pub period: u32,
}

/// Whose times from a request to its answer.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct LatencyKey {
    pub owner: Process,
    pub period: u32,
    pub padding: u32,
}

/// A user's account at a socket that others use too.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct ShareKey {
    pub owner: Process,
    pub cookie: u64,
    pub period: u32,
    pub padding: u32,
}

/// What stands in it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Share {
    pub traffic: Counts,
    pub cgroup: u64,
    pub name: [u8; NAME],
    pub uid: u32,
    pub gid: u32,
    pub netns: u32,
    pub is_packet_socket: u32,
}

/// Whose a pair of endpoints is.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct EndpointOwner {
    /// When the process started.
    pub start_ns: u64,
    pub cookie: u64,
    /// When the endpoints became the socket's.
    pub began_ns: u64,
    /// The cookie of the socket that had them before, or 0.
    pub former: u64,
    /// When the socket ended, or 0.
    pub ended_ns: u64,
    pub cgroup: u64,
    pub name: [u8; NAME],
    pub tgid: u32,
    pub uid: u32,
    pub gid: u32,
    pub flags: u32,
}

/// Counts of times by their length.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Buckets(pub [u64; BUCKETS]);

// SAFETY: each is made of integers, with no padding that is not a field, so that every pattern of bits is a value.
unsafe impl Pod for Process {}
// SAFETY: as above.
unsafe impl Pod for Buckets {}
// SAFETY: as above.
unsafe impl Pod for Tuple {}
// SAFETY: as above.
unsafe impl Pod for Way {}
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
