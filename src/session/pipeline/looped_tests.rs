//! Tests of packets to groups that are sent and received here.

use super::*;

const GROUP: &str = "239.1.2.3:20";
const SENDER: &str = "192.0.2.1:10";

/// Sends a packet to the group.
fn send(bench: &mut PipelineFixture) -> u64 {
    bench.packet_passing(Passage::Outgoing, Namespace::HOME, udp(SENDER, GROUP))
}

/// Answers the requests, those about copies with `copies`. Returns the number of the latter.
fn answer_looped(bench: &mut PipelineFixture, copies: std::result::Result<Owner, Unowned>) -> usize {
    let asked = std::mem::take(&mut bench.asked);
    let of = |it: &Request| if it.local_end == LocalEnd::Looped { copies } else { by_port(&it.key) };
    let answers: Vec<Answer> = asked.iter().map(|it| answer(it, of(it))).collect();
    bench.publish(&answers, usize::MAX);
    asked.iter().filter(|it| it.local_end == LocalEnd::Looped).count()
}

#[test]
fn a_receiver_on_this_host_has_all_from_the_first_packet_on() {
    for copies in [exact(20), Err(Unowned::NoHolder)] {
        let mut bench = PipelineFixture::new(8);
        let mut bytes = send(&mut bench) + send(&mut bench);
        bench.publish(&[], usize::MAX);
        bytes += send(&mut bench);
        assert_eq!(answer_looped(&mut bench, copies), 1);
        bytes += send(&mut bench);
        bench.answer_all(by_port);
        assert_eq!((bench.credited(10), bench.credited(20)), ((bytes, 0), (0, bytes)));
        assert_eq!(bench.accounted(), 2 * bytes);
    }
}

#[test]
fn what_nobody_here_receives_is_sent_only_and_is_asked_about_again_a_second_later() {
    let mut bench = PipelineFixture::new(8);
    let mut bytes = 0;
    for _ in 0..3 {
        bytes += send(&mut bench);
        bench.publish(&[], usize::MAX);
        assert_eq!(answer_looped(&mut bench, Err(Unowned::NotLocal)), 1);
        bytes += send(&mut bench);
        bench.publish(&[], usize::MAX);
        assert!(bench.asked.is_empty());
        assert_eq!((bench.credited(10), bench.accounted()), ((bytes, 0), bytes));
        bench.now += 1_000_000_000;
    }
    let received = send(&mut bench);
    bench.publish(&[], usize::MAX);
    assert_eq!(answer_looped(&mut bench, exact(20)), 1);
    bench.answer_all(by_port);
    assert_eq!((bench.credited(10), bench.credited(20)), ((bytes + received, 0), (0, received)));
}

#[test]
fn groups_that_are_known_are_bounded() {
    let mut bench = PipelineFixture::new(8192);
    for port in 1..=3000 {
        bench.packet_passing(Passage::Outgoing, Namespace::HOME, udp(SENDER, &format!("239.1.2.3:{port}")));
    }
    bench.publish(&[], usize::MAX);
    assert_eq!(bench.asked.iter().filter(|it| it.local_end == LocalEnd::Looped).count(), 1024);
}
