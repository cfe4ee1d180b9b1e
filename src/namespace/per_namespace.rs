//! One value for each captured namespace, such as its sockets, for callers that keep something open in each.

use super::enter::enter;
use super::follow::Follower;
use super::registry::{Known, NamespaceEntry};
use crate::model::Namespace;
use std::collections::BTreeMap;
use tracing::info;

/// One value for each namespace: the session's own, which the owner of the map sets, and the others, which
/// are opened when a registry finds them and closed when they disappear.
#[derive(Debug)]
pub struct PerNamespace<T> {
    values: BTreeMap<Namespace, T>,
    follower: Follower,
}

impl<T> PerNamespace<T> {
    /// Returns an empty map that follows the namespaces of `known`.
    pub fn new(known: Known) -> PerNamespace<T> {
        PerNamespace { values: BTreeMap::new(), follower: Follower::new(known) }
    }

    /// Returns a map that follows the namespaces of `known`, with the value of the session's own.
    pub fn with_home(home: T, known: Known) -> PerNamespace<T> {
        PerNamespace { values: BTreeMap::from([(Namespace::HOME, home)]), follower: Follower::new(known) }
    }

    /// Follows the namespaces of `known` from now on, which have not been followed so far.
    pub fn set_known(&mut self, known: Known) {
        self.follower = Follower::new(known);
    }

    /// Sets the value of the session's own namespace.
    pub fn set_home(&mut self, home: T) {
        self.values.insert(Namespace::HOME, home);
    }

    /// Returns the value of a namespace, if it has one.
    pub fn get_mut(&mut self, namespace: Namespace) -> Option<&mut T> {
        self.values.get_mut(&namespace)
    }

    /// Returns the values with their namespaces, in the order of the namespaces' numbers.
    pub fn iter(&self) -> impl Iterator<Item = (Namespace, &T)> {
        self.values.iter().map(|(namespace, value)| (*namespace, value))
    }

    /// Returns the values with their namespaces, in the order of [`PerNamespace::iter`].
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Namespace, &mut T)> {
        self.values.iter_mut().map(|(namespace, value)| (*namespace, value))
    }

    /// Closes the values for which `keep` returns false, in the order of [`PerNamespace::iter`]. Their
    /// namespaces are not opened again.
    pub fn retain(&mut self, mut keep: impl FnMut(Namespace, &mut T) -> bool) {
        self.values.retain(|namespace, value| keep(*namespace, value));
    }

    /// Returns true if there is a value of another namespace than the session's own. Such a value may keep
    /// its namespace alive.
    pub fn has_others(&self) -> bool {
        self.values.last_key_value().is_some_and(|(namespace, _)| *namespace != Namespace::HOME)
    }

    /// Closes the values of the namespaces that have disappeared since the last call, and then opens one in
    /// each that has appeared, on the calling thread. A namespace for which `open` returns `None` has no
    /// value and is not tried again. If nothing has changed, this costs one lock.
    pub fn follow(&mut self, mut open: impl FnMut(&NamespaceEntry) -> Option<T>) {
        let changes = self.follower.changes();
        for gone in &changes.gone {
            self.values.remove(gone);
        }
        for entry in &changes.come {
            self.values.extend(open(entry).map(|value| (entry.namespace, value)));
        }
    }

    /// Follows the namespaces as [`PerNamespace::follow`] does, with an `open` that runs inside the namespace.
    /// Its error is passed to `failed`. A namespace that cannot be entered is logged.
    pub fn follow_inside<E: Send>(
        &mut self,
        open: impl Fn() -> Result<T, E> + Sync,
        mut failed: impl FnMut(&NamespaceEntry, E),
    ) where
        T: Send,
    {
        self.follow(|entry| match enter(entry, &open) {
            Ok(opened) => opened.map_err(|error| failed(entry, error)).ok(),
            Err(error) => {
                info!("{}: {error}", entry.path.display());
                None
            }
        });
    }
}

impl<T> Default for PerNamespace<T> {
    /// Returns an empty map that follows no namespaces.
    fn default() -> PerNamespace<T> {
        PerNamespace::new(Known::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::rc::Rc;
    use std::sync::Arc;

    fn entry(number: u8, inode: u64) -> NamespaceEntry {
        let path = Path::new("/nonexistent").join(inode.to_string()).into();
        NamespaceEntry { namespace: Namespace(number), inode, pid: None, path }
    }

    fn shown(values: &PerNamespace<u64>) -> Vec<(u8, u64)> {
        values.iter().map(|(namespace, value)| (namespace.0, *value)).collect()
    }

    #[test]
    fn values_are_opened_and_closed_with_their_namespaces() {
        let known = Known::default();
        let mut values = PerNamespace::with_home(0, known.clone());
        let mut opened = Vec::new();
        let mut follow = |values: &mut PerNamespace<u64>| {
            values.follow(|entry| {
                opened.push(entry.inode);
                (entry.inode != 80).then_some(entry.inode)
            });
            std::mem::take(&mut opened)
        };
        assert_eq!(follow(&mut values), [0; 0]);
        assert!(!values.has_others());
        known.show(vec![entry(1, 70), entry(2, 80), entry(3, 90)]);
        assert_eq!(follow(&mut values), [70, 80, 90]);
        assert_eq!(shown(&values), [(0, 0), (1, 70), (3, 90)], "the second could not be opened");
        assert!(values.has_others());
        assert_eq!(follow(&mut values), [0; 0], "one that could not be opened is not tried again");
        known.show(vec![entry(1, 71), entry(2, 80)]);
        assert_eq!(follow(&mut values), [71], "its number was reassigned");
        assert_eq!(shown(&values), [(0, 0), (1, 71)]);
        values.retain(|namespace, value| {
            *value += 1;
            namespace == Namespace::HOME
        });
        assert_eq!((shown(&values), follow(&mut values)), (vec![(0, 1)], vec![]));
        known.show(Vec::new());
        follow(&mut values);
        assert_eq!(shown(&values), [(0, 1)], "the session's own is never closed");
    }

    #[test]
    fn the_old_value_of_a_number_is_closed_before_another_is_opened() {
        let known = Known::default();
        let held = Rc::new(());
        let mut values = PerNamespace::new(known.clone());
        known.show(vec![entry(1, 70)]);
        values.follow(|_| Some(Rc::clone(&held)));
        known.show(vec![entry(1, 71)]);
        values.follow(|_| {
            assert_eq!(Rc::strong_count(&held), 1);
            Some(Rc::clone(&held))
        });
        assert_eq!(Rc::strong_count(&held), 2);
        values.set_known(Known::default());
        values.set_home(Rc::clone(&held));
        assert!(values.get_mut(Namespace::HOME).is_some() && values.get_mut(Namespace(2)).is_none());
        assert_eq!(values.iter_mut().count(), 2);
    }

    #[test]
    fn a_namespace_that_cannot_be_entered_has_no_value() {
        let known = Known::default();
        let mut values = PerNamespace::<()>::new(known.clone());
        known.show(vec![entry(1, 70)]);
        values.follow_inside(|| Ok::<(), ()>(()), |_, ()| panic!("it was not entered"));
        assert_eq!(values.iter().count(), 0);
    }

    #[test]
    fn values_are_opened_inside_their_namespaces_root() {
        let inode = || super::super::current_inode();
        let path: Arc<Path> = Path::new("/proc/self/ns/net").into();
        let own = NamespaceEntry { inode: inode().unwrap(), path, ..entry(1, 0) };
        if let Err(error) = enter(&own, || ()) {
            assert!(std::env::var_os("CAPTURE_REQUIRE_ALL").is_none(), "root is required: {error}");
            println!("not run: needs root");
            return;
        }
        let known = Known::default();
        let mut values = PerNamespace::new(known.clone());
        known.show(vec![own.clone()]);
        values.follow_inside(inode, |_, errno| panic!("{errno}"));
        assert_eq!(shown(&values), [(1, own.inode)]);
        known.show(Vec::new());
        values.follow(|_| None);
        known.show(vec![own]);
        let mut failures = 0;
        values.follow_inside(|| Err(nix::errno::Errno::EMFILE), |_, _| failures += 1);
        assert_eq!((failures, shown(&values)), (1, vec![]));
    }
}
