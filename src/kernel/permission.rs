//! Why the kernel does not permit what the probes need, as far as the process can tell.

use crate::capability::effective;
use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

/// The capabilities that the probes need, by their numbers in `linux/capability.h`. CAP_SYS_ADMIN stands for the latter
/// two as well (capabilities(7)).
const NEEDED: [(u32, &str); 3] = [(CAP_NET_ADMIN, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

/// What stands in the way, as far as the process can tell: capabilities that the calling thread lacks, or the kernel's
/// lockdown.
pub(super) fn obstacle() -> Option<String> {
    let lockdown = || fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    effective()
        .and_then(missing)
        .or_else(|| is_locked_down(&lockdown()).then(|| "the kernel is locked down".into()))
}

/// What to say of capabilities that are missing in a set.
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

/// Whether programs may not read the kernel's memory, whoever loads them (kernel_lockdown(7)). In the file, which names
/// all modes, that in force is in brackets.
fn is_locked_down(modes: &str) -> bool {
    modes.contains("[confidentiality]")
}

/// Makes a small map and a program that does nothing, and lets go of them: whether bpf(2) may be used at all.
///
/// # Errors
/// What bpf(2) returns.
pub(super) fn try_out() -> io::Result<()> {
    /// `union bpf_attr` for BPF_MAP_CREATE; what is not named is to be zero.
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
    // SAFETY: it holds numbers only.
    unsafe { make(BPF_MAP_CREATE, &map) }?;
    load_empty(BPF_PROG_TYPE_SOCKET_FILTER).map(drop)
}

/// Loads a program of this kind that does nothing.
///
/// # Errors
/// What bpf(2) returns.
pub(super) fn load_empty(kind: u32) -> io::Result<OwnedFd> {
    /// `union bpf_attr` for BPF_PROG_LOAD; what is not named is to be zero.
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
    // SAFETY: it points to as many instructions as it says, and to a text with its end.
    unsafe { make(BPF_PROG_LOAD, &program) }
}

/// Calls bpf(2) for something that has a descriptor.
///
/// # Safety
/// The attributes are those of the command, and what they point to is as the command takes it.
unsafe fn make<T>(command: i32, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads as many bytes as it is told there are, during the call only; the caller vouches for them.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_ref(attributes), size_of::<T>()) };
    match i32::try_from(result) {
        // SAFETY: the kernel has just made the descriptor for us.
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
