//! Bytes that the socket probes have counted: what each process has to its account since they were last read.

use super::accounts::Accounts;
use super::batch::{Batch, delete};
use super::cgroups::Cgroups;
use super::flow::{self, flow, is_flow};
use super::load::walk;
use super::records::*;
use super::sweep::Sweep;
use super::task::CgroupPaths;
use super::{Clocks, Credit};
use crate::model::{Connections, Identity, Owner, Quality, Unowned};
use aya::maps::{Array, MapData};
use foldhash::fast::RandomState;
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// How long the record of a socket that has ended is kept for the packets that still come: the last ones of a TCP
/// connection do so within a round trip or two.
const GRACE_NS: u64 = 2_000_000_000;

/// How many readings the times of a process may stay as they are before the kernel need not keep them.
const QUIET_READINGS: u8 = 60;

/// Records that the kernel has room for: `probes/maps.h`.
const CAPACITY: u64 = 262_144;

/// Where the probes note what they count: `probes/maps.h`.
pub(super) struct Maps {
    pub sockets: MapData,
    pub shares: MapData,
    pub losses: Array<MapData, Counts>,
    pub latencies: MapData,
    pub tuples: MapData,
}

/// Reads what the probes have counted. One thread at a time.
pub struct Counters {
    maps: Maps,
    /// Starts walks that bring the records of busy sockets up to date.
    collect: OwnedFd,
    /// Whether the kernel tells when something is read from a socket.
    knows_reads: bool,
    cgroups: Option<Cgroups>,
    histograms: Batch<Process, Buckets>,
    /// What has been handed out of each process's times, and for how many readings there was nothing new.
    timed: HashMap<Process, (Buckets, u8), RandomState>,
    records: Batch<u64, Record>,
    shares: Batch<ShareKey, Share>,
    accounts: Accounts,
    sweep: Sweep,
    lost: [Counts; LOSSES],
    /// What waits for the first use of its socket, or for being read.
    pending: u64,
    /// The network namespaces that are counted in, if not all.
    namespaces: Option<HashSet<u64>>,
    ticks_per_second: u64,
    held: u64,
}

impl Counters {
    pub(super) fn new(
        maps: Maps,
        collect: OwnedFd,
        knows_reads: bool,
        cgroups: Option<Cgroups>,
        ticks_per_second: u64,
    ) -> Counters {
        Counters {
            maps,
            collect,
            knows_reads,
            cgroups,
            histograms: Batch::new(),
            timed: HashMap::default(),
            records: Batch::new(),
            shares: Batch::new(),
            accounts: Accounts::default(),
            sweep: Sweep::new(),
            lost: Default::default(),
            pending: 0,
            namespaces: None,
            ticks_per_second,
            held: 0,
        }
    }

    /// Hands out only what passes in the network namespaces with these inodes, or all.
    pub fn set_namespaces(&mut self, namespaces: Option<HashSet<u64>>) {
        self.namespaces = namespaces;
    }

    /// Sockets with a record, as of the last reading.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Bytes of connections that no process has used yet, and received ones that none has read, as of the last reading.
    pub fn pending(&self) -> u64 {
        self.pending
    }

    /// Figures that cannot be and were not handed out, since the beginning.
    pub fn refused(&self) -> u64 {
        self.accounts.refused()
    }

    /// Hands out what has been counted since the last reading, and releases the sockets that have ended. With `flows`
    /// also every flow, and what the processes did.
    ///
    /// # Errors
    /// What bpf(2) returns. What was not handed out comes with the next reading.
    pub fn read(&mut self, clocks: Clocks, flows: bool, mut take: impl FnMut(Credit<'_>)) -> io::Result<()> {
        self.accounts.begin();
        walk(self.collect.as_fd())?;
        // A user's bytes move from the record to the account. Reading in this order, they may be missed for once but
        // are never seen twice.
        self.read_shares(&mut take)?;
        self.read_records(clocks, flows, &mut take)?;
        delete(self.maps.shares.fd().as_fd(), &self.accounts.close());
        if flows {
            self.read_times(&mut take)?;
        }
        self.sweep.run(&self.maps.tuples, clocks.now_ns)?;
        self.read_losses(&mut take)
    }

    fn read_shares(&mut self, take: &mut impl FnMut(Credit<'_>)) -> io::Result<()> {
        let Counters { shares, maps, accounts, ticks_per_second, namespaces, cgroups, .. } = self;
        shares.read(maps.shares.fd().as_fd(), |key, share| {
            if namespaces.as_ref().is_some_and(|chosen| !chosen.contains(&share.netns.into())) {
                return;
            }
            let more = accounts.share(key, share.traffic);
            let identity = || identity(&share.name, [share.uid, share.gid], cgroups.as_ref(), share.cgroup);
            let quality = if share.is_packet_socket == 0 { Quality::Shared } else { Quality::Exact };
            hand_out(&key.owner, more, quality, *ticks_per_second, &identity, take);
        })
    }

    fn read_records(
        &mut self,
        clocks: Clocks,
        flows: bool,
        take: &mut impl FnMut(Credit<'_>),
    ) -> io::Result<()> {
        let Clocks { now_ns, epoch_ns } = clocks;
        let Counters { records, maps, accounts, ticks_per_second, pending, held, .. } = self;
        let (namespaces, cgroups) = (&self.namespaces, self.cgroups.as_ref());
        let knows_reads = self.knows_reads;
        let mut ended = Vec::new();
        (*pending, *held) = (0, 0);
        records.read(maps.sockets.fd().as_fd(), |cookie, record| {
            *held += 1;
            if !record.is_whole() {
                // It is being changed at this moment, and comes with the next reading.
                accounts.recorded(*cookie);
                return;
            }
            let is_over = flow::is_over(record);
            let is_settled = record.ended_ns.saturating_add(GRACE_NS) < now_ns;
            if record.flags & ENDED != 0 && is_settled {
                ended.push(*cookie);
            }
            if namespaces.as_ref().is_some_and(|chosen| !chosen.contains(&record.tuple.netns.into())) {
                return;
            }
            if record.flags & INHERITED != 0 && !is_over {
                *pending += record.total.sent.bytes + record.total.received.bytes;
                return;
            }
            let is_shared = accounts.is_shared(*cookie);
            let quality = match record.flags {
                flags if flags & INHERITED != 0 => Quality::Guessed,
                flags if is_shared || flags & (SWITCHED | SEVERAL) != 0 => Quality::Shared,
                _ => Quality::Exact,
            };
            let left = record.total.beyond(&record.apart);
            let mut own = left;
            if knows_reads && !is_over {
                own.received = without_unread(own.received, record.unread);
                *pending += left.received.bytes - own.received.bytes;
            }
            let key = ShareKey { owner: record.owner, cookie: *cookie };
            let identity = || identity(&record.name, [record.uid, record.gid], cgroups, record.cgroup);
            let more = accounts.own(&key, own);
            let has_more = hand_out(&key.owner, more, quality, *ticks_per_second, &identity, take);
            let total = accounts.apart(*cookie).plus(&left);
            let told = &mut accounts.recorded(*cookie).told;
            if has_more {
                told.changed_ns = now_ns;
            }
            if !flows {
                return;
            }
            let process = record.owner.id(*ticks_per_second);
            let news = told.news(record);
            if let Some(process) = process.filter(|_| news != Connections::default()) {
                take(Credit::Connections(process, news));
            }
            if is_flow(record) && (!is_over || is_settled && !told.is_delivered) {
                told.is_delivered = is_over;
                let owner = process.map(|process| Owner { process, quality });
                take(Credit::Flow(flow(*cookie, record, &total, owner, told.changed_ns, now_ns, epoch_ns)));
            }
        })?;
        delete(maps.sockets.fd().as_fd(), &ended);
        Ok(())
    }

    /// Hands out how long processes waited for answers.
    fn read_times(&mut self, take: &mut impl FnMut(Credit<'_>)) -> io::Result<()> {
        let Counters { histograms, maps, timed, ticks_per_second, .. } = self;
        let mut present = HashMap::with_capacity_and_hasher(timed.len(), RandomState::default());
        let mut quiet_ones = Vec::new();
        histograms.read(maps.latencies.fd().as_fd(), |process, now| {
            let (before, quiet) = timed.get(process).copied().unwrap_or_default();
            let mut news = Connections::default();
            let buckets = now.0.iter().zip(before.0);
            for (more, (now, before)) in news.response.0.iter_mut().zip(buckets) {
                *more = now.saturating_sub(before);
            }
            let is_quiet = news == Connections::default();
            if is_quiet && quiet >= QUIET_READINGS {
                quiet_ones.push(*process);
                return;
            }
            present.insert(*process, (*now, if is_quiet { quiet + 1 } else { 0 }));
            if let Some(process) = process.id(*ticks_per_second).filter(|_| !is_quiet) {
                take(Credit::Connections(process, news));
            }
        })?;
        delete(maps.latencies.fd().as_fd(), &quiet_ones);
        *timed = present;
        Ok(())
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
        if self.held < CAPACITY / 10 * 9 {
            let refused = self.maps.losses.get(&LOSS_REFUSED, 0).map_err(io::Error::other)?;
            if refused != Counts::default() {
                self.maps.losses.set(LOSS_REFUSED, Counts::default(), 0).map_err(io::Error::other)?;
            }
        }
        Ok(())
    }
}

/// What has been received and read, where so many bytes have not been read: packets in proportion.
fn without_unread(received: Way, unread: u64) -> Way {
    let bytes = received.bytes.saturating_sub(unread);
    let size = received.bytes.checked_div(received.packets).unwrap_or_default();
    let packets = (received.bytes - bytes).checked_div(size).unwrap_or_default();
    Way { bytes, packets: if bytes == 0 { 0 } else { received.packets.saturating_sub(packets) } }
}

/// Hands out what a process has more than before. Returns whether that was anything.
fn hand_out(
    owner: &Process,
    more: Counts,
    quality: Quality,
    ticks_per_second: u64,
    identity: &dyn Fn() -> Identity,
    take: &mut impl FnMut(Credit<'_>),
) -> bool {
    if more == Counts::default() {
        return false;
    }
    match owner.id(ticks_per_second) {
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
