//! Asks the kernel's own records who uses the socket of a flow, before anything is searched for.

use super::lookup_queue::Request;
use crate::kernel::{Clocks, Found, Owners};
use crate::model::Namespace;
use crate::namespace::{Follower, current_inode};
use std::time::{Duration, Instant};

/// The records, and the inode of the session's own namespace in them.
#[derive(Clone)]
pub struct KernelOwners {
    owners: Owners,
    home: u64,
}

impl KernelOwners {
    /// For the flows of the namespace of the calling thread. `None` when that cannot be told.
    pub fn new(owners: Owners) -> Option<KernelOwners> {
        Some(KernelOwners { owners, home: current_inode().ok()? })
    }

    /// Releases, now and then, what is noted of sockets that ended a while ago. Questions that have waited for so long are
    /// still to be asked.
    ///
    /// # Errors
    /// The system's error.
    pub fn sweep(&self, clocks: &Clocks, waited: Duration) -> std::io::Result<()> {
        self.owners.sweep(clocks.now_ns, clocks.before(waited))
    }

    /// The user of the socket that a question is about, which was asked at `asked`. The records of a namespace outlive it, for
    /// what is asked about its last packets.
    pub fn find(
        &self,
        request: &Request,
        namespaces: &Follower,
        clocks: &Clocks,
        asked: Instant,
    ) -> Option<Found> {
        let Request { key, first, .. } = request;
        let inode = match key.namespace {
            Namespace::HOME => self.home,
            other => namespaces.inode(other)?,
        };
        // Numbers of namespaces have 32 bits (`ns_common.inum`).
        let netns = u32::try_from(inode).ok()?;
        self.owners.find(key, netns, clocks.captured(*first, asked))
    }
}
