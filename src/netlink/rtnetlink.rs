//! The interfaces and addresses of a network namespace as rtnetlink(7) reports them.
//!
//! It reads neither `/sys/class/net`, which shows the namespace of the process that mounted it, nor
//! `getifaddrs(3)`, which has no masters and VLANs. The socket belongs permanently to the namespace of the
//! thread that opened it.

use super::exchange::{Dump, Exchange};
use super::interface::{FrameKind, Interface, InterfaceKind, Vlan};
use super::message::{MESSAGE_HEADER, attributes, put, text, u16_at, u32_at, u64_at};
use crate::error::{Code, Error, Result};
use crate::model::{Address, LocalAddresses};
use nix::errno::Errno;

const LINK_HEADER: usize = size_of::<libc::ifinfomsg>();
const LINK_INDEX: usize = 4;
/// `struct ifaddrmsg` of linux/if_addr.h.
const ADDRESS_HEADER: usize = 8;
/// Bytes of `struct rtmsg` of linux/rtnetlink.h, and the offsets of table and type in it.
const ROUTE_HEADER: usize = 12;
const ROUTE_TABLE: usize = 4;
const ROUTE_TYPE: usize = 7;
/// `RTA_DST` and `RTA_TABLE`.
const ROUTE_DESTINATION: u16 = 1;
const ROUTE_TABLE_NUMBER: u16 = 15;
/// `IFLA_VLAN_ID` and `IFLA_VLAN_PROTOCOL` of linux/if_link.h.
const VLAN_ID: u16 = 1;
const VLAN_PROTOCOL: u16 = 5;
/// `IFLA_TUN_TYPE` of linux/if_link.h, and its values of linux/if_tun.h.
const TUN_TYPE: u16 = 3;
const IFF_TUN: u8 = 1;
const IFF_TAP: u8 = 2;
/// Types of linux/if_arp.h that the `libc` crate does not have.
const ARPHRD_IEEE802154_MONITOR: u16 = 805;
const ARPHRD_NETLINK: u16 = 824;
const ARPHRD_VSOCKMON: u16 = 826;
/// Positions in `struct rtnl_link_stats64` (linux/if_link.h) of the bytes that a device carried, and of the
/// frames that it lost for lack of room. The sum of the latter is libpcap's `ps_ifdrop`. `rx_dropped` is not
/// used, because it also counts packets that no receiver wanted.
const RX_BYTES: usize = 2;
const TX_BYTES: usize = 3;
const RX_FIFO_ERRORS: usize = 14;
const RX_MISSED_ERRORS: usize = 15;
/// The kernel answers in messages of at most 32 KiB unless one row alone needs more.
const BUFFER: usize = 64 << 10;

/// A socket that requests the kernel's interfaces and addresses.
pub(crate) struct Rtnetlink {
    exchange: Exchange,
    /// Set if the kernel can list the routes of one table alone.
    lists_routes: bool,
}

impl Rtnetlink {
    /// Opens the socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// Fails with `SystemResource` if the system refuses it.
    pub(crate) fn open() -> Result<Rtnetlink> {
        let refused = |errno| Error::system(Code::SystemResource, "opening a route netlink socket", errno);
        let exchange = Exchange::open(libc::NETLINK_ROUTE, BUFFER).map_err(refused)?;
        let lists_routes = exchange.be_strict().is_ok();
        Ok(Rtnetlink { exchange, lists_routes })
    }

    /// Returns every interface of the namespace.
    ///
    /// # Errors
    /// Fails with `SystemResource` if the kernel does not answer, or not in full.
    pub(crate) fn interfaces(&mut self) -> Result<Vec<Interface>> {
        let insert = |interfaces: &mut Vec<Interface>, row: &[u8]| interfaces.extend(interface(row));
        self.dump(libc::RTM_GETLINK, &[0; LINK_HEADER], insert)
            .and_then(Dump::consistent)
            .map_err(|errno| Error::system(Code::SystemResource, "listing the network interfaces", errno))
    }

    /// Returns the interface with this index, if there is one.
    ///
    /// # Errors
    /// Fails with the kernel's error, or with that of sending or receiving.
    pub(crate) fn interface(&mut self, index: u32) -> nix::Result<Option<Interface>> {
        let mut message = [0u8; MESSAGE_HEADER + LINK_HEADER];
        put(&mut message, MESSAGE_HEADER + LINK_INDEX, &index.to_ne_bytes());
        let (kind, flags) = (libc::RTM_GETLINK, libc::NLM_F_REQUEST);
        self.exchange.ask(&mut message, kind, flags, |message| Some(Ok(interface(message.payload))))?
    }

    /// Returns every address of the namespace, with the broadcast addresses and those that are local by
    /// route.
    ///
    /// # Errors
    /// Fails with `SystemResource` if the kernel does not answer, or not in full.
    pub(crate) fn addresses(&mut self) -> Result<LocalAddresses> {
        self.listed_addresses()
            .map_err(|errno| Error::system(Code::SystemResource, "listing the network addresses", errno))
    }

    fn listed_addresses(&mut self) -> nix::Result<LocalAddresses> {
        let mut addresses =
            self.dump(libc::RTM_GETADDR, &[0; ADDRESS_HEADER], insert_address)?.consistent()?;
        // They make whole networks local, in particular. Before Linux 4.20 they are not used, because the
        // kernel would list the routes of all tables.
        if self.lists_routes {
            for route in self.local_routes(libc::RT_TABLE_LOCAL)?.consistent()? {
                route.insert_unconditional(&mut addresses);
            }
        }
        Ok(addresses)
    }

    /// Returns the networks that routes of other tables make local for packets that a routing rule selects.
    /// The kernel examines all its routes, so the caller should not request them at every refresh. Before
    /// Linux 4.20 the result is empty.
    ///
    /// # Errors
    /// Fails with `SystemResource` if the kernel does not answer.
    pub(crate) fn conditional(&mut self) -> Result<LocalAddresses> {
        let mut networks = LocalAddresses::default();
        if self.lists_routes {
            // Notices report changes during the listing, so an inconsistent one suffices.
            let routes = self.local_routes(libc::RT_TABLE_UNSPEC).map_err(|errno| {
                Error::system(Code::SystemResource, "listing the local routes of all tables", errno)
            })?;
            routes.rows.iter().for_each(|route| route.insert_conditional(&mut networks));
        }
        Ok(networks)
    }

    /// Lists the routes of the type `local` of one table, or of all.
    fn local_routes(&mut self, table: u8) -> nix::Result<Dump<Vec<LocalRoute>>> {
        let mut routes = Dump { rows: Vec::new(), is_consistent: true };
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut header = [0; ROUTE_HEADER];
            (header[0], header[ROUTE_TABLE], header[ROUTE_TYPE]) = (family as u8, table, libc::RTN_LOCAL);
            let insert = |routes: &mut Vec<LocalRoute>, row: &[u8]| routes.extend(local_route(row));
            match self.dump(libc::RTM_GETROUTE, &header, insert) {
                Ok(mut dump) => {
                    routes.rows.append(&mut dump.rows);
                    routes.is_consistent &= dump.is_consistent;
                }
                // A kernel without the family or without such a table.
                Err(Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(routes)
    }

    /// Requests one dump.
    fn dump<C: Default>(
        &mut self,
        request: u16,
        header: &[u8],
        row: impl FnMut(&mut C, &[u8]),
    ) -> nix::Result<Dump<C>> {
        let mut message = [0u8; MESSAGE_HEADER + LINK_HEADER];
        put(&mut message, MESSAGE_HEADER, header);
        self.exchange.dump(&mut message[..MESSAGE_HEADER + header.len()], request, row)
    }
}

/// Parses the payload of an `RTM_NEWLINK` message. Returns `None` if it is too short.
pub(crate) fn interface(row: &[u8]) -> Option<Interface> {
    let (header, rest) = row.split_at_checked(LINK_HEADER)?;
    let flags = u32_at(header, 8)? as i32;
    let hardware = u16_at(header, 2)?;
    let mut interface = Interface {
        index: u32_at(header, LINK_INDEX)?,
        name: String::new(),
        up: flags & libc::IFF_UP != 0,
        loopback: flags & libc::IFF_LOOPBACK != 0,
        frames: frames_of(hardware),
        address: None,
        tells_passage: true,
        master: None,
        lower: None,
        kind: InterfaceKind::Plain,
        mtu: None,
        lost_by_device: 0,
        carried: 0,
    };
    let mut lower_elsewhere = false;
    for (kind, value) in attributes(rest) {
        match kind {
            // A name need not be UTF-8; it is only displayed.
            libc::IFLA_IFNAME => interface.name = text(value),
            libc::IFLA_ADDRESS => {
                interface.address = value.try_into().ok().filter(|address| *address != [0; 6])
            }
            libc::IFLA_MASTER => interface.master = u32_at(value, 0),
            libc::IFLA_MTU => interface.mtu = u32_at(value, 0).filter(|mtu| *mtu > 0),
            libc::IFLA_LINK => interface.lower = u32_at(value, 0),
            libc::IFLA_LINK_NETNSID => lower_elsewhere = true,
            libc::IFLA_LINKINFO => take_link_info(&mut interface, value),
            libc::IFLA_STATS64 => {
                let lost =
                    [RX_FIFO_ERRORS, RX_MISSED_ERRORS].map(|place| u64_at(value, place * 8).unwrap_or(0));
                interface.lost_by_device = lost[0].saturating_add(lost[1]);
                let [received, sent] =
                    [RX_BYTES, TX_BYTES].map(|place| u64_at(value, place * 8).unwrap_or(0));
                interface.carried = received.saturating_add(if interface.loopback { 0 } else { sent });
            }
            _ => {}
        }
    }
    if lower_elsewhere {
        // The index belongs to another namespace and would name an unrelated device here.
        interface.lower = None;
    }
    Some(interface)
}

/// Returns the frames of an interface of this type (linux/if_arp.h), unless its kind says more.
fn frames_of(hardware: u16) -> FrameKind {
    match hardware {
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => FrameKind::Ethernet,
        // Radio frames with headers of their own, and messages that are not network traffic.
        libc::ARPHRD_CAN
        | libc::ARPHRD_IEEE80211
        | libc::ARPHRD_IEEE80211_PRISM
        | libc::ARPHRD_IEEE80211_RADIOTAP
        | libc::ARPHRD_IEEE802154
        | ARPHRD_IEEE802154_MONITOR
        | ARPHRD_NETLINK
        | ARPHRD_VSOCKMON => FrameKind::Others(hardware),
        libc::ARPHRD_PPP => FrameKind::Ppp,
        _ => FrameKind::Datagrams,
    }
}

/// Records the kind of an interface and the properties that depend on it.
fn take_link_info(interface: &mut Interface, link_info: &[u8]) {
    let find = |wanted| attributes(link_info).find(|&(kind, _)| kind == wanted).map(|(_, value)| value);
    let data = find(libc::IFLA_INFO_DATA);
    match find(libc::IFLA_INFO_KIND).map(text).as_deref() {
        Some("vlan") => {
            interface.kind = data.and_then(vlan_of).map_or(InterfaceKind::Plain, InterfaceKind::Vlan)
        }
        Some("macvlan" | "macvtap" | "ipvlan" | "ipvtap") => interface.kind = InterfaceKind::SharesLower,
        Some("openvswitch") => interface.kind = InterfaceKind::OpenVswitch,
        // Any type can be set for such a device (TUNSETLINK) without changing its frames.
        Some("tun") => {
            let stated = data.and_then(|data| attributes(data).find(|&(kind, _)| kind == TUN_TYPE));
            match stated.and_then(|(_, value)| value.first()) {
                Some(&IFF_TUN) => interface.frames = FrameKind::Datagrams,
                Some(&IFF_TAP) => interface.frames = FrameKind::Ethernet,
                _ => {}
            }
        }
        // The kernel marks frames that arrive for such a device as outgoing (dev_queue_xmit_nit in
        // drivers/net/vrf.c).
        Some("vrf") => interface.tells_passage = false,
        _ => {}
    }
}

fn vlan_of(data: &[u8]) -> Option<Vlan> {
    let mut vlan = Vlan { protocol: 0x8100, id: 0 };
    for (kind, value) in attributes(data) {
        match kind {
            VLAN_ID => vlan.id = u16_at(value, 0)?,
            VLAN_PROTOCOL => vlan.protocol = u16::from_be(u16_at(value, 0)?),
            _ => {}
        }
    }
    Some(vlan)
}

/// Adds the address in the payload of an `RTM_NEWADDR` message. It skips a row that is not an IP address.
pub(crate) fn insert_address(addresses: &mut LocalAddresses, row: &[u8]) {
    let Some((&[family, prefix, ..], rest)) = row.split_first_chunk::<ADDRESS_HEADER>() else { return };
    let find = |wanted| attributes(rest).find(|&(kind, _)| kind == wanted).map(|(_, value)| value);
    // On a point-to-point link IFA_ADDRESS is the peer, and IFA_LOCAL is the host's own address.
    let Some(own) = find(libc::IFA_LOCAL).or_else(|| find(libc::IFA_ADDRESS)) else { return };
    match i32::from(family) {
        libc::AF_INET => {
            let Ok(own) = <[u8; 4]>::try_from(own) else { return };
            addresses.insert(Address::v4(own));
            let stated = find(libc::IFA_BROADCAST).and_then(|value| <[u8; 4]>::try_from(value).ok());
            if let Some(broadcast) = stated {
                addresses.insert_broadcast(Address::v4(broadcast));
            }
            // Regardless of the configuration, the kernel also treats the last address of a network as a
            // broadcast address, except where there is no room for one (net/ipv4/fib_frontend.c,
            // fib_add_ifaddr; RFC 3021).
            if prefix < 31 {
                let hosts = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
                let last = u32::from_be_bytes(own) | hosts;
                addresses.insert_broadcast(Address::v4(last.to_be_bytes()));
            }
        }
        libc::AF_INET6 => {
            if let Ok(own) = <[u8; 16]>::try_from(own) {
                addresses.insert(Address::v6(own));
            }
        }
        _ => {}
    }
}

/// A route of the type `local`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LocalRoute {
    address: Address,
    /// The length of the prefix in bits.
    length: u8,
    table: u32,
}

impl LocalRoute {
    /// Returns true if the route applies only to packets that a routing rule selects.
    pub(crate) fn is_conditional(&self) -> bool {
        self.table != u32::from(libc::RT_TABLE_LOCAL)
    }

    /// Adds the network of the route if the route applies to all packets.
    pub(crate) fn insert_unconditional(&self, addresses: &mut LocalAddresses) {
        if !self.is_conditional() && !self.address.is_loopback() {
            addresses.insert_network(&self.address, self.length);
        }
    }

    /// Adds the network of the route if the route applies to some packets.
    pub(crate) fn insert_conditional(&self, addresses: &mut LocalAddresses) {
        if self.is_conditional() {
            addresses.insert_conditional_network(&self.address, self.length);
        }
    }
}

/// Parses the payload of an `RTM_NEWROUTE` or `RTM_DELROUTE` message. Returns `None` unless the route is of
/// the type `local`.
pub(crate) fn local_route(row: &[u8]) -> Option<LocalRoute> {
    let (header, rest) = row.split_first_chunk::<ROUTE_HEADER>()?;
    let [family, length, ..] = *header;
    let find = |wanted| attributes(rest).find(|&(kind, _)| kind == wanted).map(|(_, value)| value);
    // A table number that needs more than a byte is in an attribute.
    let table = find(ROUTE_TABLE_NUMBER).and_then(|value| u32_at(value, 0));
    let table = table.unwrap_or_else(|| header[ROUTE_TABLE].into());
    if header[ROUTE_TYPE] != libc::RTN_LOCAL {
        return None;
    }
    // A route without a destination is a default route.
    let destination = find(ROUTE_DESTINATION);
    let address = match i32::from(family) {
        libc::AF_INET => destination.map_or(Ok([0; 4]), <[u8; 4]>::try_from).map(Address::v4),
        libc::AF_INET6 => destination.map_or(Ok([0; 16]), <[u8; 16]>::try_from).map(Address::v6),
        _ => return None,
    };
    Some(LocalRoute { address: address.ok()?, length, table })
}

#[cfg(test)]
mod tests;
