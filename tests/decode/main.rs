//! Compares decoding with two independent decoders on random valid frames, and tests it on damaged ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // How a test fails.

mod by_etherparse;
mod by_tshark;
mod sample;

use capture::internals::decode::decode;
use capture::internals::model::{LinkType, Packet, TcpFlags, Undecoded};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use sample::{LINKS, Sample, has_tags, sample};

/// Checks that cutting a frame may lose its packet, or the packet's flags and payload, but never yields a
/// different packet.
fn check_every_prefix(link: LinkType, frame: &[u8]) {
    let Ok(whole) = decode(link, frame) else {
        for length in 0..frame.len() {
            let _ = decode(link, &frame[..length]);
        }
        return;
    };
    let without_flags = Packet { tcp_flags: TcpFlags::default(), has_payload: false, ..whole };
    let mut seen = 0;
    for length in 0..=frame.len() {
        let stage = match decode(link, &frame[..length]) {
            Err(Undecoded::Truncated) => 0,
            Ok(packet) if packet == whole => 2,
            Ok(packet) if packet == without_flags => 1,
            other => {
                panic!("{length} of {} bytes are read as {other:?}, all of them as {whole:?}", frame.len())
            }
        };
        assert!(stage >= seen, "more bytes said less at {length} of {}", frame.len());
        seen = stage;
    }
}

fn link() -> impl Strategy<Value = LinkType> {
    prop::sample::select(&LINKS[..])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn etherparse_reads_the_same(sample in sample(), padding in 0..20usize) {
        for link in LINKS {
            let mut frame = sample.frame(link);
            // A decoder can only distinguish a datagram from the bytes that follow it if its length
            // field is not 0.
            if sample.states_its_length() {
                frame.resize(frame.len() + padding, 0xff);
            }
            if let Some(expected) = by_etherparse::read(link, &frame) {
                prop_assert_eq!(decode(link, &frame), Ok(expected), "{:?} {:02x?}", link, frame);
            }
        }
    }

    #[test]
    fn every_link_header_leads_to_the_same_packet(sample in sample()) {
        let bare = decode(LinkType::RawIp, &sample.datagram).unwrap();
        for link in LINKS {
            let vlan = sample.tags.first().filter(|_| has_tags(link)).map_or(0, |tag| tag.1);
            prop_assert_eq!(decode(link, &sample.frame(link)), Ok(Packet { vlan, ..bare }));
        }
    }

    #[test]
    fn a_cut_frame_never_becomes_another_packet(sample in sample(), link in link()) {
        check_every_prefix(link, &sample.frame(link));
    }

    #[test]
    fn a_damaged_frame_is_survived(
        sample in sample(),
        link in link(),
        damage in prop::collection::vec((any::<Index>(), any::<u8>()), 1..6),
    ) {
        let mut frame = sample.frame(link);
        for (place, byte) in damage {
            // The first bytes decide; damage to the payload would prove little.
            let headers = frame.len().min(100);
            frame[place.index(headers)] = byte;
        }
        check_every_prefix(link, &frame);
    }

    #[test]
    fn random_bytes_are_survived(link in link(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check_every_prefix(link, &bytes);
    }

    #[test]
    fn random_bytes_after_a_valid_type_are_survived(
        sample in sample(),
        link in link(),
        next in prop::sample::select(vec![0u8, 6, 17, 43, 44, 51, 60, 135]),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let fixed = if sample.is_v6() { 40 } else { 20 };
        let mut datagram = sample.datagram;
        datagram.truncate(fixed);
        datagram[if fixed == 40 { 6 } else { 9 }] = next;
        datagram.extend_from_slice(&bytes);
        check_every_prefix(link, &Sample { datagram, ..sample }.frame(link));
    }
}

#[test]
fn tshark_reads_the_same() {
    if let Some(missing) = by_tshark::missing() {
        return capture_test_support::requirements::left_out(&missing);
    }
    // The frames are the same in every run, so that a failure can be reproduced.
    let mut runner = TestRunner::deterministic();
    let samples: Vec<Sample> = (0..1000).map(|_| sample().new_tree(&mut runner).unwrap().current()).collect();
    for link in LINKS {
        let frames: Vec<Vec<u8>> = samples.iter().map(|sample| sample.frame(link)).collect();
        let read = by_tshark::read(link, &frames);
        assert_eq!(read.len(), frames.len(), "one line per frame");
        for (frame, expected) in frames.iter().zip(read) {
            let packet = decode(link, frame).unwrap();
            assert_eq!(by_tshark::Reading::of(&packet), expected, "{link:?} {packet:?} {frame:02x?}");
        }
    }
}
