//! Tests of addresses that are this host's only for packets that a routing rule selects: a socket tells which
//! packets these are.

use super::*;

const ELSEWHERE: &str = "203.0.113.7:80";
const CLIENT: &str = "198.51.100.1:4000";

/// Returns a pipeline on a host on which a rule can send any packet to a table that makes all addresses
/// local.
fn bench(flow_limit: usize) -> PipelineFixture {
    let mut bench = PipelineFixture::new(flow_limit);
    let mut devices = LocalAddresses::default();
    devices.insert_conditional_network(&Address::v4([0; 4]), 0);
    bench.pipeline.set_device_addresses(&[(Namespace::HOME, Arc::new(devices))]);
    bench
}

/// Counts an arriving packet from the client and a leaving one back. Returns the lengths of the sent and the
/// received one.
fn both_ways(bench: &mut PipelineFixture, flags: u8) -> (u64, u64) {
    let home = Namespace::HOME;
    let received = bench.packet_passing(Passage::Incoming, home, tcp(flags, CLIENT, ELSEWHERE));
    (bench.packet_passing(Passage::Outgoing, home, tcp(flags, ELSEWHERE, CLIENT)), received)
}

#[test]
fn a_connection_has_its_bytes_if_it_has_a_socket() {
    let mut bench = bench(64);
    let (sent, received) = both_ways(&mut bench, 0x10);
    bench.publish(&[], usize::MAX);
    let asked = std::mem::take(&mut bench.asked);
    let keys: Vec<_> = asked.iter().map(|it| (it.key.local.to_string(), it.local_end)).collect();
    assert_eq!(keys, [(ELSEWHERE.to_owned(), LocalEnd::Diverted)]);
    bench.publish(&[answer(&asked[0], exact(7))], usize::MAX);
    let (again, more) = both_ways(&mut bench, 0x10);
    bench.publish(&[], usize::MAX);
    assert!(bench.asked.is_empty());
    assert_eq!(bench.credited(7), (sent + again, received + more));
}

#[test]
fn what_is_forwarded_is_asked_about_once_and_leaves_half_of_the_table_to_others() {
    let mut bench = bench(64);
    let mut bytes = 0;
    for _ in 0..3 {
        for number in 1..=100 {
            let (from, to) = (format!("198.51.100.1:{number}"), "203.0.113.7:53");
            bytes += bench.packet_passing(Passage::Incoming, Namespace::HOME, udp(&from, to));
        }
        bench.publish(&[], usize::MAX);
        let answers: Vec<Answer> = bench.asked.iter().map(|it| answer(it, Err(Unowned::NotLocal))).collect();
        bench.publish(&answers, usize::MAX);
    }
    assert_eq!((bench.asked.len(), bench.pipeline.flow_stats().evicted), (32, 0));
    assert_eq!((bench.unowned(Unowned::NotLocal), bench.accounted()), (bytes, bytes));
}

#[test]
fn an_unanswered_opening_is_not_local_and_one_that_is_answered_later_is_asked_about() {
    let mut bench = bench(64);
    let home = Namespace::HOME;
    let opening = bench.packet_passing(Passage::Incoming, home, tcp(0x02, CLIENT, ELSEWHERE));
    bench.publish(&[], usize::MAX);
    assert_eq!((bench.asked.len(), bench.unowned(Unowned::NotLocal)), (0, opening));
    let (sent, received) = both_ways(&mut bench, 0x10);
    bench.answer_all(by_port);
    assert_eq!(bench.credited(80), (sent, opening + received));
    assert_eq!(bench.accounted(), sent + opening + received);
}

#[test]
fn own_addresses_are_asked_about_as_ever() {
    let mut bench = bench(64);
    bench.packet(udp("198.51.100.1:9", "192.0.2.1:53"));
    bench.publish(&[], usize::MAX);
    let asked: Vec<_> = bench.asked.iter().map(|it| (it.key.local.port, it.local_end)).collect();
    assert_eq!(asked, [(53, LocalEnd::Own)]);
}
