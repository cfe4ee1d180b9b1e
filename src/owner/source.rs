//! What a source of the chain must be able to do, and what it answers with.

use super::budget::Budget;
use crate::error::Error;
use crate::model::{FlowKey, ProcId, Unowned};
use crate::proc::ProcRoot;
use std::time::{Duration, Instant};

/// What one round of look-ups is done with.
pub(super) struct Turn<'a> {
    pub root: &'a ProcRoot,
    /// The time at which the round began: whatever is read during it is at least that new.
    pub now: Instant,
    pub budget: &'a Budget,
}

/// A socket that may own a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct CandidateSocket {
    pub inode: u64,
    pub uid: u32,
}

/// How a socket was matched to a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Match {
    /// By both endpoints.
    Own,
    /// By the local end alone: the socket is bound to it and not connected.
    Bound,
    /// By less than that: a listener for a connection that it has accepted, a raw socket for its protocol.
    Indirect,
    /// By the local end alone: the socket listens there, and nothing shows that it has had the connection.
    Listening,
}

/// What a source of sockets says of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Looked {
    /// The sockets given out match in this way. Where a listener made the socket, its inode says whose
    /// descriptors to look at first.
    Found { by: Match, listener: Option<u64> },
    /// The sockets given out listen on the flow's local port, and it has no socket of its own: not yet, which is certain
    /// if it `is_seen` to wait for being accepted, or no more, or it never had one.
    Listener { is_seen: bool },
    /// There is no socket for the flow.
    Missing,
    /// More sockets match than any one process would bind.
    Crowd,
    /// The flow's protocol is not one that this source knows sockets of.
    NoPorts,
    /// This source does not serve the protocol, or cannot at present: the next one is to be asked.
    Elsewhere,
    /// A table that would tell could not be read.
    Failed,
    /// The budget is used up; ask again after this long.
    Busy(Duration),
}

impl Looked {
    /// Whether this is less than the flow's own socket, so that the flow may have none on this host.
    pub fn is_doubtful(&self) -> bool {
        match self {
            Looked::Found { by, .. } => *by != Match::Own,
            Looked::Listener { .. } | Looked::Missing | Looked::Crowd => true,
            Looked::NoPorts | Looked::Elsewhere | Looked::Failed | Looked::Busy(_) => false,
        }
    }
}

/// A source that knows which sockets there are.
pub(super) trait SocketSource: Send {
    /// Finds the sockets of `key`'s local end as they were at `since` or later, and adds them to `sockets`.
    fn look_up(
        &mut self,
        key: &FlowKey,
        since: Instant,
        turn: &Turn<'_>,
        sockets: &mut Vec<CandidateSocket>,
    ) -> Looked;

    /// Whether packets to a flow's local end, which are forwarded unless somebody here takes them, have a socket: their
    /// connection's, or one for just such packets. `None` where this source cannot tell.
    fn takes(&mut self, _key: &FlowKey) -> Option<bool> {
        None
    }

    /// Whether the socket at the remote end of a flow, which has sent to the group at the local one, has its packets
    /// delivered here as well (`IP_MULTICAST_LOOP`). `None` where this source cannot tell.
    fn loops(&mut self, _key: &FlowKey) -> Option<bool> {
        None
    }

    /// What this source is and what is wrong with it.
    fn report(&self, report: &mut Report);
}

/// How many processes hold a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sharing {
    /// One.
    Sole,
    /// One beside process 1, which keeps a descriptor of the sockets it passes to services.
    WithInit,
    /// Several.
    Several,
}

/// The process that holds a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Holder {
    pub process: ProcId,
    /// The number of its descriptor.
    pub descriptor: i32,
    pub sharing: Sharing,
}

/// What a source of holders says of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Held {
    /// Nothing yet.
    Unknown,
    /// The process chosen among the holders: the youngest that is not process 1.
    By(Holder),
    /// No holder is to be found, for this reason.
    Nobody(Unowned),
    /// The budget is used up; ask again after this long.
    Busy(Duration),
}

/// A socket whose holders are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wanted {
    pub socket: CandidateSocket,
    /// Holders as they were at this time or later.
    pub since: Instant,
    /// The socket that accepted this one, if known: its holders are likely to hold this one too.
    pub listener: Option<u64>,
    pub held: Held,
}

/// A source that knows who holds a socket.
pub(super) trait HolderSource: Send {
    /// Answers every one of `wanted` that no better source has; they are sorted by inode.
    fn look_up(&mut self, wanted: &mut [Wanted], turn: &Turn<'_>);

    /// Learns what there is before anything is asked.
    fn prepare(&mut self, turn: &Turn<'_>);

    /// What this source is and what is wrong with it.
    fn report(&self, report: &mut Report);
}

/// A source of the chain, and why it cannot answer if it cannot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceStatus {
    /// What is read.
    pub name: &'static str,
    /// Why it could not be read, or not all of it, the last time it was tried.
    pub fault: Option<Error>,
}

/// What a [`super::Finder`] has read and done, for statistics and the log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// The sources, best first.
    pub sources: Vec<SourceStatus>,
    /// Socket tables read.
    pub table_loads: u64,
    /// Lines of socket tables that could not be understood.
    pub malformed_rows: u64,
    /// Rows of socket tables left out because a table was full.
    pub dropped_rows: u64,
    /// Scans of every process's descriptors.
    pub full_scans: u64,
    /// Processes whose descriptors were read, full scans included.
    pub scanned_processes: u64,
    /// Pairs of socket and process that are remembered at present.
    pub remembered_holders: u64,
    /// Such pairs forgotten because there were too many.
    pub forgotten_holders: u64,
    /// CPU time used.
    pub cpu_time: Duration,
}
