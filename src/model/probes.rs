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
    /// No descriptor is left: the limit of the process (RLIMIT_NOFILE) or of the system is reached.
    NoDescriptor = 9,
}

/// Parts of what programs in the kernel can tell of sockets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ProgramSet(pub u32);

impl ProgramSet {
    /// Sockets are created and released.
    pub const SOCKETS: ProgramSet = ProgramSet(1);
    /// TCP connections open and close.
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

    /// Whether all of the others are among these.
    pub const fn has(self, other: ProgramSet) -> bool {
        self.0 & other.0 == other.0
    }

    /// These without the others.
    #[must_use]
    pub const fn without(self, other: ProgramSet) -> ProgramSet {
        ProgramSet(self.0 & !other.0)
    }
}
