//! Which capabilities would bring more than this process may see now.

use crate::process::ProcRoot;
use std::path::Path;

/// Captures packets (capabilities(7), number 13).
pub const CAP_NET_RAW: u32 = 13;

/// What each capability would bring, by its number in `linux/capability.h`.
const WANTED: [(u32, &str, &str); 6] = [
    (2, "CAP_DAC_READ_SEARCH", "descriptors of other users' processes, and so the owners of their sockets"),
    (
        12,
        "CAP_NET_ADMIN",
        "news of processes that start and end, and so the owners of short-lived ones; owners behind translated addresses",
    ),
    (CAP_NET_RAW, "CAP_NET_RAW", "packets, and so all network figures"),
    (19, "CAP_SYS_PTRACE", "I/O figures and descriptors of other users' processes"),
    (
        CAP_PERFMON,
        "CAP_PERFMON",
        "exact owners, and samples of all processes at once, from programs in the kernel",
    ),
    (CAP_BPF, "CAP_BPF", "exact owners, and samples of all processes at once, from programs in the kernel"),
];

/// Let programs in the kernel read its memory, and be loaded at all (numbers 38 and 39, since Linux 5.8).
pub const CAP_PERFMON: u32 = 38;
/// See [`CAP_PERFMON`].
pub const CAP_BPF: u32 = 39;
/// Stands for both of these.
const CAP_SYS_ADMIN: u32 = 21;

/// The wanted capabilities that this process does not have, one bit for each number.
///
/// Where its status cannot be read, none is said to be missing.
pub fn missing_capabilities() -> u64 {
    let Ok(root) = ProcRoot::open(Path::new("/proc")) else { return 0 };
    let mut buffer = Vec::new();
    let Some(effective) = root.read(c"self/status", &mut buffer).ok().and_then(effective_set) else {
        return 0;
    };
    missing_in(effective)
}

fn missing_in(effective: u64) -> u64 {
    let has = |number: u32| effective & (1 << number) != 0;
    let stands_in = |number| matches!(number, CAP_PERFMON | CAP_BPF) && has(CAP_SYS_ADMIN);
    let missing = WANTED.iter().filter(|&&(number, ..)| !has(number) && !stands_in(number));
    missing.map(|&(number, ..)| 1 << number).sum()
}

/// What each of the capabilities in a set would bring, in words.
pub fn explanations(missing: u64) -> impl Iterator<Item = String> {
    let of_set = WANTED.iter().filter(move |&&(number, ..)| missing & (1 << number) != 0);
    of_set.map(|(_, name, brings)| format!("{name} is missing; it would bring {brings}"))
}

/// The `CapEff` line of `/proc/<pid>/status` (proc_pid_status(5)).
fn effective_set(status: &[u8]) -> Option<u64> {
    let line = status.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"CapEff:"))?;
    u64::from_str_radix(str::from_utf8(line).ok()?.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read() {
        let status = b"Name:\tcat\nCapPrm:\t0000000000000000\nCapEff:\t000001ffffffffff\nCapBnd:\t0\n";
        assert_eq!(effective_set(status), Some(0x1ff_ffff_ffff));
        assert_eq!(effective_set(b"Name:\tcat\n"), None);
        assert_eq!(effective_set(b"CapEff:\txyz\n"), None);
    }

    #[test]
    fn one_that_stands_for_others_is_taken_for_them() {
        assert_eq!(missing_in(u64::MAX), 0);
        assert_eq!(missing_in(!(1 << CAP_BPF | 1 << CAP_PERFMON)), 0);
        let neither = !(1 << CAP_BPF | 1 << CAP_PERFMON | 1 << CAP_SYS_ADMIN);
        assert_eq!(missing_in(neither), 1 << CAP_BPF | 1 << CAP_PERFMON);
    }

    #[test]
    fn each_missing_one_is_explained() {
        let texts: Vec<String> = explanations(1 << CAP_NET_RAW | 1 << 19 | 1 << 40).collect();
        assert_eq!(texts.len(), 2);
        assert!(texts[0].starts_with("CAP_NET_RAW") && texts[1].starts_with("CAP_SYS_PTRACE"));
    }
}
