//! Tests of the pipeline: every byte is counted once at each end that is on this host, whatever happens to
//! its flow and to the answer about its owner.

use super::*;
use crate::model::{LinkType, Owner, Passage, ProcId, Quality, Traffic};
use crate::owner::LocalEnd;
use crate::session::accounting::Ledger;
use crate::session::lookup::{Answer, Request};
use capture_test_support::frames::{Carries, Packet, Part, Wire};
use std::collections::BTreeMap;
use std::net::IpAddr;

#[path = "conditional_tests.rs"]
mod conditional;
#[path = "flood_tests.rs"]
mod flood;
#[path = "looped_tests.rs"]
mod looped;
#[path = "frame_pipeline_model_tests.rs"]
mod model;
#[path = "offload_tests.rs"]
mod offload;
#[path = "passage_tests.rs"]
mod passage;
#[path = "recheck_tests.rs"]
mod recheck;
#[path = "step_tests.rs"]
mod step;

const HOST: &str = "192.0.2.1";
const PEER: &str = "198.51.100.1";

/// The longest frame that is one packet on an Ethernet device with the usual MTU.
const ETHERNET_LIMIT: u32 = 1514;

/// A pipeline with its ledger, and the requests that it has made.
struct PipelineFixture {
    pipeline: FramePipeline,
    ledger: Ledger,
    packets: Arc<PacketQueue>,
    asked: Vec<Request>,
    now: u64,
    /// The time of day at boot.
    epoch: u64,
    /// The traffic that was credited to each process and drained.
    fetched: BTreeMap<ProcId, Traffic>,
}

/// Returns the default limits with this number of flows.
fn limits(held: usize) -> FlowLimits {
    FlowLimits { held, ..FlowLimits::default() }
}

/// Room for requests that is reserved for answered flows.
const RESERVED: usize = 16_384;

impl PipelineFixture {
    fn new(flow_limit: usize) -> PipelineFixture {
        let packets = Arc::new(PacketQueue::new(1 << 20));
        let local = [HOST, "2001:db8::1"].map(|text| Address::from(text.parse::<IpAddr>().unwrap()));
        PipelineFixture {
            pipeline: FramePipeline::new(limits(flow_limit), &local, Arc::clone(&packets)).unwrap(),
            ledger: Ledger::default(),
            packets,
            asked: Vec::new(),
            now: 1_000_000_000,
            epoch: 0,
            fetched: BTreeMap::new(),
        }
    }

    /// Counts a packet as a frame. Returns the frame's length.
    fn packet(&mut self, packet: Packet) -> u64 {
        self.packet_in(Namespace::HOME, packet)
    }

    /// Counts a packet of a device of this namespace.
    fn packet_in(&mut self, namespace: Namespace, packet: Packet) -> u64 {
        self.packet_passing(Passage::Unknown, namespace, packet)
    }

    fn packet_passing(&mut self, passage: Passage, namespace: Namespace, packet: Packet) -> u64 {
        self.now += 1_000;
        let data = Wire::Ethernet.frame(&packet.bytes());
        let wire_len = data.len() as u32;
        let (time, link) = (Timestamp(self.now), LinkType::Ethernet);
        let packet_limit = ETHERNET_LIMIT;
        self.pipeline.frame(&Frame { time, wire_len, packet_limit, link, namespace, passage, data: &data });
        wire_len.into()
    }

    fn publish(&mut self, answers: &[Answer], room: usize) {
        self.pipeline.publish(&self.ledger, answers.iter().copied(), room, &mut self.asked);
    }

    /// Ends a batch and answers all requests until there are no more. No socket here receives packets to
    /// groups.
    fn answer_all(&mut self, owner: impl Fn(&FlowKey) -> std::result::Result<Owner, Unowned>) {
        self.publish(&[], usize::MAX);
        while !self.asked.is_empty() {
            let asked = std::mem::take(&mut self.asked);
            let answers: Vec<Answer> = asked.iter().map(|it| answer_by(it, &owner)).collect();
            self.publish(&answers, usize::MAX);
        }
    }

    fn unowned(&self, reason: Unowned) -> u64 {
        self.ledger.lock().totals().unowned[reason as usize]
    }

    /// Returns all bytes of the ledger, with and without owners.
    fn accounted(&self) -> u64 {
        let totals = self.ledger.lock().totals();
        totals.owned.iter().chain(&totals.unowned).sum()
    }

    /// Drains the accounts, as an update does.
    fn fetch(&mut self) {
        for (process, account) in self.ledger.lock().drain() {
            *self.fetched.entry(process).or_default() += account.traffic;
        }
    }

    /// Returns the sent and received bytes that were credited to a process.
    fn credited(&mut self, pid: i32) -> (u64, u64) {
        self.fetch();
        let all = self.fetched.iter().filter(|(process, _)| process.pid == pid);
        all.fold((0, 0), |sum, (_, it)| (sum.0 + it.send_bytes, sum.1 + it.receive_bytes))
    }
}

fn answer(request: &Request, owner: std::result::Result<Owner, Unowned>) -> Answer {
    Answer { flow: request.flow, owner, is_translated: false }
}

/// Returns the answer with the flow's owner. No socket here receives packets to groups.
fn answer_by(request: &Request, owner: impl Fn(&FlowKey) -> std::result::Result<Owner, Unowned>) -> Answer {
    match request.local_end {
        LocalEnd::Looped => answer(request, Err(Unowned::NotLocal)),
        LocalEnd::Own | LocalEnd::Diverted => answer(request, owner(&request.key)),
    }
}

fn exact(pid: i32) -> std::result::Result<Owner, Unowned> {
    Ok(Owner { process: ProcId { pid, start_ticks: 1 }, quality: Quality::Exact })
}

fn udp(from: &str, to: &str) -> Packet {
    Packet::new(Carries::Udp, from, to, 20)
}

fn tcp(flags: u8, from: &str, to: &str) -> Packet {
    Packet::new(Carries::Tcp(flags), from, to, 0)
}

/// Returns the owner by the local port.
fn by_port(key: &FlowKey) -> std::result::Result<Owner, Unowned> {
    exact(key.local.port.into())
}

#[test]
fn the_link_makes_no_difference_but_for_its_length() {
    for wire in Wire::ALL {
        let link = match wire {
            Wire::Ethernet | Wire::Tagged | Wire::DoublyTagged => LinkType::Ethernet,
            Wire::Cooked1 => LinkType::Cooked1,
            Wire::Cooked2 => LinkType::Cooked2,
            Wire::RawIp => LinkType::RawIp,
            Wire::Null => LinkType::Null,
            Wire::Loop => LinkType::Loop,
        };
        let mut bench = PipelineFixture::new(8);
        let mut expected = [0, 0];
        let packets = [udp("192.0.2.1:10", "198.51.100.1:2"), udp("[2001:db8::2]:5", "[2001:db8::1]:10")];
        for (packet, expected) in packets.iter().zip(&mut expected) {
            let data = wire.frame(&packet.bytes());
            let wire_len = data.len() as u32;
            *expected = u64::from(wire.link_len(wire_len));
            bench.pipeline.frame(&Frame {
                time: Timestamp(1),
                wire_len,
                packet_limit: u32::MAX,
                link,
                namespace: Namespace::HOME,
                passage: Passage::Unknown,
                data: &data,
            });
        }
        bench.answer_all(by_port);
        assert_eq!(bench.credited(10), expected.into(), "{wire:?}");
    }
}

#[test]
fn a_loopback_packet_counts_at_both_its_ends() {
    let mut bench = PipelineFixture::new(8);
    let bytes = bench.packet(udp("127.0.0.1:10", "127.0.0.1:20"));
    let more = bench.packet(udp("192.0.2.1:10", "192.0.2.1:20"));
    bench.answer_all(by_port);
    assert_eq!((bench.credited(10), bench.credited(20)), ((bytes + more, 0), (0, bytes + more)));
    assert_eq!(bench.accounted(), 2 * (bytes + more));
}

#[test]
fn a_socket_that_talks_to_itself_has_sent_and_received() {
    let mut bench = PipelineFixture::new(8);
    let bytes = bench.packet(udp("127.0.0.1:10", "127.0.0.1:10"));
    bench.answer_all(by_port);
    assert_eq!(bench.credited(10), (bytes, bytes));
}

#[test]
fn groups_are_received_from_others_only() {
    let mut bench = PipelineFixture::new(8);
    let broadcast = Address::v4([192, 0, 2, 255]);
    let mut devices = LocalAddresses::default();
    devices.insert_broadcast(broadcast);
    bench.pipeline.set_device_addresses(&[(Namespace::HOME, Arc::new(devices))]);
    let mut received = 0;
    for group in ["224.0.0.251:20", "255.255.255.255:20", "192.0.2.255:20"] {
        received += bench.packet(udp("198.51.100.1:9", group));
    }
    let sent = bench.packet(udp("192.0.2.1:10", "224.0.0.251:20"));
    bench.answer_all(by_port);
    assert_eq!((bench.credited(20), bench.credited(10)), ((0, received), (sent, 0)));
    assert_eq!(bench.accounted(), received + sent);
}

#[test]
fn what_is_not_this_hosts_is_counted_as_that() {
    let mut bench = PipelineFixture::new(8);
    let bytes = bench.packet(udp("198.51.100.1:1", "203.0.113.1:2"));
    bench.answer_all(by_port);
    assert_eq!((bench.unowned(Unowned::NotLocal), bench.accounted()), (bytes, bytes));
    assert_eq!(bench.pipeline.flow_stats().inserted, 0);
    assert_eq!(bench.pipeline.counts().bytes, bytes);
}

#[test]
fn addresses_of_devices_count_as_soon_as_they_are_known() {
    let mut bench = PipelineFixture::new(8);
    let before = bench.packet(udp("203.0.113.1:10", "198.51.100.1:2"));
    let devices: LocalAddresses = [Address::v4([203, 0, 113, 1])].into_iter().collect();
    bench.pipeline.set_device_addresses(&[(Namespace::HOME, Arc::new(devices))]);
    let after = bench.packet(udp("203.0.113.1:10", "198.51.100.1:2"));
    bench.answer_all(by_port);
    assert_eq!((bench.unowned(Unowned::NotLocal), bench.credited(10)), (before, (after, 0)));
}

/// Returns the addresses of the devices of a namespace.
fn addresses(number: u8, texts: &[&str]) -> (Namespace, Arc<LocalAddresses>) {
    let all = texts.iter().map(|text| Address::from(text.parse::<IpAddr>().unwrap()));
    (Namespace(number), Arc::new(all.collect()))
}

#[test]
fn the_same_addresses_in_two_namespaces_stay_apart() {
    let mut bench = PipelineFixture::new(8);
    bench.pipeline.set_device_addresses(&[addresses(1, &["10.0.0.2"]), addresses(2, &["10.0.0.2"])]);
    let there = "198.51.100.1:2";
    let one = bench.packet_in(Namespace(1), udp("10.0.0.2:10", there));
    let part = |id, offset, more| Packet {
        part: Some(Part { id, offset, more }),
        ..udp("10.0.0.2:10", "198.51.100.1:2")
    };
    let first = bench.packet_in(Namespace(1), part(7, 0, true));
    let stray = bench.packet_in(Namespace(2), part(7, 32, false));
    let two = bench.packet_in(Namespace(2), udp("10.0.0.2:10", there));
    let back = bench.packet_in(Namespace(2), udp(there, "10.0.0.2:10"));
    // This address belongs to no device at home, nor to an unknown namespace.
    let passing = bench.packet(udp("10.0.0.2:10", there));
    let unknown = bench.packet_in(Namespace(3), udp("10.0.0.2:10", there));
    bench.answer_all(|key| exact(100 + i32::from(key.namespace.0)));
    assert_eq!((bench.credited(101), bench.credited(102)), ((one + first, 0), (two, back)));
    assert_eq!(
        (bench.unowned(Unowned::NotLocal), bench.unowned(Unowned::Fragment)),
        (passing + unknown, stray)
    );
}

#[test]
fn a_packet_between_two_namespaces_counts_at_each_end_once() {
    let mut bench = PipelineFixture::new(8);
    let home = addresses(0, &["10.0.0.1"]);
    bench.pipeline.set_device_addresses(&[home, addresses(1, &["10.0.0.2"]), addresses(2, &["10.0.0.3"])]);
    let owner = |key: &FlowKey| exact(100 + i32::from(key.namespace.0));
    // From the session's own namespace to another, captured at both ends of the veth pair.
    let mut sent = 0;
    for namespace in [0, 1] {
        sent = bench.packet_in(Namespace(namespace), udp("10.0.0.1:10", "10.0.0.2:20"));
    }
    bench.answer_all(owner);
    assert_eq!(
        (bench.credited(100), bench.credited(101), bench.accounted()),
        ((sent, 0), (0, sent), 2 * sent)
    );
    // Between two others through the session's own: three captures, two ends.
    for namespace in [1, 0, 2] {
        bench.packet_in(Namespace(namespace), udp("10.0.0.2:20", "10.0.0.3:30"));
    }
    bench.answer_all(owner);
    assert_eq!(
        (bench.credited(100), bench.credited(101), bench.credited(102)),
        ((sent, 0), (sent, sent), (0, sent))
    );
    assert_eq!(bench.unowned(Unowned::NotLocal), sent, "at home it merely passes");
}

#[test]
fn addresses_given_besides_are_of_the_own_namespace_only() {
    let mut bench = PipelineFixture::new(8);
    let elsewhere = bench.packet_in(Namespace(1), udp(&format!("{HOST}:10"), "198.51.100.1:2"));
    let here = bench.packet(udp(&format!("{HOST}:10"), "198.51.100.1:2"));
    bench.answer_all(by_port);
    assert_eq!((bench.unowned(Unowned::NotLocal), bench.credited(10)), (elsewhere, (here, 0)));
}

#[test]
fn a_namespace_that_is_gone_leaves_no_addresses() {
    let mut bench = PipelineFixture::new(8);
    bench.pipeline.set_device_addresses(&[addresses(1, &["10.0.0.2"])]);
    bench.pipeline.set_device_addresses(&[addresses(2, &["10.0.0.3"])]);
    let bytes = bench.packet_in(Namespace(1), udp("10.0.0.2:10", "198.51.100.1:2"));
    bench.answer_all(by_port);
    assert_eq!(bench.unowned(Unowned::NotLocal), bytes);
}

#[test]
fn later_fragments_belong_to_the_flow_of_the_first() {
    let mut bench = PipelineFixture::new(8);
    let part = |id, offset, more| Packet {
        part: Some(Part { id, offset, more }),
        ..udp("192.0.2.1:10", "198.51.100.1:2")
    };
    let lost = bench.packet(part(7, 800, false));
    let first = bench.packet(part(7, 0, true));
    let later = bench.packet(part(7, 32, false));
    bench.answer_all(by_port);
    assert_eq!((bench.unowned(Unowned::Fragment), bench.credited(10)), (lost, (first + later, 0)));
}

#[test]
fn what_cannot_be_decoded_is_counted_by_its_reason() {
    let mut bench = PipelineFixture::new(8);
    let arp = Wire::Ethernet.arp().unwrap();
    let whole = Wire::Ethernet.frame(&udp("192.0.2.1:10", "198.51.100.1:2").bytes());
    for data in [&arp[..], &whole[..20]] {
        let link = LinkType::Ethernet;
        bench.pipeline.frame(&Frame {
            time: Timestamp(1),
            wire_len: 100,
            packet_limit: ETHERNET_LIMIT,
            link,
            namespace: Namespace::HOME,
            passage: Passage::Unknown,
            data,
        });
    }
    bench.answer_all(by_port);
    let counts = bench.pipeline.counts();
    let mut undecoded = [0; Undecoded::COUNT];
    undecoded[Undecoded::NotIp as usize] = 1;
    undecoded[Undecoded::Truncated as usize] = 1;
    assert_eq!((counts.frames, counts.bytes, counts.undecoded), (2, 200, undecoded));
    assert_eq!(bench.accounted(), 0);
}

#[test]
fn bytes_wait_for_an_answer_and_follow_it_also_when_the_flow_has_left() {
    // In a table of one flow, every new flow evicts the one before.
    for leaves_before_publish in [true, false] {
        let mut bench = PipelineFixture::new(1);
        let first = bench.packet(udp("192.0.2.1:10", "198.51.100.1:2"));
        bench.publish(&[], usize::MAX);
        let request = bench.asked[0];
        assert_eq!(bench.unowned(Unowned::Pending), first);
        let again = bench.packet(udp("198.51.100.1:2", "192.0.2.1:10"));
        bench.packet(udp("192.0.2.1:20", "198.51.100.1:2"));
        if !leaves_before_publish {
            bench.publish(&[], usize::MAX);
        }
        bench.publish(&[answer(&request, exact(10))], usize::MAX);
        assert_eq!(bench.credited(10), (first, again), "{leaves_before_publish}");
        // The same answer again changes nothing.
        bench.publish(&[answer(&request, exact(30))], usize::MAX);
        assert_eq!(bench.credited(30), (0, 0));
    }
}

#[test]
fn a_port_that_is_used_again_is_asked_about_again() {
    let (here, there) = ("192.0.2.1:10", "198.51.100.1:2");
    let mut bench = PipelineFixture::new(8);
    let mut old = bench.packet(tcp(0x02, here, there));
    bench.answer_all(|_| exact(1));
    old += bench.packet(tcp(0x04, here, there));
    let new = bench.packet(tcp(0x02, here, there));
    bench.answer_all(|_| exact(2));
    assert_eq!((bench.credited(1), bench.credited(2)), ((old, 0), (new, 0)));
    assert_eq!(bench.pipeline.flow_stats().superseded, 1);
}

#[test]
fn an_owner_that_was_removed_gets_nothing_more_and_the_flow_is_asked_about_again() {
    let (here, there) = ("192.0.2.1:10", "198.51.100.1:2");
    let mut bench = PipelineFixture::new(8);
    let first = bench.packet(udp(here, there));
    bench.answer_all(|_| exact(1));
    bench.ledger.lock().close(ProcId { pid: 1, start_ticks: 1 }, std::time::Instant::now());
    assert_eq!(bench.credited(1), (first, 0));
    let late = bench.packet(udp(here, there));
    bench.answer_all(|_| exact(2));
    assert_eq!(bench.unowned(Unowned::OwnerEnded), late);
    let next = bench.packet(udp(here, there));
    bench.answer_all(|_| exact(3));
    assert_eq!((bench.credited(1), bench.credited(2)), ((first, 0), (next, 0)));
}

#[test]
fn a_flow_that_found_the_queue_full_is_asked_about_when_there_is_room() {
    let mut bench = PipelineFixture::new(8);
    let mut bytes = [10, 20, 30].map(|port| bench.packet(udp(&format!("{HOST}:{port}"), "198.51.100.1:2")));
    bench.publish(&[], RESERVED + 1);
    assert_eq!(bench.asked.len(), 1);
    assert_eq!(bench.unowned(Unowned::QueueFull), bytes[1] + bytes[2]);
    assert_eq!(bench.unowned(Unowned::Pending), bytes[0]);
    bytes[1] += bench.packet(udp(&format!("{HOST}:20"), &format!("{PEER}:2")));
    bench.publish(&[], RESERVED);
    assert_eq!(bench.unowned(Unowned::QueueFull), bytes[1] + bytes[2], "still no room");
    bytes[1] += bench.packet(udp(&format!("{HOST}:20"), &format!("{PEER}:2")));
    bench.answer_all(by_port);
    assert_eq!(bench.credited(20), (bytes[1], 0), "all of it, from its first packet on");
    assert_eq!(bench.credited(30), (bytes[2], 0), "also of one that has fallen silent");
    assert_eq!(bench.unowned(Unowned::QueueFull), 0);
}

#[test]
fn packets_are_held_as_captured_if_they_are_wanted() {
    let mut bench = PipelineFixture::new(8);
    let length = bench.packet(udp("192.0.2.1:10", "198.51.100.1:2"));
    bench.publish(&[], 8);
    let batches = bench.packets.take(9);
    let held: Vec<_> = batches.iter().flat_map(PacketBatch::iter).collect();
    assert_eq!((held.len(), u64::from(held[0].0.wire_len), held[0].1.len() as u64), (1, length, length));
    let unwanted = Arc::new(PacketQueue::new(0));
    bench.pipeline = FramePipeline::new(limits(8), &[], Arc::clone(&unwanted)).unwrap();
    bench.packet(udp("127.0.0.1:10", "127.0.0.1:2"));
    bench.publish(&[], 8);
    assert!(!unwanted.has_packets() && unwanted.lost() == 0);
}
