//! The network interfaces of the calling thread's network namespace, as rtnetlink(7) lists them.
//!
//! `/sys/class/net` will not do: it shows the namespace that it was mounted in.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use std::os::fd::AsRawFd;

/// An interface, as far as capturing goes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Interface {
    /// Its number, never used again within a boot unless somebody asks for it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is up (`IFF_UP`).
    pub is_up: bool,
    /// The number of the bridge, bond or team that it is a port of, or 0.
    pub master: u32,
    /// For a VLAN device: the number of the device below it, and its VLAN identifier.
    pub vlan: Option<(u32, u16)>,
}

/// Lists all interfaces.
pub(super) fn interfaces() -> nix::Result<Vec<Interface>> {
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), &dump_request(), &kernel, MsgFlags::empty())?;
    let mut found = Vec::new();
    // The kernel hands a dump over in pieces of at most 32 KiB (netlink_dump in af_netlink.c).
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => continue,
            received => received?,
        };
        match parse_messages(buffer.get(..length).unwrap_or_default(), &mut found) {
            Messages::More => {}
            Messages::Done => return Ok(found),
            Messages::Failed(errno) => return Err(errno),
        }
    }
}

/// Whether a dump goes on.
#[derive(PartialEq, Eq, Debug)]
enum Messages {
    More,
    Done,
    Failed(Errno),
}

const HEADER: usize = size_of::<libc::nlmsghdr>();
/// `struct ifinfomsg`: family, padding, type, index, flags, change mask.
const LINK_HEADER: usize = 16;

const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VLAN_ID: u16 = 1;

/// `RTM_GETLINK` for all links.
fn dump_request() -> Vec<u8> {
    let mut request = Vec::with_capacity(HEADER + LINK_HEADER);
    request.extend_from_slice(&((HEADER + LINK_HEADER) as u32).to_ne_bytes());
    request.extend_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    request.extend_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    // Sequence number and port: only one request is ever sent on the socket. Then an empty ifinfomsg.
    request.resize(HEADER + LINK_HEADER, 0);
    request
}

fn parse_messages(mut bytes: &[u8], found: &mut Vec<Interface>) -> Messages {
    while let (Some(length), Some(kind)) = (u32_at(bytes, 0), u16_at(bytes, 4)) {
        let length = length as usize;
        let Some(body) = bytes.get(HEADER..length) else { return Messages::Failed(Errno::EBADMSG) };
        match i32::from(kind) {
            libc::NLMSG_DONE => return Messages::Done,
            libc::NLMSG_ERROR => {
                let code = u32_at(body, 0).unwrap_or_default() as i32;
                return Messages::Failed(Errno::from_raw(code.wrapping_neg()));
            }
            _ if kind == libc::RTM_NEWLINK => found.extend(interface(body)),
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Messages::More
}

fn interface(body: &[u8]) -> Option<Interface> {
    let flags = u32_at(body, 8)?;
    let mut interface = Interface {
        index: u32_at(body, 4)?,
        is_up: flags & libc::IFF_UP as u32 != 0,
        ..Interface::default()
    };
    let (mut below, mut vlan_id) = (0, None);
    for (kind, value) in attributes(body.get(LINK_HEADER..)?) {
        match kind {
            libc::IFLA_IFNAME => {
                let name = value.split(|&byte| byte == 0).next().unwrap_or_default();
                interface.name = String::from_utf8_lossy(name).into_owned();
            }
            libc::IFLA_MASTER => interface.master = u32_at(value, 0).unwrap_or_default(),
            libc::IFLA_LINK => below = u32_at(value, 0).unwrap_or_default(),
            libc::IFLA_LINKINFO => vlan_id = vlan_of(value),
            _ => {}
        }
    }
    interface.vlan = vlan_id.map(|id| (below, id));
    Some(interface)
}

/// The identifier in the `IFLA_LINKINFO` of a VLAN device.
fn vlan_of(link_info: &[u8]) -> Option<u16> {
    let is_vlan =
        attributes(link_info).any(|(kind, value)| kind == IFLA_INFO_KIND && value.starts_with(b"vlan\0"));
    let (_, data) = attributes(link_info).find(|&(kind, _)| kind == IFLA_INFO_DATA).filter(|_| is_vlan)?;
    attributes(data).find(|&(kind, _)| kind == IFLA_VLAN_ID).and_then(|(_, id)| u16_at(id, 0))
}

/// Route attributes: length, kind, value, padded to four bytes. Ends at the first that does not fit.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (u16_at(bytes, 0)?, u16_at(bytes, 2)?);
        let value = bytes.get(4..usize::from(length))?;
        bytes = bytes.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
        // The top two bits are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
        Some((kind & 0x3fff, value))
    })
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u32::from_ne_bytes(*chunk))
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u16::from_ne_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_list_agrees_with_the_system_s_names() {
        let mut found: Vec<(u32, String)> =
            interfaces().unwrap().into_iter().map(|found| (found.index, found.name)).collect();
        let listed = nix::net::if_::if_nameindex().unwrap();
        let mut expected: Vec<(u32, String)> = listed
            .iter()
            .map(|interface| (interface.index(), interface.name().to_str().unwrap().to_owned()))
            .collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = (value.len() as u16 + 4).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn a_vlan_device_is_told_with_its_identifier() {
        let mut body = vec![0; LINK_HEADER];
        body[4] = 7;
        body[8] = libc::IFF_UP as u8;
        body.extend(attribute(libc::IFLA_IFNAME, b"eth0.5\0"));
        body.extend(attribute(libc::IFLA_LINK, &2u32.to_ne_bytes()));
        body.extend(attribute(libc::IFLA_MASTER, &9u32.to_ne_bytes()));
        let data = attribute(IFLA_VLAN_ID, &5u16.to_ne_bytes());
        let info = [attribute(IFLA_INFO_KIND, b"vlan\0"), attribute(IFLA_INFO_DATA | 0x8000, &data)].concat();
        body.extend(attribute(libc::IFLA_LINKINFO, &info));
        let mut found = Vec::new();
        let both = [message(libc::RTM_NEWLINK, &body), message(libc::NLMSG_DONE as u16, &[0; 4])].concat();
        assert_eq!(parse_messages(&both, &mut found), Messages::Done);
        let expected =
            Interface { index: 7, name: "eth0.5".into(), is_up: true, master: 9, vlan: Some((2, 5)) };
        assert_eq!(found, [expected]);
    }

    #[test]
    fn an_error_of_the_kernel_is_handed_on() {
        let refused = message(libc::NLMSG_ERROR as u16, &(-libc::EPERM).to_ne_bytes());
        assert_eq!(parse_messages(&refused, &mut Vec::new()), Messages::Failed(Errno::EPERM));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            parse_messages(&bytes, &mut Vec::new());
            interface(&bytes);
        }
    }
}
