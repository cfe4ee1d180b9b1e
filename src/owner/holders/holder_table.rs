//! A bounded table of the processes that were seen to hold sockets. Its entries only suggest where to search.

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use std::hash::BuildHasher;

/// One descriptor of one process that refers to a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::owner) struct Holding {
    pub inode: u64,
    pub pid: i32,
    /// The number of the descriptor, by which the holding is verified.
    pub descriptor: i32,
}

/// The limit of pairs of socket and process: 16 bytes each and 1 more of the table, at most 8.5 MiB.
pub(in crate::owner) const LIMIT: usize = 1 << 18;

/// The limit of processes for one socket. If a socket has more holders, those with the lowest pids are left
/// out, because the youngest is wanted.
pub(in crate::owner) const HOLDERS: usize = 64;

/// The table. All entries of one socket have the same hash.
#[derive(Default)]
pub(in crate::owner) struct HolderTable {
    entries: HashTable<Holding>,
    hasher: RandomState,
    forgotten: u64,
}

impl HolderTable {
    /// Records a holding. A full table only takes a `wanted` one.
    pub fn record(&mut self, holding: Holding, wanted: impl FnOnce() -> bool) {
        let hash = self.hasher.hash_one(holding.inode);
        let is_full = self.is_full();
        let mut count = 0;
        let mut lowest: Option<&mut Holding> = None;
        for entry in self.entries.iter_hash_mut(hash).filter(|entry| entry.inode == holding.inode) {
            if entry.pid == holding.pid {
                entry.descriptor = holding.descriptor;
                return;
            }
            count += 1;
            if lowest.as_ref().is_none_or(|lowest| entry.pid < lowest.pid) {
                lowest = Some(entry);
            }
        }
        match lowest {
            Some(lowest) if count >= HOLDERS => {
                self.forgotten += 1;
                if lowest.pid < holding.pid {
                    *lowest = holding;
                }
            }
            _ if is_full && !wanted() => self.forgotten += 1,
            _ => {
                self.entries.insert_unique(hash, holding, |entry| self.hasher.hash_one(entry.inode));
            }
        }
    }

    /// Adds the known holdings of a socket to `found`.
    pub fn of(&self, inode: u64, found: &mut Vec<Holding>) {
        let entries = self.entries.iter_hash(self.hasher.hash_one(inode));
        found.extend(entries.filter(|entry| entry.inode == inode));
    }

    /// Removes one holding that has turned out to have ended.
    pub fn remove(&mut self, holding: &Holding) {
        let hash = self.hasher.hash_one(holding.inode);
        if let Ok(entry) = self.entries.find_entry(hash, |entry| entry == holding) {
            entry.remove();
        }
    }

    /// Removes the holdings of processes that have ended.
    pub fn retain(&mut self, is_alive: impl Fn(i32) -> bool) {
        self.entries.retain(|entry| is_alive(entry.pid));
    }

    /// Evicts all holdings because the table is full.
    pub fn evict(&mut self) {
        self.forgotten += self.entries.len() as u64;
        self.entries.clear();
    }

    /// Removes all holdings before a new scan.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Returns true if the table only takes wanted holdings.
    pub fn is_full(&self) -> bool {
        self.entries.len() >= LIMIT
    }

    /// The number of holdings.
    pub fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// The number of holdings that were evicted or left out because of a limit.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pids(holders: &HolderTable, inode: u64) -> Vec<i32> {
        let mut found = Vec::new();
        holders.of(inode, &mut found);
        let mut pids: Vec<i32> = found.iter().map(|holding| holding.pid).collect();
        pids.sort_unstable();
        pids
    }

    #[test]
    fn a_process_is_remembered_once_for_a_socket() {
        let mut holders = HolderTable::default();
        let holding = Holding { inode: 5, pid: 10, descriptor: 3 };
        holders.record(holding, || false);
        holders.record(Holding { descriptor: 4, ..holding }, || false);
        holders.record(Holding { pid: 11, ..holding }, || false);
        holders.record(Holding { inode: 6, ..holding }, || false);
        assert_eq!((pids(&holders, 5), pids(&holders, 6)), (vec![10, 11], vec![10]));
        holders.remove(&holding);
        assert_eq!(pids(&holders, 5), [10, 11], "the descriptor has changed since");
        holders.remove(&Holding { descriptor: 4, ..holding });
        assert_eq!(pids(&holders, 5), [11]);
        holders.retain(|pid| pid != 11);
        assert_eq!((pids(&holders, 5), pids(&holders, 6)), (vec![], vec![10]));
    }

    #[test]
    fn of_a_crowd_the_highest_pids_stay() {
        let mut holders = HolderTable::default();
        for pid in (1..=200).rev().chain(201..=300) {
            holders.record(Holding { inode: 7, pid, descriptor: 0 }, || true);
        }
        assert_eq!(pids(&holders, 7), (301 - HOLDERS as i32..=300).collect::<Vec<_>>());
        assert_eq!(holders.forgotten(), 300 - HOLDERS as u64);
    }

    #[test]
    fn a_full_table_takes_only_what_is_wanted() {
        let mut holders = HolderTable::default();
        for inode in 0..LIMIT as u64 + 10 {
            holders.record(Holding { inode, pid: 1, descriptor: 0 }, || false);
        }
        assert!(holders.is_full());
        assert_eq!(holders.forgotten(), 10);
        let late = LIMIT as u64 + 5;
        assert!(pids(&holders, late).is_empty());
        holders.record(Holding { inode: late, pid: 1, descriptor: 0 }, || true);
        assert_eq!(pids(&holders, late), [1]);
        holders.evict();
        assert_eq!(holders.forgotten(), 11 + LIMIT as u64);
    }
}
