//! Reads the eBPF programs' counts from the kernel, for all sessions that share these programs.
//!
//! Reading deletes records of sockets that have ended, and shares of periods that are over. Therefore there
//! is one reader, and each session subscribes to it.

use super::accounts::Accounts;
use super::batch::{Batch, delete};
use super::load::walk;
use super::periods::{Growing, Periods};
use super::records::*;
use super::socket_set::Maps;
use super::subscriber::{DrainScope, Increment, Observation, OwnerIdentity, Subscriber};
use super::{Clocks, flow};
use crate::model::{Protocol, Quality, Unowned};
use aya::maps::{Array, MapData};
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// The time for which the record of a socket that has ended is kept for late packets. The last packets of a
/// TCP connection arrive within a round trip or two.
const GRACE_PERIOD_NS: u64 = 2_000_000_000;

/// Grace period of sockets of other protocols, whose last packets do not arrive later. It covers an eBPF
/// program that has found the record before, in all but extreme cases: it is shorter than the time that
/// `periods` allows a program, because a process that opens and closes 100,000 sockets a second would
/// otherwise fill the table within seconds.
const DATAGRAM_GRACE_PERIOD_NS: u64 = 200_000_000;

/// The time that a connection made by a listener may wait for its first use before its holder is searched
/// for. For example, a program may accept the connection and splice from it.
const FIRST_USE_TIMEOUT_NS: u64 = 2_000_000_000;

/// The time between two such searches. Each goes through all descriptors of all processes.
const HOLDER_SEARCH_INTERVAL_NS: u64 = 5_000_000_000;

/// The number of records that the kernel has room for: `probes/maps.h`.
const CAPACITY: u64 = 262_144;

/// The maximum number of readings for a new subscriber until no record is being changed meanwhile.
const ATTEMPTS: u32 = 8;

/// The reader of the counts.
pub(super) struct Drain {
    /// Starts walks that move the socket counters of busy sockets to their records.
    flush: OwnedFd,
    /// Starts walks that search for the holders of connections that no process has used.
    holders: OwnedFd,
    /// The time of the last such walk.
    searched_ns: u64,
    /// Set if the kernel reports reads from sockets.
    knows_reads: bool,
    /// Sets the current period for the eBPF programs.
    control: Array<MapData, Control>,
    periods: Periods,
    histograms: Growing<LatencyKey, Buckets>,
    records: Batch<u64, SocketRecord>,
    shares: Batch<ShareKey, Share>,
    /// The shares of which a part is to be credited.
    due: Vec<(ShareKey, Share)>,
    accounts: Accounts,
    losses: Growing<LossKey, Counts>,
    held: u64,
    has_moved: bool,
    subscribers: HashMap<u64, Subscriber, RandomState>,
    /// The number of subscriptions since the beginning.
    subscriptions: u64,
}

impl Drain {
    pub(super) fn new(
        flush: OwnedFd,
        holders: OwnedFd,
        knows_reads: bool,
        control: Array<MapData, Control>,
    ) -> Drain {
        Drain {
            holders,
            searched_ns: 0,
            flush,
            knows_reads,
            control,
            periods: Periods::new(Clocks::now().now_ns),
            histograms: Growing::new(),
            records: Batch::new(),
            shares: Batch::new(),
            due: Vec::new(),
            accounts: Accounts::default(),
            losses: Growing::new(),
            held: 0,
            has_moved: false,
            subscribers: HashMap::default(),
            subscriptions: 0,
        }
    }

    /// Begins a subscription. The first one covers all bytes that have been counted, and later ones those
    /// that are counted from now on.
    ///
    /// # Errors
    /// Fails with the error of bpf(2).
    pub(super) fn subscribe(&mut self, maps: &Maps, flows: bool, clocks: Clocks) -> io::Result<u64> {
        let mut subscriber = Subscriber::new(flows);
        if self.subscriptions > 0 {
            for _ in 0..ATTEMPTS {
                subscriber = Subscriber::new(flows);
                let are_whole = self.read_kernel(maps, &mut subscriber, clocks, None)?;
                subscriber.discard();
                if are_whole {
                    break;
                }
            }
        }
        self.subscriptions += 1;
        self.subscribers.insert(self.subscriptions, subscriber);
        Ok(self.subscriptions)
    }

    pub(super) fn unsubscribe(&mut self, subscription: u64) {
        self.subscribers.remove(&subscription);
    }

    /// Returns the pending bytes of a subscriber, and the number of ended flows that it has lost.
    pub(super) fn waiting(&self, subscription: u64) -> (u64, u64) {
        let own = self.subscribers.get(&subscription);
        own.map_or((0, 0), |own| (own.pending, own.flows_lost))
    }

    /// The number of sockets with a record, as of the last reading.
    pub(super) fn held(&self) -> u64 {
        self.held
    }

    /// Returns true if sockets changed hands before or during the last reading. Bytes that were on their way
    /// from a record to a share are in the next reading.
    pub(super) fn has_moved(&self) -> bool {
        self.has_moved
    }

    /// The number of impossible figures that were left out, since the beginning.
    pub(super) fn refused(&self) -> u64 {
        self.accounts.refused()
    }

    /// Reads the counts, and reports all that is new to a subscriber.
    ///
    /// # Errors
    /// Fails with the error of bpf(2). The next reading reports the rest.
    pub(super) fn read(
        &mut self,
        maps: &Maps,
        subscription: u64,
        clocks: Clocks,
        mut view: DrainScope<'_>,
    ) -> io::Result<()> {
        let Some(mut own) = self.subscribers.remove(&subscription) else { return Ok(()) };
        own.deliver_ended(clocks, &mut view);
        let result = self.read_kernel(maps, &mut own, clocks, Some(&mut view));
        own.deliver(clocks, &mut view);
        self.subscribers.insert(subscription, own);
        result.map(drop)
    }

    /// Reads all counts for all subscribers. `own` is the subscriber that `view` belongs to. Without `view`,
    /// `own` is a new subscriber, and only later counts are reported to it. Returns true if no record was
    /// being changed.
    fn read_kernel(
        &mut self,
        maps: &Maps,
        own: &mut Subscriber,
        clocks: Clocks,
        view: Option<&mut DrainScope<'_>>,
    ) -> io::Result<bool> {
        self.accounts.begin();
        self.periods.read_at(clocks.now_ns);
        walk(self.flush.as_fd())?;
        // A user's bytes move from the record to its share. In this order, a reading may miss them once, but
        // never counts them twice.
        self.read_shares(maps)?;
        let (are_whole, search_is_due) = self.read_records(maps, own, clocks, view)?;
        if search_is_due && self.searched_ns.saturating_add(HOLDER_SEARCH_INTERVAL_NS) < clocks.now_ns {
            self.searched_ns = clocks.now_ns;
            walk(self.holders.as_fd())?;
        }
        self.credit_shares(own);
        self.accounts.close();
        if own.wants_flows() || self.subscribers.values().any(Subscriber::wants_flows) {
            self.read_times(maps, own)?;
        }
        self.read_losses(maps, own)?;
        self.begin_period()?;
        Ok(are_whole)
    }

    /// Makes the eBPF programs begin a new period, if it is time.
    fn begin_period(&mut self) -> io::Result<()> {
        let Some(next) = self.periods.next() else { return Ok(()) };
        let has_room = self.held < CAPACITY / 10 * 9;
        let is_full = if has_room { 0 } else { self.control.get(&0, 0).map_err(other)?.is_full };
        self.control.set(0, Control { period: next, is_full }, 0).map_err(other)?;
        self.periods.begin(Clocks::now().now_ns);
        Ok(())
    }

    fn read_shares(&mut self, maps: &Maps) -> io::Result<()> {
        let Drain { shares, accounts, due, periods, .. } = self;
        let mut over = Vec::new();
        shares.read(maps.shares.fd().as_fd(), |key, share| {
            let is_over = periods.is_over(key.period);
            if accounts.share(key, share.traffic, is_over) {
                due.push((*key, *share));
            }
            if is_over {
                over.push(*key);
            }
        })?;
        delete(maps.shares.fd().as_fd(), &over);
        Ok(())
    }

    /// Credits the due part of the shares after the records have been read.
    fn credit_shares(&mut self, own: &mut Subscriber) {
        let Drain { due, accounts, subscribers, .. } = self;
        due.retain(|(key, share)| {
            if accounts.is_changing(key.cookie) {
                return true;
            }
            let counts = accounts.credit(key.cookie, key.owner);
            let quality = if share.is_packet_socket == 0 { Quality::Shared } else { Quality::Exact };
            credit(&Increment::of_share(key, share, quality, counts), own, subscribers);
            false
        });
    }

    /// Returns two flags: no record was being changed, and a connection has waited long for its first use.
    fn read_records(
        &mut self,
        maps: &Maps,
        own: &mut Subscriber,
        clocks: Clocks,
        mut view: Option<&mut DrainScope<'_>>,
    ) -> io::Result<(bool, bool)> {
        let now_ns = clocks.now_ns;
        let Drain { records, accounts, subscribers, held, has_moved, knows_reads, .. } = self;
        let (mut ended, mut are_whole, mut search_is_due) = (Vec::new(), true, false);
        (*held, *has_moved) = (0, false);
        own.pending = 0;
        let result = records.read(maps.sockets.fd().as_fd(), |&cookie, record| {
            *held += 1;
            if !record.is_whole() {
                (are_whole, *has_moved) = (false, true);
                accounts.changing(cookie);
                return;
            }
            if record.flags & SHARED != 0 {
                *has_moved |= std::mem::replace(&mut accounts.recorded(cookie).version, record.version)
                    != record.version;
            }
            let is_over = flow::is_over(record);
            let is_tcp = record.tuple.protocol == Protocol::TCP.0;
            let grace_ns = if is_tcp { GRACE_PERIOD_NS } else { DATAGRAM_GRACE_PERIOD_NS };
            let is_final = record.ended_ns.saturating_add(grace_ns) < now_ns;
            let left = record.total.beyond(&record.in_shares);
            let is_unused = record.flags & INHERITED != 0 && !is_over;
            let mut used = left;
            if is_unused {
                used = Counts::default();
                search_is_due |= record.established_ns.saturating_add(FIRST_USE_TIMEOUT_NS) < now_ns;
            } else if *knows_reads && !is_over && !accounts.is_unread_for_long(cookie, record.unread, now_ns)
            {
                used.received = without_unread(left.received, record.unread);
            }
            let is_shared = accounts.is_shared(cookie);
            let quality = match record.flags {
                flags if flags & INHERITED != 0 => Quality::Guessed,
                flags if is_shared || flags & (SHARED | SEVERAL_HOLDERS) != 0 => Quality::Shared,
                _ => Quality::Exact,
            };
            let mut changed_ns = 0;
            if !is_unused {
                let &SocketRecord { owner: process, name, uid, gid, cgroup, .. } = record;
                let counts = accounts.own(cookie, process, used);
                let netns = record.tuple.netns;
                let identity = OwnerIdentity { name, uid, gid, cgroup };
                credit(&Increment { cookie, process, quality, netns, identity, counts }, own, subscribers);
                let account = accounts.recorded(cookie);
                if counts != Counts::default() {
                    // Another session may have read its clock before.
                    account.changed_ns = account.changed_ns.max(now_ns);
                }
                changed_ns = account.changed_ns;
            }
            let total = accounts.total(cookie, &left);
            let observation =
                Observation { cookie, record, total, quality, changed_ns, is_over, is_final, is_unused };
            match &mut view {
                Some(view) => own.observe(&observation, &left.beyond(&used), clocks, view),
                None => own.begin(&observation, &left.beyond(&used)),
            }
            if record.flags & ENDED != 0 && is_final {
                ended.push(cookie);
                own.release(cookie);
                subscribers.values_mut().for_each(|subscriber| subscriber.keep_ended(&observation));
            }
        });
        // The deletion also takes place after a failed read, because the ended sockets have been reported and
        // would be reported twice.
        delete(maps.sockets.fd().as_fd(), &ended);
        result?;
        Ok((are_whole, search_is_due))
    }

    /// Reads the times that processes waited for answers.
    fn read_times(&mut self, maps: &Maps, own: &mut Subscriber) -> io::Result<()> {
        let Drain { histograms, periods, subscribers, .. } = self;
        let is_over = |key: &LatencyKey| periods.is_over(key.period);
        histograms.read(maps.latencies.fd().as_fd(), is_over, Buckets::beyond, |key, news| {
            own.add_times(&key.owner, news);
            subscribers.values_mut().for_each(|subscriber| subscriber.add_times(&key.owner, news));
        })
    }

    fn read_losses(&mut self, maps: &Maps, own: &mut Subscriber) -> io::Result<()> {
        let Drain { losses, periods, subscribers, .. } = self;
        let is_over = |key: &LossKey| periods.is_over(key.period);
        losses.read(maps.losses.fd().as_fd(), is_over, Counts::beyond, |key, news| {
            let reason = match key.reason {
                LOSS_NO_RECORD => Unowned::NoHolder,
                LOSS_KERNEL_REPLY => Unowned::NoPorts,
                // The map had no room for a record or a share.
                _ => Unowned::QueueFull,
            };
            own.count_lost(reason, key.netns, news);
            subscribers.values_mut().for_each(|subscriber| subscriber.count_lost(reason, key.netns, news));
        })
    }
}

/// Converts an error of aya to one of the system.
fn other(error: aya::maps::MapError) -> io::Error {
    io::Error::other(error)
}

/// Credits an increment to every subscriber.
fn credit(increment: &Increment, own: &mut Subscriber, others: &mut HashMap<u64, Subscriber, RandomState>) {
    if increment.counts != Counts::default() {
        own.credit(increment);
        others.values_mut().for_each(|other| other.credit(increment));
    }
}

/// Returns the received traffic that has been read, if `unread` bytes have not. Packets are reduced in
/// proportion.
fn without_unread(received: DirectionCounters, unread: u64) -> DirectionCounters {
    let bytes = received.bytes.saturating_sub(unread);
    let size = received.bytes.checked_div(received.packets).unwrap_or_default();
    let packets = (received.bytes - bytes).checked_div(size).unwrap_or_default();
    DirectionCounters {
        bytes,
        packets: if bytes == 0 { 0 } else { received.packets.saturating_sub(packets) },
    }
}
