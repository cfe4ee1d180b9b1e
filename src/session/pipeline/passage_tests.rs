//! Tests of packets that pass several devices of one namespace: each end is counted once.

use super::*;

/// On a wire between two devices of this host, which have these addresses, a packet is captured as it leaves
/// and as it arrives.
#[test]
fn each_end_is_counted_where_the_packet_passes_it() {
    let (leaves, arrives) = (Passage::Outgoing, Passage::Incoming);
    let mut bench = PipelineFixture::new(8);
    let both = [[192, 0, 2, 1], [192, 0, 2, 2]].map(Address::v4);
    bench.pipeline.set_device_addresses(&[(Namespace::HOME, Arc::new(both.into_iter().collect()))]);
    let ask = || udp("192.0.2.1:10", "192.0.2.2:53");
    let answer = || udp("192.0.2.2:53", "192.0.2.1:10");
    let (mut asked, mut answered) = (0, 0);
    // Often enough for the shortcut to be taken.
    for _ in 0..3 {
        asked += bench.packet_passing(leaves, Namespace::HOME, ask());
        assert!(bench.packet_passing(arrives, Namespace::HOME, ask()) > 0);
        answered += bench.packet_passing(leaves, Namespace::HOME, answer());
        assert!(bench.packet_passing(arrives, Namespace::HOME, answer()) > 0);
    }
    bench.answer_all(by_port);
    assert_eq!((bench.credited(10), bench.credited(53)), ((asked, answered), (answered, asked)));
    assert_eq!(bench.accounted(), 2 * (asked + answered));
}

/// Packets copied to another device (a mirror, or a shaping device) leave there although they came from
/// elsewhere or are known to be copies.
#[test]
fn copies_count_for_neither_end() {
    let mut bench = PipelineFixture::new(8);
    let (sent, received) =
        (|| udp("192.0.2.1:10", "198.51.100.1:2"), || udp("198.51.100.1:2", "192.0.2.1:10"));
    let once = (
        bench.packet_passing(Passage::Outgoing, Namespace::HOME, sent()),
        bench.packet_passing(Passage::Incoming, Namespace::HOME, received()),
    );
    let mut copies = bench.packet_passing(Passage::Outgoing, Namespace::HOME, received());
    copies += bench.packet_passing(Passage::Copied, Namespace::HOME, received());
    copies += bench.packet_passing(Passage::Copied, Namespace::HOME, sent());
    copies += bench.packet_passing(Passage::Incoming, Namespace::HOME, sent());
    bench.answer_all(by_port);
    assert_eq!((bench.credited(10), bench.unowned(Unowned::NotLocal)), (once, copies));
}

/// A host that requests its address has none: a packet that leaves without an address is its own, one that
/// arrives is another host's.
#[test]
fn what_leaves_without_an_address_is_sent_from_here() {
    let mut bench = PipelineFixture::new(8);
    let ask = || udp("0.0.0.0:68", "255.255.255.255:67");
    let sent = bench.packet_passing(Passage::Outgoing, Namespace::HOME, ask());
    let received = bench.packet_passing(Passage::Incoming, Namespace::HOME, ask());
    bench.answer_all(by_port);
    assert_eq!((bench.credited(68), bench.credited(67)), ((sent, 0), (0, received)));
    assert_eq!(bench.accounted(), sent + received);
}
