//! The live thread that stands in for a main thread that has ended. Memory, descriptors, arguments and
//! namespaces are then those of the other threads, and the files of the process itself show none.

use super::reading::ProcessDirectory;
use crate::blocking::ReadKind;
use crate::proc::parse::{self, Stat};
use crate::proc::{Listing, PidPath, open_directory};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::os::fd::AsFd;

/// The maximum number of threads that are tried, in the order of the listing. In a process that is about to
/// end, all threads have lost the state in question.
const MAX_THREADS: usize = 64;

/// Finds stand-ins.
#[derive(Debug)]
pub struct StandIns {
    listing: Listing,
    stat: Vec<u8>,
    threads: Vec<i32>,
}

impl Default for StandIns {
    fn default() -> StandIns {
        StandIns { listing: Listing::in_small_steps(), stat: Vec::new(), threads: Vec::new() }
    }
}

impl StandIns {
    /// Finds a live thread with an address space in a process whose main thread has ended, and sets the
    /// fields of `stat` that the main thread has lost from it. Returns `None` if the main thread is alive,
    /// and if no such thread can be read: then the threads' common state is unknown.
    pub fn find(&mut self, process: &ProcessDirectory, stat: &mut Stat<'_>) -> Option<ProcessDirectory> {
        if !stat.has_lost_main_thread() {
            return None;
        }
        let StandIns { listing, stat: text, threads } = self;
        threads.clear();
        let directory = process.guarded(ReadKind::Process, || {
            let directory = open_directory(process.as_fd(), c"task")?;
            listing.names(directory.as_fd(), |name| {
                let number = parse::decimal(name).and_then(|number| i32::try_from(number).ok());
                threads.extend(number.filter(|&number| number != stat.pid));
            })?;
            Ok(directory)
        });
        let directory = directory.ok()?;
        threads.iter().take(MAX_THREADS).find_map(|&thread| {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let open = || openat(&directory, PidPath::new(thread).directory(), flags, Mode::empty());
            let thread = process.of_thread(process.guarded(ReadKind::Process, open).ok()?);
            let live = parse::stat(thread.record(c"stat", text).ok()?)?;
            if live.is_ending() || !live.has_memory() {
                return None;
            }
            stat.stand_in(&live);
            Some(thread)
        })
    }
}
