//! The socket eBPF programs, loaded once for all sessions of the process that require the same of them.

use super::btf::TypeKind;
use super::cgroup_root::open_cgroup_root;
use super::cgroups::{Cgroups, leave_out};
use super::drain::Drain;
use super::load::{AttachPoint, attach, fault, load_iterator, load_object, walk, walk_link};
use super::object::{LoadedObject, Loader};
use super::program::KERNEL_PACKET;
use super::records::{
    Buckets, Control, Counts, EndpointOwner, LatencyKey, LossKey, Share, ShareKey, SocketRecord, Tuple,
};
use super::shared::PerProcess;
use super::sweep::Sweep;
use super::types::{KernelTypes, TypeCache};
use super::{Fault, Wants};
use crate::model::{ProbeState, ProgramSet};
use crate::sync::Mutex;
use aya::maps::{Array, HashMap, Map, MapData};
use aya::{Pod, include_bytes_aligned};
use aya_obj::programs::{CgroupSkbAttachType, CgroupSockAttachType};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use tracing::debug;

/// The compiled eBPF programs.
static OBJECT: &[u8] = include_bytes_aligned!("probes/sockets.bpf.o");

/// A kind of information about sockets, and the eBPF programs that provide it.
struct ProbeGroup {
    what: ProgramSet,
    /// Set if the load fails without it.
    is_needed: bool,
    /// Set if bytes cannot be counted without it.
    is_needed_to_count: bool,
    /// Alternative lists of eBPF programs, the best first. The first eBPF program of a list is indispensable.
    /// The others are for functions that not every kernel has.
    alternatives: &'static [&'static [(&'static str, AttachPoint)]],
}

/// The groups of eBPF programs. Those that make records come before those that count.
const GROUPS: &[ProbeGroup] = &[
    ProbeGroup {
        what: ProgramSet::SOCKETS,
        is_needed: true,
        is_needed_to_count: true,
        alternatives: &[&[("capture_create", AttachPoint::Sockets(CgroupSockAttachType::SockCreate))]],
    },
    ProbeGroup {
        what: ProgramSet::SOCKETS,
        is_needed: true,
        is_needed_to_count: true,
        alternatives: &[&[("capture_release", AttachPoint::Sockets(CgroupSockAttachType::SockRelease))]],
    },
    ProbeGroup {
        what: ProgramSet::CONNECTIONS,
        is_needed: true,
        is_needed_to_count: true,
        alternatives: &[&[("capture_state", AttachPoint::Code("inet_sock_set_state"))]],
    },
    ProbeGroup {
        what: ProgramSet::CONNECTIONS,
        is_needed: true,
        is_needed_to_count: true,
        alternatives: &[&[("capture_destroy", AttachPoint::Code("tcp_destroy_sock"))]],
    },
    ProbeGroup {
        what: ProgramSet::SENDS,
        is_needed: false,
        is_needed_to_count: true,
        alternatives: &[
            &[("capture_send", AttachPoint::Code("sock_send_length"))],
            &[
                ("capture_send4", AttachPoint::Code("inet_sendmsg")),
                ("capture_send6", AttachPoint::Code("inet6_sendmsg")),
                ("capture_sendpage", AttachPoint::Code("inet_sendpage")),
                ("capture_send_packet", AttachPoint::Code("packet_sendmsg")),
            ],
        ],
    },
    ProbeGroup {
        what: ProgramSet::RECEIVES,
        is_needed: false,
        is_needed_to_count: true,
        alternatives: &[
            &[("capture_receive", AttachPoint::Code("sock_recv_length"))],
            &[
                ("capture_receive4", AttachPoint::Code("inet_recvmsg")),
                ("capture_receive6", AttachPoint::Code("inet6_recvmsg")),
            ],
        ],
    },
    ProbeGroup {
        what: ProgramSet::PACKETS,
        is_needed: false,
        is_needed_to_count: true,
        alternatives: &[&[("capture_egress", AttachPoint::Packets(CgroupSkbAttachType::Egress))]],
    },
    ProbeGroup {
        what: ProgramSet::PACKETS,
        is_needed: false,
        is_needed_to_count: true,
        alternatives: &[&[("capture_ingress", AttachPoint::Packets(CgroupSkbAttachType::Ingress))]],
    },
    ProbeGroup {
        what: ProgramSet::DIRECT_PACKETS,
        is_needed: false,
        is_needed_to_count: false,
        alternatives: &[&[("capture_xmit", AttachPoint::Code("net_dev_queue"))]],
    },
    ProbeGroup {
        what: ProgramSet::LATE_PACKETS,
        is_needed: false,
        is_needed_to_count: false,
        alternatives: &[&[("capture_drop", AttachPoint::Code("kfree_skb"))]],
    },
];

/// The BPF iterators, each with the kind of objects that it walks over.
const HOLDERS: (&str, &str) = ("capture_holders", "task_file");
const FLUSH: (&str, &str) = ("capture_flush", "bpf_sk_storage_map");

/// The kernel function that was added together with the socket among the arguments of the tracepoint
/// `kfree_skb`.
const DROP_WITH_SOCKET: &str = "sk_skb_reason_drop";

/// The capacities of maps for lookups of owners: the records of ended sockets are not kept, and nothing is
/// counted.
const OWNERS_CAPACITIES: &[(&str, u32)] =
    &[("sockets", 131_072), ("shares", 1), ("request_socks", 1), ("latencies", 1), ("losses", 1)];

/// The capacities of maps for counting bytes: no lookup needs the endpoints of a socket that ended a while
/// ago.
const BYTES_CAPACITIES: &[(&str, u32)] =
    &[("endpoint_owners", 131_072), ("peer_owners", 1), ("previous_owners", 1)];

/// The map of the eBPF programs' variables, of which `control` is the only one.
const CONTROL: &str = ".bss";

/// The kernel types that the eBPF programs need.
static TYPES: PerProcess<TypeCache> = PerProcess::new();

/// The maps of the eBPF programs: `probes/maps.h`.
pub(super) struct Maps {
    pub(super) sockets: MapData,
    pub(super) shares: MapData,
    pub(super) losses: MapData,
    pub(super) latencies: MapData,
    /// By endpoints of connected sockets.
    pub(super) endpoint_owners: MapData,
    /// By endpoints of packets of unconnected sockets.
    pub(super) peer_owners: MapData,
    /// By cookies of sockets whose endpoints belong to other sockets now.
    pub(super) previous_owners: MapData,
}

/// The active socket eBPF programs. Dropping them detaches them and frees their records.
pub(super) struct SocketSet {
    /// Holds the eBPF programs and their links.
    _object: LoadedObject,
    pub(super) maps: Maps,
    pub(super) cgroups: Option<Cgroups>,
    pub(super) sweep: Mutex<Sweep>,
    /// The reader of the counts, if bytes are counted.
    pub(super) drain: Option<Mutex<Drain>>,
    /// The groups of eBPF programs that are active.
    pub(super) programs: ProgramSet,
    /// The reasons why other eBPF programs are not active.
    pub(super) refused: Vec<Fault>,
    /// The process that loaded the eBPF programs. Its forked children have copies of the descriptors and none
    /// of its threads.
    pub(super) process: u32,
}

impl SocketSet {
    /// Loads and attaches the eBPF programs, and records the sockets that are already open. With `cgroups`,
    /// it also records the control groups of their users. An eBPF program that the kernel rejects is left
    /// out, if there is an alternative or if the others are useful without it.
    ///
    /// # Errors
    /// Fails with the reason why they cannot work here.
    pub(super) fn load(wants: Wants, cgroups: bool) -> Result<SocketSet, Fault> {
        let places = GROUPS.iter().flat_map(|group| group.alternatives.iter().copied().flatten());
        let points = places.filter_map(|(_, place)| place.point());
        let types =
            TYPES.get().get(OBJECT, points.chain([HOLDERS.1, FLUSH.1, KERNEL_PACKET, DROP_WITH_SOCKET]))?;
        let root = open_cgroup_root()?;
        let want_cgroups = u8::from(cgroups);
        let drop_has_socket = u8::from(types.point(TypeKind::Func, DROP_WITH_SOCKET).is_some());
        let (keep_records, want_peers) = match wants {
            Wants::Owners => (&0u8, &1u8),
            Wants::Bytes => (&1, &0),
        };
        let mut loader = Loader::new(OBJECT);
        loader
            .set_global("keep_records", keep_records)
            .set_global("want_peers", want_peers)
            .set_global("want_cgroups", &want_cgroups)
            .set_global("drop_has_socket", &drop_has_socket);
        for &(map, entries) in match wants {
            Wants::Owners => OWNERS_CAPACITIES,
            Wants::Bytes => BYTES_CAPACITIES,
        } {
            loader.set_capacity(map, entries);
        }
        if !cgroups {
            leave_out(&mut loader);
        }
        let mut object = load_object(loader, &types)?;
        object.load_ahead(best_programs(wants), &types);
        let mut programs = Programs { object, active: ProgramSet::ALL, refused: Vec::new() };
        for group in GROUPS {
            programs.add(group, wants, &types, &root)?;
        }
        let Programs { mut object, active, refused } = programs;
        if wants == Wants::Bytes {
            load_iterator(&mut object, FLUSH.0, FLUSH.1, &types)?;
        }
        let holders = find_holders(&mut object, &types)?;
        let drain = match wants {
            Wants::Owners => None,
            Wants::Bytes => {
                let flush_link = flush_link(&mut object)?;
                let control = take(&mut object, CONTROL)?;
                let control =
                    Array::<_, Control>::try_from(control).map_err(|error| fault(CONTROL, &error))?;
                Some(Mutex::new(Drain::new(flush_link, holders, active.has(ProgramSet::RECEIVES), control)))
            }
        };
        let maps = Maps {
            sockets: entries::<u64, SocketRecord>(&mut object, "sockets")?,
            shares: entries::<ShareKey, Share>(&mut object, "shares")?,
            losses: entries::<LossKey, Counts>(&mut object, "losses")?,
            latencies: entries::<LatencyKey, Buckets>(&mut object, "latencies")?,
            endpoint_owners: entries::<Tuple, EndpointOwner>(&mut object, "endpoint_owners")?,
            peer_owners: entries::<Tuple, EndpointOwner>(&mut object, "peer_owners")?,
            previous_owners: entries::<u64, EndpointOwner>(&mut object, "previous_owners")?,
        };
        let cgroups = cgroups.then(|| Cgroups::of(&mut object)).flatten();
        let cgroups = cgroups.filter(|cgroups| cgroups.keep_root().is_some());
        Ok(SocketSet {
            _object: object,
            maps,
            cgroups,
            sweep: Mutex::new(Sweep::new(wants)),
            drain,
            programs: active,
            refused,
            process: std::process::id(),
        })
    }
}

/// Returns the first alternative of each group, and the BPF iterators. Those that take long to verify come
/// first.
fn best_programs(wants: Wants) -> impl Iterator<Item = (&'static str, Option<&'static str>)> {
    let programs =
        GROUPS.iter().rev().filter_map(|group| group.alternatives.first()).flat_map(|first| first.iter());
    let programs = programs.map(|&(name, place)| (name, place.point()));
    let walks = [Some(HOLDERS), (wants == Wants::Bytes).then_some(FLUSH)];
    programs.chain(walks.into_iter().flatten().map(|(name, over)| (name, Some(over))))
}

/// The eBPF programs while they are loaded.
struct Programs {
    object: LoadedObject,
    active: ProgramSet,
    refused: Vec<Fault>,
}

impl Programs {
    /// Attaches the best alternative of a group that the kernel accepts.
    fn add(
        &mut self,
        group: &ProbeGroup,
        wants: Wants,
        types: &KernelTypes,
        root: &File,
    ) -> Result<(), Fault> {
        let mut first_fault = None;
        for alternative in group.alternatives {
            let mut programs = alternative.iter();
            let Some(&(name, place)) = programs.next() else { continue };
            match attach(&mut self.object, name, place, types, root) {
                Err(fault) => first_fault = first_fault.or(Some(fault)),
                Ok(()) => {
                    for &(name, place) in programs {
                        // In most cases, the kernel does not have the function, and nothing is lost.
                        if let Err(fault) = attach(&mut self.object, name, place, types, root) {
                            debug!("an eBPF program is left out: {fault}");
                        }
                    }
                    return Ok(());
                }
            }
        }
        let is_needed = group.is_needed || group.is_needed_to_count && wants == Wants::Bytes;
        match first_fault {
            Some(fault) if is_needed => Err(fault),
            fault => {
                self.active = self.active.without(group.what);
                self.refused.extend(fault);
                Ok(())
            }
        }
    }
}

/// Takes a hash map with entries of these types, which is read in batches.
fn entries<K: Pod, V: Pod>(object: &mut LoadedObject, name: &str) -> Result<MapData, Fault> {
    let map = take(object, name)?;
    HashMap::<_, K, V>::try_from(&map).map_err(|error| fault(name, &error))?;
    match map {
        Map::HashMap(data) | Map::LruHashMap(data) => Ok(data),
        _ => Err(missing(name)),
    }
}

fn take(object: &mut LoadedObject, name: &str) -> Result<Map, Fault> {
    object.take_map(name).ok_or_else(|| missing(name))
}

/// Returns a link whose walks move the socket counters of busy sockets to their records.
fn flush_link(object: &mut LoadedObject) -> Result<OwnedFd, Fault> {
    let Map::SkStorage(busy_sockets) = take(object, "busy_sockets")? else {
        return Err(missing("busy_sockets"));
    };
    walk_link(object, FLUSH.0, Some(&busy_sockets))
}

/// Walks over all descriptors of all processes, and returns the link of such walks.
fn find_holders(object: &mut LoadedObject, types: &KernelTypes) -> Result<OwnedFd, Fault> {
    load_iterator(object, HOLDERS.0, HOLDERS.1, types)?;
    let link = walk_link(object, HOLDERS.0, None)?;
    walk(link.as_fd()).map_err(|error| fault("reading the open sockets", &error))?;
    Ok(link)
}

fn missing(name: &str) -> Fault {
    Fault { state: ProbeState::NotSupported, text: format!("{name}: there is no such map") }
}
