//! The network namespace or socket that a link of `/proc` names, parsed from its text.

use super::parse::decimal;
use crate::blocking::progress;
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
    link(directory, path, network_namespace)?.ok_or(Errno::EINVAL)
}

/// Parses `net:[123]`, as `ns_get_name` of fs/nsfs.c prints it; the root of a mount of a namespace has the
/// same form.
pub fn network_namespace(text: &[u8]) -> Option<u64> {
    numbered(text, b"net:[")
}

/// Returns the inode of the socket behind the descriptor link at `path`; `None` if it is something else.
///
/// The text of the link is read and the link is not followed: a `stat` of its target can hang on a dead network
/// file system.
///
/// # Errors
/// Fails with the system's error number, as [`network_namespace_at`] does.
pub fn socket_at(directory: BorrowedFd<'_>, path: &CStr) -> nix::Result<Option<u64>> {
    link(directory, path, socket)
}

/// Parses `socket:[123]`, as `sockfs_dname` of net/socket.c prints it.
fn socket(text: &[u8]) -> Option<u64> {
    numbered(text, b"socket:[")
}

fn numbered(text: &[u8], kind: &[u8]) -> Option<u64> {
    decimal(text.strip_prefix(kind)?.strip_suffix(b"]")?)
}

/// Reads the text of a link and parses it. A text that is longer than those of numbered objects is cut.
fn link<T>(directory: BorrowedFd<'_>, path: &CStr, parse: fn(&[u8]) -> Option<T>) -> nix::Result<Option<T>> {
    let mut text = [0u8; 40];
    // SAFETY: `path` ends with NUL and the kernel writes at most `text.len()` bytes to `text`; both are alive
    // for the length of the call. The descriptor is open while it is borrowed.
    let count = unsafe {
        libc::readlinkat(directory.as_raw_fd(), path.as_ptr(), text.as_mut_ptr().cast(), text.len())
    };
    progress();
    let count = usize::try_from(Errno::result(count)?).unwrap_or(0);
    Ok(text.get(..count).and_then(parse))
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
        assert_eq!(socket(b"socket:[14979]"), Some(14979));
        for other in
            ["", "socket:[]", "socket:[1", "socket:[-1]", "pipe:[1]", "/tmp/socket:[1]", "socket:[1] "]
        {
            assert_eq!(socket(other.as_bytes()), None, "{other}");
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
        assert_eq!(socket_at(proc.as_fd(), c"self/exe"), Ok(None));
        assert_eq!(socket_at(proc.as_fd(), c"self/none"), Err(Errno::ENOENT));
    }
}
