//! Asks the kernel's own records who uses the socket of a flow, before anything is searched for.

use super::resolver::Request;
use crate::kernel::{Clocks, Found, Owners};
use crate::model::Namespace;
use crate::namespace::{Changes, current_inode};
use std::collections::HashMap;
use std::time::Duration;

/// The records, and by which inode each namespace goes in them.
#[derive(Clone)]
pub struct KernelOwners {
    owners: Owners,
    inodes: HashMap<Namespace, u32>,
}

impl KernelOwners {
    /// For the flows of the namespace of the calling thread. `None` when that cannot be told.
    pub fn new(owners: Owners) -> Option<KernelOwners> {
        let home = current_inode().ok().and_then(|inode| u32::try_from(inode).ok())?;
        Some(KernelOwners { owners, inodes: HashMap::from([(Namespace::HOME, home)]) })
    }

    /// Takes in which namespaces have come and gone.
    pub fn follow(&mut self, changes: &Changes) {
        for gone in &changes.gone {
            self.inodes.remove(gone);
        }
        // Numbers of namespaces have 32 bits (`ns_common.inum`).
        let come =
            changes.come.iter().filter_map(|entry| Some((entry.namespace, entry.inode.try_into().ok()?)));
        self.inodes.extend(come);
    }

    /// Releases, now and then, what is noted of sockets that ended a while ago. Questions that have waited for so long are
    /// still to be asked.
    ///
    /// # Errors
    /// The system's error.
    pub fn sweep(&self, clocks: &Clocks, waited: Duration) -> std::io::Result<()> {
        self.owners.sweep(clocks.now_ns, clocks.before(waited))
    }

    /// The user of the socket that a question is about, which was asked `waited` ago.
    pub fn find(&self, request: &Request, clocks: &Clocks, waited: Duration) -> Option<Found> {
        let Request { key, first, .. } = request;
        let netns = *self.inodes.get(&key.namespace)?;
        self.owners.find(key, netns, clocks.captured(*first, waited))
    }
}
