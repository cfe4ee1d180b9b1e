//! Looks up the owner of a flow's socket in the records of the socket eBPF programs.

use super::batch::lookup;
use super::records::{EndpointOwner, INHERITED, Process, SEVERAL_HOLDERS, SocketRecord, Tuple, UNUSED};
use super::socket_set::SocketSet;
use super::subscriber::{OwnerIdentity, identity};
use super::sweep::LookupProgress;
use super::{Claim, Clocks, Found};
use crate::model::{FlowKey, Owner, Quality};
use aya::maps::MapData;
use std::os::fd::AsFd;
use std::sync::Arc;

/// The maximum number of earlier sockets with the same endpoints that a lookup follows. The map
/// `previous_owners` has 2,048 entries for all endpoints (`probes/maps.h`), or 256 for each processor if that
/// is more.
const MAX_PREVIOUS_OWNERS: u32 = 4096;

/// Reads the eBPF programs' records of sockets. Clones share the same records.
#[derive(Clone)]
pub struct Owners {
    set: Arc<SocketSet>,
    ticks_per_second: u64,
    progress: Arc<LookupProgress>,
}

impl Owners {
    pub(super) fn new(set: Arc<SocketSet>, ticks_per_second: u64) -> Owners {
        let progress = set.sweep.lock().register(Clocks::now().now_ns);
        Owners { set, ticks_per_second, progress }
    }

    /// Releases, at intervals, the endpoints of sockets that ended some time before any packet that a session
    /// may still look up. This session has finished its lookups of packets that were captured by
    /// `looked_up_ns`. Both times are in nanoseconds since boot.
    ///
    /// # Errors
    /// Fails with the error of bpf(2).
    pub fn sweep(&self, now_ns: u64, looked_up_ns: u64) -> std::io::Result<()> {
        self.progress.until(looked_up_ns);
        self.set.sweep.lock().run(&self.set.maps.endpoint_owners, now_ns)
    }

    /// Returns the process that uses the socket of `key` in the network namespace with the inode `netns`. If
    /// addresses may be translated, `wire` has the flow's endpoints on the wire, with which the packets that
    /// the socket sends are recorded if they are not the socket's. `first_ns` is the capture time of the
    /// flow's first packet, in nanoseconds since boot. A socket that had ended by then belongs to another
    /// flow. So does a socket that took its endpoints over later from a socket that still existed then.
    pub fn find(&self, key: &FlowKey, wire: &FlowKey, netns: u32, first_ns: u64) -> Option<Found> {
        let SocketSet { maps, cgroups, .. } = &*self.set;
        let had_ended = |entry: &EndpointOwner| entry.ended_ns != 0 && entry.ended_ns < first_ns;
        let before = |entry: &EndpointOwner| {
            lookup::<_, EndpointOwner>(maps.previous_owners.fd().as_fd(), &entry.previous_cookie)
        };
        let find = |map: &MapData, key: &FlowKey| {
            let mut entry = lookup::<_, EndpointOwner>(map.fd().as_fd(), &tuple_of(key, netns))?;
            for _ in 0..MAX_PREVIOUS_OWNERS {
                // A connection arrives before its socket is created.
                let previous = (entry.since_ns > first_ns && entry.previous_cookie != 0)
                    .then(|| before(&entry))
                    .flatten();
                let Some(previous) = previous.filter(|previous| !had_ended(previous)) else { break };
                entry = previous;
            }
            (!had_ended(&entry)).then_some(entry)
        };
        let is_translated = key != wire;
        let entry = find(&maps.endpoint_owners, key)
            .or_else(|| find(&maps.peer_owners, key))
            .or_else(|| is_translated.then(|| find(&maps.peer_owners, wire)).flatten())?;
        let process = Process { start_ns: entry.start_ns, tgid: entry.tgid, padding: 0 };
        let process = process.id(self.ticks_per_second)?;
        let quality = match entry.flags {
            flags if flags & INHERITED != 0 => Quality::Guessed,
            flags if flags & SEVERAL_HOLDERS != 0 => Quality::Shared,
            _ => Quality::Exact,
        };
        let is_gone = || {
            entry.ended_ns != 0
                || lookup::<_, SocketRecord>(maps.sockets.fd().as_fd(), &entry.cookie).is_none()
        };
        let claim = match entry.flags {
            // The process to which the listener passes the connection is unknown until the first use.
            flags if flags & INHERITED != 0 && !is_gone() => Claim::Listener,
            flags if flags & UNUSED != 0 && !is_gone() => Claim::Creator,
            _ => Claim::User,
        };
        let EndpointOwner { name, uid, gid, cgroup, .. } = entry;
        let identity = identity(&OwnerIdentity { name, uid, gid, cgroup }, cgroups.as_ref());
        Some(Found { owner: Owner { process, quality }, identity, claim })
    }
}

fn tuple_of(key: &FlowKey, netns: u32) -> Tuple {
    Tuple {
        netns,
        local_port: key.local.port,
        remote_port: key.remote.port,
        local: *key.local.address.bytes(),
        remote: *key.remote.address.bytes(),
        protocol: key.protocol.0,
        padding: [0; 7],
    }
}
