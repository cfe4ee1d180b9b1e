//! A file read into pages that are returned to the system when they are dropped.
//!
//! glibc raises its threshold for separate mappings when a block of megabytes is freed. Later blocks of that
//! size come from the heap and stay resident. A buffer that lives for milliseconds must not change the host's
//! allocator for good.

use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// The content of a file.
pub(super) struct PageBuffer {
    start: NonNull<libc::c_void>,
    size: NonZeroUsize,
    filled: usize,
}

impl PageBuffer {
    /// Reads a file of known length.
    ///
    /// # Errors
    /// Fails if the file cannot be read, or if it is longer than its metadata says.
    pub(super) fn read(path: &str) -> io::Result<PageBuffer> {
        let mut file = File::open(path)?;
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        // The last byte stays empty if the file has the stated length.
        let size = length.checked_add(1).and_then(NonZeroUsize::new).ok_or(io::ErrorKind::FileTooLarge)?;
        let (access, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        // SAFETY: the kernel chooses the address, so that no memory in use is replaced.
        let start = unsafe { mmap_anonymous(None, size, access, flags) }?;
        let mut pages = PageBuffer { start, size, filled: 0 };
        // SAFETY: the mapping is new, zeroed and this long, and nothing else refers to it.
        let room = unsafe { std::slice::from_raw_parts_mut(start.cast::<u8>().as_ptr(), size.get()) };
        while let Some(rest) = room.get_mut(pages.filled..).filter(|rest| !rest.is_empty()) {
            match file.read(rest) {
                Ok(0) => return Ok(pages),
                Ok(count) => pages.filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::FileTooLarge.into())
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the first `filled` bytes were read from the file, and nothing changes them while this value
        // lives.
        unsafe { std::slice::from_raw_parts(self.start.cast::<u8>().as_ptr(), self.filled) }
    }
}

impl Drop for PageBuffer {
    fn drop(&mut self) {
        // SAFETY: the pages belong to this value, and no reference outlives it.
        let _ = unsafe { munmap(self.start, self.size.get()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for length in [0, 1, 4095, 4096, 100_000] {
            let content: Vec<u8> = (0..length).map(|number| number as u8).collect();
            std::fs::write(&path, &content).unwrap();
            assert_eq!(&*PageBuffer::read(path.to_str().unwrap()).unwrap(), content);
        }
        assert!(PageBuffer::read("/nonexistent").is_err());
    }

    #[test]
    fn a_file_that_is_longer_than_it_says_is_refused() {
        assert!(PageBuffer::read("/proc/self/status").is_err(), "its length is said to be 0");
    }
}
