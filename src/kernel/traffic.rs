//! Bytes that the socket probes have counted: what each process has to its account since they were last read.

use super::batch::{Batch, delete};
use super::cgroups::Cgroups;
use super::flow::{self, Told, flow, is_flow};
use super::load::walk;
use super::records::*;
use super::task::CgroupPaths;
use super::{Clocks, Credit};
use crate::model::{Connections, Identity, Owner, Quality, Traffic, Unowned};
use aya::maps::{Array, MapData};
use foldhash::fast::RandomState;
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// How long the record of a socket that has ended is kept for the packets that still come: the last ones of a TCP
/// connection do so within a round trip or two.
const GRACE_NS: u64 = 2_000_000_000;

/// How many readings an account may stay as it is before it is closed, if its socket has no record.
const QUIET_READINGS: u8 = 60;

/// Where the probes note what they count: `probes/maps.h`.
pub(super) struct Maps {
    pub sockets: MapData,
    pub shares: MapData,
    pub losses: Array<MapData, Counts>,
    pub link_headers: Array<MapData, u8>,
    pub latencies: MapData,
}

/// Reads what the probes have counted. One thread at a time.
pub struct Counters {
    maps: Maps,
    /// Starts walks that bring the records of busy sockets up to date.
    collect: OwnedFd,
    cgroups: Option<Cgroups>,
    histograms: Batch<Process, Buckets>,
    /// What has been handed out of each process's times.
    timed: HashMap<Process, Buckets, RandomState>,
    records: Batch<u64, Record>,
    accounts: Batch<ShareKey, Share>,
    /// What has been handed out of each socket's account of each process.
    seen: HashMap<ShareKey, Seen, RandomState>,
    lost: [Counts; LOSSES],
    /// What waits for the first use of its socket.
    pending: u64,
    /// The network namespaces that are counted in, if not all.
    namespaces: Option<HashSet<u64>>,
    ticks_per_second: u64,
    reading: u64,
    held: u64,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    counts: Counts,
    /// What is in its account beside its record, as of this reading.
    apart: Counts,
    /// The last reading in which the account or the record was there.
    reading: u64,
    quiet: u8,
    told: Told,
}

impl Counters {
    pub(super) fn new(
        maps: Maps,
        collect: OwnedFd,
        cgroups: Option<Cgroups>,
        ticks_per_second: u64,
    ) -> Counters {
        Counters {
            maps,
            collect,
            cgroups,
            histograms: Batch::new(),
            timed: HashMap::default(),
            records: Batch::new(),
            accounts: Batch::new(),
            seen: HashMap::default(),
            lost: Default::default(),
            pending: 0,
            namespaces: None,
            ticks_per_second,
            reading: 0,
            held: 0,
        }
    }

    /// Says how long the link header of a device is, by its index, where it is not 14 bytes long.
    ///
    /// # Errors
    /// What bpf(2) returns.
    pub fn set_link_header(&mut self, device: u32, length: u8) -> io::Result<()> {
        let slot = length.saturating_add(1);
        self.maps.link_headers.set(device % DEVICES, slot, 0).map_err(io::Error::other)
    }

    /// Hands out only what passes in the network namespaces with these inodes, or all.
    pub fn set_namespaces(&mut self, namespaces: Option<HashSet<u64>>) {
        self.namespaces = namespaces;
    }

    /// Sockets with a record, as of the last reading.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Bytes of connections that nobody has used yet, as of the last reading.
    pub fn pending(&self) -> u64 {
        self.pending
    }

    /// Hands out what has been counted since the last reading, and lets go of the sockets that have ended. With `flows`
    /// also every flow, and what the processes did.
    ///
    /// # Errors
    /// What bpf(2) returns. What was not handed out comes with the next reading.
    pub fn read(&mut self, clocks: Clocks, flows: bool, mut take: impl FnMut(Credit<'_>)) -> io::Result<()> {
        self.reading += 1;
        walk(self.collect.as_fd())?;
        // A user's bytes move from the record to the account. Reading in this order, they may be missed for once but
        // are never seen twice.
        self.read_accounts(&mut take)?;
        self.read_records(clocks, flows, &mut take)?;
        self.close_accounts();
        if flows {
            self.read_times(&mut take)?;
        }
        self.read_losses(&mut take)
    }

    fn read_accounts(&mut self, take: &mut impl FnMut(Credit<'_>)) -> io::Result<()> {
        let Counters { accounts, maps, seen, reading, ticks_per_second, namespaces, cgroups, .. } = self;
        accounts.read(maps.shares.fd().as_fd(), |key, share| {
            if namespaces.as_ref().is_some_and(|chosen| !chosen.contains(&share.netns.into())) {
                return;
            }
            let seen = seen.entry(*key).or_default();
            seen.apart = share.traffic;
            seen.reading = *reading;
            // What a record says comes on top, if the process still has it.
            let identity = || identity(&share.name, [share.uid, share.gid], cgroups.as_ref(), share.cgroup);
            let quality = if share.is_packet_socket == 0 { Quality::Shared } else { Quality::Exact };
            hand_out(key, seen, share.traffic, quality, *ticks_per_second, &identity, take);
        })
    }

    fn read_records(
        &mut self,
        clocks: Clocks,
        flows: bool,
        take: &mut impl FnMut(Credit<'_>),
    ) -> io::Result<()> {
        let Clocks { now_ns, epoch_ns } = clocks;
        let Counters { records, maps, seen, reading, ticks_per_second, pending, held, .. } = self;
        let (namespaces, cgroups) = (&self.namespaces, self.cgroups.as_ref());
        let mut ended = Vec::new();
        (*pending, *held) = (0, 0);
        records.read(maps.sockets.fd().as_fd(), |cookie, record| {
            *held += 1;
            let is_over = record.flags & ENDED != 0;
            let is_settled = record.ended_ns.saturating_add(GRACE_NS) < now_ns;
            if is_over && is_settled {
                ended.push(*cookie);
            }
            if namespaces.as_ref().is_some_and(|chosen| !chosen.contains(&record.tuple.netns.into())) {
                return;
            }
            if record.flags & INHERITED != 0 && !flow::is_over(record) {
                *pending += record.sent.bytes + record.received.bytes;
                return;
            }
            let key = ShareKey { owner: record.owner, cookie: *cookie };
            let seen = seen.entry(key).or_default();
            if seen.reading != *reading {
                (seen.apart, seen.reading) = (Counts::default(), *reading);
            }
            let quality = match record.flags {
                flags if flags & INHERITED != 0 => Quality::Guessed,
                flags if flags & (SWITCHED | SEVERAL) != 0 => Quality::Shared,
                _ => Quality::Exact,
            };
            let total = seen.apart.plus(&record.counts());
            let identity = || identity(&record.name, [record.uid, record.gid], cgroups, record.cgroup);
            if hand_out(&key, seen, total, quality, *ticks_per_second, &identity, take) {
                seen.told.changed_ns = now_ns;
            }
            // The account of a socket's present user belongs to what is told of the record, and stays with it.
            seen.quiet = 0;
            if !flows {
                return;
            }
            let process = record.owner.id(*ticks_per_second);
            let news = seen.told.news(record);
            if let Some(process) = process.filter(|_| news != Connections::default()) {
                take(Credit::Connections(process, news));
            }
            let is_last = flow::is_over(record);
            if is_flow(record) && (!is_last || is_settled && !seen.told.is_delivered) {
                seen.told.is_delivered = is_last;
                let owner = process.map(|process| Owner { process, quality });
                let changed_ns = seen.told.changed_ns;
                take(Credit::Flow(flow(*cookie, record, &total, owner, changed_ns, now_ns, epoch_ns)));
            }
        })?;
        delete(maps.sockets.fd().as_fd(), &ended);
        Ok(())
    }

    /// Hands out how long processes waited for answers.
    fn read_times(&mut self, take: &mut impl FnMut(Credit<'_>)) -> io::Result<()> {
        let Counters { histograms, maps, timed, ticks_per_second, .. } = self;
        let mut present = HashMap::with_capacity_and_hasher(timed.len(), RandomState::default());
        histograms.read(maps.latencies.fd().as_fd(), |process, now| {
            let before = timed.get(process).copied().unwrap_or_default();
            present.insert(*process, *now);
            let mut news = Connections::default();
            let buckets = now.0.iter().zip(before.0);
            for (more, (now, before)) in news.response.0.iter_mut().zip(buckets) {
                // Where the kernel had to forget a process it has begun anew.
                *more = now.checked_sub(before).unwrap_or(*now);
            }
            if let Some(process) = process.id(*ticks_per_second).filter(|_| news != Connections::default()) {
                take(Credit::Connections(process, news));
            }
        })?;
        *timed = present;
        Ok(())
    }

    /// Forgets the accounts of sockets that have gone.
    fn close_accounts(&mut self) {
        let Counters { seen, maps, reading, .. } = self;
        let mut closed = Vec::new();
        seen.retain(|key, seen| {
            if seen.reading != *reading {
                return false;
            }
            let is_apart = seen.apart != Counts::default();
            let is_quiet = is_apart && seen.quiet >= QUIET_READINGS;
            if is_quiet {
                closed.push(*key);
            }
            !is_quiet
        });
        delete(maps.shares.fd().as_fd(), &closed);
    }

    fn read_losses(&mut self, take: &mut impl FnMut(Credit<'_>)) -> io::Result<()> {
        for (why, reason) in [(LOSS_UNKNOWN, Unowned::NoHolder), (LOSS_TABLE_FULL, Unowned::QueueFull)] {
            let now = self.maps.losses.get(&why, 0).map_err(io::Error::other)?;
            if let Some(lost) = self.lost.get_mut(why as usize) {
                let more = now.beyond(lost);
                *lost = now;
                if more != Counts::default() {
                    take(Credit::Unowned(reason, more.traffic()));
                }
            }
        }
        Ok(())
    }
}

/// Hands out what a total has beyond what was handed out before. Returns whether that was anything.
fn hand_out(
    key: &ShareKey,
    seen: &mut Seen,
    total: Counts,
    quality: Quality,
    ticks_per_second: u64,
    identity: &dyn Fn() -> Identity,
    take: &mut impl FnMut(Credit<'_>),
) -> bool {
    let more = total.beyond(&seen.counts);
    if more == Counts::default() {
        seen.quiet = seen.quiet.saturating_add(1);
        return false;
    }
    seen.quiet = 0;
    seen.counts = seen.counts.plus(&more);
    match key.owner.id(ticks_per_second) {
        Some(process) => take(Credit::Owned(Owner { process, quality }, identity, more.traffic())),
        None => take(Credit::Unowned(Unowned::NoHolder, more.traffic())),
    }
    true
}

/// What the kernel knows of a process, the names of user and group left out.
pub(super) fn identity(
    name: &[u8; NAME],
    [uid, gid]: [u32; 2],
    cgroups: Option<&Cgroups>,
    cgroup: u64,
) -> Identity {
    let length = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    let name = name.get(..length).unwrap_or_default().to_vec();
    let cgroup = cgroups.and_then(|cgroups| cgroups.path(cgroup)).unwrap_or_default();
    Identity { name, uid, gid, cgroup, ..Identity::default() }
}

impl Way {
    fn each(&self, other: &Way, join: fn(u64, u64) -> u64) -> Way {
        Way { bytes: join(self.bytes, other.bytes), packets: join(self.packets, other.packets) }
    }
}

impl Counts {
    fn each(&self, other: &Counts, join: fn(u64, u64) -> u64) -> Counts {
        Counts {
            sent: self.sent.each(&other.sent, join),
            received: self.received.each(&other.received, join),
        }
    }

    /// The sum of both.
    fn plus(&self, other: &Counts) -> Counts {
        self.each(other, u64::wrapping_add)
    }

    /// What these have more than the others.
    fn beyond(&self, other: &Counts) -> Counts {
        self.each(other, u64::saturating_sub)
    }

    pub(super) fn traffic(&self) -> Traffic {
        Traffic {
            send_bytes: self.sent.bytes,
            send_packets: self.sent.packets,
            receive_bytes: self.received.bytes,
            receive_packets: self.received.packets,
        }
    }
}
