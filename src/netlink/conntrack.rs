//! Lookups of single translated connections (NAT) in the kernel's connection tracking (ctnetlink).

use super::exchange::Exchange;
use super::message::{ATTRIBUTE_HEADER, MESSAGE_HEADER, Message, attributes, put};
use crate::model::{Address, Endpoint, FlowKey, Protocol};
use nix::errno::Errno;

/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_GET` (linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h).
const GET: u16 = 1 << 8 | 1;
/// Bytes of `struct nfgenmsg`.
const FAMILY_HEADER: usize = 4;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// `CTA_TUPLE_ORIG` and `CTA_TUPLE_REPLY`.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
/// `CTA_TUPLE_IP` and `CTA_TUPLE_PROTO`.
const ADDRESSES: u16 = 1;
const PORTS: u16 = 2;
/// `CTA_IP_V4_SRC`; its destination and the two of IPv6 follow.
const SOURCE_V4: u16 = 1;
const SOURCE_V6: u16 = 3;
/// `CTA_PROTO_NUM`, `CTA_PROTO_SRC_PORT`, `CTA_PROTO_DST_PORT`.
const PROTOCOL: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
/// `CTA_PROTO_ICMP_ID`, and `CTA_PROTO_ICMPV6_ID`; type and code follow each.
const ICMP_ID: u16 = 4;
const ICMPV6_ID: u16 = 7;
/// The protocols of echoes, each with the attribute of its identifier and the type of an echo reply.
const ECHO_REPLY: [(Protocol, u16, u8); 2] =
    [(Protocol::ICMP, ICMP_ID, 0), (Protocol::ICMPV6, ICMPV6_ID, 129)];
/// Datagram Congestion Control Protocol.
const DCCP: Protocol = Protocol(33);
/// The longest request in bytes: a tuple of IPv6.
const REQUEST: usize = 128;
/// Room for an entry; one with many extensions takes some 500 bytes.
const BUFFER: usize = 8 << 10;

/// A socket for lookups of tracked connections. It belongs to the network namespace of the thread that opened
/// it, and any thread may use it.
#[derive(Debug)]
pub struct Conntrack(Exchange);

/// The endpoints of a connection on one side of the translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ends {
    source: Endpoint,
    destination: Endpoint,
}

impl Conntrack {
    /// Opens the socket. The kernel loads the module `nfnetlink` for it, and `nf_conntrack_netlink` for the
    /// first request, unless they are loaded.
    ///
    /// # Errors
    /// Fails with the error of socket(2); with `EPROTONOSUPPORT` if the kernel lacks nfnetlink.
    pub fn open() -> nix::Result<Conntrack> {
        Exchange::open(libc::NETLINK_NETFILTER, BUFFER).map(Conntrack)
    }

    /// Returns the endpoints that a flow has on the far side of this host's translation, given those that its
    /// packets have on the wire: the endpoints of the local socket, or of the container that the packets are
    /// forwarded to. Returns the same endpoints if nothing is translated. Returns `None` if no such
    /// connection is tracked, is no longer tracked, or is not in the default zone.
    ///
    /// Needs CAP_NET_ADMIN. Costs two system calls, some 3 to 8 µs.
    ///
    /// # Errors
    /// Fails with `EPERM` if the capability is missing, and with any other error of the kernel.
    pub fn behind(&mut self, key: &FlowKey) -> nix::Result<Option<FlowKey>> {
        // The kernel tracks a packet from the remote end by its endpoints on the wire, whichever end opened
        // the connection.
        let incoming = Ends { source: key.remote, destination: key.local };
        let Some(mut question) = request(key.protocol, &incoming) else { return Ok(None) };
        let entry = |message: &Message<'_>| Some(parse(message.payload).ok_or(Errno::EBADMSG));
        match self.0.ask(&mut question, GET, libc::NLM_F_REQUEST, entry)? {
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
            Ok((original, reply)) => {
                // The packets of the other direction go from the true local end to the true remote one.
                let outgoing = if original == incoming { reply } else { original };
                Ok(Some(FlowKey { local: outgoing.source, remote: outgoing.destination, ..*key }))
            }
        }
    }
}

/// Returns a request for the connection that a packet belongs to, or `None` if the protocol has no ports.
fn request(protocol: Protocol, ends: &Ends) -> Option<Vec<u8>> {
    let Ends { source, destination } = ends;
    let is_v4 = source.address.is_v4();
    let mut message = vec![0; MESSAGE_HEADER + FAMILY_HEADER];
    message.reserve(REQUEST);
    message[MESSAGE_HEADER] = if is_v4 { libc::AF_INET } else { libc::AF_INET6 } as u8;
    nest(&mut message, ORIGINAL, |message| {
        nest(message, ADDRESSES, |message| {
            let first = if is_v4 { SOURCE_V4 } else { SOURCE_V6 };
            for (kind, end) in [(first, source), (first + 1, destination)] {
                let bytes = end.address.bytes();
                attribute(message, kind, if is_v4 { &bytes[12..] } else { bytes });
            }
        });
        nest(message, PORTS, |message| {
            attribute(message, PROTOCOL, &[protocol.0]);
            match ECHO_REPLY.iter().find(|row| row.0 == protocol) {
                Some(&(_, id, kind)) => {
                    attribute(message, id, &destination.port.to_be_bytes());
                    attribute(message, id + 1, &[kind]);
                    attribute(message, id + 2, &[0]);
                }
                None => {
                    attribute(message, SOURCE_PORT, &source.port.to_be_bytes());
                    attribute(message, DESTINATION_PORT, &destination.port.to_be_bytes());
                }
            }
        });
    });
    has_identity(protocol, ends).then_some(message)
}

/// Returns true if the kernel distinguishes connections of a protocol by the fields of endpoints.
fn has_identity(protocol: Protocol, ends: &Ends) -> bool {
    match protocol {
        Protocol::TCP | Protocol::UDP | Protocol::UDPLITE | Protocol::SCTP | DCCP => true,
        Protocol::ICMP | Protocol::ICMPV6 => ends.destination.port != 0,
        _ => false,
    }
}

/// Returns both tuples of an entry: that of packets in the original direction, and that of the replies.
fn parse(payload: &[u8]) -> Option<(Ends, Ends)> {
    let entry = payload.get(FAMILY_HEADER..)?;
    Some((tuple(entry, ORIGINAL)?, tuple(entry, REPLY)?))
}

fn tuple(entry: &[u8], kind: u16) -> Option<Ends> {
    let inner = |bytes, kind| attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value);
    let tuple = inner(entry, kind)?;
    let (addresses, ports) = (inner(tuple, ADDRESSES)?, inner(tuple, PORTS)?);
    let address = |at: u16| match inner(addresses, SOURCE_V4 + at) {
        Some(v4) => v4.first_chunk().map(|bytes| Address::v4(*bytes)),
        None => inner(addresses, SOURCE_V6 + at)?.first_chunk().map(|bytes| Address::v6(*bytes)),
    };
    let number = |kind| inner(ports, kind)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
    let byte = |kind| inner(ports, kind)?.first().copied();
    let echo = ECHO_REPLY.iter().find(|row| byte(PROTOCOL) == Some(row.0.0));
    let (from, to) = match echo {
        Some(&(_, id, reply)) if byte(id + 1)? == reply => (0, number(id)?),
        Some(&(_, id, _)) => (number(id)?, 0),
        None => (number(SOURCE_PORT)?, number(DESTINATION_PORT)?),
    };
    Some(Ends { source: Endpoint::new(address(0)?, from), destination: Endpoint::new(address(1)?, to) })
}

/// Appends an attribute.
fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(((ATTRIBUTE_HEADER + value.len()) as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// Appends an attribute made of attributes.
fn nest(message: &mut Vec<u8>, kind: u16, inner: impl FnOnce(&mut Vec<u8>)) {
    let start = message.len();
    attribute(message, kind | NESTED, &[]);
    inner(message);
    let length = (message.len() - start) as u16;
    put(&mut message[start..], 0, &length.to_ne_bytes());
}

#[cfg(test)]
#[path = "conntrack_tests.rs"]
mod tests;
