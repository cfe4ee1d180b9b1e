//! How much of what a socket has carried was credited, and to which process.
//!
//! What was credited belongs to the socket: when it changes hands, the next owner gets what is left of the socket's bytes,
//! however much the owner before was credited with.

use super::records::{Buckets, Counts, Process, ShareKey, Way};
use crate::model::Traffic;
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::hash::Hash;

/// How long received bytes may lie unread until they count for the socket's owner all the same: its program takes no notice
/// of them, or takes them in a way that no program in the kernel sees (splice(2), mapped memory).
const UNREAD_NS: u64 = 10_000_000_000;

/// No socket carries as many bytes between two readings: a figure that says so is wrong.
const IMPOSSIBLE_BYTES: u64 = 1 << 44;

/// So much room maps keep whatever is in them.
const SPARE_ENTRIES: usize = 4_096;

/// The accounts of all sockets.
#[derive(Default)]
pub(super) struct Accounts {
    sockets: HashMap<u64, SocketAccount, RandomState>,
    reading: u64,
    /// Figures that could not be.
    refused: u64,
}

/// The account of one socket.
#[derive(Default)]
pub(super) struct SocketAccount {
    /// Most sockets have one user.
    first: Option<User>,
    others: Vec<User>,
    /// What users who have left were credited with beyond what the kernel held as theirs.
    surplus: Counts,
    /// The bytes and packets of users whose accounts the kernel no longer keeps.
    closed: Counts,
    /// The highest total that was returned for the socket.
    total: Counts,
    /// The owner, and its part of what is in the record of the socket, as of the reading `recorded`.
    own: Option<(Process, Counts)>,
    /// The last reading in which the kernel had a record of the socket.
    recorded: u64,
    /// The version of the record when it was read last, if several processes have used the socket.
    pub(super) version: u32,
    /// The last reading in which the record was being changed, so that nobody's part of it is known.
    changing: u64,
    /// When its counts had changed last, in nanoseconds since boot.
    pub(super) changed_ns: u64,
    /// Bytes that no process has read, and since when they have been the same.
    unread: u64,
    unread_since_ns: u64,
}

#[derive(Clone, Copy)]
struct User {
    process: Process,
    /// What the kernel held apart as the user's own in periods that are over, and the last of these.
    settled: Counts,
    through: Option<u32>,
    /// The same with what it holds in other periods, as of the reading `shared`.
    share: Counts,
    shared: u64,
    /// The last reading in which there was such a period.
    kept: u64,
    /// The last reading in which the kernel had an entry of any.
    seen: u64,
    /// The last reading in which the record named it as the owner.
    owned: u64,
    credited: Counts,
}

impl Accounts {
    /// Begins a reading.
    pub(super) fn begin(&mut self) {
        self.reading += 1;
    }

    /// Takes in what the kernel holds apart for a process in a period, and whether that is over, so that it is to be deleted.
    /// Returns whether something of it may have to be credited, which [`Accounts::settle`] says after the records of this
    /// reading.
    pub(super) fn share(&mut self, key: &ShareKey, share: Counts, is_over: bool) -> bool {
        let Accounts { sockets, reading, refused } = self;
        let user = sockets.entry(key.cookie).or_default().user(key.owner);
        user.seen = *reading;
        if user.through.is_some_and(|through| key.period <= through) {
            // It was not deleted.
            return false;
        }
        let share = possible(share, refused);
        user.share = user.share_in(*reading).plus(&share);
        user.shared = *reading;
        if is_over {
            user.settled = user.settled.plus(&share);
            user.through = Some(key.period);
        } else {
            user.kept = *reading;
        }
        user.share.beyond(&user.credited) != Counts::default()
    }

    /// The account of a socket of which the kernel has a record.
    pub(super) fn recorded(&mut self, cookie: u64) -> &mut SocketAccount {
        let account = self.sockets.entry(cookie).or_default();
        account.recorded = self.reading;
        account
    }

    /// Takes in that the record of a socket is being changed. It is whole in another reading, and until then nothing of the
    /// socket is credited.
    pub(super) fn changing(&mut self, cookie: u64) {
        let reading = self.reading;
        self.recorded(cookie).changing = reading;
    }

    /// Whether it is so in this reading.
    pub(super) fn is_changing(&self, cookie: u64) -> bool {
        self.sockets.get(&cookie).is_some_and(|account| account.changing == self.reading)
    }

    /// Whether so many bytes have lain unread at a socket for so long that nobody need be waited for.
    pub(super) fn has_lain(&mut self, cookie: u64, unread: u64, now_ns: u64) -> bool {
        let account = self.recorded(cookie);
        if account.unread != unread {
            (account.unread, account.unread_since_ns) = (unread, now_ns);
        }
        unread != 0 && account.unread_since_ns.saturating_add(UNREAD_NS) < now_ns
    }

    /// Takes in that `own` is the owner's part of what a socket has carried, after the shares of this reading; returns
    /// what is to be credited to the owner.
    pub(super) fn own(&mut self, cookie: u64, owner: Process, own: Counts) -> Counts {
        let reading = self.reading;
        let account = self.recorded(cookie);
        account.own = Some((owner, own));
        account.user(owner).owned = reading;
        self.settle(cookie, owner)
    }

    /// What is to be credited to a process of what it has at a socket: never more than what the socket has carried beyond
    /// what was credited to all of its users.
    pub(super) fn settle(&mut self, cookie: u64, process: Process) -> Counts {
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
        let more = possible(user.part(own, *reading).beyond(&user.credited).at_most(&left), refused);
        user.credited = user.credited.plus(&more);
        more
    }

    /// Returns what has passed through a socket, of which so much is in its record to nobody else's account.
    ///
    /// It never falls: closed accounts stay part of it, and bytes that move from the record to an account between the two
    /// readings are missed by one reading only.
    pub(super) fn total(&mut self, cookie: u64, in_record: &Counts) -> Counts {
        let account = self.sockets.entry(cookie).or_default();
        let sum = account.closed.plus(in_record);
        let users = account.first.iter().chain(&account.others);
        let sum = users.fold(sum, |sum, user| sum.plus(&user.share_in(self.reading)));
        account.total = sum.at_least(&account.total);
        account.total
    }

    /// How many users a socket has had, as far as is known.
    pub(super) fn is_shared(&self, cookie: u64) -> bool {
        self.sockets.get(&cookie).is_some_and(|account| {
            account.others.iter().chain(&account.first).any(|user| user.has_share(self.reading))
        })
    }

    /// Closes, after a reading, the accounts of users of whom the kernel holds nothing apart any more. An owner, or who was it at
    /// the last reading, has part of what it was credited with in the record, or on its way from there to its account: it
    /// keeps that.
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
                let excess = user.credited.beyond(&user.settled);
                let is_owner = is_recorded && user.owned + 1 >= *reading;
                closed = closed.plus(&user.settled);
                unpaid = unpaid.plus(&user.settled.beyond(&user.credited));
                surplus = surplus.plus(if is_owner { &none } else { &excess });
                (user.settled, user.share) = (none, none);
                user.credited = if is_owner { excess } else { none };
                // An entry that could not be deleted is known by it.
                user.through = user.through.filter(|_| user.seen == *reading);
                is_owner || user.through.is_some()
            };
            if account.first.as_mut().is_some_and(|user| !stays(user)) {
                account.first = None;
            }
            account.others.retain_mut(&mut stays);
            // The first place is free for a new user only where there is no other.
            account.first = account.first.or_else(|| account.others.pop());
            (account.surplus, account.closed) = (surplus, closed);
            account.write_off(unpaid, *reading);
            is_recorded || account.first.is_some() || !account.others.is_empty()
        });
        let held = sockets.len();
        give_back(sockets, held);
    }

    /// How many figures that cannot be have been refused.
    pub(super) fn refused(&self) -> u64 {
        self.refused
    }
}

impl SocketAccount {
    /// Takes in that users have left who were not credited with all that the kernel held as theirs: others had been, and
    /// that is theirs for good.
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
            // It was put there in the line above, if it was not there.
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
    /// One that has nothing yet.
    fn of(process: Process) -> User {
        let none = Counts::default();
        User {
            process,
            settled: none,
            through: None,
            share: none,
            shared: 0,
            kept: 0,
            seen: 0,
            owned: 0,
            credited: none,
        }
    }

    /// What it has in its account, and in the record of the socket if it is the owner.
    fn part(&self, own: Option<(Process, Counts)>, reading: u64) -> Counts {
        let of_record =
            own.filter(|(owner, _)| *owner == self.process).map(|(_, own)| own).unwrap_or_default();
        self.share_in(reading).plus(&of_record)
    }

    fn share_in(&self, reading: u64) -> Counts {
        if self.shared == reading { self.share } else { self.settled }
    }

    /// Whether the kernel holds something apart as the user's own, or did.
    fn has_share(&self, reading: u64) -> bool {
        self.shared == reading || self.through.is_some()
    }
}

/// Gives back the room that a peak has left in a map: it would be held for ever, and walked over with every reading.
/// `needed` is how many entries there usually are.
pub(super) fn give_back<K: Eq + Hash, V>(map: &mut HashMap<K, V, RandomState>, needed: usize) {
    if map.capacity() > SPARE_ENTRIES.max(8 * needed) {
        map.shrink_to(2 * needed);
    }
}

/// Nothing in place of what cannot be.
fn possible(more: Counts, refused: &mut u64) -> Counts {
    if more.sent.bytes < IMPOSSIBLE_BYTES && more.received.bytes < IMPOSSIBLE_BYTES {
        return more;
    }
    *refused += 1;
    Counts::default()
}

impl Way {
    fn each(&self, other: &Way, join: fn(u64, u64) -> u64) -> Way {
        Way { bytes: join(self.bytes, other.bytes), packets: join(self.packets, other.packets) }
    }
}

impl Buckets {
    /// The sum of both.
    pub(super) fn plus(&self, other: &Buckets) -> Buckets {
        Buckets(std::array::from_fn(|at| self.0[at].wrapping_add(other.0[at])))
    }

    /// What these have more than the others.
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

    /// The sum of both.
    pub(super) fn plus(&self, other: &Counts) -> Counts {
        self.each(other, u64::wrapping_add)
    }

    /// What these have more than the others.
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
