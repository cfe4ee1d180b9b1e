//! Which capabilities would bring more than this process may see now.

use crate::capability::effective;

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

/// The wanted capabilities that the calling thread does not have, one bit for each number.
pub fn missing_capabilities() -> u64 {
    effective().map_or(0, missing_in)
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

#[cfg(test)]
mod tests {
    use super::*;

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
