//! The only access to a `/proc` tree, real or fixture: its root, the system facts needed to read it, and
//! reads into reused buffers.

use crate::blocking::{ProcTree, ReadKind, guarded};
use crate::error::{Code, Error, Result};
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use nix::{errno::Errno, fcntl::AtFlags};
use std::ffi::CStr;
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Facts about the system that its `/proc` does not state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SystemFacts {
    /// Bytes in a page of memory.
    pub page_size: u64,
    /// Clock ticks in a second, the unit of the times in `/proc/<pid>/stat`.
    pub ticks_per_second: u64,
    /// Set if the size of `/proc/<pid>/fd` is the number of descriptors (Linux 6.2 and later).
    pub descriptors_by_size: bool,
}

/// An open `/proc` directory with the facts needed to read it.
///
/// Every path is opened relative to the directory's descriptor, so that neither the host's working directory
/// nor a later mount over the path matters.
#[derive(Debug)]
pub struct ProcRoot {
    directory: OwnedFd,
    facts: SystemFacts,
    tree: ProcTree,
}

impl ProcRoot {
    /// Opens the `/proc` tree at `path` and queries the running system for its facts.
    ///
    /// # Errors
    /// Fails with `OpenDirectory` if `path` cannot be opened, and with `ProcessInit` if a fact of the system
    /// is unavailable.
    pub fn open(path: &Path) -> Result<ProcRoot> {
        let facts = SystemFacts {
            page_size: system_configuration(nix::unistd::SysconfVar::PAGE_SIZE)?,
            ticks_per_second: system_configuration(nix::unistd::SysconfVar::CLK_TCK)?,
            descriptors_by_size: false,
        };
        let mut root = ProcRoot::with_facts(path, facts)?;
        // This process certainly has descriptors (the root's is one), so a size of 0 means an older kernel.
        // In a tree that is not of the proc filesystem the size says nothing about descriptors.
        root.facts.descriptors_by_size =
            root.is_proc_filesystem() && root.stat(c"self/fd").is_ok_and(|stat| stat.st_size > 0);
        Ok(root)
    }

    /// Opens a tree with facts given by the caller.
    ///
    /// # Errors
    /// Fails with `OpenDirectory` if `path` cannot be opened.
    pub fn with_facts(path: &Path, facts: SystemFacts) -> Result<ProcRoot> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = nix::fcntl::open(path, flags, Mode::empty()).map_err(|errno| {
            Error::system(Code::OpenDirectory, format_args!("opening {}", path.display()), errno)
        })?;
        let tree =
            fstat(&directory).map_or(ProcTree::default(), |stat| ProcTree(stat.st_dev ^ stat.st_ino << 8));
        Ok(ProcRoot { directory, facts, tree })
    }

    /// The system facts with which this tree is read.
    pub fn facts(&self) -> &SystemFacts {
        &self.facts
    }

    /// The directory's descriptor, to open other files relative to it.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Identifies this tree for reads that may not return.
    pub fn tree(&self) -> ProcTree {
        self.tree
    }

    /// Reads the whole file at `path` into `buffer`, whose capacity is reused, and returns the bytes read.
    ///
    /// # Errors
    /// Fails with the system's error number; `ENOENT` and `ESRCH` mean that the process is gone.
    pub fn read<'b>(&self, path: &CStr, buffer: &'b mut Vec<u8>) -> nix::Result<&'b [u8]> {
        guarded(self.tree, 0, ReadKind::Root, || {
            let file = open_file(self.directory(), path)?;
            buffer.clear();
            while read_more(&file, buffer)? != 0 {}
            Ok(())
        })?;
        Ok(buffer)
    }

    /// Reads a file of a single record (`loadavg`). The kernel returns it in one read if the buffer is large
    /// enough, which saves the read that finds the end.
    ///
    /// # Errors
    /// Fails as [`ProcRoot::read`] does.
    pub fn read_record<'b>(&self, path: &CStr, buffer: &'b mut Vec<u8>) -> nix::Result<&'b [u8]> {
        guarded(self.tree, 0, ReadKind::Root, || read_record_at(self.directory(), path, buffer, usize::MAX))?;
        Ok(buffer)
    }

    /// Reads a file of a single record of a process.
    ///
    /// # Errors
    /// Fails as [`ProcRoot::read`] does, and with `EAGAIN` if the process cannot be read at present (see
    /// [`crate::blocking`]).
    pub fn read_of<'b>(&self, pid: i32, name: &str, buffer: &'b mut Vec<u8>) -> nix::Result<&'b [u8]> {
        self.guarded(pid, || {
            read_record_at(self.directory(), PidPath::new(pid).file(name), buffer, usize::MAX)
        })?;
        Ok(buffer)
    }

    /// Returns true if files that belong to no process can be read at present.
    pub fn is_readable(&self) -> bool {
        guarded(self.tree, 0, ReadKind::Root, || Ok(())).is_ok()
    }

    /// Runs a read of the process with this pid that may not return; see [`guarded`].
    ///
    /// # Errors
    /// Fails as [`guarded`] does.
    pub fn guarded<T>(&self, pid: i32, read: impl FnOnce() -> nix::Result<T>) -> nix::Result<T> {
        guarded(self.tree, pid, ReadKind::Process, read)
    }

    /// Returns the result of `stat(2)` for `path`, without opening it.
    ///
    /// # Errors
    /// Fails with the system's error number.
    pub fn stat(&self, path: &CStr) -> nix::Result<FileStat> {
        fstatat(&self.directory, path, AtFlags::empty())
    }

    /// Returns true if this is the proc filesystem of the PID namespace in which this process has its own
    /// number.
    pub fn tells_own_numbers(&self) -> bool {
        let me = std::process::id().to_string();
        self.is_proc_filesystem() && readlinkat(&self.directory, c"self").is_ok_and(|link| link == *me)
    }

    fn is_proc_filesystem(&self) -> bool {
        nix::sys::statfs::fstatfs(&self.directory)
            .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::PROC_SUPER_MAGIC)
    }
}

/// The size of the first read, enough for every file that is read for each process; longer files double it.
const FIRST_READ: usize = 4096;

fn open_file(directory: BorrowedFd<'_>, path: &CStr) -> nix::Result<OwnedFd> {
    openat(directory, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Reads a file of one record relative to any directory, and stops once at least `limit` bytes were read.
pub(crate) fn read_record_at(
    directory: BorrowedFd<'_>,
    path: &CStr,
    buffer: &mut Vec<u8>,
    limit: usize,
) -> nix::Result<()> {
    let file = open_file(directory, path)?;
    buffer.clear();
    while read_more(&file, buffer)? != 0 && buffer.len() == buffer.capacity() && buffer.len() < limit {}
    Ok(())
}

/// Appends one read of `file` to `buffer`, which grows if it is full. Returns the number of bytes read; 0 at
/// the end.
fn read_more(file: &OwnedFd, buffer: &mut Vec<u8>) -> nix::Result<usize> {
    if buffer.len() == buffer.capacity() {
        buffer.reserve(buffer.capacity().max(FIRST_READ));
    }
    loop {
        let room = buffer.spare_capacity_mut();
        // SAFETY: the kernel writes at most `room.len()` bytes to `room`, which is memory of this buffer
        // without another reference. It is only written here, never read before it was initialised.
        let count = unsafe { libc::read(file.as_raw_fd(), room.as_mut_ptr().cast(), room.len()) };
        match Errno::result(count) {
            Ok(count) => {
                let count = count.unsigned_abs();
                // SAFETY: the kernel has just initialised `count` bytes after the old length, within the
                // capacity.
                unsafe { buffer.set_len(buffer.len() + count) };
                return Ok(count);
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn system_configuration(name: nix::unistd::SysconfVar) -> Result<u64> {
    match nix::unistd::sysconf(name) {
        Ok(Some(value)) if value > 0 => Ok(value.unsigned_abs()),
        _ => Err(Error::new(Code::ProcessInit, format!("sysconf({name:?}) gave no value"))),
    }
}

/// The number of digits of the longest pid.
const DIGITS: usize = 10;

/// A path such as `1234/stat` in a buffer of its own, built without allocating.
pub struct PidPath {
    text: [u8; 64],
    stem: usize,
}

impl PidPath {
    /// Creates the path of the process's directory, without a trailing slash.
    pub fn new(pid: i32) -> PidPath {
        let mut digits = [0; DIGITS];
        let mut start = DIGITS;
        let mut rest = pid.unsigned_abs();
        for (index, digit) in digits.iter_mut().enumerate().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
            start = index;
            if rest == 0 {
                break;
            }
        }
        let mut path = PidPath { text: [0; 64], stem: 0 };
        let sign = if pid < 0 { &b"-"[..] } else { b"" };
        for part in [sign, digits.get(start..).unwrap_or_default()] {
            for (to, from) in path.text.iter_mut().skip(path.stem).zip(part) {
                *to = *from;
                path.stem += 1;
            }
        }
        path
    }

    /// Returns the path of the directory itself.
    pub fn directory(&mut self) -> &CStr {
        self.text[self.stem] = 0;
        CStr::from_bytes_until_nul(&self.text).unwrap_or_default()
    }

    /// Returns the path of a file of the process's directory, such as `stat` or `fd/3`; a name that is too
    /// long is cut.
    pub fn file(&mut self, name: &str) -> &CStr {
        let mut rest = &mut self.text[self.stem..63];
        let _ = rest.write_all(b"/").and_then(|()| rest.write_all(name.as_bytes()));
        let end = 63 - rest.len();
        self.text[end] = 0;
        CStr::from_bytes_until_nul(&self.text).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_built_and_reused() {
        let mut path = PidPath::new(1234);
        assert_eq!(path.directory(), c"1234");
        assert_eq!(path.file("statm"), c"1234/statm");
        assert_eq!(path.file("io"), c"1234/io");
        assert_eq!(path.directory(), c"1234");
        assert_eq!(PidPath::new(i32::MIN).file("fd/1"), c"-2147483648/fd/1");
        assert!(PidPath::new(1).file(&"x".repeat(200)).count_bytes() < 64);
    }

    #[test]
    fn a_file_longer_than_the_buffer_is_read_whole() {
        let tree = tempfile::tempdir().unwrap();
        let long: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        std::fs::write(tree.path().join("long"), &long).unwrap();
        let root = ProcRoot::open(tree.path()).unwrap();
        let mut buffer = Vec::new();
        assert_eq!(root.read_record(c"long", &mut buffer).unwrap(), long);
        assert_eq!(root.read(c"long", &mut Vec::new()).unwrap(), long);
        std::fs::write(tree.path().join("short"), b"x").unwrap();
        assert_eq!(root.read(c"short", &mut buffer).unwrap(), b"x");
        assert_eq!(root.read(c"none", &mut buffer), Err(Errno::ENOENT));
        assert!(!root.facts().descriptors_by_size, "a made-up tree does not count descriptors by size");
    }

    #[test]
    fn a_missing_tree_is_an_error_that_names_it() {
        let error = ProcRoot::open(Path::new("/nonexistent/proc")).unwrap_err();
        assert_eq!(error.code, Code::OpenDirectory);
        assert!(error.text.contains("/nonexistent/proc"), "{error}");
    }

    #[test]
    fn the_live_tree_has_facts() {
        let root = ProcRoot::open(Path::new("/proc")).unwrap();
        assert_eq!(root.facts().page_size, page_size_of_auxv());
        let mut buffer = Vec::new();
        let stat = root.read(c"self/stat", &mut buffer).unwrap();
        assert!(stat.starts_with(std::process::id().to_string().as_bytes()));
    }

    /// The page size as the auxiliary vector of this process states it.
    fn page_size_of_auxv() -> u64 {
        const AT_PAGESZ: u64 = 6;
        let auxv = std::fs::read("/proc/self/auxv").unwrap();
        let words: Vec<u64> =
            auxv.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect();
        words.chunks_exact(2).find(|pair| pair[0] == AT_PAGESZ).unwrap()[1]
    }
}
