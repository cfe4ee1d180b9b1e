//! Reads the files of one process: the hot path of sampling.
//!
//! All files of a process are opened relative to a descriptor of its directory. It stays that process's
//! directory even if the pid is reused meanwhile, so that the figures always belong together.

use crate::blocking::{ProcTree, ReadKind, guarded};
use crate::model::{ProcId, ProcessSample, SampleSet, Validity, last_part};
use crate::proc::parse::{self, Stat};
use crate::proc::{Listing, PidPath, ProcRoot, SystemFacts, network_namespace_at, read_record_at};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, fstat, fstatat};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

/// The reason why a process could not be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// It has ended.
    Gone,
    /// It exists, but `stat` cannot be read or is not in the format.
    Unreadable,
    /// It cannot be read at present, because a read of it has not returned.
    Blocked,
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Failure {
        match errno {
            Errno::ENOENT | Errno::ESRCH => Failure::Gone,
            Errno::EAGAIN => Failure::Blocked,
            _ => Failure::Unreadable,
        }
    }
}

/// The directory of one process, held open.
#[derive(Debug)]
pub struct ProcessDirectory {
    directory: OwnedFd,
    pid: i32,
    tree: ProcTree,
    /// Set if it is the directory of one of the process's threads, which may end before the process.
    is_thread: bool,
}

/// The figures that are read of every process, selected or not.
#[derive(Clone, Copy, Debug)]
pub struct CoreFigures<'b> {
    /// The parsed `stat`.
    pub stat: Stat<'b>,
    /// Effective user and group id, if they could be read.
    pub owner: Option<(u32, u32)>,
}

impl ProcessDirectory {
    /// Opens the process's directory.
    ///
    /// # Errors
    /// Fails with the system's error number.
    pub fn open(root: &ProcRoot, pid: i32) -> nix::Result<ProcessDirectory> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let open = || openat(root.directory(), PidPath::new(pid).directory(), flags, Mode::empty());
        let directory = root.guarded(pid, open)?;
        Ok(ProcessDirectory { directory, pid, tree: root.tree(), is_thread: false })
    }

    /// Wraps the directory of one of the process's threads, which was opened in this one.
    pub fn of_thread(&self, directory: OwnedFd) -> ProcessDirectory {
        ProcessDirectory { directory, pid: self.pid, tree: self.tree, is_thread: true }
    }

    /// Reads `stat` and the owner.
    ///
    /// # Errors
    /// Fails with a [`Failure`].
    pub fn core<'b>(&self, buffer: &'b mut Vec<u8>) -> Result<CoreFigures<'b>, Failure> {
        // The directory always shows the effective ids; the files in it show root's once the process is not
        // dumpable (fs/proc/base.c, task_dump_owner). The ids are read before `stat`: the directory of an
        // ended process shows root's ids, but if `stat` can still be read afterwards, they were correct.
        let owner = self.guarded(ReadKind::Process, || {
            let owner = fstat(&self.directory).ok().map(|stat| (stat.st_uid, stat.st_gid));
            read_record_at(self.directory.as_fd(), c"stat", buffer, usize::MAX).map(|()| owner)
        })?;
        let stat = parse::stat(buffer).filter(|stat| stat.pid == self.pid).ok_or(Failure::Unreadable)?;
        Ok(CoreFigures { stat, owner })
    }

    /// Reads a file of one record.
    ///
    /// # Errors
    /// Fails with the system's error number.
    pub fn record<'b>(&self, name: &CStr, buffer: &'b mut Vec<u8>) -> nix::Result<&'b [u8]> {
        self.record_up_to(ReadKind::Process, name, buffer, usize::MAX)
    }

    /// Reads a file of one record whose read may have to wait for the process or lock of `kind`, and stops
    /// once at least `limit` bytes were read.
    ///
    /// # Errors
    /// Fails with the system's error number.
    pub fn record_up_to<'b>(
        &self,
        kind: ReadKind,
        name: &CStr,
        buffer: &'b mut Vec<u8>,
        limit: usize,
    ) -> nix::Result<&'b [u8]> {
        self.guarded(kind, || read_record_at(self.directory.as_fd(), name, buffer, limit))?;
        Ok(buffer)
    }

    /// Runs a read in this directory that may not return; see [`guarded`].
    ///
    /// # Errors
    /// Fails as [`guarded`] does.
    pub fn guarded<T>(&self, kind: ReadKind, read: impl FnOnce() -> nix::Result<T>) -> nix::Result<T> {
        guarded(self.tree, self.pid, kind, read)
    }

    /// Returns true if the pid is that of a thread other than its process's first. Such a thread has a
    /// directory, too, although listings leave it out. Returns `false` if this cannot be read.
    pub fn is_other_thread(&self, buffer: &mut Vec<u8>) -> bool {
        let status = self.record(c"status", buffer).ok();
        status.and_then(parse::thread_group).is_some_and(|leader| leader != self.pid)
    }

    /// Returns the inode of the process's network namespace.
    ///
    /// # Errors
    /// Fails as [`network_namespace_at`] does.
    pub fn network_namespace(&self) -> nix::Result<u64> {
        self.guarded(ReadKind::Process, || network_namespace_at(self.directory.as_fd(), c"ns/net"))
    }

    /// Reads the file name of the program that the process runs.
    ///
    /// # Errors
    /// Fails with the system's error number; `ENOENT` if it no longer runs one.
    pub fn program<'b>(&self, buffer: &'b mut Vec<u8>) -> nix::Result<&'b [u8]> {
        const REMOVED: &[u8] = b" (deleted)";
        let path = self.guarded(ReadKind::Process, || readlinkat(&self.directory, c"exe"))?.into_vec();
        buffer.clear();
        buffer.extend_from_slice(last_part(path.strip_suffix(REMOVED).unwrap_or(&path)));
        Ok(buffer)
    }

    /// Returns the number of open descriptors.
    fn descriptors(&self, facts: &SystemFacts, listing: &mut Listing) -> nix::Result<u32> {
        self.guarded(ReadKind::Process, || {
            if facts.descriptors_by_size {
                let stat = fstatat(&self.directory, c"fd", AtFlags::empty())?;
                return Ok(u32::try_from(stat.st_size).unwrap_or_default());
            }
            listing.count(self.directory.as_fd(), c"fd")
        })
    }

    /// Returns true if the process still exists. A missing file does not prove the contrary: the kernel may
    /// be built without it.
    fn still_there(&self) -> bool {
        let status = || fstatat(&self.directory, c"stat", AtFlags::empty());
        !matches!(self.guarded(ReadKind::Process, status), Err(Errno::ENOENT | Errno::ESRCH))
    }

    /// Interprets a failed read of an additional file. Returns `None` if the process still exists and the
    /// file is just unavailable.
    ///
    /// # Errors
    /// Fails with `Gone` if the process has ended.
    pub fn unless_gone<T>(&self, reading: nix::Result<T>) -> Result<Option<T>, Failure> {
        match reading {
            Ok(reading) => Ok(Some(reading)),
            Err(_) if self.is_thread => Ok(None),
            Err(Errno::ESRCH) => Err(Failure::Gone),
            Err(Errno::ENOENT) if !self.still_there() => Err(Failure::Gone),
            Err(_) => Ok(None),
        }
    }
}

impl AsFd for ProcessDirectory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl CoreFigures<'_> {
    /// The process that was read.
    pub fn id(&self) -> ProcId {
        ProcId { pid: self.stat.pid, start_ticks: self.stat.start_ticks }
    }

    /// Returns a sample of the figures in `stat`; the others are not valid.
    pub fn sample(&self) -> ProcessSample {
        let mut valid = Validity::CPU;
        if self.owner.is_some() {
            valid |= Validity::USER;
        }
        ProcessSample {
            parent: self.stat.parent,
            state: self.stat.state,
            threads: self.stat.threads,
            minor_faults: self.stat.minor_faults,
            major_faults: self.stat.major_faults,
            user_ticks: self.stat.user_ticks,
            system_ticks: self.stat.system_ticks,
            valid,
            ..ProcessSample::unknown(self.id())
        }
    }
}

/// Buffers and facts for reading the requested figures.
#[derive(Debug)]
pub struct FigureReader {
    what: SampleSet,
    buffer: Vec<u8>,
    listing: Listing,
}

impl FigureReader {
    /// Creates a reader of the groups in `what`.
    pub fn new(what: SampleSet) -> FigureReader {
        FigureReader { what, buffer: Vec::new(), listing: Listing::default() }
    }

    /// Adds the groups of figures to `sample`. A group that cannot be read stays 0 and not valid. If the main
    /// thread has ended and another one stands in for it, the threads' common state is read from `live`.
    ///
    /// # Errors
    /// Fails with `Gone` if the process has ended meanwhile; `sample` is then useless.
    pub fn read(
        &mut self,
        directory: &ProcessDirectory,
        live: Option<&ProcessDirectory>,
        stat: &Stat<'_>,
        facts: &SystemFacts,
        sample: &mut ProcessSample,
    ) -> Result<(), Failure> {
        // Without such a thread, the state that the main thread has lost is unknown.
        let common = live.or(Some(directory).filter(|_| !stat.has_lost_main_thread()));
        if let Some(common) = common.filter(|_| self.what.has(SampleSet::MEMORY)) {
            self.memory(common, stat.has_memory(), facts, sample)?;
        }
        if self.what.has(SampleSet::IO) {
            let io = directory.record(c"io", &mut self.buffer).map(parse::io);
            if let Some(io) = directory.unless_gone(io)?.flatten() {
                sample.read_chars = io.read_chars;
                sample.write_chars = io.write_chars;
                sample.read_bytes = io.read_bytes;
                sample.write_bytes = io.write_bytes;
                sample.valid |= Validity::IO;
                // The I/O of children that were waited for cannot be separated from the process's own.
                if !stat.has_waited {
                    sample.own_read_chars = io.read_chars;
                    sample.own_write_chars = io.write_chars;
                    sample.own_read_bytes = io.read_bytes;
                    sample.own_write_bytes = io.write_bytes;
                    sample.valid |= Validity::OWN_CHARS | Validity::OWN_BYTES;
                }
            }
        }
        if self.what.has(SampleSet::SWITCHES) {
            let switches = directory.record(c"status", &mut self.buffer).map(parse::switches);
            if let Some([voluntary, involuntary]) = directory.unless_gone(switches)?.flatten() {
                sample.voluntary_switches = voluntary;
                sample.involuntary_switches = involuntary;
                sample.valid |= Validity::SWITCHES;
            }
        }
        if let Some(common) = common.filter(|_| self.what.has(SampleSet::PROPORTIONAL)) {
            self.proportional(common, stat.has_memory(), sample);
        }
        if let Some(common) = common.filter(|_| self.what.has(SampleSet::DESCRIPTORS)) {
            self.descriptors(common, facts, sample)?;
        }
        Ok(())
    }

    /// Adds the number of open descriptors to `sample`.
    ///
    /// # Errors
    /// Fails as [`FigureReader::read`] does.
    pub fn descriptors(
        &mut self,
        directory: &ProcessDirectory,
        facts: &SystemFacts,
        sample: &mut ProcessSample,
    ) -> Result<(), Failure> {
        let count = directory.descriptors(facts, &mut self.listing);
        if let Some(count) = directory.unless_gone(count)? {
            sample.descriptors = count;
            sample.valid |= Validity::DESCRIPTORS;
        }
        Ok(())
    }

    /// Adds the proportional share of memory to `sample`. For it the kernel visits every page of the process,
    /// under its memory lock.
    pub fn proportional(
        &mut self,
        directory: &ProcessDirectory,
        has_memory: bool,
        sample: &mut ProcessSample,
    ) {
        if !has_memory {
            sample.valid |= Validity::PROPORTIONAL;
            return;
        }
        // A process that has just lost its memory no longer has such a file. This does not mean that it has
        // ended.
        let read = directory.record_up_to(ReadKind::Memory, c"smaps_rollup", &mut self.buffer, usize::MAX);
        if let Some(bytes) = read.ok().and_then(parse::proportional) {
            sample.proportional_bytes = bytes;
            sample.valid |= Validity::PROPORTIONAL;
        }
    }

    fn memory(
        &mut self,
        directory: &ProcessDirectory,
        has_memory: bool,
        facts: &SystemFacts,
        sample: &mut ProcessSample,
    ) -> Result<(), Failure> {
        if !has_memory {
            // Its file would show zeros, which are correct.
            sample.valid |= Validity::MEMORY;
            return Ok(());
        }
        let statm = directory.record(c"statm", &mut self.buffer).map(parse::statm);
        if let Some(statm) = directory.unless_gone(statm)?.flatten() {
            sample.resident_bytes = statm.resident_pages.saturating_mul(facts.page_size);
            sample.shared_bytes = statm.shared_pages.saturating_mul(facts.page_size);
            sample.virtual_bytes = statm.virtual_pages.saturating_mul(facts.page_size);
            sample.valid |= Validity::MEMORY;
        }
        Ok(())
    }
}

/// Returns true if a process has ended, as far as this can be determined.
pub fn has_ended(root: &ProcRoot, id: ProcId, buffer: &mut Vec<u8>) -> bool {
    match root.read_of(id.pid, "stat", buffer) {
        Ok(text) => {
            parse::stat(text).is_none_or(|stat| (stat.pid, stat.start_ticks) != (id.pid, id.start_ticks))
        }
        Err(errno) => errno != Errno::EAGAIN,
    }
}

/// Returns the process that has this pid now, by reading only the start time. Returns `None` if there is no
/// such process or it cannot be read.
pub fn proc_id(root: &ProcRoot, pid: i32, buffer: &mut Vec<u8>) -> Option<ProcId> {
    let text = root.read_of(pid, "stat", buffer).ok()?;
    let stat = parse::stat(text).filter(|stat| stat.pid == pid)?;
    Some(ProcId { pid, start_ticks: stat.start_ticks })
}
