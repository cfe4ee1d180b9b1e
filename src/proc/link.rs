//! The network namespace that a link of `/proc` names, parsed from its text.

use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Returns the inode of the network namespace that the link at `path` names.
///
/// The text of the link is read and the link is not followed, which costs half as much and needs no
/// descriptor.
///
/// # Errors
/// Fails with the system's error number: `ENOENT` and `ESRCH` for a process that is gone or is a zombie,
/// `EACCES` and `EPERM` for one that the caller may not inspect, `EINVAL` if `path` is not a link to a
/// network namespace.
pub fn network_namespace_at(directory: BorrowedFd<'_>, path: &CStr) -> nix::Result<u64> {
    let mut text = [0u8; 40];
    // SAFETY: `path` ends with NUL and the kernel writes at most `text.len()` bytes to `text`; both are alive
    // for the length of the call. The descriptor is open while it is borrowed.
    let count = unsafe {
        libc::readlinkat(directory.as_raw_fd(), path.as_ptr(), text.as_mut_ptr().cast(), text.len())
    };
    let count = usize::try_from(Errno::result(count)?).unwrap_or(0);
    text.get(..count).and_then(network_namespace).ok_or(Errno::EINVAL)
}

/// Parses `net:[123]`, as `ns_get_name` of fs/nsfs.c prints it; the root of a mount of a namespace has the
/// same form.
pub fn network_namespace(text: &[u8]) -> Option<u64> {
    let digits = text.strip_prefix(b"net:[")?.strip_suffix(b"]")?;
    digits.first().filter(|digit| digit.is_ascii_digit())?;
    str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn texts_of_links() {
        assert_eq!(network_namespace(b"net:[4026531840]"), Some(4_026_531_840));
        for other in ["", "net:[]", "net:[+1]", "net:[1", "mnt:[1]", "net:[-1]", "net:[99999999999999999999]"]
        {
            assert_eq!(network_namespace(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn links_of_a_process() {
        let proc = std::fs::File::open("/proc").unwrap();
        let inode = network_namespace_at(proc.as_fd(), c"self/ns/net").unwrap();
        let text = std::fs::read_link("/proc/self/ns/net").unwrap();
        assert_eq!(text.to_str().unwrap(), format!("net:[{inode}]"));
        assert_eq!(network_namespace_at(proc.as_fd(), c"self/ns/mnt"), Err(Errno::EINVAL));
        assert_eq!(network_namespace_at(proc.as_fd(), c"self/none"), Err(Errno::ENOENT));
    }
}
