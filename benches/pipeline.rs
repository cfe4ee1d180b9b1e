//! The cost of a frame from bytes to its flow by the number of flows, compared with a bare hash map that is
//! fed by reads at fixed offsets; and the cost of a whole replay of a savefile.

#![allow(clippy::expect_used, reason = "a bench that cannot begin may stop")]
#![allow(missing_docs)]

mod common {
    pub mod traffic;
}

use capture::internals::config::{Options, Source};
use capture::internals::decode::decode;
use capture::internals::flow::{FlowTable, FragmentTable};
use capture::internals::model::{
    Address, Direction, FlowKey, Fragment, Frame, LinkType, LocalAddresses, Namespace, Passage, Protocol,
    Timestamp, Traffic,
};
use capture::internals::session::Session;
use capture_test_support::proc_tree::{ProcTree, UNCONNECTED};
use common::traffic::{Order, fixed_offsets, random};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::collections::HashMap;
use std::hint::black_box;
use std::io::{BufWriter, Write};
use std::time::Duration;

/// Frames between two drains, as a capture delivers them.
const BATCH: usize = 8192;

/// Frames in one measured run: enough for each of a million flows to occur once.
const FRAMES: usize = 1 << 20;

/// Captured bytes of each frame: Ethernet, IPv4, TCP.
const LENGTH: usize = 54;

const SERVER: [u8; 4] = [192, 0, 2, 1];

/// Consecutive frames, all of the same length.
struct Frames {
    bytes: Vec<u8>,
}

impl Frames {
    /// Makes frames of `flows` flows between clients and one server; the direction of each frame is random.
    fn new(flows: usize, order: Order, protocol: Protocol) -> Frames {
        let mut random = random();
        let mut bytes = Vec::with_capacity(FRAMES * LENGTH);
        for number in 0..FRAMES {
            // An odd factor permutes the lower bits of the numbers, so that consecutive numbers do not give
            // adjacent addresses.
            let client = order.flow(number, flows, &mut random) as u32;
            let [_, b, c, d] = client.wrapping_mul(0x9e37_79b1).to_be_bytes();
            let there = [10, b, c, d];
            let is_sent = random() & 1 == 0;
            let (from, to) = if is_sent { (SERVER, there) } else { (there, SERVER) };
            let (from_port, to_port): (u16, u16) = if is_sent { (443, 40_000) } else { (40_000, 443) };
            bytes.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0]);
            bytes.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, protocol.0, 0, 0]);
            bytes.extend(from.into_iter().chain(to));
            bytes.extend(from_port.to_be_bytes().into_iter().chain(to_port.to_be_bytes()));
            bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
        }
        Frames { bytes }
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks_exact(LENGTH)
    }

    /// Writes the frames to a pcap file, a microsecond apart.
    fn save(&self) -> tempfile::NamedTempFile {
        let mut file = BufWriter::new(tempfile::NamedTempFile::new().expect("a temporary file"));
        let mut write = |words: &[u32], frame: &[u8]| {
            let words = words.iter().flat_map(|word| word.to_le_bytes());
            file.write_all(&words.collect::<Vec<u8>>())?;
            file.write_all(frame)
        };
        let mut written = write(&[0xa1b2_c3d4, 2 | 4 << 16, 0, 0, 262_144, 1], &[]);
        for (number, frame) in self.iter().enumerate() {
            let microseconds = number as u32 % 1_000_000;
            let seconds = 1_700_000_000 + number as u32 / 1_000_000;
            written = written.and_then(|()| write(&[seconds, microseconds, LENGTH as u32, 1_514], frame));
        }
        written.expect("room for the file");
        file.into_inner().expect("room for the file")
    }
}

/// The accounting of a capture, built from its public parts.
struct Accounting {
    flows: FlowTable,
    fragments: FragmentTable,
    local: LocalAddresses,
    now: u64,
    undecoded: u64,
    credited: Traffic,
}

impl Accounting {
    fn new() -> Accounting {
        Accounting {
            flows: FlowTable::new(1_000_000).expect("a table of the default size"),
            fragments: FragmentTable::default(),
            local: [Address::v4(SERVER)].into_iter().collect(),
            now: 0,
            undecoded: 0,
            credited: Traffic::default(),
        }
    }

    fn frame(&mut self, frame: &Frame<'_>) {
        let Ok(mut packet) = decode(frame.link, frame.data) else {
            self.undecoded += 1;
            return;
        };
        if packet.fragment != Fragment::Whole
            && !self.fragments.complete(&mut packet, frame.namespace, frame.time)
        {
            return;
        }
        let (flags, protocol) = (packet.tcp_flags, packet.protocol);
        let from_here = self.local.contains(&packet.source.address);
        let to_here = self.local.contains(&packet.destination.address)
            || (!from_here && self.local.is_group(&packet.destination.address));
        if from_here {
            let key = FlowKey {
                local: packet.source,
                remote: packet.destination,
                protocol,
                namespace: frame.namespace,
            };
            self.flows.record(&key, Direction::Send, frame.wire_len, flags, frame.time);
        }
        if to_here {
            let key = FlowKey {
                local: packet.destination,
                remote: packet.source,
                protocol,
                namespace: frame.namespace,
            };
            self.flows.record(&key, Direction::Receive, frame.wire_len, flags, frame.time);
        }
    }

    /// Records all frames batch by batch, and drains the results.
    fn run(&mut self, frames: &Frames) {
        for batch in frames.bytes.chunks(BATCH * LENGTH) {
            for data in batch.chunks_exact(LENGTH) {
                self.now += 1_000;
                let time = Timestamp(self.now);
                let (link, namespace) = (LinkType::Ethernet, Namespace::HOME);
                self.frame(&Frame {
                    time,
                    wire_len: 1_514,
                    packet_limit: 1_514,
                    link,
                    namespace,
                    passage: Passage::Unknown,
                    data,
                });
            }
            self.flows.drain_dirty(|_, flow, _| self.credited += flow.take_pending());
            self.flows.sweep(Timestamp(self.now), BATCH);
            self.flows.drain_departed(|departed| {
                black_box(departed);
            });
            self.flows.drain_fresh(|id, _| {
                black_box(id);
            });
        }
    }
}

/// Measures the floor: reads the endpoints at fixed offsets, and sums the bytes of each pair of endpoints.
fn floor(sums: &mut HashMap<FlowKey, u64, foldhash::fast::RandomState>, frames: &Frames) {
    for frame in frames.iter() {
        let Some((source, destination)) = fixed_offsets(black_box(frame)) else { continue };
        let protocol = Protocol(frame.get(23).copied().unwrap_or_default());
        let key = if source.port == 443 {
            FlowKey { local: source, remote: destination, protocol, namespace: Namespace::HOME }
        } else {
            FlowKey { local: destination, remote: source, protocol, namespace: Namespace::HOME }
        };
        *sums.entry(key).or_default() += 1_514;
    }
}

fn account(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("account");
    group.throughput(Throughput::Elements(FRAMES as u64)).sample_size(10);
    for flows in [10, 10_000, 1_000_000] {
        for (name, order) in Order::ALL {
            let frames = Frames::new(flows, order, Protocol::TCP);
            let mut accounting = Accounting::new();
            accounting.run(&frames);
            assert_eq!(accounting.credited.bytes(), FRAMES as u64 * 1_514);
            group.bench_function(BenchmarkId::new(name, flows), |bencher| {
                bencher.iter(|| accounting.run(&frames));
            });
            assert_eq!(accounting.undecoded, 0);
            let mut sums = HashMap::default();
            sums.reserve(1_000_000);
            floor(&mut sums, &frames);
            assert_eq!(sums.len() as u64, accounting.flows.stats().held);
            group.bench_function(BenchmarkId::new(format!("{name}-floor"), flows), |bencher| {
                bencher.iter(|| floor(&mut sums, &frames));
            });
        }
    }
}

/// Measures a session from its opening to the end of a savefile, on a fixture in which one process
/// owns all flows.
fn replay(criterion: &mut Criterion) {
    let tree = ProcTree::new();
    tree.process(1, "init", 1, &[]);
    tree.process(443, "server", 1, &[1443]);
    tree.socket("udp", "192.0.2.1:443", "0.0.0.0:0", UNCONNECTED, 1443);
    let mut group = criterion.benchmark_group("replay");
    group.throughput(Throughput::Elements(FRAMES as u64)).sample_size(10);
    for flows in [10, 10_000, 1_000_000] {
        let saved = Frames::new(flows, Order::Random, Protocol::UDP).save();
        let options = || Options {
            source: Source::Savefile(saved.path().to_owned()),
            replay_owners: true,
            local_addresses: vec![Address::v4(SERVER)],
            proc_root: tree.path().to_owned(),
            ..Options::default()
        };
        group.bench_function(BenchmarkId::new("session", flows), |bencher| {
            bencher.iter(|| {
                let mut session = Session::open(options()).expect("a savefile just written");
                while !session.has_ended() {
                    std::thread::sleep(Duration::from_micros(200));
                }
                session.update().expect("a tree just made");
                let bytes: u64 = session.processes().map(|record| record.traffic.bytes()).sum();
                assert_eq!(bytes, FRAMES as u64 * 1_514);
            });
        });
    }
}

criterion_group!(benches, account, replay);
criterion_main!(benches);
