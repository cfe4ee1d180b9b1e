//! Takes out of the kernel what the socket probes have counted, for all sessions that share the probes.
//!
//! Reading deletes: records of sockets that have ended, accounts in which nothing happens any more. So there is one reader,
//! and each session subscribes to it.

use super::Clocks;
use super::accounts::Accounts;
use super::batch::{Batch, delete, take_out};
use super::flow;
use super::load::walk;
use super::records::*;
use super::socket_set::Maps;
use super::subscriber::{Increment, Observation, Subscriber, View, Who};
use crate::model::{Quality, Unowned};
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// How long the record of a socket that has ended is kept for the packets that still come: the last ones of a TCP
/// connection do so within a round trip or two.
const GRACE_NS: u64 = 2_000_000_000;

/// How many readings the times of a process may stay as they are before the kernel need not keep them.
const QUIET_READINGS: u8 = 60;

/// How long a connection that a listener made may wait for its first use until its holder is looked for: programs may accept
/// it and splice from it, say.
const UNUSED_NS: u64 = 2_000_000_000;

/// Time between two such looks: each goes through all descriptors of all processes.
const LOOK_NS: u64 = 5_000_000_000;

/// Records that the kernel has room for: `probes/maps.h`.
const CAPACITY: u64 = 262_144;

/// Readings for a new subscriber until none of the records is being changed meanwhile.
const ATTEMPTS: u32 = 8;

/// The reader of what is counted.
pub(super) struct Drain {
    /// Starts walks that bring the records of busy sockets up to date.
    collect: OwnedFd,
    /// Starts walks that look for the holders of connections which nobody has used.
    holders: OwnedFd,
    /// When that was done last.
    looked_ns: u64,
    /// Whether the kernel tells when something is read from a socket.
    knows_reads: bool,
    histograms: Batch<Process, Buckets>,
    /// What was read of each process's times, and for how many readings there was nothing new.
    timed: HashMap<Process, (Buckets, u8), RandomState>,
    records: Batch<u64, Record>,
    shares: Batch<ShareKey, Share>,
    /// Shares of which something is to be credited in this reading.
    due: Vec<(ShareKey, Share)>,
    accounts: Accounts,
    losses: Batch<LossKey, Counts>,
    /// What was read of each kind of losses, and for how many readings there was nothing new.
    lost: HashMap<LossKey, (Counts, u8), RandomState>,
    held: u64,
    subscribers: HashMap<u64, Subscriber, RandomState>,
    /// How many there have been.
    subscriptions: u64,
}

impl Drain {
    pub(super) fn new(collect: OwnedFd, holders: OwnedFd, knows_reads: bool) -> Drain {
        Drain {
            holders,
            looked_ns: 0,
            collect,
            knows_reads,
            histograms: Batch::new(),
            timed: HashMap::default(),
            records: Batch::new(),
            shares: Batch::new(),
            due: Vec::new(),
            accounts: Accounts::default(),
            losses: Batch::new(),
            lost: HashMap::default(),
            held: 0,
            subscribers: HashMap::default(),
            subscriptions: 0,
        }
    }

    /// Begins a subscription: to all that has been counted if it is the first, else to what is counted from now on.
    ///
    /// # Errors
    /// What bpf(2) returns.
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

    /// Bytes that a subscriber's view has pending, and the ended flows that it has lost.
    pub(super) fn waiting(&self, subscription: u64) -> (u64, u64) {
        let own = self.subscribers.get(&subscription);
        own.map_or((0, 0), |own| (own.pending, own.flows_lost))
    }

    /// Sockets with a record, as of the last reading.
    pub(super) fn held(&self) -> u64 {
        self.held
    }

    /// Figures that cannot be and were not handed out, since the beginning.
    pub(super) fn refused(&self) -> u64 {
        self.accounts.refused()
    }

    /// Reads what has been counted, and hands out all that is new to a subscriber.
    ///
    /// # Errors
    /// What bpf(2) returns. What was not handed out comes with the next reading.
    pub(super) fn read(
        &mut self,
        maps: &Maps,
        subscription: u64,
        clocks: Clocks,
        mut view: View<'_>,
    ) -> io::Result<()> {
        let Some(mut own) = self.subscribers.remove(&subscription) else { return Ok(()) };
        own.hand_out_ended(clocks, &mut view);
        let result = self.read_kernel(maps, &mut own, clocks, Some(&mut view));
        own.hand_out(clocks, &mut view);
        self.subscribers.insert(subscription, own);
        result.map(drop)
    }

    /// Reads all there is, for all subscribers. `own` is the one whose view is given, or one that begins and is to see
    /// what comes later. Returns whether no record was being changed.
    fn read_kernel(
        &mut self,
        maps: &Maps,
        own: &mut Subscriber,
        clocks: Clocks,
        view: Option<&mut View<'_>>,
    ) -> io::Result<bool> {
        self.accounts.begin();
        walk(self.collect.as_fd())?;
        // A user's bytes move from the record to the account. Reading in this order, they may be missed for once but
        // are never seen twice.
        self.read_shares(maps)?;
        let (are_whole, is_waited_for) = self.read_records(maps, own, clocks, view)?;
        if is_waited_for && self.looked_ns.saturating_add(LOOK_NS) < clocks.now_ns {
            self.looked_ns = clocks.now_ns;
            walk(self.holders.as_fd())?;
        }
        self.settle_shares(own);
        self.close_shares(maps, own);
        if own.wants_flows() || self.subscribers.values().any(Subscriber::wants_flows) {
            self.read_times(maps, own)?;
        }
        self.read_losses(maps, own)?;
        Ok(are_whole)
    }

    fn read_shares(&mut self, maps: &Maps) -> io::Result<()> {
        let Drain { shares, accounts, due, .. } = self;
        due.clear();
        shares.read(maps.shares.fd().as_fd(), |key, share| {
            if accounts.share(key, share.traffic) {
                due.push((*key, *share));
            }
        })
    }

    /// Credits what is due of the shares, now that the records are known.
    fn settle_shares(&mut self, own: &mut Subscriber) {
        let Drain { due, accounts, subscribers, .. } = self;
        for (key, share) in due.drain(..) {
            let counts = accounts.settle(&key);
            let quality = if share.is_packet_socket == 0 { Quality::Shared } else { Quality::Exact };
            credit(&Increment::of_share(&key, &share, quality, counts), own, subscribers);
        }
    }

    /// Takes accounts out of the kernel that nothing comes to any more. What has come since they were read is credited.
    fn close_shares(&mut self, maps: &Maps, own: &mut Subscriber) {
        let shares = maps.shares.fd().as_fd();
        for (key, share, counts) in self.accounts.close(|key| take_out(shares, key)) {
            credit(&Increment::of_share(&key, &share, Quality::Shared, counts), own, &mut self.subscribers);
        }
    }

    /// Returns whether none was being changed, and whether a connection has waited for its first use for long.
    fn read_records(
        &mut self,
        maps: &Maps,
        own: &mut Subscriber,
        clocks: Clocks,
        mut view: Option<&mut View<'_>>,
    ) -> io::Result<(bool, bool)> {
        let now_ns = clocks.now_ns;
        let Drain { records, accounts, subscribers, held, knows_reads, .. } = self;
        let (mut ended, mut are_whole, mut is_waited_for) = (Vec::new(), true, false);
        *held = 0;
        own.pending = 0;
        records.read(maps.sockets.fd().as_fd(), |&cookie, record| {
            *held += 1;
            if !record.is_whole() {
                // It is being changed at this moment, and comes with the next reading.
                are_whole = false;
                accounts.recorded(cookie);
                return;
            }
            let is_over = flow::is_over(record);
            let is_settled = record.ended_ns.saturating_add(GRACE_NS) < now_ns;
            let left = record.total.beyond(&record.apart);
            let is_unused = record.flags & INHERITED != 0 && !is_over;
            let mut used = left;
            if is_unused {
                used = Counts::default();
                is_waited_for |= record.established_ns.saturating_add(UNUSED_NS) < now_ns;
            } else if *knows_reads && !is_over && !accounts.has_lain(cookie, record.unread, now_ns) {
                used.received = without_unread(left.received, record.unread);
            }
            let is_shared = accounts.is_shared(cookie);
            let quality = match record.flags {
                flags if flags & INHERITED != 0 => Quality::Guessed,
                flags if is_shared || flags & (SWITCHED | SEVERAL) != 0 => Quality::Shared,
                _ => Quality::Exact,
            };
            let mut changed_ns = 0;
            if !is_unused {
                let &Record { owner: process, name, uid, gid, cgroup, .. } = record;
                let counts = accounts.own(&ShareKey { owner: process, cookie }, used);
                let netns = record.tuple.netns;
                let who = Who { name, uid, gid, cgroup };
                credit(&Increment { cookie, process, quality, netns, who, counts }, own, subscribers);
                let account = accounts.recorded(cookie);
                if counts != Counts::default() {
                    account.changed_ns = now_ns;
                }
                changed_ns = account.changed_ns;
            }
            let total = accounts.total(cookie, &left);
            let seen =
                Observation { cookie, record, total, quality, changed_ns, is_over, is_settled, is_unused };
            match &mut view {
                Some(view) => own.observe(&seen, &left.beyond(&used), clocks, view),
                None => own.begin(&seen, &left.beyond(&used)),
            }
            if record.flags & ENDED != 0 && is_settled {
                ended.push(cookie);
                own.forget(cookie);
                subscribers.values_mut().for_each(|subscriber| subscriber.keep_ended(&seen));
            }
        })?;
        delete(maps.sockets.fd().as_fd(), &ended);
        Ok((are_whole, is_waited_for))
    }

    /// Reads how long processes waited for answers.
    fn read_times(&mut self, maps: &Maps, own: &mut Subscriber) -> io::Result<()> {
        let Drain { histograms, timed, subscribers, .. } = self;
        let mut present = HashMap::with_capacity_and_hasher(timed.len(), RandomState::default());
        let mut quiet_ones = Vec::new();
        histograms.read(maps.latencies.fd().as_fd(), |process, now| {
            let (before, quiet) = timed.get(process).copied().unwrap_or_default();
            let news = now.beyond(&before);
            let is_quiet = news == Buckets::default();
            if is_quiet && quiet >= QUIET_READINGS {
                quiet_ones.push(*process);
                return;
            }
            present.insert(*process, (*now, if is_quiet { quiet + 1 } else { 0 }));
            if !is_quiet {
                own.add_times(process, &news);
                subscribers.values_mut().for_each(|subscriber| subscriber.add_times(process, &news));
            }
        })?;
        delete(maps.latencies.fd().as_fd(), &quiet_ones);
        *timed = present;
        Ok(())
    }

    fn read_losses(&mut self, maps: &Maps, own: &mut Subscriber) -> io::Result<()> {
        let Drain { losses, lost, subscribers, held, .. } = self;
        let has_room = *held < CAPACITY / 10 * 9;
        let mut over = Vec::new();
        let mut lose = |key: &LossKey, more: &Counts| {
            let reason = match key.why {
                LOSS_UNKNOWN => Unowned::NoHolder,
                LOSS_ANSWERED => Unowned::NoPorts,
                // There was no room for a record or an account.
                _ => Unowned::QueueFull,
            };
            own.lose(reason, key.netns, more);
            subscribers.values_mut().for_each(|subscriber| subscriber.lose(reason, key.netns, more));
        };
        losses.read(maps.losses.fd().as_fd(), |key, now| {
            if key.why == LOSS_REFUSED {
                if has_room {
                    over.push(*key);
                }
                return;
            }
            let (before, quiet) = lost.entry(*key).or_default();
            let more = now.beyond(before);
            *quiet = if more == Counts::default() { quiet.saturating_add(1) } else { 0 };
            *before = *now;
            lose(key, &more);
            if *quiet >= QUIET_READINGS {
                over.push(*key);
            }
        })?;
        for key in over {
            let last: Option<Counts> = take_out(maps.losses.fd().as_fd(), &key);
            if let Some((before, _)) = lost.remove(&key) {
                lose(&key, &last.unwrap_or_default().beyond(&before));
            }
        }
        Ok(())
    }
}

/// Credits an increment in the view of every subscriber.
fn credit(increment: &Increment, own: &mut Subscriber, others: &mut HashMap<u64, Subscriber, RandomState>) {
    if increment.counts != Counts::default() {
        own.credit(increment);
        others.values_mut().for_each(|other| other.credit(increment));
    }
}

/// What has been received and read, where so many bytes have not been read: packets in proportion.
fn without_unread(received: Way, unread: u64) -> Way {
    let bytes = received.bytes.saturating_sub(unread);
    let size = received.bytes.checked_div(received.packets).unwrap_or_default();
    let packets = (received.bytes - bytes).checked_div(size).unwrap_or_default();
    Way { bytes, packets: if bytes == 0 { 0 } else { received.packets.saturating_sub(packets) } }
}
