//! Opens paths of the nsfs file system to find the network namespace that they name.

use crate::blocking::{ProcTree, ReadKind, guarded};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// Stands for the `/proc` tree in reads by full path.
const PATHS: ProcTree = ProcTree(1);

/// `NS_GET_NSTYPE` of linux/nsfs.h: `_IO(0xb7, 3)`.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// Opens the network namespace at `path`, and returns it with its inode.
///
/// # Errors
/// Fails with the system's error number, which is `EINVAL` if the path is not a network namespace.
pub(super) fn open_namespace(path: &Path) -> nix::Result<(OwnedFd, u64)> {
    // O_NONBLOCK, since opening a pipe would wait for its other end.
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = guarded_path(path, |path| open(path, flags, Mode::empty()))?;
    // SAFETY: the request takes no argument and touches no memory of this process. The descriptor is open.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    // Files outside nsfs return ENOTTY, or anything else.
    if kind != libc::CLONE_NEWNET {
        return Err(Errno::EINVAL);
    }
    let inode = fstat(&file)?.st_ino;
    Ok((file, inode))
}

/// Makes a read by full path that may not return: the process in the path can keep its directories locked.
///
/// # Errors
/// As [`guarded`].
pub(super) fn guarded_path<T>(path: &Path, read: impl FnOnce(&Path) -> nix::Result<T>) -> nix::Result<T> {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    let number = (hasher.finish() >> 33) as i32;
    guarded(PATHS, number, ReadKind::Process, || read(path))
}

/// Returns the inode of the network namespace at `path`.
///
/// # Errors
/// As [`open_namespace`].
pub(super) fn namespace_at(path: &Path) -> nix::Result<u64> {
    open_namespace(path).map(|(_, inode)| inode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::network_namespace_at;
    use std::os::fd::AsFd;

    #[test]
    fn a_link_and_what_it_leads_to_are_one() {
        let proc = std::fs::File::open("/proc").unwrap();
        let inode = network_namespace_at(proc.as_fd(), c"self/ns/net").unwrap();
        assert_eq!(namespace_at(Path::new("/proc/self/ns/net")), Ok(inode));
        assert_eq!(namespace_at(Path::new("/proc/self/ns/mnt")), Err(Errno::EINVAL));
    }
}
