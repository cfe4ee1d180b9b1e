//! Whether a feature that needs programs in the kernel is at work, and why not if it is not.

/// What has become of a group of probes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u32)]
pub enum ProbeState {
    /// Not asked for.
    #[default]
    Off = 0,
    /// At work.
    Active = 1,
    /// The library was built without them.
    NotBuilt = 2,
    /// The kernel does not describe its types (`/sys/kernel/btf/vmlinux`, CONFIG_DEBUG_INFO_BTF).
    NoTypes = 3,
    /// A capability is missing, or the kernel is locked down.
    NotPermitted = 4,
    /// The kernel does not know something that the probes need.
    NotSupported = 5,
    /// No room: out of memory, or the limit of locked memory is reached (RLIMIT_MEMLOCK).
    NoMemory = 6,
    /// There is no cgroup v2 hierarchy to attach to.
    NoCgroup = 7,
    /// The session sees another PID namespace than the kernel's first one, whose numbers the probes give.
    PidNamespace = 8,
}
