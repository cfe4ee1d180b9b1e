//! Who uses the socket of a flow, as the socket probes have noted it.

use super::batch::lookup;
use super::records::{EndpointOwner, INHERITED, Process, SEVERAL, SocketRecord, Tuple, UNUSED};
use super::socket_set::SocketSet;
use super::subscriber::{Who, identity};
use super::sweep::Asked;
use super::{Claim, Clocks, Found};
use crate::model::{FlowKey, Owner, Quality};
use aya::maps::MapData;
use std::os::fd::AsFd;
use std::sync::Arc;

/// How many earlier sockets with the same endpoints are looked at: as many as are kept of all.
const FORMERS: u32 = 4096;

/// Reads what the probes have noted of sockets. Clones read the same.
#[derive(Clone)]
pub struct Owners {
    set: Arc<SocketSet>,
    ticks_per_second: u64,
    asked: Arc<Asked>,
}

impl Owners {
    pub(super) fn new(set: Arc<SocketSet>, ticks_per_second: u64) -> Owners {
        let asked = set.sweep.lock().await_asker(Clocks::now().now_ns);
        Owners { set, ticks_per_second, asked }
    }

    /// Releases, now and then, the endpoints of sockets that ended a while before all sessions have asked: this one about
    /// packets that were captured by `asked_ns`. Both times are in nanoseconds since boot.
    ///
    /// # Errors
    /// What bpf(2) returns.
    pub fn sweep(&self, now_ns: u64, asked_ns: u64) -> std::io::Result<()> {
        self.asked.until(asked_ns);
        self.set.sweep.lock().run(&self.set.maps.tuples, now_ns)
    }

    /// The process that uses the socket of `key`, which is in the network namespace with the inode `netns`. A socket
    /// that had ended by `first_ns` after boot, when the flow's first packet was captured, is another flow's, and so is one that
    /// has the endpoints of a socket which lived then.
    pub fn find(&self, key: &FlowKey, netns: u32, first_ns: u64) -> Option<Found> {
        let tuple = tuple_of(key, netns);
        let SocketSet { maps, cgroups, .. } = &*self.set;
        let had_ended = |owned: &EndpointOwner| owned.ended_ns != 0 && owned.ended_ns < first_ns;
        let before =
            |owned: &EndpointOwner| lookup::<_, EndpointOwner>(maps.formers.fd().as_fd(), &owned.former);
        let find = |map: &MapData| {
            let mut owned = lookup::<_, EndpointOwner>(map.fd().as_fd(), &tuple)?;
            for _ in 0..FORMERS {
                // A connection comes in before its socket is made.
                let former =
                    (owned.began_ns > first_ns && owned.former != 0).then(|| before(&owned)).flatten();
                let Some(former) = former.filter(|former| !had_ended(former)) else { break };
                owned = former;
            }
            (!had_ended(&owned)).then_some(owned)
        };
        let owned = find(&maps.tuples).or_else(|| find(&maps.peers))?;
        let process = Process { start_ns: owned.start_ns, tgid: owned.tgid, padding: 0 };
        let process = process.id(self.ticks_per_second)?;
        let quality = match owned.flags {
            flags if flags & INHERITED != 0 => Quality::Guessed,
            flags if flags & SEVERAL != 0 => Quality::Shared,
            _ => Quality::Exact,
        };
        let is_gone = || {
            owned.ended_ns != 0
                || lookup::<_, SocketRecord>(maps.sockets.fd().as_fd(), &owned.cookie).is_none()
        };
        let claim = match owned.flags {
            // Whom the listener passes it to is seen when it is used for the first time.
            flags if flags & INHERITED != 0 && !is_gone() => Claim::Listener,
            flags if flags & UNUSED != 0 && !is_gone() => Claim::Creator,
            _ => Claim::User,
        };
        let EndpointOwner { name, uid, gid, cgroup, .. } = owned;
        let identity = identity(&Who { name, uid, gid, cgroup }, cgroups.as_ref());
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
