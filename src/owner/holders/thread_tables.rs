//! Descriptor tables other than the main thread's: those of threads that have left it (`CLONE_FILES`,
//! unshare(2)), and of threads that continue after the main thread has ended, which then has no table.
//!
//! Only kcmp(2) reports which threads share a table. It needs the permission to read their descriptors, and
//! the thread numbers of the caller's own PID namespace. Elsewhere, if the main thread has ended, the first
//! thread stands for all threads.

use super::proc_fd;
use crate::blocking::progress;
use crate::proc::{Listing, PidPath, ProcRoot, open_directory};
use nix::errno::Errno;
use std::os::fd::AsFd;

/// Compares the descriptor tables of two tasks (`KCMP_FILES`, include/uapi/linux/kcmp.h).
const COMPARE_TABLES: libc::c_int = 2;

/// The limit of tables of one process that are read besides the main thread's.
const MAX_TABLES: usize = 16;

/// Finds descriptor tables of threads.
pub(in crate::owner) struct ThreadTables {
    /// Set if kcmp(2) can compare threads by their numbers in the tree.
    can_compare: bool,
    listing: Listing,
    threads: Vec<i32>,
    found: Vec<i32>,
}

impl ThreadTables {
    /// Returns a search in this tree.
    pub fn new(root: &ProcRoot) -> ThreadTables {
        let me = std::process::id() as i32;
        let can_compare = root.tells_own_numbers() && have_one_table(me, me) == Ok(true);
        ThreadTables {
            can_compare,
            listing: Listing::in_small_steps(),
            threads: Vec::new(),
            found: Vec::new(),
        }
    }

    /// Finds one thread for each such table of a process. The caller must call it in a guarded read.
    pub fn find(&mut self, root: &ProcRoot, pid: i32) {
        self.found.clear();
        // The directory has a link for each thread and two of its own.
        let has_several = root.stat(PidPath::new(pid).file("task")).is_ok_and(|stat| stat.st_nlink > 3);
        progress();
        if !has_several || self.list(root, pid).is_err() {
            return;
        }
        let ThreadTables { threads, found, .. } = self;
        if !self.can_compare {
            let has_ended = main_thread_has_ended(root, pid, &mut self.listing);
            found.extend(threads.first().filter(|_| has_ended));
            return;
        }
        for &thread in &*threads {
            let is_known =
                [pid].iter().chain(&*found).any(|&other| have_one_table(other, thread) != Ok(false));
            if !is_known && found.len() < MAX_TABLES {
                found.push(thread);
            }
        }
    }

    /// The threads of the last search.
    pub fn found(&self) -> &[i32] {
        &self.found
    }

    /// Returns true if a process has this socket at this number in such a table.
    pub fn hold(&mut self, root: &ProcRoot, pid: i32, descriptor: i32, inode: u64) -> bool {
        let found = root.guarded(pid, || {
            self.find(root, pid);
            Ok(())
        });
        let mut holds = |&thread: &i32| proc_fd::socket_of(root, thread, descriptor) == Ok(Some(inode));
        found.is_ok() && self.found.iter().any(&mut holds)
    }

    fn list(&mut self, root: &ProcRoot, pid: i32) -> nix::Result<()> {
        self.threads.clear();
        let directory = open_directory(root.directory(), PidPath::new(pid).file("task"))?;
        self.listing.numbers(directory.as_fd(), |_, thread| {
            self.threads.extend(Some(thread).filter(|&thread| thread != pid));
            Ok(())
        })
    }
}

/// Returns true if two tasks share one descriptor table. A task without a table shares none with a task that
/// has one.
///
/// # Errors
/// Fails with the system's error number: `EPERM` if the comparison is not permitted, `ESRCH` if a task has
/// ended.
fn have_one_table(one: i32, other: i32) -> nix::Result<bool> {
    // SAFETY: the call takes numbers only.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, COMPARE_TABLES, 0, 0) };
    progress();
    Ok(Errno::result(order)? == 0)
}

fn main_thread_has_ended(root: &ProcRoot, pid: i32, listing: &mut Listing) -> bool {
    let mut is_empty = true;
    let listed = open_directory(root.directory(), PidPath::new(pid).file("fd")).and_then(|directory| {
        listing.numbers(directory.as_fd(), |_, _| {
            is_empty = false;
            Ok(())
        })
    });
    listed.is_ok() && is_empty
}
