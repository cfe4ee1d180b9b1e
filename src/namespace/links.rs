//! Which network namespace a path of the nsfs file system names: by the text of a link, or by opening it.

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// `NS_GET_NSTYPE` of linux/nsfs.h: `_IO(0xb7, 3)`.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// The namespace that the link at `path` names, by its inode.
///
/// The text of the link is read and the link is not followed, which costs half as much and needs no descriptor.
///
/// # Errors
/// The system's error number: `ENOENT` and `ESRCH` for a process that is gone or is a zombie, `EACCES` and `EPERM`
/// for one that may not be looked at; `EINVAL` for what is no link to a network namespace.
pub(super) fn link_at(directory: BorrowedFd<'_>, path: &CStr) -> nix::Result<u64> {
    let mut text = [0u8; 40];
    // SAFETY: `path` ends with NUL and the kernel writes at most `text.len()` bytes to `text`, both alive for the
    // length of the call; the descriptor is open as long as its borrow lasts.
    let count = unsafe {
        libc::readlinkat(directory.as_raw_fd(), path.as_ptr(), text.as_mut_ptr().cast(), text.len())
    };
    let count = usize::try_from(Errno::result(count)?).unwrap_or(0);
    text.get(..count).and_then(parse).ok_or(Errno::EINVAL)
}

/// `net:[123]`, as `ns_get_name` of fs/nsfs.c prints it; also the root of a mount of a namespace.
pub(super) fn parse(text: &[u8]) -> Option<u64> {
    let digits = text.strip_prefix(b"net:[")?.strip_suffix(b"]")?;
    digits.first().filter(|digit| digit.is_ascii_digit())?;
    str::from_utf8(digits).ok()?.parse().ok()
}

/// Opens the network namespace at `path`, and tells its inode.
///
/// # Errors
/// The system's error number; `EINVAL` for what is no network namespace.
pub(super) fn open_namespace(path: &Path) -> nix::Result<(OwnedFd, u64)> {
    // O_NONBLOCK, lest the path be a pipe and the opening wait for its other end.
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = open(path, flags, Mode::empty())?;
    // SAFETY: the request takes no argument and touches no memory of ours; the descriptor is open.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    // What is not of nsfs says ENOTTY, or anything.
    if kind != libc::CLONE_NEWNET {
        return Err(Errno::EINVAL);
    }
    let inode = fstat(&file)?.st_ino;
    Ok((file, inode))
}

/// The network namespace at `path`, by its inode.
///
/// # Errors
/// As [`open_namespace`].
pub(super) fn namespace_at(path: &Path) -> nix::Result<u64> {
    open_namespace(path).map(|(_, inode)| inode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn texts_of_links() {
        assert_eq!(parse(b"net:[4026531840]"), Some(4_026_531_840));
        for other in ["", "net:[]", "net:[+1]", "net:[1", "mnt:[1]", "net:[-1]", "net:[99999999999999999999]"]
        {
            assert_eq!(parse(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_link_and_what_it_leads_to_are_one() {
        let proc = std::fs::File::open("/proc").unwrap();
        let inode = link_at(proc.as_fd(), c"self/ns/net").unwrap();
        assert_eq!(namespace_at(Path::new("/proc/self/ns/net")), Ok(inode));
        let text = std::fs::read_link("/proc/self/ns/net").unwrap();
        assert_eq!(text.to_str().unwrap(), format!("net:[{inode}]"));
        assert_eq!(link_at(proc.as_fd(), c"self/ns/mnt"), Err(Errno::EINVAL));
        assert_eq!(link_at(proc.as_fd(), c"self/none"), Err(Errno::ENOENT));
        assert_eq!(namespace_at(Path::new("/proc/self/ns/mnt")), Err(Errno::EINVAL));
    }
}
