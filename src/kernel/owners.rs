//! Who uses the socket of a flow, as the socket probes have noted it.

use super::cgroups::Cgroups;
use super::records::{HELD, INHERITED, Owned, Process, Record, SEVERAL, Tuple, UNUSED};
use super::traffic::identity;
use super::{Claim, Found};
use crate::model::{FlowKey, Owner, Quality};
use aya::maps::{HashMap, MapData};

/// Reads what the probes have noted of sockets.
pub struct Owners {
    tuples: HashMap<MapData, Tuple, Owned>,
    sockets: HashMap<MapData, u64, Record>,
    cgroups: Option<Cgroups>,
    ticks_per_second: u64,
}

impl Owners {
    pub(super) fn new(
        tuples: HashMap<MapData, Tuple, Owned>,
        sockets: HashMap<MapData, u64, Record>,
        cgroups: Option<Cgroups>,
        ticks_per_second: u64,
    ) -> Owners {
        Owners { tuples, sockets, cgroups, ticks_per_second }
    }

    /// The process that uses the socket of `key`, which is in the network namespace with the inode `netns`. A socket
    /// that had ended by `first_ns` after boot, when the flow's first packet was captured, is another flow's.
    pub fn find(&self, key: &FlowKey, netns: u32, first_ns: u64) -> Option<Found> {
        let owned = self.tuples.get(&tuple_of(key, netns), 0).ok()?;
        if owned.ended_ns != 0 && owned.ended_ns < first_ns {
            return None;
        }
        let process = Process { start_ns: owned.start_ns, tgid: owned.tgid, padding: 0 };
        let process = process.id(self.ticks_per_second)?;
        let quality = match owned.flags {
            flags if flags & INHERITED != 0 => Quality::Guessed,
            flags if flags & (HELD | SEVERAL) == HELD | SEVERAL => Quality::Shared,
            _ => Quality::Exact,
        };
        let is_gone = || owned.ended_ns != 0 || self.sockets.get(&owned.cookie, 0).is_err();
        let claim = match owned.flags {
            // Whom the listener passes it to is seen when it is used for the first time.
            flags if flags & INHERITED != 0 && !is_gone() => Claim::Listener,
            flags if flags & UNUSED != 0 && !is_gone() => Claim::Creator,
            _ => Claim::User,
        };
        let identity = identity(&owned.name, [owned.uid, owned.gid], self.cgroups.as_ref(), owned.cgroup);
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
