//! The bytes credited to each process since the last update. The capture thread fills the ledger once a
//! batch, and the update drains it.

use crate::model::{Connections, Identity, Owner, ProcId, Quality, Traffic, Unowned};
use crate::sync::{Mutex, MutexGuard};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Limit of the accounts between two drains. It is reached only if no update runs for a long time; the bytes
/// of further processes are counted as unowned.
const ACCOUNT_LIMIT: usize = 65_536;

/// Limit of the recorded removed processes. Late bytes of a recorded one are not taken for those of a new
/// process.
const ENDED_LIMIT: usize = 65_536;

/// Time for which a removed process stays recorded. It is longer than the possible delay of a packet, of the
/// lookup of its owner, and of the owner of a connection that has left the flow table (80 s). A flow or a
/// socket that outlives its owner brings bytes later still; see [`LedgerContents::was_released`].
const ENDED_KEPT: Duration = Duration::from_secs(120);

/// Capacity that is kept for removed processes if fewer are recorded.
const MIN_ENDED_CAPACITY: usize = 1024;

/// The bytes and connections credited to one process.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// Bytes and packets since the last drain.
    pub traffic: Traffic,
    /// The bytes of `traffic`, of both directions, by the quality of the owner.
    pub owned: [u64; Quality::COUNT],
    /// The process's connections since the last drain, if they are counted.
    pub connections: Option<Box<Connections>>,
    /// Identity of the process at the time when it was found to own a flow; the process may have ended by the
    /// next sample.
    pub identity: Option<Arc<Identity>>,
}

impl Account {
    /// Adds the contents of another account of the same process.
    pub fn merge(&mut self, other: Account) {
        self.traffic += other.traffic;
        self.owned.iter_mut().zip(other.owned).for_each(|(sum, more)| *sum += more);
        add_connections(&mut self.connections, other.connections);
        self.identity = self.identity.take().or(other.identity);
    }

    /// Returns the part of the traffic whose owner is not exact, in bytes of both directions.
    pub fn uncertain_bytes(&self) -> u64 {
        self.owned.iter().sum::<u64>() - self.owned[Quality::Exact as usize]
    }
}

/// Adds the connection counts of a process to a sum.
pub fn add_connections(sum: &mut Option<Box<Connections>>, more: Option<Box<Connections>>) {
    match (sum, more) {
        (Some(sum), Some(more)) => **sum += *more,
        (sum @ None, more) => *sum = more,
        (Some(_), None) => {}
    }
}

/// Totals over the life of the session, in bytes of both directions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LedgerTotals {
    /// Bytes with an owner, by the owner's quality.
    pub owned: [u64; Quality::COUNT],
    /// Bytes without an owner, by reason. They move to `owned` if an owner is found later.
    pub unowned: [u64; Unowned::COUNT],
}

/// The ledger, shared by the capture thread, the resolver and the update.
#[derive(Default)]
pub struct Ledger {
    books: Mutex<LedgerContents>,
}

/// The ledger's contents while it is locked.
#[derive(Default)]
pub struct LedgerContents {
    accounts: HashMap<ProcId, Account, foldhash::fast::RandomState>,
    ended: HashSet<ProcId, foldhash::fast::RandomState>,
    ended_order: VecDeque<(Instant, ProcId)>,
    /// The latest start of a process that is no longer in `ended`.
    released_through: Option<u64>,
    totals: LedgerTotals,
}

impl Ledger {
    /// Locks the ledger. Callers hold the lock for a whole batch.
    pub fn lock(&self) -> MutexGuard<'_, LedgerContents> {
        self.books.lock()
    }
}

impl LedgerContents {
    /// Credits traffic to an owner. Returns true if the owner is alive as far as the update knows. Otherwise
    /// the bytes are counted under [`Unowned::OwnerEnded`].
    pub fn credit(&mut self, owner: &Owner, traffic: Traffic) -> bool {
        if self.ended.contains(&owner.process) {
            self.count_unowned(Unowned::OwnerEnded, traffic.bytes());
            return false;
        }
        if self.accounts.len() >= ACCOUNT_LIMIT && !self.accounts.contains_key(&owner.process) {
            self.count_unowned(Unowned::QueueFull, traffic.bytes());
            return true;
        }
        let account = self.accounts.entry(owner.process).or_default();
        account.traffic += traffic;
        account.owned[owner.quality as usize] += traffic.bytes();
        self.totals.owned[owner.quality as usize] += traffic.bytes();
        true
    }

    /// Returns the connection counts of a process; `None` if it has ended, or if there are too many accounts.
    pub fn connections(&mut self, process: ProcId) -> Option<&mut Connections> {
        let is_new = !self.accounts.contains_key(&process);
        if self.ended.contains(&process) || is_new && self.accounts.len() >= ACCOUNT_LIMIT {
            return None;
        }
        Some(self.accounts.entry(process).or_default().connections.get_or_insert_default())
    }

    /// Records the identity of a process before the process can disappear.
    pub fn set_identity(&mut self, process: ProcId, identity: Arc<Identity>) {
        if self.accounts.len() < ACCOUNT_LIMIT && !self.ended.contains(&process) {
            self.accounts.entry(process).or_default().identity = Some(identity);
        }
    }

    /// Counts bytes without an owner.
    pub fn count_unowned(&mut self, reason: Unowned, bytes: u64) {
        self.totals.unowned[reason as usize] += bytes;
    }

    /// Subtracts bytes that were counted without an owner, because an owner was found or the reason has
    /// changed.
    pub fn uncount_unowned(&mut self, reason: Unowned, bytes: u64) {
        let total = &mut self.totals.unowned[reason as usize];
        *total = total.saturating_sub(bytes);
    }

    /// Takes all accounts, leaving an empty ledger.
    pub fn drain(&mut self) -> impl Iterator<Item = (ProcId, Account)> + use<> {
        std::mem::take(&mut self.accounts).into_iter()
    }

    /// Records that a process was delivered as removed: no more bytes may be credited to it.
    pub fn close(&mut self, process: ProcId, now: Instant) {
        if self.ended.insert(process) {
            self.ended_order.push_back((now, process));
        }
        let is_old = |since: Instant| now.saturating_duration_since(since) > ENDED_KEPT;
        while let Some(&(since, oldest)) = self.ended_order.front()
            && (is_old(since) || self.ended_order.len() > ENDED_LIMIT)
        {
            self.ended_order.pop_front();
            self.ended.remove(&oldest);
            self.released_through = self.released_through.max(Some(oldest.start_ticks));
        }
        // A burst leaves more capacity than is needed.
        let (held, room) = (self.ended.len(), self.ended_order.capacity());
        if room > MIN_ENDED_CAPACITY && held < room / 4 {
            self.ended_order.shrink_to(MIN_ENDED_CAPACITY.max(2 * held));
            self.ended.shrink_to(MIN_ENDED_CAPACITY.max(2 * held));
        }
    }

    /// Returns true if a process is so old that it may have been delivered as removed, and this record been
    /// released since.
    pub fn was_released(&self, process: ProcId) -> bool {
        self.released_through >= Some(process.start_ticks)
    }

    /// Takes back the bytes credited to a process that had been delivered as removed long before. Records it
    /// as removed again, so that the owner of later bytes is looked up.
    pub fn revoke(&mut self, process: ProcId, account: &Account, now: Instant) {
        for (total, bytes) in self.totals.owned.iter_mut().zip(account.owned) {
            *total = total.saturating_sub(bytes);
        }
        self.count_unowned(Unowned::OwnerEnded, account.owned.iter().sum());
        self.close(process, now);
    }

    /// Returns the totals over the life of the session.
    pub fn totals(&self) -> LedgerTotals {
        self.totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(pid: i32, quality: Quality) -> Owner {
        Owner { process: ProcId { pid, start_ticks: 7 }, quality }
    }

    fn sent(bytes: u64) -> Traffic {
        Traffic { send_bytes: bytes, send_packets: 1, ..Traffic::default() }
    }

    #[test]
    fn credits_add_up_and_are_drained_once() {
        let ledger = Ledger::default();
        let mut books = ledger.lock();
        assert!(books.credit(&owner(1, Quality::Exact), sent(100)));
        assert!(books.credit(&owner(1, Quality::Shared), sent(10)));
        let drained: Vec<_> = books.drain().collect();
        assert_eq!(drained.len(), 1);
        assert_eq!(drained[0].1.traffic, Traffic { send_bytes: 110, send_packets: 2, ..Traffic::default() });
        assert_eq!(drained[0].1.uncertain_bytes(), 10);
        assert_eq!(books.drain().count(), 0);
        assert_eq!(books.totals().owned, [100, 10, 0]);
    }

    #[test]
    fn a_removed_process_gets_no_more_bytes_but_a_new_one_with_its_pid_does() {
        let ledger = Ledger::default();
        let mut books = ledger.lock();
        let old = owner(1, Quality::Exact);
        books.close(old.process, Instant::now());
        assert!(!books.credit(&old, sent(5)));
        books.set_identity(old.process, Arc::default());
        assert_eq!(books.drain().count(), 0);
        assert_eq!(books.totals().unowned[Unowned::OwnerEnded as usize], 5);
        let new = Owner { process: ProcId { pid: 1, start_ticks: 8 }, quality: Quality::Exact };
        assert!(books.credit(&new, sent(5)));
    }

    #[test]
    fn the_ledger_is_bounded() {
        let ledger = Ledger::default();
        let mut books = ledger.lock();
        for pid in 0..ACCOUNT_LIMIT as i32 + 10 {
            books.credit(&owner(pid, Quality::Exact), sent(1));
            books.close(ProcId { pid, start_ticks: 9 }, Instant::now());
        }
        assert_eq!(books.totals().unowned[Unowned::QueueFull as usize], 10);
        assert_eq!(books.ended.len(), ENDED_LIMIT);
        assert_eq!(books.drain().count(), ACCOUNT_LIMIT);
    }

    #[test]
    fn a_removed_process_is_recorded_for_as_long_as_its_bytes_may_be_late() {
        let ledger = Ledger::default();
        let mut books = ledger.lock();
        let began = Instant::now();
        let process = |number: i32| ProcId { pid: number, start_ticks: number as u64 };
        for number in 0..10_000 {
            books.close(process(number), began);
        }
        books.close(process(20_000), began + ENDED_KEPT);
        assert!(!books.credit(&owner_of(process(0)), sent(1)));
        assert!(!books.was_released(process(0)));
        books.close(process(20_001), began + ENDED_KEPT + Duration::from_secs(1));
        assert_eq!((books.ended.len(), books.ended_order.len()), (2, 2));
        assert!(books.was_released(process(0)) && books.was_released(process(9_999)));
        assert!(!books.was_released(process(20_000)));
        let room = books.ended.capacity().max(books.ended_order.capacity());
        assert!(room <= 2 * MIN_ENDED_CAPACITY, "{room}");
    }

    #[test]
    fn what_is_revoked_has_no_owner() {
        let ledger = Ledger::default();
        let mut books = ledger.lock();
        let process = ProcId { pid: 1, start_ticks: 7 };
        books.credit(&owner(1, Quality::Exact), sent(100));
        books.credit(&owner(1, Quality::Guessed), sent(10));
        let (_, account) = books.drain().next().unwrap();
        books.revoke(process, &account, Instant::now());
        assert_eq!(
            (books.totals().owned, books.totals().unowned[Unowned::OwnerEnded as usize]),
            ([0; 3], 110)
        );
        assert!(!books.credit(&owner_of(process), sent(1)));
    }

    fn owner_of(process: ProcId) -> Owner {
        Owner { process, quality: Quality::Exact }
    }
}
