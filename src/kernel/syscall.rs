//! The system call bpf(2).

use nix::errno::Errno;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

pub(super) const MAP_UPDATE: libc::c_long = 2;
pub(super) const PROGRAM_LOAD: libc::c_long = 5;
pub(super) const PROGRAM_QUERY: libc::c_long = 16;
pub(super) const TRACEPOINT_OPEN: libc::c_long = 17;
pub(super) const TYPES_LOAD: libc::c_long = 18;
pub(super) const MAP_FREEZE: libc::c_long = 22;
pub(super) const LINK_CREATE: libc::c_long = 28;
pub(super) const ITERATOR_CREATE: libc::c_long = 33;

/// Executes a command of bpf(2).
///
/// # Safety
/// The attributes have the layout of the command's attributes, and their pointers are valid for the command.
pub(super) unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> nix::Result<libc::c_long> {
    let pointer = std::ptr::from_ref(attributes);
    // SAFETY: the attributes live during the call and have the stated length; the caller vouches for their
    // pointers.
    Errno::result(unsafe { libc::syscall(libc::SYS_bpf, command, pointer, size_of::<T>()) })
}

/// Executes a command of bpf(2) that returns a descriptor.
///
/// # Safety
/// The conditions of [`bpf`] hold, and the command returns a descriptor.
pub(super) unsafe fn make<T>(command: libc::c_long, attributes: &T) -> nix::Result<OwnedFd> {
    // SAFETY: the caller vouches for the attributes.
    let descriptor = unsafe { bpf(command, attributes) }? as RawFd;
    // SAFETY: the descriptor is new, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
