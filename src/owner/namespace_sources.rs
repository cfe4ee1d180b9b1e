//! The sources for the flows of one network namespace.

use super::query::Query;
use super::sockets::{Groups, SockDiag, Tables};
use super::source::{CandidateSocket, Looked, SocketSource, Turn};
use super::translation::Translations;
use crate::model::{Address, FlowKey};
use crate::namespace::{NamespaceEntry, enter};
use crate::netlink::InetDiag;
use crate::proc::ProcRoot;
use std::sync::Arc;
use std::time::Instant;

/// The sources of one namespace, as far as they are available.
pub(super) struct NamespaceSources {
    /// The sources of sockets, the preferred one first.
    pub sockets: Vec<Box<dyn SocketSource>>,
    pub groups: Option<Groups>,
    pub translations: Option<Translations>,
}

impl NamespaceSources {
    /// Opens the sources of another namespace than the home namespace: the kernel, and the tables that one of
    /// its processes shows.
    pub fn open(entry: &NamespaceEntry, root: &Arc<ProcRoot>) -> NamespaceSources {
        let open = || (InetDiag::open(), Translations::open(Arc::clone(root), false));
        let (diag, translations) =
            enter(entry, open).map_or((None, None), |(diag, translations)| (diag.ok(), Some(translations)));
        let mut sockets: Vec<Box<dyn SocketSource>> = Vec::new();
        sockets.extend(diag.map(|diag| Box::new(SockDiag::new(diag)) as _));
        sockets.extend(entry.pid.map(|pid| Box::new(Tables::of_process(root, pid)) as _));
        NamespaceSources { sockets, groups: entry.pid.map(Groups::of_process), translations }
    }

    /// Looks up the sockets of a query, in the first source that can tell.
    pub fn look_up(&mut self, query: &Query, turn: &Turn<'_>, into: &mut Vec<CandidateSocket>) -> Looked {
        let mut looked = Looked::Failed;
        for source in &mut self.sockets {
            looked = source.look_up(&query.key, query.due(), turn, into);
            if !matches!(looked, Looked::Failed | Looked::Elsewhere) {
                break;
            }
        }
        looked
    }

    /// Returns true if a flow has a socket of its own here, as far as the sources can tell.
    pub fn takes(&mut self, key: &FlowKey) -> bool {
        self.sockets.iter_mut().find_map(|source| source.takes(key)).unwrap_or(false)
    }

    /// Returns true if packets that a socket here has sent to a group are also delivered here, provided a
    /// socket is bound to their port.
    pub fn loops(&mut self, query: &Query, root: &ProcRoot, now: Instant) -> bool {
        let Some(groups) = &mut self.groups else { return false };
        groups.has(root, &query.key.local.address, query.due(), now)
            && self.sockets.iter_mut().find_map(|source| source.loops(&query.key)).unwrap_or(true)
    }
}

/// Returns true if packets to this address that are sent here are always delivered here, too, because it is no
/// multicast group.
pub(super) fn is_always_looped(address: &Address) -> bool {
    !address.is_multicast() || *address == Address::BROADCAST_V4
}
