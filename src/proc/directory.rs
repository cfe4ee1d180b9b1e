//! Directory listings by getdents64(2) into a reused buffer. Names are borrowed from it; no entry needs an
//! allocation.

use super::parse::decimal;
use crate::blocking::progress;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Space for about a thousand entries, the size that the C library uses as well.
const WHOLE_DIRECTORY: usize = 32 * 1024;
/// Space for some sixty processes.
const FEW_ENTRIES: usize = 2 * 1024;
/// The offsets of the record's length and name in a `struct linux_dirent64` (getdents64(2)).
const LENGTH_OFFSET: usize = 16;
const NAME_OFFSET: usize = 19;

/// The buffer of listings.
#[derive(Debug)]
pub struct Listing {
    buffer: Vec<u8>,
}

impl Default for Listing {
    fn default() -> Listing {
        Listing { buffer: vec![0; WHOLE_DIRECTORY] }
    }
}

impl Listing {
    /// Creates a listing that returns a few entries at a time, for a caller that does much with each: the
    /// data that the kernel has touched to list an entry is then still in the processor's caches. For 10,000
    /// processes this saves most of the cost of listing them.
    pub fn in_small_steps() -> Listing {
        Listing { buffer: vec![0; FEW_ENTRIES] }
    }

    /// Calls `each` with the name of every entry of an open directory, from its start, except `.` and `..`.
    ///
    /// # Errors
    /// Fails with the system's error number; `each` may have been called for some names before.
    pub fn names(&mut self, directory: BorrowedFd<'_>, mut each: impl FnMut(&[u8])) -> nix::Result<()> {
        nix::unistd::lseek(directory, 0, nix::unistd::Whence::SeekSet)?;
        while self.next_names(directory, &mut each)? {}
        Ok(())
    }

    /// Calls `each` with the names of one step, which begins at the end of the last step of this descriptor.
    /// Returns true if there may be more.
    ///
    /// # Errors
    /// Fails as [`Listing::names`] does.
    pub fn next_names(
        &mut self,
        directory: BorrowedFd<'_>,
        mut each: impl FnMut(&[u8]),
    ) -> nix::Result<bool> {
        let records = self.step(directory)?;
        names(records).for_each(|name| each(name.to_bytes()));
        Ok(!records.is_empty())
    }

    /// Calls `each` with the name and the number of every further entry of an open directory whose name is a
    /// number, until it fails.
    ///
    /// # Errors
    /// Fails with the system's error number or with the error of `each`.
    pub fn numbers(
        &mut self,
        directory: BorrowedFd<'_>,
        mut each: impl FnMut(&CStr, i32) -> nix::Result<()>,
    ) -> nix::Result<()> {
        loop {
            let records = self.step(directory)?;
            if records.is_empty() {
                return Ok(());
            }
            for name in names(records) {
                let number = decimal(name.to_bytes()).and_then(|number| i32::try_from(number).ok());
                if let Some(number) = number {
                    each(name, number)?;
                }
            }
        }
    }

    /// Returns the records of one getdents64 call; none at the end of the directory.
    fn step(&mut self, directory: BorrowedFd<'_>) -> nix::Result<&[u8]> {
        // SAFETY: the kernel writes at most `len` bytes to the buffer. This listing owns the buffer, which is
        // initialised and has no other reference during the call. The descriptor is open while it is
        // borrowed.
        let filled = Errno::result(unsafe {
            libc::syscall(
                libc::SYS_getdents64,
                directory.as_raw_fd(),
                self.buffer.as_mut_ptr(),
                self.buffer.len(),
            )
        })?;
        progress();
        let filled = usize::try_from(filled).unwrap_or_default();
        Ok(self.buffer.get(..filled).unwrap_or_default())
    }

    /// Returns the number of entries of the directory at `path`.
    ///
    /// # Errors
    /// Fails with the system's error number.
    pub fn count(&mut self, parent: BorrowedFd<'_>, path: &CStr) -> nix::Result<u32> {
        let directory = open_directory(parent, path)?;
        let mut count = 0u32;
        self.names(std::os::fd::AsFd::as_fd(&directory), |_| count = count.saturating_add(1))?;
        Ok(count)
    }
}

/// Opens the directory at `path` for listing.
///
/// # Errors
/// Fails with the system's error number.
pub fn open_directory(parent: BorrowedFd<'_>, path: &CStr) -> nix::Result<OwnedFd> {
    openat(parent, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Returns the names in the records of one getdents64 call up to a cut record, except `.` and `..`.
fn names(mut records: &[u8]) -> impl Iterator<Item = &CStr> {
    let records = std::iter::from_fn(move || {
        let (record, rest) = split_record(records)?;
        records = rest;
        Some(record)
    });
    let names = records.filter_map(|record| CStr::from_bytes_until_nul(record.get(NAME_OFFSET..)?).ok());
    names.filter(|name| !matches!(name.to_bytes(), b"" | b"." | b".."))
}

fn split_record(records: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = records.get(LENGTH_OFFSET..)?.first_chunk()?;
    let length = usize::from(u16::from_ne_bytes(*length));
    if length < NAME_OFFSET {
        return None;
    }
    records.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::os::fd::AsFd;
    use std::os::unix::ffi::OsStrExt;

    fn names(path: &std::path::Path) -> BTreeSet<Vec<u8>> {
        let directory = std::fs::File::open(path).unwrap();
        let mut listing = Listing::default();
        let mut names = BTreeSet::new();
        for _ in 0..2 {
            names.clear();
            listing.names(directory.as_fd(), |name| assert!(names.insert(name.to_vec()))).unwrap();
        }
        names
    }

    #[test]
    fn a_long_directory_is_listed_whole_and_again() {
        let tree = tempfile::tempdir().unwrap();
        for number in 0..3000 {
            std::fs::write(tree.path().join(format!("entry number {number}")), "").unwrap();
        }
        std::fs::write(tree.path().join(std::ffi::OsStr::from_bytes(b"\xff\n")), "").unwrap();
        let expected: BTreeSet<Vec<u8>> = std::fs::read_dir(tree.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().as_bytes().to_vec())
            .collect();
        assert_eq!(names(tree.path()), expected);
        let parent = std::fs::File::open(tree.path().parent().unwrap()).unwrap();
        let name = std::ffi::CString::new(tree.path().file_name().unwrap().as_bytes()).unwrap();
        assert_eq!(Listing::default().count(parent.as_fd(), &name), Ok(3001));
        assert_eq!(Listing::default().count(parent.as_fd(), c"no such"), Err(Errno::ENOENT));
    }

    #[test]
    fn numbers_are_listed_in_several_steps_from_the_position_on() {
        let tree = tempfile::tempdir().unwrap();
        for number in 0..300 {
            std::fs::write(tree.path().join(number.to_string()), "").unwrap();
        }
        for other in ["12x", "+1", "99999999999"] {
            std::fs::write(tree.path().join(other), "").unwrap();
        }
        let directory = std::fs::File::open(tree.path()).unwrap();
        let mut listing = Listing::in_small_steps();
        let mut seen = BTreeSet::new();
        let mut list =
            |each: &mut dyn FnMut(&CStr, i32) -> nix::Result<()>| listing.numbers(directory.as_fd(), each);
        let listed = list(&mut |name, number| {
            assert_eq!(name.to_str().unwrap(), number.to_string());
            assert!(seen.insert(number));
            Ok(())
        });
        assert_eq!((listed, seen), (Ok(()), (0..300).collect()));
        assert_eq!(list(&mut |_, _| panic!("the position is the end")), Ok(()));
        nix::unistd::lseek(&directory, 0, nix::unistd::Whence::SeekSet).unwrap();
        assert_eq!(list(&mut |_, _| Err(Errno::EINTR)), Err(Errno::EINTR));
    }

    #[test]
    fn a_file_is_no_directory() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(Listing::default().names(file.as_fd(), |_| ()), Err(Errno::ENOTDIR));
    }

    proptest! {
        #[test]
        fn random_records_never_panic(records in proptest::collection::vec(any::<u8>(), 0..200), length in 0u16..64) {
            super::names(&records).for_each(drop);
            let mut likely = records;
            if let Some(bytes) = likely.get_mut(LENGTH_OFFSET..LENGTH_OFFSET + 2) {
                bytes.copy_from_slice(&length.to_ne_bytes());
            }
            super::names(&likely).for_each(drop);
        }
    }
}
