//! The Internet sockets of a network namespace as sock_diag(7) reports them: one by its endpoints, or all of
//! a kind.

use super::exchange::Exchange;
use super::message::{MESSAGE_HEADER, Message, attributes, put, u16_at, u32_at};
use super::tcp_info::TcpInfo;
use crate::model::{Address, Endpoint, FlowKey, Protocol};
use nix::errno::Errno;
use tracing::debug;

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h.
pub(super) const BY_FAMILY: u16 = 20;
/// Bytes of `struct inet_diag_req_v2` (linux/inet_diag.h), and the offsets of its fields.
const REQUEST: usize = 56;
const STATES: usize = 4;
const PORTS: usize = 8;
const ADDRESSES: usize = 12;
const DEVICE: usize = 44;
const COOKIE: usize = 48;
/// Bytes of `struct inet_diag_msg`.
pub(super) const REPLY: usize = 72;
/// `INET_DIAG_INFO`: the attribute. In a request, the bit of this number less one selects it.
pub(super) const INFO: u16 = 2;
/// `INET_DIAG_SKV6ONLY`.
const V6_ONLY: u16 = 11;
/// `INET_DIAG_SOCKOPT`, and two bits of the first byte of a `struct inet_diag_sockopt`.
const OPTIONS: u16 = 22;
const LOOPS: u8 = if cfg!(target_endian = "little") { 1 << 4 } else { 1 << 3 };
const TRANSPARENT: u8 = if cfg!(target_endian = "little") { 1 << 5 } else { 1 << 2 };
/// The kernel answers a dump in pieces of at most 32 KiB.
const BUFFER: usize = 32 << 10;

const FAMILIES: [i32; 2] = [libc::AF_INET, libc::AF_INET6];

/// One socket as sock_diag(7) reports it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InetSocket {
    /// The endpoint that it is bound to.
    pub local: Endpoint,
    /// Its peer; a wildcard address and port 0 if it is not connected.
    pub remote: Endpoint,
    /// The state's number ([`crate::model::tcp_state`]).
    pub state: u8,
    /// The user whose process created it.
    pub uid: u32,
    /// Its inode number; 0 if no process holds it: TIME_WAIT, not yet accepted, orphaned.
    pub inode: u64,
    /// `SO_COOKIE`: a number that no other socket ever has while the machine runs.
    pub cookie: u64,
    /// True if it is of the family `AF_INET6`, which may also carry IPv4.
    pub is_v6: bool,
    /// True if it accepts IPv6 only (`IPV6_V6ONLY`). The kernel reports it for sockets that listen or have no
    /// peer.
    pub v6_only: bool,
    /// True if it accepts packets to addresses that are not this host's (`IP_TRANSPARENT`). The kernel
    /// reports it since Linux 5.8.
    pub is_transparent: bool,
    /// True if the packets that it sends to groups are also delivered on this host (`IP_MULTICAST_LOOP`). The
    /// kernel reports it for IPv4 alone, since Linux 5.8.
    pub loops_multicast: bool,
    /// The index of the device that it is bound to, or 0.
    pub interface: u32,
}

/// A socket for lookups of sockets. It belongs to the network namespace of the thread that opened it, and any
/// thread may use it.
#[derive(Debug)]
pub struct InetDiag {
    exchange: Exchange,
    /// The protocols checked so far, and true for those that the kernel serves.
    served: Vec<(Protocol, bool)>,
}

impl InetDiag {
    /// Opens the socket. Needs no capability.
    ///
    /// # Errors
    /// Fails with the error of socket(2); with `EPROTONOSUPPORT` if the kernel lacks sock_diag.
    pub fn open() -> nix::Result<InetDiag> {
        let exchange = Exchange::open(libc::NETLINK_SOCK_DIAG, BUFFER)?;
        Ok(InetDiag { exchange, served: Vec::new() })
    }

    /// Returns the socket that the kernel itself would find for a packet to a flow's local end. For TCP that
    /// is the connection, also while it is opening or in TIME_WAIT, else the listener; for UDP and UDP-Lite
    /// the connected socket, else the best of those that are bound. Returns `None` if there is no such
    /// socket.
    ///
    /// The kernel does not find a socket that is bound to a device, and it binds every TCP connection between
    /// link-local addresses. For these the result is the listener or none, though the connection lives.
    ///
    /// Costs two system calls, some 1 to 3 µs.
    ///
    /// # Errors
    /// Fails with `EPROTONOSUPPORT` if the kernel does not report sockets of the protocol, and with any other
    /// error of the kernel.
    pub fn find(&mut self, key: &FlowKey) -> nix::Result<Option<InetSocket>> {
        self.find_on(key, 0)
    }

    /// Looks up a socket as [`InetDiag::find`] does, for a packet that arrives on the device with this index.
    /// It also finds a socket that is bound to the device.
    ///
    /// # Errors
    /// Fails as [`InetDiag::find`] does.
    pub fn find_on(&mut self, key: &FlowKey, device: u32) -> nix::Result<Option<InetSocket>> {
        if !self.serves(key.protocol)? {
            return Err(Errno::EPROTONOSUPPORT);
        }
        let is_v4 = key.local.address.is_v4();
        let mut message = [0; MESSAGE_HEADER + REQUEST];
        let request = &mut message[MESSAGE_HEADER..];
        request[0] = if is_v4 { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 };
        request[1] = key.protocol.0;
        put(request, STATES, &u32::MAX.to_ne_bytes());
        // For datagrams source and destination are those of a packet that arrives (udp_dump_one,
        // net/ipv4/udp_diag.c).
        let arrives = matches!(key.protocol, Protocol::UDP | Protocol::UDPLITE);
        let (source, destination) = if arrives { (key.remote, key.local) } else { (key.local, key.remote) };
        put(request, PORTS, &source.port.to_be_bytes());
        put(request, PORTS + 2, &destination.port.to_be_bytes());
        put(request, ADDRESSES, address_bytes(&source.address, is_v4));
        put(request, ADDRESSES + 16, address_bytes(&destination.address, is_v4));
        put(request, DEVICE, &device.to_ne_bytes());
        // Any cookie (INET_DIAG_NOCOOKIE).
        put(request, COOKIE, &[0xff; 8]);
        let socket = |message: &Message<'_>| Some(parse(message.payload).ok_or(Errno::EBADMSG));
        match self.exchange.ask(&mut message, BY_FAMILY, libc::NLM_F_REQUEST, socket)? {
            Err(Errno::ENOENT) => Ok(None),
            answer => answer.map(Some),
        }
    }

    /// Returns true if the kernel reports the sockets of a protocol at all. For a request for one socket of a
    /// protocol that it does not know, it would return `ENOENT` as well.
    fn serves(&mut self, protocol: Protocol) -> nix::Result<bool> {
        if let Some(&(_, served)) = self.served.iter().find(|(known, _)| *known == protocol) {
            return Ok(served);
        }
        let served = match self.dump_family(libc::AF_INET, protocol, 0, 0, &mut |_| ()) {
            Ok(()) => true,
            Err(Errno::ENOENT | Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP | Errno::EINVAL) => false,
            Err(errno) => return Err(errno),
        };
        self.served.push((protocol, served));
        Ok(served)
    }

    /// Hands every socket of a protocol to `each`, of both families, if it is in one of the states of the
    /// mask (bit `1 << number`). A socket that changes meanwhile may be reported twice or not at all, and all
    /// may be reported several times if the kernel makes the listing start again.
    ///
    /// # Errors
    /// Fails with `EPROTONOSUPPORT` as [`InetDiag::find`] does, and with any other error of the kernel. The
    /// sockets before the error have been handed to `each`.
    pub fn dump(
        &mut self,
        protocol: Protocol,
        states: u32,
        mut each: impl FnMut(&InetSocket),
    ) -> nix::Result<()> {
        self.dump_all(protocol, states, 0, &mut |payload| {
            if let Some(socket) = parse(payload) {
                each(&socket);
            }
        })
    }

    /// Lists sockets as [`InetDiag::dump`] does, for TCP, with the kernel's tcp_info of each connection.
    ///
    /// # Errors
    /// Fails as [`InetDiag::dump`] does.
    pub fn dump_tcp(&mut self, states: u32, mut each: impl FnMut(&InetSocket, &TcpInfo)) -> nix::Result<()> {
        self.dump_all(Protocol::TCP, states, 1 << (INFO - 1), &mut |payload| {
            let info = attributes(payload.get(REPLY..).unwrap_or_default()).find(|(kind, _)| *kind == INFO);
            let info = info.and_then(|(_, value)| TcpInfo::parse(value));
            if let (Some(socket), Some(info)) = (parse(payload), info) {
                each(&socket, &info);
            }
        })
    }

    fn dump_all(
        &mut self,
        protocol: Protocol,
        states: u32,
        extensions: u8,
        each: &mut impl FnMut(&[u8]),
    ) -> nix::Result<()> {
        if !self.serves(protocol)? {
            return Err(Errno::EPROTONOSUPPORT);
        }
        for family in FAMILIES {
            match self.dump_family(family, protocol, states, extensions, each) {
                // A kernel without IPv6.
                Err(Errno::ENOENT) if family == libc::AF_INET6 => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn dump_family(
        &mut self,
        family: i32,
        protocol: Protocol,
        states: u32,
        extensions: u8,
        each: &mut impl FnMut(&[u8]),
    ) -> nix::Result<()> {
        let mut message = [0; MESSAGE_HEADER + REQUEST];
        let request = &mut message[MESSAGE_HEADER..];
        put(request, 0, &[family as u8, protocol.0, extensions]);
        put(request, STATES, &states.to_ne_bytes());
        let dump = self.exchange.dump(&mut message, BY_FAMILY, |(), payload| each(payload))?;
        if !dump.is_consistent {
            debug!(protocol = protocol.0, "sockets have changed in each attempt to list them");
        }
        Ok(())
    }
}

/// Returns the bytes of an address in the form of a request.
fn address_bytes(address: &Address, is_v4: bool) -> &[u8] {
    let bytes = address.bytes();
    if is_v4 { &bytes[12..] } else { bytes }
}

/// Parses a `struct inet_diag_msg` with attributes. Returns `None` if it is too short or of another family.
pub(super) fn parse(payload: &[u8]) -> Option<InetSocket> {
    let (message, rest) = payload.split_at_checked(REPLY)?;
    let family = i32::from(*message.first()?);
    let address = |at: usize| match family {
        libc::AF_INET => message.get(at..)?.first_chunk().map(|bytes| Address::v4(*bytes)),
        libc::AF_INET6 => message.get(at..)?.first_chunk().map(|bytes| Address::v6(*bytes)),
        _ => None,
    };
    let port = |at| u16_at(message, at).map(u16::from_be);
    let low = |at| u32_at(message, at).map(u64::from);
    let options = attributes(rest).find(|(kind, _)| *kind == OPTIONS).and_then(|(_, value)| value.first());
    Some(InetSocket {
        state: *message.get(1)?,
        local: Endpoint::new(address(8)?, port(4)?),
        remote: Endpoint::new(address(24)?, port(6)?),
        interface: u32_at(message, 40)?,
        cookie: low(44)? | low(48)? << 32,
        uid: u32_at(message, 64)?,
        inode: low(68)?,
        is_v6: family == libc::AF_INET6,
        is_transparent: options.is_some_and(|options| options & TRANSPARENT != 0),
        loops_multicast: options.is_none_or(|options| options & LOOPS != 0),
        v6_only: attributes(rest).any(|(kind, value)| kind == V6_ONLY && value.first() == Some(&1)),
    })
}

#[cfg(test)]
#[path = "inet_diag_tests.rs"]
mod tests;
