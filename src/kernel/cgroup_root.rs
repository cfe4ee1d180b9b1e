//! Opens the root of the cgroup v2 hierarchy, where eBPF programs see the sockets of all processes.
//!
//! In a cgroup namespace of its own, such as a container's, a mount of the hierarchy shows only a part of it
//! (cgroup_namespaces(7)). eBPF programs that are attached there see the processes of that part only.
//! Therefore the root is identified by its inode number.

use super::Fault;
use crate::model::ProbeState;
use crate::proc::mounts;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::fs::File;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// The inode number of the root in every kernel (kernfs_create_root() in fs/kernfs/dir.c).
const ROOT_INODE: u64 = 1;

/// Opens the root at a mount that begins with it. If there is none, it opens the root through its file
/// handle, which is valid in any mount and requires CAP_DAC_READ_SEARCH. If no mount of the hierarchy can be
/// opened, it makes a mount that is attached nowhere, which requires CAP_SYS_ADMIN.
///
/// # Errors
/// Fails if the hierarchy is not mounted and cannot be mounted, or if only a part of it can be reached.
pub(super) fn open_cgroup_root() -> Result<File, Fault> {
    let missing = |text: String| Fault { state: ProbeState::NoCgroup, text };
    let text = std::fs::read("/proc/self/mountinfo")
        .map_err(|error| missing(format!("/proc/self/mountinfo cannot be read: {error}")))?;
    let of_cgroups = mounts(&text).filter(|mount| mount.kind == b"cgroup2");
    let opened: Vec<File> = of_cgroups.filter_map(|mount| File::open(mount.point()).ok()).collect();
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

/// Opens the root by its file handle, which is its inode number (kernfs_fh_to_dentry() in fs/kernfs/mount.c,
/// Linux 5.5).
fn open_by_handle(part: &File) -> io::Result<File> {
    /// The kernel's `struct file_handle`, with room for the handles of such file systems.
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
    // SAFETY: the path is empty and ends with NUL; the handle states its own size, and both outlive the call.
    let named = unsafe {
        libc::name_to_handle_at(part.as_raw_fd(), c"".as_ptr(), to, &raw mut mount, libc::AT_EMPTY_PATH)
    };
    if named < 0 {
        return Err(io::Error::last_os_error());
    }
    handle.number = ROOT_INODE;
    let to = (&raw mut handle).cast::<libc::file_handle>();
    // SAFETY: the handle is as long as it states and outlives the call.
    let opened = unsafe { libc::open_by_handle_at(part.as_raw_fd(), to, libc::O_RDONLY | libc::O_CLOEXEC) };
    if opened < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned the descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(opened) }.into())
}

/// Makes a mount of the cgroup v2 hierarchy that is attached nowhere: fsopen(2), fsmount(2), Linux 5.2.
fn mount_cgroups() -> io::Result<File> {
    let opened = |result: libc::c_long| match i32::try_from(result) {
        // SAFETY: the kernel has just returned the descriptor, and nothing else owns it.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: the name ends with NUL and outlives the call; 1 is FSOPEN_CLOEXEC.
    let context = opened(unsafe { libc::syscall(libc::SYS_fsopen, c"cgroup2".as_ptr(), 1) })?;
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: 6 is FSCONFIG_CMD_CREATE, which takes neither a key nor a value.
    let created = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), 6, null, null, 0) };
    if created < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call takes no pointers; 1 is FSMOUNT_CLOEXEC.
    let mount = opened(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1, 0) })?;
    // Attaching an eBPF program requires a descriptor that is open for reading, not one that is open for the
    // path only.
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(openat(&mount, ".", flags, Mode::empty())?.into())
}
