//! The handler of frames, and the reading of them from an open libpcap handle of a savefile.

use crate::model::{Frame, LinkType, LocalAddresses, Namespace, Passage, Timestamp};
use pcap::{Activated, Capture, Packet};
use std::sync::Arc;

/// The receiver of a tap's frames.
pub trait FrameHandler {
    /// Takes a frame.
    fn frame(&mut self, frame: Frame<'_>);

    /// Takes the addresses of each namespace, the own one first, when they have changed: before the first frame that comes by
    /// a new one.
    fn set_addresses(&mut self, addresses: &[(Namespace, Arc<LocalAddresses>)]);
}

/// What all frames of a capture have in common.
#[derive(Clone, Copy)]
pub(super) struct FrameOrigin {
    pub link: LinkType,
    pub namespace: Namespace,
    /// As [`Frame::packet_limit`].
    pub packet_limit: u32,
}

/// Hands at most `limit` frames, all that are there if fewer, to `each`. Returns how many, and the error that ended
/// the reading, if one did.
///
/// `pcap_next_ex` rather than `pcap_dispatch`: the latter saves 2 to 3 ns a frame, but its handler is called from C,
/// where every frame needs a barrier against a panic, and a panic leaves a savefile's loop marked as broken off.
pub(super) fn drain<T: Activated>(
    capture: &mut Capture<T>,
    origin: FrameOrigin,
    limit: usize,
    mut each: impl FnMut(Frame<'_>),
) -> (usize, Option<pcap::Error>) {
    for count in 0..limit {
        match capture.next_packet() {
            Ok(packet) => each(frame(origin, &packet)),
            // Nothing more there now, or the savefile's end.
            Err(pcap::Error::TimeoutExpired | pcap::Error::NoMorePackets) => return (count, None),
            Err(error) => return (count, Some(error)),
        }
    }
    (limit, None)
}

/// A frame in the library's terms. Handles are opened with nanosecond time stamps, so `tv_usec` holds nanoseconds.
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

/// What libpcap says, without the `pcap` crate's introduction.
pub(super) fn words(error: pcap::Error) -> String {
    match error {
        pcap::Error::PcapError(words) => words,
        other => other.to_string(),
    }
}
