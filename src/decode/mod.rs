//! Decodes a frame to the packet that it carries.
//!
//! Decoding is pure: it allocates nothing, keeps no state and never panics. Frames come from a hostile
//! network, so every loop is bounded and every read is checked. Only headers are read. Sizes start from the
//! capture header's wire length and not from the lengths in the frame's headers, because offloaded frames
//! carry wrong or zero lengths there.
//!
//! Tunnels (IP in IP, GRE, VXLAN) are not entered: the host's sockets and the wire have the outer flow in
//! common, and the inner packet is captured again on the tunnel's own device.

mod ip;
mod link;
#[cfg(test)]
mod tests;
mod transport;
mod wire_size;

use crate::model::{Endpoint, Fragment, LinkType, Packet, Protocol, Undecoded};
use ip::Datagram;
use transport::Transport;

pub use ip::MAX_EXTENSIONS;
pub use link::{MAX_LABELS, MAX_TAGS};
pub use wire_size::{segment_limit, wire_size};

/// The number of bytes to capture of each frame, chosen so that [`decode`] seldom meets a cut header.
///
/// The longest ordinary headers, two tags on a version 2 cooked header with an IPv6 header and full TCP
/// flags, take 82 bytes, and the longest IPv4 headers with all options 102; the rest is room for extension
/// headers.
pub const SNAPLEN: usize = 128;

/// Decodes the packet in a frame of this link type.
///
/// `data` begins with the link header and may be cut anywhere. Cutting a frame never changes the result, only
/// its completeness: a prefix of a frame gives the same packet, or the same packet without its TCP flags and
/// payload, or [`Undecoded::Truncated`].
///
/// - The ports of a TCP segment are enough to find the owner of its bytes: a segment cut between its ports
///   and its flags is a packet without flags and payload.
/// - A later fragment has no ports. Its protocol is the one in its own IP header, which differs from that of
///   the first fragment if extension headers are in the fragmented part; the identification joins the two.
/// - MPLS labels and the headers of a PPPoE session are skipped, like VLAN tags.
/// - IPv6 extension headers and the authentication header are skipped. A header that is opaque (ESP) or has
///   nothing after it ("no next header") keeps its number as the protocol, with ports 0.
///
/// # Errors
///
/// Fails with [`Undecoded::Truncated`] if `data`, or the datagram by its own length, ends before the ports;
/// with [`Undecoded::NotIp`] for anything but IPv4 and IPv6; with [`Undecoded::Malformed`] for a wrong IP
/// version, a header length below the minimum or above the datagram's own, a second fragment header, or more
/// than [`MAX_TAGS`] VLAN tags, [`MAX_LABELS`] MPLS labels or [`MAX_EXTENSIONS`] extension headers.
pub fn decode(link: LinkType, data: &[u8]) -> Result<Packet, Undecoded> {
    let (network, vlan) = link::network(link, data)?;
    let Datagram { source, destination, protocol, fragment, payload, len } = ip::datagram(network)?;
    let transport = match fragment {
        Fragment::Later { .. } => Transport::default(),
        Fragment::Whole | Fragment::First { .. } => transport::read(protocol, payload, len)?,
    };
    Ok(Packet {
        protocol: Protocol(protocol),
        source: Endpoint::new(source, transport.source),
        destination: Endpoint::new(destination, transport.destination),
        tcp_flags: transport.flags,
        has_payload: transport.has_payload,
        fragment,
        vlan,
    })
}

/// Returns the sequence number of a TCP segment in a frame that [`decode`] can read, or `None` if it is cut
/// or there is none.
pub fn sequence_number(link: LinkType, data: &[u8]) -> Option<u32> {
    let (network, _) = link::network(link, data).ok()?;
    let datagram = ip::datagram(network).ok()?;
    let is_tcp = Protocol(datagram.protocol) == Protocol::TCP;
    let has_header = is_tcp && !matches!(datagram.fragment, Fragment::Later { .. });
    has_header.then(|| transport::sequence_number(datagram.payload)).flatten()
}
