//! The interfaces of a network namespace as rtnetlink(7) reports them.

/// An 802.1Q or 802.1ad tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Vlan {
    /// The tag protocol identifier, such as 0x8100.
    pub protocol: u16,
    /// The VLAN identifier, 0 to 4094.
    pub id: u16,
}

/// The kind of an interface, as far as the capture distinguishes kinds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum InterfaceKind {
    Plain,
    /// A device that carries those frames of its lower device that have this tag.
    Vlan(Vlan),
    /// macvlan and ipvlan: its frames pass its lower device unchanged.
    SharesLower,
    /// An internal port of Open vSwitch, or the master of all ports.
    OpenVswitch,
}

/// The kind of an interface's frames, as far as they are decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FrameKind {
    Ethernet,
    /// Datagrams, without a link header that is decoded or counted.
    Datagrams,
    /// Datagrams of PPP. The device of a PPPoE session shows them once more, in frames of its own.
    Ppp,
    /// Frames that are not decoded, with the interface's type in `linux/if_arp.h`.
    Others(u16),
}

/// An Ethernet address.
pub(crate) type HardwareAddress = [u8; 6];

/// An interface of the namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Interface {
    /// Its index, unique in the namespace. A device that is created anew under an old name has another index.
    pub index: u32,
    pub name: String,
    /// `IFF_UP`: the interface can be opened only if it is set.
    pub up: bool,
    pub loopback: bool,
    pub frames: FrameKind,
    /// The hardware address of its frames, if it is an Ethernet address.
    pub address: Option<HardwareAddress>,
    /// True if the kernel states the direction of its frames.
    pub tells_passage: bool,
    /// The index of the device that it is enslaved to.
    pub master: Option<u32>,
    /// The index of the device below it, if that is in the same namespace.
    pub lower: Option<u32>,
    pub kind: InterfaceKind,
    /// The longest IP datagram that it transmits as one packet; `None` if it states none.
    pub mtu: Option<u32>,
    /// Frames that the device has lost for lack of room since it was created.
    pub lost_by_device: u64,
    /// Bytes that have passed it since it was created. Each packet of loopback counts once.
    pub carried: u64,
}
