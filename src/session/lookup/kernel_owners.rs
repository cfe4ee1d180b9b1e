//! Reads the owner of a flow from the eBPF programs' records of sockets, before any search.

use super::lookup_queue::Request;
use crate::kernel::{Clocks, Found, Owners};
use crate::model::{FlowKey, Namespace};
use crate::namespace::{Known, current_inode};
use std::time::{Duration, Instant};

/// The records, and the inode of the session's own namespace in them.
#[derive(Clone)]
pub struct KernelOwners {
    owners: Owners,
    home: u64,
}

impl KernelOwners {
    /// Returns a reader for the flows of the calling thread's namespace; `None` if its inode cannot be read.
    pub fn new(owners: Owners) -> Option<KernelOwners> {
        Some(KernelOwners { owners, home: current_inode().ok()? })
    }

    /// Releases, from time to time, the records of sockets that ended a while ago. `waited` is the age of the
    /// oldest open request: records that such a request still needs are kept.
    ///
    /// # Errors
    /// The system's error.
    pub fn sweep(&self, clocks: &Clocks, waited: Duration) -> std::io::Result<()> {
        self.owners.sweep(clocks.now_ns, clocks.before(waited))
    }

    /// Returns the user of the socket of a request that was made at `asked`. The socket has the endpoints `key`,
    /// which are not those on the wire if addresses are translated. The records of a namespace
    /// outlive the namespace, for requests about its last packets.
    pub fn find(
        &self,
        request: &Request,
        key: &FlowKey,
        namespaces: &Known,
        clocks: &Clocks,
        asked: Instant,
    ) -> Option<Found> {
        let Request { key: wire, first, .. } = request;
        let inode = match key.namespace {
            Namespace::HOME => self.home,
            other => namespaces.inode(other)?,
        };
        // Namespace numbers have 32 bits (`ns_common.inum`).
        let netns = u32::try_from(inode).ok()?;
        self.owners.find(key, wire, netns, clocks.captured(*first, asked))
    }
}
