//! The socket probes: loading them, and asking who uses a socket.

use super::cgroup_root::open_cgroup_root;
use super::cgroups::{Cgroups, leave_out};
use super::load::{
    Place, attach, check_numbers, fault, load_iterator, load_object, walk, walk_link,
};
use super::object::{LoadedObject, Loader};
use super::records::{Buckets, Owned, Process, Record, Share, ShareKey, Tuple};
use super::traffic::{Counters, Maps};
use super::types::{KernelTypes, TypeCache};
use super::{Fault, Owners, Wants};
use crate::model::{ProbeState, ProgramSet};
use aya::maps::{HashMap, Map, MapData, MapError};
use aya::{Pod, include_bytes_aligned};
use aya_obj::programs::{CgroupSkbAttachType, CgroupSockAttachType};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use tracing::debug;

/// The compiled programs.
static OBJECT: &[u8] = include_bytes_aligned!("probes/sockets.bpf.o");

/// A part of what is known of sockets, and the programs that tell it.
struct Part {
    what: ProgramSet,
    /// Without it nothing is known.
    is_needed: bool,
    /// Without it bytes cannot be counted.
    is_needed_to_count: bool,
    /// Ways to learn it, the best first. Of each the first program is indispensable; the others are for what not every
    /// kernel has.
    ways: &'static [&'static [(&'static str, Place)]],
}

/// Programs that make records come before those that count.
const PARTS: &[Part] = &[
    Part {
        what: ProgramSet::SOCKETS,
        is_needed: true,
        is_needed_to_count: true,
        ways: &[&[("capture_create", Place::Sockets(CgroupSockAttachType::SockCreate))]],
    },
    Part {
        what: ProgramSet::SOCKETS,
        is_needed: true,
        is_needed_to_count: true,
        ways: &[&[("capture_release", Place::Sockets(CgroupSockAttachType::SockRelease))]],
    },
    Part {
        what: ProgramSet::CONNECTIONS,
        is_needed: true,
        is_needed_to_count: true,
        ways: &[&[("capture_state", Place::Code("inet_sock_set_state"))]],
    },
    Part {
        what: ProgramSet::CONNECTIONS,
        is_needed: true,
        is_needed_to_count: true,
        ways: &[&[("capture_destroy", Place::Code("tcp_destroy_sock"))]],
    },
    Part {
        what: ProgramSet::SENDS,
        is_needed: false,
        is_needed_to_count: true,
        ways: &[
            &[("capture_send", Place::Code("sock_send_length"))],
            &[
                ("capture_send4", Place::Code("inet_sendmsg")),
                ("capture_send6", Place::Code("inet6_sendmsg")),
                ("capture_sendpage", Place::Code("inet_sendpage")),
                ("capture_send_packet", Place::Code("packet_sendmsg")),
            ],
        ],
    },
    Part {
        what: ProgramSet::RECEIVES,
        is_needed: false,
        is_needed_to_count: true,
        ways: &[
            &[("capture_receive", Place::Code("sock_recv_length"))],
            &[
                ("capture_receive4", Place::Code("inet_recvmsg")),
                ("capture_receive6", Place::Code("inet6_recvmsg")),
            ],
        ],
    },
    Part {
        what: ProgramSet::PACKETS,
        is_needed: false,
        is_needed_to_count: true,
        ways: &[&[("capture_egress", Place::Packets(CgroupSkbAttachType::Egress))]],
    },
    Part {
        what: ProgramSet::PACKETS,
        is_needed: false,
        is_needed_to_count: true,
        ways: &[&[("capture_ingress", Place::Packets(CgroupSkbAttachType::Ingress))]],
    },
    Part {
        what: ProgramSet::DIRECT_PACKETS,
        is_needed: false,
        is_needed_to_count: false,
        ways: &[&[("capture_xmit", Place::Code("net_dev_queue"))]],
    },
    Part {
        what: ProgramSet::LATE_PACKETS,
        is_needed: false,
        is_needed_to_count: false,
        ways: &[&[("capture_drop", Place::Code("kfree_skb"))]],
    },
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
    programs: ProgramSet,
    refused: Vec<Fault>,
}

impl Sockets {
    /// Loads and attaches the probes, and notes the sockets that are open already; with `cgroups` also the control
    /// groups of their users. A program that the kernel refuses is left out, if there is another one for it or if the
    /// others are worth something without it.
    ///
    /// # Errors
    /// Why they cannot work here.
    pub fn load(wants: Wants, cgroups: bool, ticks_per_second: u64) -> Result<Sockets, Fault> {
        check_numbers()?;
        let places = PARTS.iter().flat_map(|part| part.ways.iter().copied().flatten());
        let points = places.filter_map(|(_, place)| place.point());
        let types = TYPES.get(OBJECT, points.chain([SEED.1, COLLECT.1]))?;
        let root = open_cgroup_root()?;
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
        if wants == Wants::Bytes {
            loader.set_capacity("peers", 1);
        }
        if !cgroups {
            leave_out(&mut loader);
        }
        let object = load_object(loader, &types)?;
        let programs = ProgramSet::ALL;
        let mut sockets = Sockets { object, ticks_per_second, programs, refused: Vec::new() };
        for part in PARTS {
            sockets.add(part, wants, &types, &root)?;
        }
        if wants == Wants::Bytes {
            load_iterator(&mut sockets.object, COLLECT.0, COLLECT.1, &types)?;
        }
        sockets.seed(&types)?;
        Ok(sockets)
    }

    /// Attaches what tells a part, in the best way that there is.
    fn add(&mut self, part: &Part, wants: Wants, types: &KernelTypes, root: &File) -> Result<(), Fault> {
        let mut first_fault = None;
        for way in part.ways {
            let mut programs = way.iter();
            let Some(&(name, place)) = programs.next() else { continue };
            match attach(&mut self.object, name, place, types, root) {
                Err(fault) => first_fault = first_fault.or(Some(fault)),
                Ok(()) => {
                    for &(name, place) in programs {
                        // Most often the kernel has no such function, and then there is nothing to miss.
                        if let Err(fault) = attach(&mut self.object, name, place, types, root) {
                            debug!("a program is left out: {fault}");
                        }
                    }
                    return Ok(());
                }
            }
        }
        let is_needed = part.is_needed || part.is_needed_to_count && wants == Wants::Bytes;
        match first_fault {
            Some(fault) if is_needed => Err(fault),
            fault => {
                self.programs = self.programs.without(part.what);
                self.refused.extend(fault);
                Ok(())
            }
        }
    }

    /// The parts of what can be known that are at work.
    pub fn programs(&self) -> ProgramSet {
        self.programs
    }

    /// Why others are not.
    pub fn refused(&self) -> &[Fault] {
        &self.refused
    }

    /// What is noted of sockets' users, for one reader.
    ///
    /// # Errors
    /// It was taken before.
    pub fn owners(&mut self) -> Result<Owners, Fault> {
        let tuples = self.entries::<Tuple, Owned>("tuples")?;
        let peers = self.entries::<Tuple, Owned>("peers")?;
        let sockets = self.entries::<u64, Record>("sockets")?;
        Ok(Owners::new(tuples, peers, sockets, Cgroups::of(&mut self.object), self.ticks_per_second))
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
            latencies: self.entries::<Process, Buckets>("latencies")?,
            tuples: self.entries::<Tuple, Owned>("tuples")?,
        };
        let collect = self.collect()?;
        let knows_reads = self.programs.has(ProgramSet::RECEIVES);
        Ok(Counters::new(maps, collect, knows_reads, Cgroups::of(&mut self.object), self.ticks_per_second))
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
    fn seed(&mut self, types: &KernelTypes) -> Result<(), Fault> {
        load_iterator(&mut self.object, SEED.0, SEED.1, types)?;
        let link = walk_link(&self.object, SEED.0, None)?;
        walk(link.as_fd()).map_err(|error| fault("the sockets that are open", &error))
    }
}

fn missing(name: &str) -> Fault {
    Fault { state: ProbeState::NotSupported, text: format!("{name}: there is no such map") }
}
