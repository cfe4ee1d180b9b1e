//! Follows the namespaces that a registry finds.

use super::registry::{Known, NamespaceEntry};
use crate::model::Namespace;
use std::sync::Arc;

/// One follower's view of the namespaces: those that it has reported so far.
#[derive(Debug, Default)]
pub(super) struct Follower {
    known: Known,
    told: Arc<[NamespaceEntry]>,
}

/// The changes since a follower's last report.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Changes {
    /// Namespaces in which nothing may be kept open any more: they have disappeared, or their number was
    /// reassigned.
    pub gone: Vec<Namespace>,
    /// Namespaces that have appeared.
    pub come: Vec<NamespaceEntry>,
}

impl Follower {
    /// Returns a follower that has not reported any namespace yet.
    pub fn new(known: Known) -> Follower {
        Follower { known, told: Arc::default() }
    }

    /// Returns the changes since the last call. If there are none, this costs one lock.
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
        assert_eq!(follower.changes(), both);
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
    }

    #[test]
    fn another_way_in_is_no_change_and_another_namespace_under_its_number_is_two() {
        let known = Known::default();
        let mut follower = Follower::new(known.clone());
        known.show(vec![entry(1, 70, 7)]);
        follower.changes();
        known.show(vec![entry(1, 70, 77)]);
        assert_eq!(follower.changes(), Changes::default(), "the same one by another process");
        // Between two calls, the number was reassigned, as happens if there are 254 namespaces.
        known.show(Vec::new());
        known.show(vec![entry(1, 71, 7)]);
        assert_eq!(follower.changes(), Changes { gone: vec![Namespace(1)], come: vec![entry(1, 71, 7)] });
        // The inode was reassigned to a namespace with another number.
        known.show(vec![entry(2, 71, 7)]);
        assert_eq!(follower.changes(), Changes { gone: vec![Namespace(1)], come: vec![entry(2, 71, 7)] });
        // A namespace that appeared and disappeared between two calls is never reported.
        known.show(vec![entry(2, 71, 7), entry(3, 72, 8)]);
        known.show(vec![entry(2, 71, 7)]);
        assert_eq!(follower.changes(), Changes::default());
        assert_eq!([1, 2, 3, 4].map(|n| known.inode(Namespace(n))), [Some(71), Some(71), Some(72), None]);
    }
}
