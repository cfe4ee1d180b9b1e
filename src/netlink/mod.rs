//! Sockets and codec of netlink(7), shared by all that the kernel reports over it: interfaces and addresses,
//! the sockets of sock_diag(7), translated connections, routes, the ends of sockets, and process events.

mod close_notices;
mod conntrack;
mod exchange;
mod inet_diag;
mod interface;
mod message;
mod process_events;
mod routing;
mod rtnetlink;
mod socket;
mod tcp_info;

pub use close_notices::CloseNotices;
pub use conntrack::Conntrack;
pub use inet_diag::{InetDiag, InetSocket};
pub use process_events::{Happening, ProcessEvent, ProcessEvents};
pub use routing::Routing;
pub use tcp_info::TcpInfo;

pub(crate) use interface::{FrameKind, HardwareAddress, Interface, InterfaceKind, Vlan};
#[cfg(test)]
pub(crate) use message::begin;
pub(crate) use message::{MESSAGE_HEADER, u32_at};
pub(crate) use rtnetlink::{LocalRoute, Rtnetlink, insert_address, interface, local_route};
pub(crate) use socket::{Socket, attach_filter};

#[cfg(test)]
mod testing;
