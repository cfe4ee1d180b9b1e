//! The handler of frames, and reading of frames from an open libpcap handle of a savefile.

use crate::model::{Frame, LinkType, LocalAddresses, Namespace, Passage, Timestamp};
use pcap::{Activated, Capture, Packet};
use std::sync::Arc;

/// The receiver of a tap's frames.
pub trait FrameHandler {
    /// Takes a frame.
    fn frame(&mut self, frame: Frame<'_>);

    /// Takes the addresses of each namespace after a change, the session's own namespace first. The tap calls
    /// it before the first frame that arrives at a new address.
    fn set_addresses(&mut self, addresses: &[(Namespace, Arc<LocalAddresses>)]);
}

/// The properties that all frames of a capture share.
#[derive(Clone, Copy)]
pub(super) struct FrameOrigin {
    pub link: LinkType,
    pub namespace: Namespace,
    /// The value of [`Frame::packet_limit`].
    pub packet_limit: u32,
}

/// Hands at most `limit` frames to `each`, or all that are available if fewer. Returns their number, and the
/// error that ended the reading, if any.
///
/// It uses `pcap_next_ex` rather than `pcap_dispatch`. The latter saves 2 to 3 ns a frame, but C calls its
/// handler, so that every frame needs a barrier against a panic, and a panic leaves a savefile's loop marked
/// as broken off.
pub(super) fn drain<T: Activated>(
    capture: &mut Capture<T>,
    origin: FrameOrigin,
    limit: usize,
    mut each: impl FnMut(Frame<'_>),
) -> (usize, Option<pcap::Error>) {
    for count in 0..limit {
        match capture.next_packet() {
            Ok(packet) => each(frame(origin, &packet)),
            // No more frames are available now, or the savefile has ended.
            Err(pcap::Error::TimeoutExpired | pcap::Error::NoMorePackets) => return (count, None),
            Err(error) => return (count, Some(error)),
        }
    }
    (limit, None)
}

/// Converts a libpcap packet to a frame. Handles are opened with nanosecond time stamps, so `tv_usec` holds
/// nanoseconds.
#[inline]
fn frame<'a>(origin: FrameOrigin, packet: &Packet<'a>) -> Frame<'a> {
    let seconds = u64::try_from(packet.header.ts.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(packet.header.ts.tv_usec).unwrap_or(0);
    let FrameOrigin { link, namespace, packet_limit } = origin;
    let mut frame = Frame {
        time: Timestamp(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)),
        // A damaged savefile may claim a wire length below the captured one.
        wire_len: packet.header.len.max(packet.header.caplen),
        packet_limit,
        link,
        namespace,
        passage: Passage::Unknown,
        data: packet.data,
    };
    frame.passage = frame.stated_passage();
    frame
}

/// Returns libpcap's error text without the `pcap` crate's prefix.
pub(super) fn words(error: pcap::Error) -> String {
    match error {
        pcap::Error::PcapError(words) => words,
        other => other.to_string(),
    }
}
