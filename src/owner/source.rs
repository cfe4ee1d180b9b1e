//! The interface between the finder and its sources of sockets and holders.

use super::budget::Budget;
use crate::error::Error;
use crate::model::{FlowKey, ProcId, Unowned};
use crate::proc::ProcRoot;
use std::time::{Duration, Instant};

/// The inputs of one round of lookups.
pub(super) struct Turn<'a> {
    pub root: &'a ProcRoot,
    /// The time at which the round began: all data read during it is at least that new.
    pub now: Instant,
    pub budget: &'a Budget,
}

/// A socket that may own a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct CandidateSocket {
    pub inode: u64,
    pub uid: u32,
}

/// The way in which a socket matches a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Match {
    /// By both endpoints.
    Own,
    /// By the local endpoint alone: the socket is bound to it and not connected.
    Bound,
    /// By less than that: a listener for a connection that it has accepted, a raw socket for its protocol.
    Indirect,
    /// By the local endpoint alone: the socket listens there, and nothing shows that it has had the
    /// connection.
    Listening,
}

/// The answer of a source of sockets for a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Looked {
    /// The returned sockets match in this way. If a listener created the socket, its inode leads to the
    /// process whose descriptors are searched first.
    Found { by: Match, listener: Option<u64> },
    /// The returned sockets listen on the flow's local port, and the flow has no socket of its own: not yet
    /// (which is certain if `is_seen` shows it waiting to be accepted), no longer, or it never had one.
    Listener { is_seen: bool },
    /// There is no socket for the flow.
    Missing,
    /// More sockets match than any one process would bind.
    Crowd,
    /// The source knows no sockets of the flow's protocol.
    NoPorts,
    /// The source does not serve the protocol, or cannot at present: the next source is used.
    Elsewhere,
    /// A table that the answer depends on could not be read.
    Failed,
    /// The budget is used up; the lookup can be retried after this time.
    Busy(Duration),
}

impl Looked {
    /// Returns true if the answer is less than the flow's own socket, so that the flow may have none on this
    /// host.
    pub fn is_doubtful(&self) -> bool {
        match self {
            Looked::Found { by, .. } => *by != Match::Own,
            Looked::Listener { .. } | Looked::Missing | Looked::Crowd => true,
            Looked::NoPorts | Looked::Elsewhere | Looked::Failed | Looked::Busy(_) => false,
        }
    }
}

/// A source of sockets.
pub(super) trait SocketSource: Send {
    /// Finds the sockets of `key`'s local endpoint as they were at `since` or later, and adds them to
    /// `sockets`.
    fn look_up(
        &mut self,
        key: &FlowKey,
        since: Instant,
        turn: &Turn<'_>,
        sockets: &mut Vec<CandidateSocket>,
    ) -> Looked;

    /// Returns true if packets to a flow's local endpoint, which are forwarded unless a socket here takes
    /// them, have a socket: that of their connection, or one for just such packets. `None` if this source
    /// cannot tell.
    fn takes(&mut self, _key: &FlowKey) -> Option<bool> {
        None
    }

    /// Returns true if the socket at the remote endpoint of a flow, which has sent to the group at the local
    /// one, has its packets delivered here as well (`IP_MULTICAST_LOOP`). `None` if this source cannot tell.
    fn loops(&mut self, _key: &FlowKey) -> Option<bool> {
        None
    }

    /// Adds the name, the fault and the counts of this source to `report`.
    fn report(&self, report: &mut Report);
}

/// The number of processes that hold a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sharing {
    /// One.
    Sole,
    /// One besides process 1, which keeps a descriptor of the sockets it passes to services.
    WithInit,
    /// Several.
    Several,
}

/// A process that holds a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Holder {
    pub process: ProcId,
    /// The number of its descriptor.
    pub descriptor: i32,
    pub sharing: Sharing,
}

/// The answer of a source of holders for a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Held {
    /// No answer yet.
    Unknown,
    /// The process chosen among the holders: the youngest that is not process 1.
    By(Holder),
    /// No holder can be found, for this reason.
    Nobody(Unowned),
    /// The budget is used up; the lookup can be retried after this time.
    Busy(Duration),
}

/// A socket whose holder is to be found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wanted {
    pub socket: CandidateSocket,
    /// The holders must be as of this time or later.
    pub since: Instant,
    /// The socket that accepted this one, if known: its holders are likely to hold this one too.
    pub listener: Option<u64>,
    pub held: Held,
}

/// A source of the holders of sockets.
pub(super) trait HolderSource: Send {
    /// Answers each of `wanted` that no better source has answered; they are sorted by inode.
    fn look_up(&mut self, wanted: &mut [Wanted], turn: &Turn<'_>);

    /// Reads the present holders before the first lookup.
    fn prepare(&mut self, turn: &Turn<'_>);

    /// Adds the name, the fault and the counts of this source to `report`.
    fn report(&self, report: &mut Report);
}

/// A source of the chain, with its fault if it cannot answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceStatus {
    /// The name of the source.
    pub name: &'static str,
    /// The reason if it could not be read, or only in part, at the last attempt.
    pub fault: Option<Error>,
}

/// The reads and the work of a [`super::Finder`], for statistics and the log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// The sources, best first.
    pub sources: Vec<SourceStatus>,
    /// Socket tables read.
    pub table_loads: u64,
    /// Lines of socket tables that could not be parsed.
    pub malformed_rows: u64,
    /// Rows of socket tables left out because a table was full.
    pub dropped_rows: u64,
    /// Scans of every process's descriptors.
    pub full_scans: u64,
    /// Processes whose descriptors were read, full scans included.
    pub scanned_processes: u64,
    /// Pairs of socket and process in the table at present.
    pub remembered_holders: u64,
    /// Such pairs evicted or left out because there were too many.
    pub forgotten_holders: u64,
    /// Entries of the search's caches evicted, and news for the early lookup dropped, because there were too
    /// many.
    pub evicted: u64,
    /// CPU time used.
    pub cpu_time: Duration,
}
