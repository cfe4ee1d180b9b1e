//! A map with a capacity, a rule for the case that it is full, and a count of what was lost by that rule.

use foldhash::fast::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// The rule by which a full map treats a new key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Eviction {
    /// All entries are evicted: for caches whose entries cost little to find again.
    All,
    /// The entry that was inserted first is evicted.
    Oldest,
    /// The new entry is refused.
    Newest,
}

/// A map with at most as many entries as its capacity.
#[derive(Debug)]
pub(crate) struct BoundedMap<K, V> {
    /// The values with their numbers in the order of insertions.
    entries: HashMap<K, (u64, V), RandomState>,
    /// The keys by these numbers, if the rule is [`Eviction::Oldest`].
    order: BTreeMap<u64, K>,
    next: u64,
    capacity: usize,
    rule: Eviction,
    evicted: u64,
}

impl<K: Hash + Eq + Clone, V> BoundedMap<K, V> {
    /// Returns an empty map, which allocates nothing yet. The capacity is at least 1.
    pub fn new(capacity: usize, rule: Eviction) -> BoundedMap<K, V> {
        BoundedMap {
            entries: HashMap::default(),
            order: BTreeMap::new(),
            next: 0,
            capacity: capacity.max(1),
            rule,
            evicted: 0,
        }
    }

    /// Sets the value of a key. If the key is new and the map is full, the rule applies.
    pub fn insert(&mut self, key: K, value: V) {
        if let Some((_, known)) = self.entries.get_mut(&key) {
            *known = value;
        } else if self.make_room() {
            self.entries.insert(key.clone(), (self.next, value));
            self.number(key);
        }
    }

    /// Returns the value of a key; that of a new key is `make`'s. If the key is new and the map is full, the
    /// rule applies; returns `None` if the key is refused.
    pub fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> Option<&mut V> {
        if !self.entries.contains_key(&key) {
            if !self.make_room() {
                return None;
            }
            self.entries.insert(key.clone(), (self.next, make()));
            self.number(key.clone());
        }
        self.get_mut(&key)
    }

    /// Makes room for a new key by the rule. Returns false if the key is refused.
    fn make_room(&mut self) -> bool {
        if self.entries.len() < self.capacity {
            return true;
        }
        match self.rule {
            Eviction::All => {
                self.evicted += self.entries.len() as u64;
                self.entries.clear();
            }
            Eviction::Oldest => {
                if let Some((_, oldest)) = self.order.pop_first() {
                    self.entries.remove(&oldest);
                    self.evicted += 1;
                }
            }
            Eviction::Newest => self.evicted += 1,
        }
        self.entries.len() < self.capacity
    }

    /// Records the place of a key that was inserted with the next number.
    fn number(&mut self, key: K) {
        if self.rule == Eviction::Oldest {
            self.order.insert(self.next, key);
        }
        self.next += 1;
    }

    /// Returns the value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key).map(|(_, value)| value)
    }

    /// Removes a key. This does not count as an eviction.
    pub fn remove(&mut self, key: &K) {
        if let Some((number, _)) = self.entries.remove(key) {
            self.order.remove(&number);
        }
    }

    /// Removes the entries for which `keep` returns false. This does not count as an eviction.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        let order = &mut self.order;
        self.entries.retain(|key, (number, value)| {
            let is_kept = keep(key, value);
            if !is_kept {
                order.remove(number);
            }
            is_kept
        });
    }

    /// Removes all entries. This does not count as an eviction.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.order.clear();
    }

    /// The number of entries.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns true if the next new key makes the rule apply.
    pub fn is_full(&self) -> bool {
        self.entries.len() >= self.capacity
    }

    /// The number of entries that were evicted or refused because the map was full.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filled(rule: Eviction) -> BoundedMap<u8, u8> {
        let mut map = BoundedMap::new(3, rule);
        (1..=3).for_each(|key| map.insert(key, key * 10));
        map
    }

    fn shown(map: &BoundedMap<u8, u8>) -> Vec<(u8, u8)> {
        (0..=u8::MAX).filter_map(|key| map.get(&key).map(|value| (key, *value))).collect()
    }

    #[test]
    fn a_known_key_needs_no_room() {
        for rule in [Eviction::All, Eviction::Oldest, Eviction::Newest] {
            let mut map = filled(rule);
            assert!(map.is_full());
            map.insert(2, 21);
            *map.get_or_insert_with(3, || panic!("it is known")).unwrap() += 1;
            assert_eq!((shown(&map), map.evicted()), (vec![(1, 10), (2, 21), (3, 31)], 0), "{rule:?}");
        }
    }

    #[test]
    fn a_full_map_follows_its_rule_and_counts() {
        let after = |rule| {
            let mut map = filled(rule);
            // A new value does not make an entry newer.
            map.insert(1, 11);
            map.insert(4, 40);
            let fifth = map.get_or_insert_with(5, || 50).copied();
            (shown(&map), fifth, map.evicted())
        };
        assert_eq!(after(Eviction::All), (vec![(4, 40), (5, 50)], Some(50), 3));
        assert_eq!(after(Eviction::Oldest), (vec![(3, 30), (4, 40), (5, 50)], Some(50), 2));
        assert_eq!(after(Eviction::Newest), (vec![(1, 11), (2, 20), (3, 30)], None, 2));
    }

    #[test]
    fn removals_make_room_and_are_no_evictions() {
        for rule in [Eviction::All, Eviction::Oldest, Eviction::Newest] {
            let mut map = filled(rule);
            map.remove(&1);
            map.remove(&9);
            map.insert(4, 40);
            map.retain(|key, _| *key != 2);
            map.insert(1, 12);
            assert_eq!((shown(&map), map.evicted()), (vec![(1, 12), (3, 30), (4, 40)], 0), "{rule:?}");
            map.clear();
            map.insert(7, 70);
            assert_eq!((map.len(), map.evicted()), (1, 0));
        }
        let mut map = filled(Eviction::Oldest);
        map.remove(&1);
        map.insert(1, 13);
        map.insert(4, 40);
        assert_eq!(shown(&map), [(1, 13), (3, 30), (4, 40)], "one that was removed is new again");
    }

    proptest! {
        #[test]
        fn it_is_bounded_and_loses_nothing_uncounted(
            rule in prop_oneof![Just(Eviction::All), Just(Eviction::Oldest), Just(Eviction::Newest)],
            steps in proptest::collection::vec((any::<bool>(), 0u8..12), 0..200)
        ) {
            let mut map = BoundedMap::new(5, rule);
            let (mut inserted, mut removed) = (0, 0);
            for (is_insertion, key) in steps {
                if is_insertion {
                    inserted += u64::from(map.get(&key).is_none());
                    map.insert(key, key);
                } else {
                    removed += u64::from(map.get(&key).is_some());
                    map.remove(&key);
                }
                prop_assert!(map.len() <= 5);
                prop_assert_eq!(map.order.len(), if rule == Eviction::Oldest { map.len() } else { 0 });
                prop_assert_eq!(inserted, removed + map.evicted() + map.len() as u64);
            }
        }
    }
}
