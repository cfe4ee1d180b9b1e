//! Notices of a network namespace: devices, addresses and local routes that appear and disappear
//! (rtnetlink(7)).
//!
//! The kernel sends a notice of a device or an address before the first packet at it. A caller that reads the
//! notices before the frames that wait in the rings therefore knows every device and address at which a frame
//! can have arrived.

use crate::error::{Code, Error, Result};
use crate::model::LocalAddresses;
use crate::netlink::{
    Interface, LocalRoute, MESSAGE_HEADER, Socket, attach_filter, insert_address, interface, local_route,
    u32_at,
};
use std::os::fd::{AsFd, BorrowedFd};

/// The groups of devices, addresses, routes and of the numbers that other namespaces have in this one, as
/// bits of `sockaddr_nl` (linux/rtnetlink.h): `RTNLGRP_LINK`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV6_IFADDR`,
/// `_IPV6_ROUTE`, `_NSID`.
const GROUPS: u32 = 1 | 1 << 4 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 27;
/// `RTM_NEWNSID`.
const NEW_NAMESPACE: u16 = 88;
/// The offset of a route's type in its message: after the header, in `struct rtmsg`.
const ROUTE_TYPE: u32 = MESSAGE_HEADER as u32 + 7;
/// The offset of `nlmsg_type`.
const MESSAGE_TYPE: u32 = 4;
/// The offsets of index and flags in a `struct ifinfomsg`.
const LINK_INDEX: usize = 4;
const LINK_FLAGS: usize = 8;
/// The size of the buffer in bytes. Notices are shorter, because they omit virtual functions.
const BUFFER: usize = 32 << 10;

/// The changes that the notices of one call report, besides new addresses.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(in crate::tap) struct Heard {
    /// The indices of devices that are up, and have appeared or changed.
    pub up: Vec<u32>,
    /// Devices that have disappeared, in their last state.
    pub gone: Vec<Interface>,
    /// The indices of devices that are ports of others.
    pub enslaved: Vec<u32>,
    /// Set if a route has disappeared that made addresses local for packets that a routing rule selects.
    pub condition_gone: bool,
    /// Set if another network namespace got a number here, as when a device is created with its other end
    /// there.
    pub namespaces: bool,
    /// Set if notices were lost: anything may have changed.
    pub lost: bool,
}

/// A socket for the notices of one namespace.
pub(in crate::tap) struct News {
    socket: Socket,
    buffer: Vec<u8>,
}

impl News {
    /// Begins to listen in the network namespace of the calling thread.
    ///
    /// # Errors
    /// Fails with `SystemResource` if the system refuses it.
    pub(in crate::tap) fn open() -> Result<News> {
        let refused =
            |errno| Error::system(Code::SystemResource, "opening a socket for route notifications", errno);
        let socket = Socket::for_notices(libc::NETLINK_ROUTE, GROUPS).map_err(refused)?;
        leave_out_routes(&socket).map_err(refused)?;
        Ok(News { socket, buffer: vec![0; BUFFER] })
    }

    /// Returns the descriptor to wait for.
    pub(in crate::tap) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads the available notices, and adds new addresses to `come`. Costs one system call if there are
    /// none.
    pub(in crate::tap) fn read(&mut self, come: &mut LocalAddresses) -> Heard {
        let mut heard = Heard::default();
        let lost = self.socket.notices(&mut self.buffer, |message| match message.kind {
            libc::RTM_NEWLINK | libc::RTM_DELLINK => {
                let link = message.payload;
                // A bridge reports its ports in a family of its own, also when one leaves it.
                let is_whole = link.first() == Some(&(libc::AF_UNSPEC as u8));
                let changed = interface(link).filter(|_| is_whole);
                let is_up = u32_at(link, LINK_FLAGS).is_some_and(|flags| flags & libc::IFF_UP as u32 != 0);
                let port = changed.as_ref().filter(|interface| interface.master.is_some());
                heard.enslaved.extend(port.map(|interface| interface.index));
                match message.kind {
                    libc::RTM_DELLINK => heard.gone.extend(changed),
                    libc::RTM_NEWLINK if is_up => heard.up.extend(u32_at(link, LINK_INDEX)),
                    _ => {}
                }
            }
            libc::RTM_NEWADDR => {
                insert_address(come, message.payload);
            }
            libc::RTM_NEWROUTE => {
                if let Some(route) = local_route(message.payload) {
                    route.insert_unconditional(come);
                    route.insert_conditional(come);
                }
            }
            libc::RTM_DELROUTE => {
                heard.condition_gone |=
                    local_route(message.payload).as_ref().is_some_and(LocalRoute::is_conditional);
            }
            NEW_NAMESPACE => heard.namespaces = true,
            _ => {}
        });
        heard.lost = lost != Ok(false);
        heard
    }
}

/// Makes the kernel leave out routes of other types than `local`, of which a router may have hundreds of
/// thousands.
fn leave_out_routes(socket: &Socket) -> nix::Result<()> {
    let instruction = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let is = |value: u32, jt, jf| instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, jt, jf, value);
    // Loads convert numbers from network order to the host's. These numbers are in the host's order already,
    // so the constants are converted, too.
    let kind = |kind: u16| u32::from(kind.to_be());
    attach_filter(
        socket.as_fd(),
        &[
            instruction(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, MESSAGE_TYPE),
            is(kind(libc::RTM_NEWROUTE), 1, 0),
            is(kind(libc::RTM_DELROUTE), 0, 2),
            instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, ROUTE_TYPE),
            is(u32::from(libc::RTN_LOCAL), 0, 1),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        ],
    )
}
