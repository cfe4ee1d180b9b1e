//! The socket probes: loading them, and asking who uses a socket.

use super::cgroups::{Cgroups, leave_out};
use super::load::{
    Place, attach, check_numbers, fault, load_iterator, load_object, open_cgroups, walk, walk_link,
};
use super::object::{LoadedObject, Loader};
use super::records::{Buckets, Process, Record, Share, ShareKey};
use super::traffic::{Counters, Maps};
use super::types::TypeCache;
use super::{Fault, Owners, Wants};
use crate::model::ProbeState;
use aya::maps::{HashMap, Map, MapData, MapError};
use aya::{Pod, include_bytes_aligned};
use aya_obj::programs::{CgroupSkbAttachType, CgroupSockAttachType};
use std::os::fd::{AsFd, OwnedFd};

/// The compiled programs.
static OBJECT: &[u8] = include_bytes_aligned!("probes/sockets.bpf.o");

/// Where each program is attached. Those that make records come before those that count.
const PLACES: &[(&str, Place)] = &[
    ("capture_create", Place::Sockets(CgroupSockAttachType::SockCreate)),
    ("capture_release", Place::Sockets(CgroupSockAttachType::SockRelease)),
    ("capture_state", Place::Tracepoint("inet_sock_set_state")),
    ("capture_destroy", Place::Tracepoint("tcp_destroy_sock")),
    ("capture_send", Place::Tracepoint("sock_send_length")),
    ("capture_receive", Place::Tracepoint("sock_recv_length")),
    ("capture_egress", Place::Packets(CgroupSkbAttachType::Egress)),
    ("capture_ingress", Place::Packets(CgroupSkbAttachType::Ingress)),
    ("capture_xmit", Place::Tracepoint("net_dev_queue")),
    ("capture_drop", Place::Tracepoint("kfree_skb")),
];

/// The iterators, each with the kind of objects it walks over.
const SEED: (&str, &str) = ("capture_seed", "task_file");
const COLLECT: (&str, &str) = ("capture_collect", "bpf_sk_storage_map");

/// The kernel types that the programs need.
static TYPES: TypeCache = TypeCache::new();

/// The socket probes at work. Dropping it detaches them and frees what they noted.
pub struct Sockets {
    object: LoadedObject,
    ticks_per_second: u64,
}

impl Sockets {
    /// Loads and attaches the probes, and notes the sockets that are open already; with `cgroups` also the control
    /// groups of their users.
    ///
    /// # Errors
    /// Why they cannot work here.
    pub fn load(wants: Wants, cgroups: bool, ticks_per_second: u64) -> Result<Sockets, Fault> {
        check_numbers()?;
        let points = PLACES.iter().filter_map(|(_, place)| place.point());
        let types = TYPES.get(OBJECT, points.chain([SEED.1, COLLECT.1]))?;
        let top = open_cgroups()?;
        let want_cgroups = u8::from(cgroups);
        let (keep_records, want_peers) = match wants {
            Wants::Owners => (&0u8, &1u8),
            Wants::Bytes => (&1, &0),
        };
        let mut loader = Loader::new(OBJECT);
        loader
            .set_global("keep_records", keep_records)
            .set_global("want_peers", want_peers)
            .set_global("want_cgroups", &want_cgroups);
        if !cgroups {
            leave_out(&mut loader);
        }
        let mut object = load_object(loader, &types)?;
        for &(name, place) in PLACES {
            attach(&mut object, name, place, &types, &top)?;
        }
        for (name, over) in [SEED, COLLECT] {
            load_iterator(&mut object, name, over, &types)?;
        }
        let mut sockets = Sockets { object, ticks_per_second };
        sockets.seed()?;
        Ok(sockets)
    }

    /// What is noted of sockets' users, for one reader.
    ///
    /// # Errors
    /// It was taken before.
    pub fn owners(&mut self) -> Result<Owners, Fault> {
        let (tuples, sockets) = (self.map("tuples")?, self.map("sockets")?);
        Ok(Owners::new(tuples, sockets, Cgroups::of(&mut self.object), self.ticks_per_second))
    }

    /// What is counted at sockets, for one reader.
    ///
    /// # Errors
    /// It was taken before.
    pub fn counters(&mut self) -> Result<Counters, Fault> {
        let maps = Maps {
            sockets: self.entries::<u64, Record>("sockets")?,
            shares: self.entries::<ShareKey, Share>("shares")?,
            losses: self.map("losses")?,
            link_headers: self.map("link_headers")?,
            latencies: self.entries::<Process, Buckets>("latencies")?,
        };
        let collect = self.collect()?;
        Ok(Counters::new(maps, collect, Cgroups::of(&mut self.object), self.ticks_per_second))
    }

    fn map<M: TryFrom<Map, Error = MapError>>(&mut self, name: &str) -> Result<M, Fault> {
        M::try_from(self.take(name)?).map_err(|error| fault(name, &error))
    }

    /// A hash map whose entries are of these types, to be read in batches.
    fn entries<K: Pod, V: Pod>(&mut self, name: &str) -> Result<MapData, Fault> {
        let map = self.take(name)?;
        HashMap::<_, K, V>::try_from(&map).map_err(|error| fault(name, &error))?;
        match map {
            Map::HashMap(data) | Map::LruHashMap(data) => Ok(data),
            _ => Err(missing(name)),
        }
    }

    fn take(&mut self, name: &str) -> Result<Map, Fault> {
        self.object.take_map(name).ok_or_else(|| missing(name))
    }

    /// What a walk is started through that brings the records of all sockets up to date.
    fn collect(&mut self) -> Result<OwnedFd, Fault> {
        let Map::SkStorage(tallies) = self.take("tallies")? else { return Err(missing("tallies")) };
        walk_link(&self.object, COLLECT.0, Some(&tallies))
    }

    /// Walks all descriptors of all processes once.
    fn seed(&mut self) -> Result<(), Fault> {
        let link = walk_link(&self.object, SEED.0, None)?;
        walk(link.as_fd()).map_err(|error| fault("the sockets that are open", &error))
    }
}

fn missing(name: &str) -> Fault {
    Fault { state: ProbeState::NotSupported, text: format!("{name}: there is no such map") }
}
