//! Tests of floods: connections that only the other end has opened are not looked up.

use super::*;

const SYN: u8 = 0x02;
const RST_ACK: u8 = 0x14;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const HERE: &str = "192.0.2.1:80";

fn there(number: u32) -> String {
    format!("198.51.{}.{}:1000", number / 250, number % 250)
}

#[test]
fn what_the_kernel_alone_answers_is_not_asked_about() {
    let mut bench = PipelineFixture::new(100_000);
    let mut bytes = 0;
    for number in 0..1000 {
        bytes += bench.packet(tcp(SYN, &there(number), HERE));
        let answer = if number % 2 == 0 { SYN_ACK } else { RST_ACK };
        bytes += bench.packet(tcp(answer, HERE, &there(number)));
    }
    bench.publish(&[], usize::MAX);
    assert!(bench.asked.is_empty(), "{:?}", bench.asked[0]);
    bytes += bench.packet(tcp(SYN_ACK, HERE, &there(0)));
    bench.publish(&[], usize::MAX);
    assert!(bench.asked.is_empty());
    assert_eq!((bench.unowned(Unowned::NoSocket), bench.unowned(Unowned::Pending)), (bytes, 0));
    // Nor are they looked up when they leave the table.
    bench.pipeline.flows.sweep(Timestamp(u64::MAX), usize::MAX);
    bench.publish(&[], usize::MAX);
    assert!(bench.asked.is_empty());
    assert_eq!((bench.accounted(), bench.unowned(Unowned::NoSocket)), (bytes, bytes));
}

#[test]
fn a_connection_is_asked_about_once_its_handshake_is_complete_and_has_all_of_its_bytes() {
    for publishes_between in [false, true] {
        let mut bench = PipelineFixture::new(100_000);
        let mut flood = 0;
        for number in 1..1000 {
            flood += bench.packet(tcp(SYN, &there(number), HERE));
        }
        let received = bench.packet(tcp(SYN, PEER_END, HERE));
        let sent = bench.packet(tcp(SYN_ACK, HERE, PEER_END));
        if publishes_between {
            bench.publish(&[], usize::MAX);
            assert!(bench.asked.is_empty());
        }
        let received = received + bench.packet(tcp(ACK, PEER_END, HERE));
        bench.publish(&[], usize::MAX);
        assert_eq!(bench.asked.len(), 1);
        assert_eq!(
            (bench.unowned(Unowned::NoSocket), bench.unowned(Unowned::Pending)),
            (flood, sent + received)
        );
        let answers = [answer(&bench.asked[0], exact(80))];
        bench.publish(&answers, usize::MAX);
        assert_eq!(bench.credited(80), (sent, received));
        assert_eq!((bench.accounted(), bench.unowned(Unowned::NoSocket)), (flood + sent + received, flood));
    }
}

#[test]
fn datagrams_that_nobody_answers_leave_room_for_other_questions() {
    let mut bench = PipelineFixture::new(100_000);
    for number in 0..20 {
        bench.packet(udp(&there(number), "192.0.2.1:53"));
    }
    bench.packet(tcp(ACK, HERE, PEER_END));
    bench.publish(&[], RESERVED + 10);
    assert_eq!(bench.asked.iter().filter(|it| it.key.local.port == 53).count(), 10);
    bench.asked.clear();
    for number in 20..40 {
        bench.packet(udp(&there(number), "192.0.2.1:53"));
    }
    bench.packet(tcp(ACK, HERE, "198.51.100.1:3"));
    bench.publish(&[], 10);
    let ports: Vec<u16> = bench.asked.iter().map(|it| it.key.local.port).collect();
    assert_eq!(ports, [80]);
}

#[test]
fn what_has_been_given_up_is_asked_about_when_it_is_answered() {
    let mut bench = PipelineFixture::new(100_000);
    let sent = bench.packet(udp(HERE, PEER_END));
    let opened = bench.packet(tcp(SYN, HERE, PEER_END));
    bench.answer_all(|_| Err(Unowned::NoSocket));
    assert_eq!(bench.unowned(Unowned::NoSocket), sent + opened);
    let received = bench.packet(udp(PEER_END, HERE)) + bench.packet(tcp(SYN_ACK, PEER_END, HERE));
    let acknowledged = bench.packet(tcp(ACK, HERE, PEER_END));
    bench.answer_all(by_port);
    assert_eq!(bench.credited(80), (sent + opened + acknowledged, received));
    assert_eq!(bench.unowned(Unowned::NoSocket), 0);
}

#[test]
fn attempts_that_nobody_answers_leave_room_for_connections() {
    let mut bench = PipelineFixture::new(100_000);
    for number in 0..20 {
        bench.packet(tcp(SYN, HERE, &there(number)));
        bench.packet(udp(HERE, &there(number)));
    }
    bench.packet(tcp(RST_ACK, &there(0), HERE));
    bench.packet(tcp(ACK, HERE, PEER_END));
    bench.publish(&[], RESERVED + 10);
    assert_eq!(bench.asked.iter().filter(|it| !it.is_answered).count(), 10);
    bench.asked.clear();
    bench.packet(tcp(ACK, HERE, "198.51.100.1:3"));
    bench.publish(&[], 10);
    assert_eq!(bench.asked.iter().filter(|it| it.is_answered).count(), 1);
}

const PEER_END: &str = "198.51.100.1:2";
