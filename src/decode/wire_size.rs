//! The size on the wire of a frame that was captured before its segmentation or after a merge (GSO, TSO,
//! GRO).
//!
//! The kernel handles such a frame as one, with one set of headers; on the wire each of its segments has its
//! own. A packet socket does not report the size of the segments. In TCP they are as large as the MTU and
//! both ends allow, except the last. In other protocols the sender chooses, and the MTU gives the minimum
//! number of packets that can carry the payload.

use super::{ip, link, transport};
use crate::model::{Frame, Protocol, WireSize};

/// Returns the number of packets on the wire of a frame that may be several, and their bytes, headers
/// included. A TCP segment carries at most `segment` bytes including the options of its header, if
/// that is known.
///
/// A frame whose payload fits one segment is one packet (VLAN tags alone can lift it above the device's limit),
/// and so is a frame whose headers cannot be read. A header whose length was not captured counts as the shortest of its
/// protocol.
#[cold]
#[inline(never)]
pub fn wire_size(frame: &Frame<'_>, segment: Option<u16>) -> WireSize {
    segments(frame, segment).unwrap_or(WireSize::from(frame.link_len()))
}

/// Returns the largest TCP segment that the sender of a SYN accepts, if it is smaller than the MTU of the
/// device allows. Returns `None` for a device of unknown MTU.
pub fn segment_limit(frame: &Frame<'_>) -> Option<u16> {
    let (network, _) = link::network(frame.link, frame.data).ok()?;
    let datagram = ip::datagram(network).ok()?;
    let limit = transport::segment_limit(datagram.payload)?;
    let headers = ip::header_len(network, &datagram) + transport::TCP_HEADER;
    let mtu = frame.packet_limit.checked_sub(frame.link.header_len())?;
    let is_smaller = headers as u64 + u64::from(limit) < u64::from(mtu);
    (is_smaller && frame.packet_limit != u32::MAX).then_some(limit)
}

fn segments(frame: &Frame<'_>, segment: Option<u16>) -> Option<WireSize> {
    let Frame { wire_len, link, packet_limit, data, .. } = *frame;
    let (network, _) = link::network(link, data).ok()?;
    let datagram = ip::datagram(network).ok()?;
    let len = |len: usize| u32::try_from(len).ok();
    let link_header = len(data.len() - network.bytes().len())?;
    // The kernel removes this option when it segments the frame.
    let jumbo_option = len(ip::jumbo_option_len(network))?;
    let ip_header = len(ip::header_len(network, &datagram))?.checked_sub(jumbo_option)?;
    let transport_header = len(transport::header_len(datagram.protocol, datagram.payload))?;
    let mtu = packet_limit.checked_sub(link.header_len())?;
    let room = mtu.checked_sub(ip_header + transport_header)?;
    let room = match segment {
        Some(limit) if datagram.protocol == Protocol::TCP.0 => {
            // Options reduce the room for the payload.
            let options = transport_header - len(transport::TCP_HEADER)?;
            room.min(u32::from(limit).checked_sub(options)?)
        }
        _ => room,
    };
    if room == 0 {
        return None;
    }
    let payload = wire_len.checked_sub(link_header + jumbo_option + ip_header + transport_header)?;
    // A header that only the capture has is on no wire.
    let headers = (link_header + frame.link_len()).checked_sub(wire_len)? + ip_header + transport_header;
    let packets = payload.div_ceil(room);
    let bytes = payload.saturating_add(packets.saturating_mul(headers));
    (packets > 1).then_some(WireSize { bytes, packets })
}

#[cfg(test)]
#[path = "wire_size_tests.rs"]
mod tests;
