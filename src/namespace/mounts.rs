//! Network namespaces that are mounted, as `ip netns` and container runtimes do to name them.

use crate::proc::{Mount, ProcRoot, mounts, network_namespace};
use nix::fcntl::{OFlag, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

/// The mounted namespaces. They are read again only if the kernel reports that mounts have changed.
#[derive(Default)]
pub(super) struct Mounts {
    /// `mountinfo`, kept open: polling it reports changes since it was last polled (proc_pid_mounts(5)).
    watched: Option<OwnedFd>,
    by_inode: HashMap<u64, Arc<Path>>,
    buffer: Vec<u8>,
}

impl Mounts {
    /// Updates the mounts if they have changed, as this thread sees them. If they cannot be read, none is
    /// known.
    pub(super) fn refresh(&mut self, root: &ProcRoot) {
        let first = self.watched.is_none();
        if first {
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            self.watched = openat(root.directory(), c"thread-self/mountinfo", flags, Mode::empty()).ok();
        }
        let Some(watched) = &self.watched else { return };
        let mut fds = [PollFd::new(watched.as_fd(), PollFlags::POLLPRI)];
        let changed = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0);
        if !first && !changed {
            return;
        }
        if let Ok(text) = root.read(c"thread-self/mountinfo", &mut self.buffer) {
            self.by_inode = mounts(text).filter_map(namespace_of).collect();
        }
    }

    /// Returns the mounted network namespaces by inode, each with one path.
    pub(super) fn all(&self) -> &HashMap<u64, Arc<Path>> {
        &self.by_inode
    }
}

/// Returns the network namespace and the path of a mount, if the mount is one of a network namespace.
fn namespace_of(mount: Mount<'_>) -> Option<(u64, Arc<Path>)> {
    let inode = network_namespace(mount.root)?;
    (mount.kind == b"nsfs").then(|| (inode, mount.point().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_namespaces_are_told_from_others() {
        let of = |line: &str| {
            mounts(line.as_bytes())
                .find_map(namespace_of)
                .map(|(inode, path)| (inode, path.display().to_string()))
        };
        assert_eq!(
            of("611 24 0:4 net:[4026532281] /run/netns/my\\040blue rw shared:9 - nsfs nsfs rw"),
            Some((4_026_532_281, "/run/netns/my blue".into()))
        );
        assert_eq!(of("611 24 0:4 mnt:[4026532281] /run/x rw - nsfs nsfs rw"), None);
        assert_eq!(of("611 24 8:1 net:[4026532281] /run/x rw - ext4 /dev/sda rw"), None);
        assert_eq!(of("22 1 8:1 / / rw,relatime - ext4 /dev/sda rw"), None);
        assert_eq!(of(""), None);
    }
}
