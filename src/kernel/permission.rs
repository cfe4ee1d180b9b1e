//! Finds out why the kernel does not permit the eBPF programs, as far as the process can tell.

use crate::capability::effective;
use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

/// The capabilities that the eBPF programs require, by their numbers in `linux/capability.h`. CAP_SYS_ADMIN
/// includes the latter two (capabilities(7)).
const NEEDED: [(u32, &str); 3] = [(CAP_NET_ADMIN, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

/// Returns the obstacle to a load, as far as the process can tell: capabilities that the calling thread
/// lacks, or the kernel's lockdown.
pub(super) fn obstacle() -> Option<String> {
    let lockdown = || fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    effective()
        .and_then(missing)
        .or_else(|| is_locked_down(&lockdown()).then(|| "the kernel is locked down".into()))
}

/// Returns a text about the capabilities that are missing in a set.
fn missing(effective: u64) -> Option<String> {
    let has = |number: u32| effective & 1 << number != 0;
    let lacks = |number: u32| !has(number) && (number == CAP_NET_ADMIN || !has(CAP_SYS_ADMIN));
    let names: Vec<&str> =
        NEEDED.iter().filter(|&&(number, _)| lacks(number)).map(|&(_, name)| name).collect();
    match &names[..] {
        [] => None,
        [one] => Some(format!("{one} is missing")),
        several => Some(format!("{} are missing", several.join(" and "))),
    }
}

/// Returns true if no eBPF program may read the kernel's memory, whatever capabilities its loader has
/// (kernel_lockdown(7)). The file lists all modes, with the active one in brackets.
fn is_locked_down(modes: &str) -> bool {
    modes.contains("[confidentiality]")
}

/// Creates a small map and an eBPF program that does nothing, and closes both. This tests if bpf(2) is
/// permitted at all.
///
/// # Errors
/// Fails with the error of bpf(2).
pub(super) fn try_out() -> io::Result<()> {
    /// `union bpf_attr` for BPF_MAP_CREATE. Fields without a name must be zero.
    #[repr(C)]
    struct MapAttr {
        kind: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        others: [u32; 28],
    }
    const BPF_MAP_CREATE: i32 = 0;
    const BPF_MAP_TYPE_ARRAY: u32 = 2;
    const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;

    let map =
        MapAttr { kind: BPF_MAP_TYPE_ARRAY, key_size: 4, value_size: 4, max_entries: 1, others: [0; 28] };
    // SAFETY: the attributes contain only numbers.
    unsafe { make(BPF_MAP_CREATE, &map) }?;
    load_empty(BPF_PROG_TYPE_SOCKET_FILTER).map(drop)
}

/// Loads an eBPF program of this kind that does nothing.
///
/// # Errors
/// Fails with the error of bpf(2).
pub(super) fn load_empty(kind: u32) -> io::Result<OwnedFd> {
    /// `union bpf_attr` for BPF_PROG_LOAD. Fields without a name must be zero.
    #[repr(C)]
    struct LoadAttr {
        kind: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        others: [u64; 13],
    }
    const BPF_PROG_LOAD: i32 = 5;
    // r0 = 0; exit
    static INSTRUCTIONS: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 0, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let program = LoadAttr {
        kind,
        instruction_count: INSTRUCTIONS.len() as u32,
        instructions: INSTRUCTIONS.as_ptr().addr() as u64,
        license: c"MIT".as_ptr().addr() as u64,
        others: [0; 13],
    };
    // SAFETY: `instructions` points to `instruction_count` instructions, and `license` to a text that ends
    // with NUL.
    unsafe { make(BPF_PROG_LOAD, &program) }
}

/// Calls bpf(2) with a command that returns a descriptor.
///
/// # Safety
/// The attributes are those of the command, and their pointers are valid for it.
unsafe fn make<T>(command: i32, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads the stated number of bytes, during the call only; the caller vouches for the
    // pointers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_ref(attributes), size_of::<T>()) };
    match i32::try_from(result) {
        // SAFETY: the kernel has just returned the descriptor, and nothing else owns it.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(missing(1 << 12 | 1 << 38).as_deref(), Some("CAP_BPF is missing"));
        assert_eq!(missing(1 << 39).as_deref(), Some("CAP_NET_ADMIN and CAP_PERFMON are missing"));
        assert_eq!(missing(1 << CAP_SYS_ADMIN).as_deref(), Some("CAP_NET_ADMIN is missing"));
        for enough in [1 << 12 | 1 << CAP_SYS_ADMIN, 1 << 12 | 1 << 38 | 1 << 39] {
            assert_eq!(missing(enough), None, "{enough:x}");
        }
    }

    #[test]
    fn only_the_stricter_lockdown_forbids() {
        assert!(is_locked_down("none integrity [confidentiality]\n"));
        assert!(!is_locked_down("none [integrity] confidentiality\n") && !is_locked_down(""));
    }
}
