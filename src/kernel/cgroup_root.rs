//! The root of the cgroup v2 hierarchy, where programs see the sockets of all processes.
//!
//! In a cgroup namespace of its own, as containers have, a mount of the hierarchy shows a part of it only
//! (cgroup_namespaces(7)). Programs attached there see that part's processes, so the root is looked for by its number.

use super::Fault;
use crate::model::ProbeState;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Inode number of the root in every kernel (kernfs_create_root() in fs/kernfs/dir.c).
const ROOT_INODE: u64 = 1;

/// Opens the root: at a mount that begins with it, else through the file handle that the root has in any mount, which
/// takes CAP_DAC_READ_SEARCH, else at a mount of its own that is attached nowhere, which takes CAP_SYS_ADMIN.
///
/// # Errors
/// The hierarchy is not mounted, or only a part of it can be reached.
pub(super) fn open_cgroup_root() -> Result<File, Fault> {
    let missing = |text: String| Fault { state: ProbeState::NoCgroup, text };
    let mounts = std::fs::read("/proc/self/mountinfo")
        .map_err(|error| missing(format!("/proc/self/mountinfo cannot be read: {error}")))?;
    let opened: Vec<File> = cgroup_mounts(&mounts).filter_map(|path| File::open(path).ok()).collect();
    if let Some(root) = opened.iter().find(|file| is_root(file)) {
        return root
            .try_clone()
            .map_err(|error| missing(format!("the cgroup root cannot be opened: {error}")));
    }
    let mounted = match opened.first() {
        Some(_) => None,
        None => Some(mount_cgroups().map_err(|error| {
            missing(format!("no cgroup v2 hierarchy is mounted here, and it cannot be mounted: {error}"))
        })?),
    };
    let part = mounted.as_ref().or(opened.first()).filter(|file| !is_root(file));
    match (part, mounted.as_ref()) {
        (None, Some(root)) => root.try_clone().ok(),
        (Some(part), _) => open_by_handle(part).ok().filter(is_root),
        (None, None) => None,
    }
    .ok_or_else(|| {
        missing("only a part of the cgroup v2 hierarchy can be reached from this cgroup namespace".into())
    })
}

fn is_root(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.ino() == ROOT_INODE)
}

/// The root by its file handle, which consists of its number (kernfs_fh_to_dentry() in fs/kernfs/mount.c, Linux 5.5).
fn open_by_handle(part: &File) -> io::Result<File> {
    /// As the kernel knows it under the name `file_handle`, with room for the handles of such file systems.
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        number: u64,
    }
    const _: () = assert!(offset_of!(Handle, number) == 8 && size_of::<Handle>() == 16);
    let mut handle = Handle { bytes: size_of::<u64>() as u32, kind: 0, number: 0 };
    let mut mount = 0;
    let to = (&raw mut handle).cast::<libc::file_handle>();
    // SAFETY: the path is empty and ends with NUL; the handle says how much room it has, and both outlive the call.
    let named = unsafe {
        libc::name_to_handle_at(part.as_raw_fd(), c"".as_ptr(), to, &raw mut mount, libc::AT_EMPTY_PATH)
    };
    if named < 0 {
        return Err(io::Error::last_os_error());
    }
    handle.number = ROOT_INODE;
    let to = (&raw mut handle).cast::<libc::file_handle>();
    // SAFETY: the handle is as long as it says and outlives the call.
    let opened = unsafe { libc::open_by_handle_at(part.as_raw_fd(), to, libc::O_RDONLY | libc::O_CLOEXEC) };
    if opened < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(opened) }.into())
}

/// A mount of the cgroup v2 hierarchy that is attached nowhere: fsopen(2), fsmount(2), Linux 5.2.
fn mount_cgroups() -> io::Result<File> {
    let opened = |result: libc::c_long| match i32::try_from(result) {
        // SAFETY: the kernel has just made the descriptor for us.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: the name ends with NUL and lives for the length of the call; 1 is FSOPEN_CLOEXEC.
    let context = opened(unsafe { libc::syscall(libc::SYS_fsopen, c"cgroup2".as_ptr(), 1) })?;
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: 6 is FSCONFIG_CMD_CREATE, which takes no key and no value.
    let created = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), 6, null, null, 0) };
    if created < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no pointers are passed; 1 is FSMOUNT_CLOEXEC.
    let mount = opened(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1, 0) })?;
    // Attaching takes a descriptor that is open for reading, and not only of the path.
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(openat(&mount, ".", flags, Mode::empty())?.into())
}

/// The mount points of the cgroup v2 hierarchy in a mountinfo file, proc_pid_mountinfo(5).
fn cgroup_mounts(mounts: &[u8]) -> impl Iterator<Item = PathBuf> {
    mounts.split(|&byte| byte == b'\n').filter_map(|line| {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let separator = fields.iter().position(|field| *field == b"-")?;
        (*fields.get(separator + 1)? == b"cgroup2").then(|| unescaped(fields.get(4)?)).flatten()
    })
}

/// A path with its escapes (a backslash and three octal digits) resolved.
fn unescaped(path: &[u8]) -> Option<PathBuf> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| byte == b'\\');
        let number = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(number.unwrap_or(byte));
        rest = if number.is_some() { after.get(3..)? } else { after };
    }
    CString::new(bytes).ok().map(|path| Path::new(OsStr::from_bytes(path.as_bytes())).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_type_with_escapes_resolved() {
        let mounts = b"23 28 0:21 / /proc rw,relatime shared:12 - proc proc rw\n\
            30 23 0:26 / /sys/fs/cgroup/a\\040b\\134c rw shared:4 master:1 - cgroup2 cgroup2 rw\n\
            31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\nodd line\n\
            32 23 0:26 /x /mnt/caf\xe9 rw - cgroup2 none rw\n";
        let found: Vec<_> = cgroup_mounts(mounts).collect();
        assert_eq!(
            found,
            [Path::new("/sys/fs/cgroup/a b\\c"), Path::new(OsStr::from_bytes(b"/mnt/caf\xe9"))]
        );
    }
}
