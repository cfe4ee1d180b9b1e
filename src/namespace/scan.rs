//! Reads the network namespace of each process, for a bounded number of processes at a time.
//!
//! Reading a link takes 2 µs, so reading those of all of 10,000 processes would take 20 ms each second. The
//! scan therefore reads in each call
//! - processes that were forked since the last but one call, at most [`RECENT`] numbers. A container is found
//!   with the next call, regardless of the number of processes. Each process is read twice, because it may
//!   enter its namespace a moment after it was forked.
//! - one slice of all processes, in turn. A process that changes its namespace later in its life is found
//!   after as many calls as there are slices.

use crate::blocking::{ReadKind, guarded};
use crate::proc::{Listing, PidPath, ProcRoot, network_namespace_at, open_directory};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::os::fd::{AsFd, OwnedFd};

/// The maximum number of process numbers that are read because they were assigned recently.
const RECENT: i32 = 2_000;

/// Reads the processes in turn.
pub(super) struct Scan {
    directory: Option<OwnedFd>,
    listing: Listing,
    /// Set if the next slice begins with the first process.
    at_start: bool,
    /// The number of times that the last process has been reached.
    laps: u64,
    /// The newest process number at the last two calls, the older one first.
    newest: [i32; 2],
    buffer: Vec<u8>,
    forbidden: u64,
}

impl Scan {
    pub(super) fn new() -> Scan {
        Scan {
            directory: None,
            listing: Listing::in_small_steps(),
            at_start: true,
            laps: 0,
            newest: [i32::MAX; 2],
            buffer: Vec::new(),
            forbidden: 0,
        }
    }

    /// Returns the number of times that the last process has been reached.
    pub(super) fn laps(&self) -> u64 {
        self.laps
    }

    /// Returns the number of reads that were refused since the beginning: capabilities(7), CAP_SYS_PTRACE.
    pub(super) fn forbidden(&self) -> u64 {
        self.forbidden
    }

    /// Makes the next slice begin with the first process, so that after one lap all have been read again.
    pub(super) fn restart(&mut self) {
        self.directory = None;
        self.at_start = true;
    }

    /// Returns the number of laps after which every process that exists now has been read.
    pub(super) fn laps_to_see_all(&self) -> u64 {
        if self.at_start { self.laps + 1 } else { self.laps + 2 }
    }

    /// Reports recently forked processes and their namespaces to `found`.
    pub(super) fn recent(&mut self, root: &ProcRoot, found: &mut impl FnMut(i32, u64)) {
        let Some(now) = self.newest_number(root) else { return };
        let [before, last] = self.newest;
        self.newest = [last, now];
        // The numbers have wrapped around if the newest is not the largest.
        let from = if before <= last && last <= now { before } else { 0 };
        for pid in (from.max(now.saturating_sub(RECENT)) + 1)..=now {
            self.look_at(root, pid, found);
        }
    }

    /// Reads about `most` processes, or up to the last one.
    pub(super) fn slice(&mut self, root: &ProcRoot, most: usize, found: &mut impl FnMut(i32, u64)) {
        if self.directory.is_none() {
            let open = || open_directory(root.directory(), c".");
            self.directory = guarded(root.tree(), 0, ReadKind::Root, open).ok();
        }
        let Some(directory) = self.directory.take() else { return };
        let (mut pids, mut looked) = (Vec::new(), 0);
        self.at_start = false;
        while looked < most {
            pids.clear();
            let step = guarded(root.tree(), 0, ReadKind::Root, || {
                self.listing.next_names(directory.as_fd(), |name| {
                    pids.extend(str::from_utf8(name).ok().and_then(|name| name.parse::<i32>().ok()));
                })
            });
            looked += pids.len();
            pids.iter().for_each(|&pid| self.look_at(root, pid, found));
            if step != Ok(true) {
                self.laps += 1;
                self.at_start = true;
                // Starting again also repairs a listing that has failed.
                let rewound = lseek(&directory, 0, Whence::SeekSet);
                self.directory = rewound.is_ok().then_some(directory);
                return;
            }
        }
        self.directory = Some(directory);
    }

    fn look_at(&mut self, root: &ProcRoot, pid: i32, found: &mut impl FnMut(i32, u64)) {
        match namespace_of(root, pid) {
            Ok(inode) => found(pid, inode),
            Err(Errno::EACCES | Errno::EPERM) => self.forbidden += 1,
            // The process has ended, is a zombie, or never existed.
            Err(_) => {}
        }
    }

    /// Returns the number that was assigned last to a process or a thread (proc_loadavg(5)).
    fn newest_number(&mut self, root: &ProcRoot) -> Option<i32> {
        let text = root.read_record(c"loadavg", &mut self.buffer).ok()?;
        str::from_utf8(text).ok()?.split_ascii_whitespace().nth(4)?.parse().ok()
    }
}

/// Returns the inode of the namespace that a process is in.
///
/// # Errors
/// As [`network_namespace_at`].
pub(super) fn namespace_of(root: &ProcRoot, pid: i32) -> nix::Result<u64> {
    root.guarded(pid, || network_namespace_at(root.directory(), PidPath::new(pid).file("ns/net")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;

    /// Returns a tree of processes 1 to `count`, each in a namespace of its own. The last process is the
    /// newest.
    fn tree(count: i32) -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        (1..=count).for_each(|pid| fork(tree.path(), pid));
        tree
    }

    fn fork(tree: &Path, pid: i32) {
        let ns = tree.join(pid.to_string()).join("ns");
        std::fs::create_dir_all(&ns).unwrap();
        std::os::unix::fs::symlink(format!("net:[{}]", 1000 + pid), ns.join("net")).unwrap();
        std::fs::write(tree.join("loadavg"), format!("0.00 0.01 0.05 1/99 {pid}\n")).unwrap();
    }

    #[test]
    fn every_process_has_its_turn() {
        let tree = tree(500);
        let root = ProcRoot::open(tree.path()).unwrap();
        let mut scan = Scan::new();
        for lap in 1..=2 {
            let (mut seen, mut slices) = (BTreeMap::new(), 0);
            assert_eq!(scan.laps_to_see_all(), lap);
            while scan.laps() < lap {
                let mut of_slice = 0;
                scan.slice(&root, 100, &mut |pid, inode| {
                    of_slice += 1;
                    assert_eq!(seen.insert(pid, inode), None);
                });
                assert!(of_slice <= 200, "{of_slice}");
                slices += 1;
            }
            assert_eq!(seen, (1..=500).map(|pid| (pid, 1000 + pid as u64)).collect());
            assert!((3..=7).contains(&slices), "{slices}");
        }
        scan.slice(&root, 100, &mut |_, _| ());
        assert_eq!(scan.laps_to_see_all(), 4, "the lap under way began too early");
        scan.restart();
        assert_eq!(scan.laps_to_see_all(), 3);
    }

    #[test]
    fn what_was_forked_lately_is_looked_at_twice() {
        let tree = tree(50);
        let root = ProcRoot::open(tree.path()).unwrap();
        let mut scan = Scan::new();
        let mut recent = || {
            let mut seen = BTreeSet::new();
            scan.recent(&root, &mut |pid, _| assert!(seen.insert(pid)));
            seen
        };
        recent();
        recent();
        assert_eq!(recent(), BTreeSet::new());
        fork(tree.path(), 60);
        fork(tree.path(), 61);
        assert_eq!(recent(), [60, 61].into());
        fork(tree.path(), 70);
        assert_eq!(recent(), [60, 61, 70].into());
        assert_eq!(recent(), [70].into());
        assert_eq!(recent(), BTreeSet::new());
        // The numbers wrap around.
        fork(tree.path(), 3_000);
        assert_eq!(recent(), [3_000].into());
        std::fs::write(tree.path().join("loadavg"), "0 0 0 1/99 7\n").unwrap();
        assert_eq!(recent(), (1..=7).collect());
    }

    #[test]
    fn an_empty_tree_has_no_processes() {
        let tree = tempfile::tempdir().unwrap();
        let root = ProcRoot::open(tree.path()).unwrap();
        let mut scan = Scan::new();
        scan.recent(&root, &mut |_, _| panic!("nobody"));
        scan.slice(&root, 100, &mut |_, _| panic!("nobody"));
        assert_eq!(scan.laps(), 1);
    }
}
