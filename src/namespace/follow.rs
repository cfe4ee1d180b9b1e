//! Following the namespaces that a registry finds, for those who keep something open in each.

use super::registry::{Known, NamespaceEntry};
use crate::model::Namespace;
use std::sync::Arc;

/// One follower's view of the namespaces: what it has been told of so far.
#[derive(Debug, Default)]
pub struct Follower {
    known: Known,
    told: Arc<[NamespaceEntry]>,
}

/// What has changed for a follower.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Namespaces in which nothing may be kept open any more: they are gone, or another has their number.
    pub gone: Vec<Namespace>,
    /// Namespaces that have come.
    pub come: Vec<NamespaceEntry>,
}

impl Follower {
    /// A follower that knows of none yet.
    pub fn new(known: Known) -> Follower {
        Follower { known, told: Arc::default() }
    }

    /// Whether there are namespaces that it has told of and not yet told to be gone.
    pub fn has_told(&self) -> bool {
        !self.told.is_empty()
    }

    /// The inode of the namespace that has this number, or had it last, whether it was told of or not.
    pub fn inode(&self, namespace: Namespace) -> Option<u64> {
        self.known.inode(namespace)
    }

    /// What has changed since the last call; costs one lock when nothing has.
    pub fn changes(&mut self) -> Changes {
        let now = self.known.snapshot();
        if Arc::ptr_eq(&now, &self.told) {
            return Changes::default();
        }
        let missing_in = |others: &[NamespaceEntry], entry: &NamespaceEntry| {
            !others.iter().any(|other| (other.namespace, other.inode) == (entry.namespace, entry.inode))
        };
        let gone = self.told.iter().filter(|entry| missing_in(&now, entry)).map(|entry| entry.namespace);
        let come = now.iter().filter(|entry| missing_in(&self.told, entry)).cloned();
        let changes = Changes { gone: gone.collect(), come: come.collect() };
        self.told = now;
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn entry(number: u8, inode: u64, pid: i32) -> NamespaceEntry {
        let path = Path::new("/proc").join(format!("{pid}/ns/net")).into();
        NamespaceEntry { namespace: Namespace(number), inode, pid: Some(pid), path }
    }

    #[test]
    fn comings_and_goings_are_told_once_to_each_follower() {
        let known = Known::default();
        let mut follower = Follower::new(known.clone());
        assert_eq!(follower.changes(), Changes::default(), "there is none yet");
        known.show(vec![entry(1, 70, 7), entry(2, 80, 8)]);
        let both = Changes { gone: Vec::new(), come: vec![entry(1, 70, 7), entry(2, 80, 8)] };
        assert!(!follower.has_told());
        assert_eq!(follower.changes(), both);
        assert!(follower.has_told());
        assert_eq!(follower.changes(), Changes::default());
        known.show(vec![entry(2, 80, 8), entry(3, 90, 9)]);
        let moved = Changes { gone: vec![Namespace(1)], come: vec![entry(3, 90, 9)] };
        assert_eq!(follower.changes(), moved);
        let late = Changes { gone: Vec::new(), come: vec![entry(2, 80, 8), entry(3, 90, 9)] };
        assert_eq!(
            Follower::new(known.clone()).changes(),
            late,
            "one that comes later is told of what there is"
        );
        known.show(Vec::new());
        assert_eq!(follower.changes(), Changes { gone: vec![Namespace(2), Namespace(3)], come: Vec::new() });
        assert!(!follower.has_told());
    }

    #[test]
    fn another_way_in_is_no_change_and_another_namespace_under_its_number_is_two() {
        let known = Known::default();
        let mut follower = Follower::new(known.clone());
        known.show(vec![entry(1, 70, 7)]);
        follower.changes();
        known.show(vec![entry(1, 70, 77)]);
        assert_eq!(follower.changes(), Changes::default(), "the same one by another process");
        // Between two calls the number has gone to another, as when there are 254 of them.
        known.show(Vec::new());
        known.show(vec![entry(1, 71, 7)]);
        assert_eq!(follower.changes(), Changes { gone: vec![Namespace(1)], come: vec![entry(1, 71, 7)] });
        // The inode has gone to another that has another number.
        known.show(vec![entry(2, 71, 7)]);
        assert_eq!(follower.changes(), Changes { gone: vec![Namespace(1)], come: vec![entry(2, 71, 7)] });
        // What came and went between two calls was never told of.
        known.show(vec![entry(2, 71, 7), entry(3, 72, 8)]);
        known.show(vec![entry(2, 71, 7)]);
        assert_eq!(follower.changes(), Changes::default());
        assert_eq!([1, 2, 3, 4].map(|n| follower.inode(Namespace(n))), [Some(71), Some(71), Some(72), None]);
    }
}
