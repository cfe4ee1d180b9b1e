//! The interfaces of a network namespace, as rtnetlink(7) states them.

/// An 802.1Q or 802.1ad tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Vlan {
    /// The tag protocol identifier, such as 0x8100.
    pub protocol: u16,
    /// 0-4094.
    pub id: u16,
}

/// What an interface is, as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum InterfaceKind {
    Plain,
    /// Stands for the frames of its lower device that bear this tag.
    Vlan(Vlan),
    /// macvlan and ipvlan: its frames pass its lower device as they are.
    SharesLower,
    /// An internal port of Open vSwitch, or the master of all ports.
    OpenVswitch,
}

/// The frames of an interface, as far as they are decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FrameKind {
    Ethernet,
    /// Datagrams, without a link header that is decoded or counted.
    Datagrams,
    /// The same of PPP, which the device of a PPPoE session shows once more, in frames of its own.
    Ppp,
    /// None that are decoded, with the type that the interface has in `linux/if_arp.h`.
    Others(u16),
}

/// An Ethernet address.
pub(crate) type HardwareAddress = [u8; 6];

/// An interface of the namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Interface {
    /// Its index, unique in the namespace. A device made anew under an old name has another one.
    pub index: u32,
    pub name: String,
    /// `IFF_UP`: only then can it be opened.
    pub up: bool,
    pub loopback: bool,
    pub frames: FrameKind,
    /// The address that its frames bear, if it is Ethernet's.
    pub address: Option<HardwareAddress>,
    /// Whether the kernel tells which of its frames have arrived and which have left.
    pub tells_passage: bool,
    /// The index of the device that it is enslaved to.
    pub master: Option<u32>,
    /// The index of the device that it stands on, if that is in the same namespace.
    pub lower: Option<u32>,
    pub kind: InterfaceKind,
    /// The longest IP datagram that it transmits as one packet; `None` if it states none.
    pub mtu: Option<u32>,
    /// FrameKind that the device has lost for want of room since it exists.
    pub lost_by_device: u64,
    /// Bytes that have passed it since it exists, each packet of loopback once.
    pub carried: u64,
}
