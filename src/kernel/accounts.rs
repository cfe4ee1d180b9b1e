//! The accounts of sockets: the bytes that each process was credited with for a socket.
//!
//! Credited bytes belong to the socket. When the socket changes hands, the next owner gets the rest of the
//! socket's bytes, however many the previous owner was credited with.

use super::records::{Buckets, Counts, DirectionCounters, Process, ShareKey};
use crate::model::Traffic;
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::hash::Hash;

/// The time after which unread received bytes are credited to the socket's owner all the same. Its program
/// ignores them, or takes them in a way that no eBPF program sees (splice(2), mapped memory).
const UNREAD_TIMEOUT_NS: u64 = 10_000_000_000;

/// The number of bytes that no socket carries between two readings: a figure that reaches it is wrong.
const IMPOSSIBLE_BYTES: u64 = 1 << 44;

/// The number of entries that maps may keep room for, however few they hold.
const SPARE_ENTRIES: usize = 4_096;

/// The accounts of all sockets.
#[derive(Default)]
pub(super) struct Accounts {
    sockets: HashMap<u64, SocketAccount, RandomState>,
    reading: u64,
    /// The number of impossible figures.
    refused: u64,
}

/// The account of one socket.
#[derive(Default)]
pub(super) struct SocketAccount {
    /// Most sockets have one user.
    first: Option<User>,
    others: Vec<User>,
    /// The bytes that closed users were credited with beyond their shares.
    surplus: Counts,
    /// The bytes and packets of users whose shares the kernel no longer keeps.
    closed: Counts,
    /// The highest total that was returned for the socket.
    total: Counts,
    /// The owner and its part of the socket's record, as of the reading `recorded`.
    own: Option<(Process, Counts)>,
    /// The last reading in which the kernel had a record of the socket.
    recorded: u64,
    /// The version of the record at the last reading, if several processes have used the socket.
    pub(super) version: u32,
    /// The last reading in which an eBPF program was changing the record, so that no process's part of it is
    /// known.
    changing: u64,
    /// The time of the last change of its counts, in nanoseconds since boot.
    pub(super) changed_ns: u64,
    /// The bytes that no process has read, and the time since which their number has been the same.
    unread: u64,
    unread_since_ns: u64,
}

#[derive(Clone, Copy)]
struct User {
    process: Process,
    /// The sum of the user's shares in periods that are over, and the last of these periods.
    in_past_periods: Counts,
    through: Option<u32>,
    /// That sum plus the user's shares in other periods, as of the reading `shared`.
    share: Counts,
    shared: u64,
    /// The last reading with a share in a period that was not over.
    kept: u64,
    /// The last reading with a share in any period.
    seen: u64,
    /// The last reading in which the record named the user as the owner.
    last_as_owner: u64,
    credited: Counts,
}

impl Accounts {
    /// Begins a reading.
    pub(super) fn begin(&mut self) {
        self.reading += 1;
    }

    /// Records the share of a process in a period. If the period is over, the caller deletes the share.
    /// Returns true if part of the share may have to be credited. [`Accounts::credit`] decides that after the
    /// records of this reading.
    pub(super) fn share(&mut self, key: &ShareKey, share: Counts, is_over: bool) -> bool {
        let Accounts { sockets, reading, refused } = self;
        let user = sockets.entry(key.cookie).or_default().user(key.owner);
        user.seen = *reading;
        if user.through.is_some_and(|through| key.period <= through) {
            // The deletion of this share failed.
            return false;
        }
        let share = plausible(share, refused);
        user.share = user.share_in(*reading).plus(&share);
        user.shared = *reading;
        if is_over {
            user.in_past_periods = user.in_past_periods.plus(&share);
            user.through = Some(key.period);
        } else {
            user.kept = *reading;
        }
        user.share.beyond(&user.credited) != Counts::default()
    }

    /// Returns the account of a socket of which the kernel has a record.
    pub(super) fn recorded(&mut self, cookie: u64) -> &mut SocketAccount {
        let account = self.sockets.entry(cookie).or_default();
        account.recorded = self.reading;
        account
    }

    /// Records that an eBPF program is changing the record of a socket. A later reading finds the record
    /// whole. Until then no bytes of the socket are credited.
    pub(super) fn changing(&mut self, cookie: u64) {
        let reading = self.reading;
        self.recorded(cookie).changing = reading;
    }

    /// Returns true if the record is being changed in this reading.
    pub(super) fn is_changing(&self, cookie: u64) -> bool {
        self.sockets.get(&cookie).is_some_and(|account| account.changing == self.reading)
    }

    /// Returns true if the same number of bytes has been unread at a socket for more than
    /// `UNREAD_TIMEOUT_NS`.
    pub(super) fn is_unread_for_long(&mut self, cookie: u64, unread: u64, now_ns: u64) -> bool {
        let account = self.recorded(cookie);
        if account.unread != unread {
            (account.unread, account.unread_since_ns) = (unread, now_ns);
        }
        unread != 0 && account.unread_since_ns.saturating_add(UNREAD_TIMEOUT_NS) < now_ns
    }

    /// Records the owner's part of the socket's bytes, after the shares of this reading. Returns the bytes to
    /// credit to the owner.
    pub(super) fn own(&mut self, cookie: u64, owner: Process, own: Counts) -> Counts {
        let reading = self.reading;
        let account = self.recorded(cookie);
        account.own = Some((owner, own));
        account.user(owner).last_as_owner = reading;
        self.credit(cookie, owner)
    }

    /// Returns the bytes of a socket to credit to a process: at most the bytes that the socket has carried
    /// beyond those that were credited to all of its users.
    pub(super) fn credit(&mut self, cookie: u64, process: Process) -> Counts {
        let Accounts { sockets, reading, refused } = self;
        let account = sockets.entry(cookie).or_default();
        let own = account.own.filter(|_| account.recorded == *reading);
        let in_record = own.map(|(_, own)| own).unwrap_or_default();
        account.user(process);
        let users = || account.first.iter().chain(&account.others);
        let there = users().fold(in_record, |sum, user| sum.plus(&user.share_in(*reading)));
        let credited = users().fold(account.surplus, |sum, user| sum.plus(&user.credited));
        let left = there.beyond(&credited);
        let user = account.user(process);
        let more = plausible(user.part(own, *reading).beyond(&user.credited).at_most(&left), refused);
        user.credited = user.credited.plus(&more);
        more
    }

    /// Returns the bytes and packets that have passed through a socket. `in_record` is the part of its record
    /// that is in no user's share.
    ///
    /// The total never falls. Closed accounts stay part of it. Bytes that move from the record to a share
    /// between the read of the shares and that of the records are missed by one reading only.
    pub(super) fn total(&mut self, cookie: u64, in_record: &Counts) -> Counts {
        let account = self.sockets.entry(cookie).or_default();
        let sum = account.closed.plus(in_record);
        let users = account.first.iter().chain(&account.others);
        let sum = users.fold(sum, |sum, user| sum.plus(&user.share_in(self.reading)));
        account.total = sum.at_least(&account.total);
        account.total
    }

    /// Returns true if the kernel holds or held a share of any user of the socket.
    pub(super) fn is_shared(&self, cookie: u64) -> bool {
        self.sockets.get(&cookie).is_some_and(|account| {
            account.others.iter().chain(&account.first).any(|user| user.has_share(self.reading))
        })
    }

    /// Closes, after a reading, the accounts of users that have no share in the kernel any more. Part of the
    /// bytes that an owner was credited with is in the record, or on its way from there to the owner's share.
    /// Therefore the present owner and the owner at the last reading keep their credit.
    pub(super) fn close(&mut self) {
        let Accounts { sockets, reading, .. } = self;
        sockets.retain(|_, account| {
            let is_recorded = account.recorded == *reading;
            let is_changing = account.changing == *reading;
            let (mut surplus, mut unpaid, mut closed) = (account.surplus, Counts::default(), account.closed);
            let mut stays = |user: &mut User| {
                if !user.has_share(*reading) {
                    // An owner's part is in the record.
                    return is_recorded;
                }
                if user.kept == *reading || is_changing {
                    return true;
                }
                let none = Counts::default();
                let excess = user.credited.beyond(&user.in_past_periods);
                let is_owner = is_recorded && user.last_as_owner + 1 >= *reading;
                closed = closed.plus(&user.in_past_periods);
                unpaid = unpaid.plus(&user.in_past_periods.beyond(&user.credited));
                surplus = surplus.plus(if is_owner { &none } else { &excess });
                (user.in_past_periods, user.share) = (none, none);
                user.credited = if is_owner { excess } else { none };
                // The period identifies a share whose deletion failed.
                user.through = user.through.filter(|_| user.seen == *reading);
                is_owner || user.through.is_some()
            };
            if account.first.as_mut().is_some_and(|user| !stays(user)) {
                account.first = None;
            }
            account.others.retain_mut(&mut stays);
            // `first` may be empty only if there is no other user.
            account.first = account.first.or_else(|| account.others.pop());
            (account.surplus, account.closed) = (surplus, closed);
            account.write_off(unpaid, *reading);
            is_recorded || account.first.is_some() || !account.others.is_empty()
        });
        let held = sockets.len();
        shrink_spare(sockets, held);
    }

    /// The number of impossible figures that were refused.
    pub(super) fn refused(&self) -> u64 {
        self.refused
    }
}

impl SocketAccount {
    /// Writes off bytes of closed users that were never credited to them. Other users were credited with
    /// these bytes and keep them.
    fn write_off(&mut self, mut unpaid: Counts, reading: u64) {
        let own = self.own.filter(|_| self.recorded == reading);
        let paid = unpaid.at_most(&self.surplus);
        (self.surplus, unpaid) = (self.surplus.beyond(&paid), unpaid.beyond(&paid));
        for user in self.first.iter_mut().chain(&mut self.others) {
            let paid = unpaid.at_most(&user.credited.beyond(&user.part(own, reading)));
            (user.credited, unpaid) = (user.credited.beyond(&paid), unpaid.beyond(&paid));
        }
    }

    fn user(&mut self, process: Process) -> &mut User {
        let new = User::of(process);
        if self.first.get_or_insert(new).process == process {
            // The line above has inserted it if it was missing.
            return self.first.get_or_insert(new);
        }
        let place = self.others.iter().position(|user| user.process == process).unwrap_or_else(|| {
            self.others.push(new);
            self.others.len() - 1
        });
        &mut self.others[place]
    }
}

impl User {
    /// Returns a user without bytes.
    fn of(process: Process) -> User {
        let none = Counts::default();
        User {
            process,
            in_past_periods: none,
            through: None,
            share: none,
            shared: 0,
            kept: 0,
            seen: 0,
            last_as_owner: 0,
            credited: none,
        }
    }

    /// The bytes in its shares, and in the socket's record if it is the owner.
    fn part(&self, own: Option<(Process, Counts)>, reading: u64) -> Counts {
        let of_record =
            own.filter(|(owner, _)| *owner == self.process).map(|(_, own)| own).unwrap_or_default();
        self.share_in(reading).plus(&of_record)
    }

    fn share_in(&self, reading: u64) -> Counts {
        if self.shared == reading { self.share } else { self.in_past_periods }
    }

    /// Returns true if the kernel holds or held a share of the user.
    fn has_share(&self, reading: u64) -> bool {
        self.shared == reading || self.through.is_some()
    }
}

/// Releases the room that a peak has left in a map. Otherwise the room would stay allocated for ever, and
/// every reading would iterate over it. `needed` is the usual number of entries.
pub(super) fn shrink_spare<K: Eq + Hash, V>(map: &mut HashMap<K, V, RandomState>, needed: usize) {
    if map.capacity() > SPARE_ENTRIES.max(8 * needed) {
        map.shrink_to(2 * needed);
    }
}

/// Replaces impossible counts by zero and counts them.
fn plausible(more: Counts, refused: &mut u64) -> Counts {
    if more.sent.bytes < IMPOSSIBLE_BYTES && more.received.bytes < IMPOSSIBLE_BYTES {
        return more;
    }
    *refused += 1;
    Counts::default()
}

impl DirectionCounters {
    fn each(&self, other: &DirectionCounters, join: fn(u64, u64) -> u64) -> DirectionCounters {
        DirectionCounters { bytes: join(self.bytes, other.bytes), packets: join(self.packets, other.packets) }
    }
}

impl Buckets {
    /// Returns the sum of both.
    pub(super) fn plus(&self, other: &Buckets) -> Buckets {
        Buckets(std::array::from_fn(|at| self.0[at].wrapping_add(other.0[at])))
    }

    /// Returns the excess over `other`, at least 0 for each bucket.
    pub(super) fn beyond(&self, other: &Buckets) -> Buckets {
        Buckets(std::array::from_fn(|at| self.0[at].saturating_sub(other.0[at])))
    }
}

impl Counts {
    fn each(&self, other: &Counts, join: fn(u64, u64) -> u64) -> Counts {
        Counts {
            sent: self.sent.each(&other.sent, join),
            received: self.received.each(&other.received, join),
        }
    }

    /// Returns the sum of both.
    pub(super) fn plus(&self, other: &Counts) -> Counts {
        self.each(other, u64::wrapping_add)
    }

    /// Returns the excess over `other`, at least 0 for each number.
    pub(super) fn beyond(&self, other: &Counts) -> Counts {
        self.each(other, u64::saturating_sub)
    }

    fn at_most(&self, other: &Counts) -> Counts {
        self.each(other, u64::min)
    }

    fn at_least(&self, other: &Counts) -> Counts {
        self.each(other, u64::max)
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

#[cfg(test)]
#[path = "accounts_tests.rs"]
mod tests;
