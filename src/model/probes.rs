//! The state of a feature that needs eBPF programs, with the reason if it is unavailable.

/// The state of a group of eBPF programs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u32)]
pub enum ProbeState {
    /// Not requested.
    #[default]
    Off = 0,
    /// Loaded and attached.
    Active = 1,
    /// The library was built without eBPF programs.
    NotBuilt = 2,
    /// The kernel does not describe its types (`/sys/kernel/btf/vmlinux`, CONFIG_DEBUG_INFO_BTF).
    NoTypes = 3,
    /// A capability is missing, or the kernel is locked down.
    NotPermitted = 4,
    /// The kernel lacks a feature that the eBPF programs need.
    NotSupported = 5,
    /// Out of memory, or the limit of locked memory is reached (RLIMIT_MEMLOCK).
    NoMemory = 6,
    /// There is no cgroup v2 hierarchy to attach to.
    NoCgroup = 7,
    /// The session is in another PID namespace than the kernel's initial one, whose pids the eBPF programs
    /// report.
    PidNamespace = 8,
    /// No descriptor is available: the limit of the process (RLIMIT_NOFILE) or of the system is reached.
    NoDescriptor = 9,
}

/// The kinds of socket events that eBPF programs report.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ProgramSet(pub u32);

impl ProgramSet {
    /// Creation and release of sockets.
    pub const SOCKETS: ProgramSet = ProgramSet(1);
    /// Opening and closing of TCP connections.
    pub const CONNECTIONS: ProgramSet = ProgramSet(2);
    /// Calls that send.
    pub const SENDS: ProgramSet = ProgramSet(4);
    /// Calls that receive.
    pub const RECEIVES: ProgramSet = ProgramSet(8);
    /// Packets of sockets.
    pub const PACKETS: ProgramSet = ProgramSet(16);
    /// Packets that do not come from the IP layer.
    pub const DIRECT_PACKETS: ProgramSet = ProgramSet(32);
    /// Packets that arrive for connections that have ended.
    pub const LATE_PACKETS: ProgramSet = ProgramSet(64);
    /// All of these.
    pub const ALL: ProgramSet = ProgramSet(127);

    /// Returns true if the set includes all of `other`.
    pub const fn has(self, other: ProgramSet) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns the set without `other`.
    #[must_use]
    pub const fn without(self, other: ProgramSet) -> ProgramSet {
        ProgramSet(self.0 & !other.0)
    }
}
