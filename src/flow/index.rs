//! A hash index from keys to slots of the flow table. It grows in small steps and never reads the flows to do
//! so.

use crate::model::FlowKey;
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use std::hash::{BuildHasher, Hasher};

/// The number of parts of the index. Each part grows on its own, so that at a million flows no packet waits
/// for more than some 16,000 entries to be moved.
const PARTS: usize = 64;

/// The hash of a key under one table's seed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct KeyHash(u32);

impl KeyHash {
    /// Expands the hash to 64 bits. hashbrown takes the bucket from the low bits and its tag from the top
    /// seven. With the 32 bits in both halves these overlap neither each other nor the number of the part in
    /// indexes of up to 2^25 buckets.
    #[inline]
    fn spread(self) -> u64 {
        u64::from(self.0) << 32 | u64::from(self.0)
    }

    /// The part of the index that holds the key.
    #[inline]
    fn part(self) -> usize {
        (self.0 >> 19) as usize % PARTS
    }
}

/// An entry of the index: a flow's slot and its hash. With the hash beside the slot a wrong candidate is
/// almost always rejected without reading its flow, which in a large table would miss every cache.
#[derive(Clone, Copy)]
struct IndexEntry {
    slot: u32,
    hash: KeyHash,
}

/// A hash index from keys to slots. It is seeded at random, so that an attacker cannot send keys that
/// collide.
///
/// Its memory grows as it fills. Hashes are spread over the whole index, so that an index allocated for a
/// million flows would be fully resident when it holds a hundredth of them.
pub(super) struct FlowIndex {
    parts: [HashTable<IndexEntry>; PARTS],
    seed: RandomState,
}

impl FlowIndex {
    /// Creates an empty index.
    pub fn new() -> FlowIndex {
        FlowIndex { parts: std::array::from_fn(|_| HashTable::new()), seed: RandomState::default() }
    }

    /// Returns the key's hash.
    #[inline]
    pub fn hash(&self, key: &FlowKey) -> KeyHash {
        let hash = self.long_hash(key);
        KeyHash((hash >> 32) as u32 ^ hash as u32)
    }

    /// Returns a 64-bit hash of the key, which distinguishes it from other keys where the key itself is not
    /// kept.
    #[inline]
    pub fn long_hash(&self, key: &FlowKey) -> u64 {
        // The derived `Hash` would feed each array with its length, and each port on its own.
        let mut hasher = self.seed.build_hasher();
        hasher.write_u128(u128::from_ne_bytes(*key.local.address.bytes()));
        hasher.write_u128(u128::from_ne_bytes(*key.remote.address.bytes()));
        let ports = u64::from(key.local.port) << 16 | u64::from(key.remote.port);
        let namespace = u64::from(key.namespace.0);
        hasher.write_u64(namespace << 40 | u64::from(key.protocol.0) << 32 | ports);
        hasher.finish()
    }

    /// Returns the slot under this hash for which `is_it` returns true.
    #[inline]
    pub fn find(&self, hash: KeyHash, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        self.parts[hash.part()]
            .find(hash.spread(), |entry| entry.hash == hash && is_it(entry.slot))
            .map(|entry| entry.slot)
    }

    /// Adds a slot whose key is not in the index.
    #[inline]
    pub fn insert(&mut self, hash: KeyHash, slot: u32) {
        let part = &mut self.parts[hash.part()];
        part.insert_unique(hash.spread(), IndexEntry { slot, hash }, |entry| entry.hash.spread());
    }

    /// Removes a slot, if it is in the index.
    #[inline]
    pub fn remove(&mut self, hash: KeyHash, slot: u32) {
        let part = &mut self.parts[hash.part()];
        if let Ok(entry) = part.find_entry(hash.spread(), |entry| entry.slot == slot) {
            entry.remove();
        }
    }

    /// The number of slots in the index.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.parts.iter().map(HashTable::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Address, Endpoint, Namespace, Protocol};
    use std::collections::HashSet;

    fn key(number: u16) -> FlowKey {
        FlowKey {
            local: Endpoint::new(Address::v4([10, 0, 0, 1]), number),
            remote: Endpoint::new(Address::v4([10, 0, 0, 2]), 443),
            protocol: Protocol::TCP,
            namespace: Namespace::HOME,
        }
    }

    #[test]
    fn finds_what_it_holds_and_nothing_else() {
        let mut index = FlowIndex::new();
        for slot in 0..100 {
            index.insert(index.hash(&key(slot)), u32::from(slot));
        }
        for slot in 0..100 {
            let wanted = u32::from(slot);
            assert_eq!(index.find(index.hash(&key(slot)), |found| found == wanted), Some(wanted));
            assert_eq!(index.find(index.hash(&key(slot + 100)), |_| true), None);
        }
        index.remove(index.hash(&key(7)), 7);
        index.remove(index.hash(&key(8)), 9);
        assert_eq!(index.find(index.hash(&key(7)), |_| true), None);
        assert_eq!(index.find(index.hash(&key(8)), |_| true), Some(8));
        assert_eq!(index.len(), 99);
        assert!(
            index.parts.iter().filter(|part| !part.is_empty()).count() > PARTS / 2,
            "hashes fall everywhere"
        );
    }

    #[test]
    fn every_part_of_a_key_counts_in_its_hash() {
        let index = FlowIndex::new();
        let mut keys = vec![key(1)];
        let mut with = |change: fn(&mut FlowKey)| {
            let mut changed = key(1);
            change(&mut changed);
            keys.push(changed);
        };
        with(|key| key.local.port = 2);
        with(|key| key.remote.port = 2);
        with(|key| key.local.address = Address::v4([10, 0, 0, 3]));
        with(|key| key.remote.address = Address::v4([10, 0, 0, 3]));
        with(|key| key.local.address = Address::v6([0xfe; 16]));
        with(|key| key.protocol = Protocol::UDP);
        with(|key| key.namespace = Namespace(1));
        with(|key| std::mem::swap(&mut key.local, &mut key.remote));
        let hashes: HashSet<u32> = keys.iter().map(|key| index.hash(key).0).collect();
        assert_eq!(hashes.len(), keys.len());
    }

    #[test]
    fn two_tables_hash_differently() {
        let (one, other) = (FlowIndex::new(), FlowIndex::new());
        assert!((0..100).any(|number| one.hash(&key(number)) != other.hash(&key(number))));
    }
}
