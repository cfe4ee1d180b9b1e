//! Tests of the registry on fixture trees of processes.

use super::*;
use capture_test_support::proc_tree::ProcTree;

const HOME: u64 = 1;

/// A `/proc` tree whose processes are in namespaces that the test chooses.
struct NamespaceTree(ProcTree);

impl NamespaceTree {
    fn new() -> NamespaceTree {
        let tree = NamespaceTree(ProcTree::empty());
        tree.put("thread-self", HOME);
        tree
    }

    fn put(&self, process: &str, inode: u64) {
        self.0.link(&format!("{process}/ns/net"), &format!("net:[{inode}]"));
    }

    /// Puts a process into a namespace.
    fn at(&self, pid: i32, inode: u64) {
        self.put(&pid.to_string(), inode);
    }

    fn end(&self, pid: i32) {
        self.0.end(pid);
    }

    fn mount(&self, lines: &[(u64, &str)]) {
        let lines: String = lines
            .iter()
            .map(|(inode, path)| format!("9 1 0:4 net:[{inode}] {path} rw - nsfs nsfs rw\n"))
            .collect();
        self.0.write("thread-self/mountinfo", lines);
    }

    fn registry(&self) -> Registry {
        Registry::open(&NamespaceChoice::All, self.0.path()).unwrap()
    }
}

/// Returns the number, inode and process of each entry.
fn shown(entries: &[NamespaceEntry]) -> Vec<(u8, u64, Option<i32>)> {
    entries.iter().map(|entry| (entry.namespace.0, entry.inode, entry.pid)).collect()
}

#[test]
fn namespaces_of_processes_are_found_once_and_without_the_own_one() {
    let tree = NamespaceTree::new();
    (1..50).for_each(|pid| tree.at(pid, HOME));
    tree.at(60, 7);
    tree.at(61, 7);
    tree.at(62, 8);
    let mut registry = tree.registry();
    assert!(registry.known().snapshot().is_empty(), "nothing is looked for before the first refresh");
    let known = registry.known().clone();
    let entries = registry.refresh();
    let inodes: HashSet<u64> = entries.iter().map(|entry| entry.inode).collect();
    assert_eq!((inodes, entries.len()), ([7, 8].into(), 2));
    assert_eq!(registry.stats(), RegistryStats { known: 2, left_out: 0 });
    let of_8 = entries.iter().find(|entry| entry.inode == 8).unwrap();
    assert_eq!((of_8.pid, &*of_8.path), (Some(62), &*tree.0.path().join("62/ns/net")));
    assert_eq!(known.get(of_8.namespace).as_ref(), Some(of_8));
    assert_eq!(known.get(Namespace::HOME), None);
    assert!(Arc::ptr_eq(&known.snapshot(), &registry.refresh()), "nothing has changed");
}

#[test]
fn a_namespace_is_gone_with_its_last_process_and_not_before() {
    let tree = NamespaceTree::new();
    (60..70).for_each(|pid| tree.at(pid, 7));
    let mut registry = tree.registry();
    let first = registry.refresh()[0].clone();
    for pid in 60..69 {
        tree.end(pid);
        let now = registry.refresh();
        assert_eq!((now.len(), now[0].namespace), (1, first.namespace));
    }
    assert_eq!(registry.refresh()[0].pid, Some(69));
    // Another process in another namespace reuses its number.
    tree.at(69, HOME);
    assert_eq!(shown(&registry.refresh()), []);
}

#[test]
fn numbers_are_used_again_the_oldest_free_one_first() {
    let tree = NamespaceTree::new();
    let mut registry = tree.registry();
    for inode in 2..=300u64 {
        tree.at(10, inode);
        let number = 1 + (inode - 2) % 254;
        assert_eq!(
            shown(&registry.refresh()),
            [(number as u8, inode, Some(10))],
            "the old one has gone first"
        );
    }
}

#[test]
fn more_than_there_are_numbers_for_are_left_out_until_one_is_free() {
    let tree = NamespaceTree::new();
    (1..=260).for_each(|pid| tree.at(pid, 1000 + pid as u64));
    let mut registry = Registry::with_most(&NamespaceChoice::All, tree.0.path(), 254).unwrap();
    assert_eq!(registry.refresh().len(), 254);
    assert_eq!(registry.stats(), RegistryStats { known: 254, left_out: 6 });
    assert_eq!(registry.refresh().len(), 254);
    let notes = registry.take_notes();
    assert!(notes.len() == 1 && notes[0].contains("254"), "{notes:?}");
    let known: HashSet<u64> = registry.refresh().iter().map(|entry| entry.inode).collect();
    (1..=260).filter(|pid| known.contains(&(1000 + *pid as u64))).take(100).for_each(|pid| tree.end(pid));
    registry.refresh();
    assert_eq!(registry.refresh().len(), 160);
    registry.refresh();
    registry.refresh();
    assert_eq!(registry.stats(), RegistryStats { known: 160, left_out: 0 });
}

#[test]
fn descriptors_bound_how_many_are_taken_up() {
    let tree = NamespaceTree::new();
    (1..=5).for_each(|pid| tree.at(pid, 1000 + pid as u64));
    let mut registry = Registry::with_most(&NamespaceChoice::All, tree.0.path(), 3).unwrap();
    let first = registry.refresh();
    assert_eq!((first.len(), registry.stats()), (3, RegistryStats { known: 3, left_out: 2 }));
    let notes = registry.take_notes();
    assert!(
        notes.len() == 1 && notes[0].contains("at most 3 are supported, one for every 16 descriptors"),
        "{notes:?}"
    );
    // A namespace that ends frees its place, and those that were left out do not use up numbers.
    tree.end(first[0].pid.unwrap());
    let second = (0..3).map(|_| registry.refresh()).last().unwrap();
    assert!(second.len() == 3 && !second.contains(&first[0]), "{second:?}");
    assert_eq!(registry.stats().known, 3);
    assert!(registry.take_notes().is_empty(), "it is told once");
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap().0;
    assert_eq!(u64::from(tree.registry().most), (limit / 16).min(254));
    let path = PathBuf::from("/proc/self/ns/net");
    let choice = NamespaceChoice::Chosen(vec![path; 4]);
    let error = Registry::with_most(&choice, Path::new("/proc"), 3).map(drop).unwrap_err();
    assert_eq!(error.code, Code::InvalidArgument);
    assert!(
        error.text.contains("4 network namespaces are chosen; at most 3 are supported, one for"),
        "{error}"
    );
    Registry::with_most(&choice, Path::new("/proc"), 4).unwrap();
}

#[test]
fn without_knowing_the_own_one_no_other_is_looked_for() {
    let tree = tempfile::tempdir().unwrap();
    let open = |choice| Registry::open(&choice, tree.path());
    for choice in [NamespaceChoice::All, NamespaceChoice::Chosen(vec!["/proc/self/ns/net".into()])] {
        let error = open(choice).map(drop).unwrap_err();
        assert_eq!(error.code, Code::SystemResource);
        assert!(error.text.contains("thread-self/ns/net: ENOENT"), "{error}");
    }
    open(NamespaceChoice::Usual).unwrap();
}

#[test]
fn a_mounted_namespace_needs_no_process() {
    let tree = NamespaceTree::new();
    tree.mount(&[(7, "/run/netns/blue"), (HOME, "/run/netns/own")]);
    let mut registry = tree.registry();
    assert_eq!(shown(&registry.refresh()), [(1, 7, None)]);
    tree.at(5, 7);
    let entries = registry.refresh();
    assert_eq!((shown(&entries), &*entries[0].path), (vec![(1, 7, Some(5))], Path::new("/run/netns/blue")));
    tree.end(5);
    assert_eq!(shown(&registry.refresh()), [(1, 7, None)]);
}

#[test]
fn off_looks_at_nothing() {
    let tree = NamespaceTree::new();
    tree.at(5, 7);
    tree.mount(&[(8, "/run/netns/blue")]);
    let mut registry = Registry::open(&NamespaceChoice::Usual, tree.0.path()).unwrap();
    assert!(registry.refresh().is_empty());
    assert_eq!(registry.stats(), RegistryStats::default());
}

#[test]
fn many_processes_are_looked_through_in_slices_and_the_doubtful_at_once() {
    let tree = NamespaceTree::new();
    (1..=4_500).for_each(|pid| tree.at(pid, HOME));
    tree.at(10_000, 7);
    tree.at(10_001, 7);
    let mut registry = tree.registry();
    assert_eq!(registry.refresh().len(), 1, "at first, all of them");
    // A process enters a namespace long after it was forked.
    tree.at(4_499, 8);
    let refreshes = (1..20).find(|_| registry.refresh().len() == 2).unwrap();
    assert!((1..=6).contains(&refreshes), "{refreshes}");
    tree.at(4_499, HOME);
    assert_eq!(registry.refresh().len(), 1);
    (0..6).for_each(|_| drop(registry.refresh()));
    tree.end(10_000);
    assert_eq!(registry.refresh().len(), 1);
    tree.end(10_001);
    assert_eq!(registry.refresh().len(), 0);
}
