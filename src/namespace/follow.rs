//! Following the namespaces that a registry finds, for those who keep something open in each.

use super::registry::{Entry, Known};
use crate::model::Namespace;
use std::sync::Arc;

/// One follower's view of the namespaces: what it has been told of so far.
#[derive(Debug, Default)]
pub struct Follower {
    known: Known,
    told: Arc<[Entry]>,
}

/// What has changed for a follower.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Namespaces in which nothing may be kept open any more: they are gone, or another has their number.
    pub gone: Vec<Namespace>,
    /// Namespaces that have come.
    pub come: Vec<Entry>,
}

impl Follower {
    /// A follower that knows of none yet.
    pub fn new(known: Known) -> Follower {
        Follower { known, told: Arc::default() }
    }

    /// What has changed since the last call; costs one lock when nothing has.
    pub fn changes(&mut self) -> Changes {
        let now = self.known.snapshot();
        if Arc::ptr_eq(&now, &self.told) {
            return Changes::default();
        }
        let missing_in = |others: &[Entry], entry: &Entry| {
            !others.iter().any(|other| (other.namespace, other.inode) == (entry.namespace, entry.inode))
        };
        let gone = self.told.iter().filter(|entry| missing_in(&now, entry)).map(|entry| entry.namespace);
        let come = now.iter().filter(|entry| missing_in(&self.told, entry)).cloned();
        let changes = Changes { gone: gone.collect(), come: come.collect() };
        self.told = now;
        changes
    }
}
