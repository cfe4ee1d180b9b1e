//! The capabilities of the calling thread, and the benefit of each missing one.

/// A capability: its number in `linux/capability.h`, and its name.
pub type Capability = (u32, &'static str);

/// Permits reading files regardless of their modes.
pub const DAC_READ_SEARCH: Capability = (2, "CAP_DAC_READ_SEARCH");
/// Permits configuring networks.
pub const NET_ADMIN: Capability = (12, "CAP_NET_ADMIN");
/// Permits capturing packets.
pub const NET_RAW: Capability = (13, "CAP_NET_RAW");
/// Permits inspecting other processes.
pub const SYS_PTRACE: Capability = (19, "CAP_SYS_PTRACE");
/// Permits entering namespaces, among much else.
pub const SYS_ADMIN: Capability = (21, "CAP_SYS_ADMIN");

/// Permits eBPF programs to read the kernel's memory (since Linux 5.8).
pub const PERFMON: Capability = (38, "CAP_PERFMON");
/// Permits loading eBPF programs (since Linux 5.8).
pub const BPF: Capability = (39, "CAP_BPF");

/// The capabilities that the library uses, each with its benefit.
const WANTED: [(Capability, &str); 6] = [
    (DAC_READ_SEARCH, "descriptors of other users' processes, and so the owners of their sockets"),
    (
        NET_ADMIN,
        "process events, and so the owners of short-lived processes; owners behind translated addresses",
    ),
    (NET_RAW, "packets, and so all network figures"),
    (SYS_PTRACE, "I/O figures and descriptors of other users' processes"),
    (PERFMON, "eBPF programs: exact owners, and samples of all processes at once"),
    (BPF, "eBPF programs: exact owners, and samples of all processes at once"),
];

/// Returns advice for a refused operation: the missing capabilities, or the statement that none is missing.
pub fn advice(needed: &[Capability]) -> String {
    effective().map_or_else(String::new, |held| advice_for(held, needed))
}

fn advice_for(held: u64, needed: &[Capability]) -> String {
    let missing: Vec<&str> =
        needed.iter().filter(|(number, _)| held & 1 << number == 0).map(|&(_, name)| name).collect();
    if missing.is_empty() {
        let names: Vec<&str> = needed.iter().map(|&(_, name)| name).collect();
        return format!(
            "although {} {} held",
            names.join(" and "),
            if names.len() == 1 { "is" } else { "are" }
        );
    }
    format!("{} would permit it", missing.join(" and "))
}

/// Returns the effective capabilities of the calling thread, one bit for each number (capget(2)).
pub fn effective() -> Option<u64> {
    /// The kernel's `__user_cap_data_struct`.
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Sets {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    // _LINUX_CAPABILITY_VERSION_3, whose sets are two words long; 0 is the calling thread.
    let mut header: [u32; 2] = [0x2008_0522, 0];
    let mut sets = [Sets::default(); 2];
    // SAFETY: the header and the sets have the layout of version 3 of the call, and outlive it.
    let result = unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) };
    (result == 0).then(|| u64::from(sets[0].effective) | u64::from(sets[1].effective) << 32)
}

/// Returns the bit of a capability in a set.
pub const fn bit((number, _): Capability) -> u64 {
    1 << number
}

/// Returns the wanted capabilities that the calling thread lacks, one bit for each number.
pub fn missing_capabilities() -> u64 {
    effective().map_or(0, missing_in)
}

fn missing_in(effective: u64) -> u64 {
    let has = |capability| effective & bit(capability) != 0;
    let stands_in = |capability| (capability == PERFMON || capability == BPF) && has(SYS_ADMIN);
    let missing = WANTED.iter().filter(|&&(capability, _)| !has(capability) && !stands_in(capability));
    missing.map(|&(capability, _)| bit(capability)).sum()
}

/// Returns a line of text about the benefit of each capability in a set.
pub fn explanations(missing: u64) -> impl Iterator<Item = String> {
    let of_set = WANTED.iter().filter(move |&&(capability, _)| missing & bit(capability) != 0);
    of_set.map(|((_, name), brings)| format!("{name} is missing; it would provide {brings}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_stands_for_others_is_taken_for_them() {
        assert_eq!(missing_in(u64::MAX), 0);
        assert_eq!(missing_in(!(bit(BPF) | bit(PERFMON))), 0);
        let neither = !(bit(BPF) | bit(PERFMON) | bit(SYS_ADMIN));
        assert_eq!(missing_in(neither), bit(BPF) | bit(PERFMON));
    }

    #[test]
    fn each_missing_one_is_explained() {
        let texts: Vec<String> = explanations(bit(NET_RAW) | bit(SYS_PTRACE) | 1 << 40).collect();
        assert_eq!(texts.len(), 2);
        assert!(texts[0].starts_with("CAP_NET_RAW") && texts[1].starts_with("CAP_SYS_PTRACE"));
    }

    #[test]
    fn only_what_is_missing_is_advised() {
        let needed = [SYS_PTRACE, DAC_READ_SEARCH];
        assert_eq!(advice_for(0, &needed), "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH would permit it");
        assert_eq!(advice_for(1 << 19, &needed), "CAP_DAC_READ_SEARCH would permit it");
        assert_eq!(advice_for(!0, &needed), "although CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH are held");
        assert_eq!(advice_for(!0, &[NET_RAW]), "although CAP_NET_RAW is held");
    }

    #[test]
    fn the_effective_set_is_that_of_the_status() {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
        assert_eq!(effective(), u64::from_str_radix(line.trim(), 16).ok());
    }
}
