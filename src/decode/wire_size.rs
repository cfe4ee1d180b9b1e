//! The size on the wire of a frame that was captured before its segmentation or after a merge (GSO, TSO, GRO).
//!
//! The kernel hands such a frame around as one, with one set of headers; on the wire each of its segments has its own.
//! libpcap does not tell how large the segments are. With TCP they are as large as the MTU allows, save the last, unless
//! the other end accepts less. With other protocols the sender chooses, and the MTU gives the fewest packets that can
//! carry the payload. Either way the estimate never exceeds what passed.

use super::{ip, link, transport};
use crate::model::{Frame, WireSize};

/// Returns how many packets a frame above the device's packet limit is on the wire, and their bytes, headers included.
///
/// A frame whose datagram fits the MTU is one packet (VLAN tags alone can lift it above the limit), and so is one whose
/// headers cannot be read. A header of which the length was not captured counts as the shortest of its protocol.
#[cold]
#[inline(never)]
pub fn wire_size(frame: &Frame<'_>) -> WireSize {
    segments(frame).unwrap_or(WireSize::from(frame.wire_len))
}

fn segments(frame: &Frame<'_>) -> Option<WireSize> {
    let Frame { wire_len, link, packet_limit, data, .. } = *frame;
    let (network, _) = link::network(link, data).ok()?;
    let datagram = ip::datagram(network).ok()?;
    let len = |len: usize| u32::try_from(len).ok();
    let link_header = len(data.len() - network.bytes().len())?;
    // The kernel removes this option as it segments the frame.
    let jumbo_option = len(ip::jumbo_option_len(network))?;
    let ip_header = len(ip::header_len(network, &datagram))?.checked_sub(jumbo_option)?;
    let transport_header = len(transport::header_len(datagram.protocol, datagram.payload))?;
    let mtu = packet_limit.checked_sub(link.header_len())?;
    let room = mtu.checked_sub(ip_header + transport_header).filter(|room| *room > 0)?;
    let headers = link_header + ip_header + transport_header;
    let payload = wire_len.checked_sub(jumbo_option + headers)?;
    let packets = payload.div_ceil(room);
    let bytes = payload.saturating_add(packets.saturating_mul(headers));
    (packets > 1).then_some(WireSize { bytes, packets })
}

#[cfg(test)]
#[path = "wire_size_tests.rs"]
mod tests;
