//! The cost of the flow table per packet by the number of flows, compared with a bare hash map
//! in the same run.

#![allow(clippy::expect_used, reason = "a bench that cannot begin may stop")]

mod common {
    pub mod traffic;
}

use capture::internals::flow::FlowTable;
use capture::internals::model::{Direction, FlowKey, TcpFlags, Timestamp};
use common::traffic::{Order, key, random};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::collections::HashMap;
use std::hint::black_box;

/// Packets between two drains, as a capture delivers them.
const BATCH: usize = 512;

/// Packets in one measured run: enough for each of a million flows to occur once.
const PACKETS: usize = 1 << 20;

/// One packet in the form that the table takes.
struct Input {
    key: FlowKey,
    direction: Direction,
    wire_len: u32,
}

fn packets(flows: usize, order: Order) -> Vec<Input> {
    let mut random = random();
    (0..PACKETS)
        .map(|number| {
            let flow = order.flow(number, flows, &mut random);
            let direction = if random() & 1 == 0 { Direction::Send } else { Direction::Receive };
            Input { key: key(flow as u32), direction, wire_len: 60 + (random() % 1_440) as u32 }
        })
        .collect()
}

/// Records packets in batches and drains the results, as the capture thread does.
fn record_all(table: &mut FlowTable, packets: &[Input], now: &mut u64) {
    for batch in packets.chunks(BATCH) {
        for packet in batch {
            *now += 1_000;
            table.record(&packet.key, packet.direction, packet.wire_len, TcpFlags::ACK, Timestamp(*now));
        }
        table.drain_fresh(|id, _| {
            black_box(id);
        });
        table.drain_dirty(|_, flow, _| {
            black_box(flow.take_pending());
        });
    }
}

fn record(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("record");
    group.throughput(Throughput::Elements(PACKETS as u64)).sample_size(10);
    for flows in [10, 10_000, 1_000_000] {
        for (name, order) in Order::ALL {
            let packets = packets(flows, order);

            let mut table = FlowTable::new(1_000_000).expect("a table of the default size");
            let mut now = 0;
            for number in 0..flows {
                table.record(&key(number as u32), Direction::Send, 60, TcpFlags::ACK, Timestamp(now));
            }
            group.bench_function(BenchmarkId::new(name, flows), |bencher| {
                bencher.iter(|| record_all(&mut table, &packets, &mut now));
            });
            assert_eq!(table.stats().held, flows as u64);

            let mut floor: HashMap<FlowKey, u64, foldhash::fast::RandomState> = HashMap::default();
            floor.reserve(1_000_000);
            for number in 0..flows {
                floor.insert(key(number as u32), 0);
            }
            group.bench_function(BenchmarkId::new(format!("{name}-floor"), flows), |bencher| {
                bencher.iter(|| {
                    for packet in &packets {
                        *floor.entry(packet.key).or_default() += u64::from(packet.wire_len);
                    }
                });
            });
            black_box(floor.len());
        }
    }
}

/// Measures a full table in which every packet starts a new flow, so that each packet evicts another flow.
fn churn(criterion: &mut Criterion) {
    const NEW: u32 = 100_000;
    let mut group = criterion.benchmark_group("churn");
    group.throughput(Throughput::Elements(u64::from(NEW))).sample_size(10);
    for limit in [10_000, 1_000_000] {
        let mut table = FlowTable::new(limit).expect("a table of this size");
        let (mut number, mut now) = (0u32, 0);
        let mut insert = |table: &mut FlowTable| {
            number = number.wrapping_add(1);
            now += 1_000;
            table.record(&key(number), Direction::Receive, 60, TcpFlags::SYN, Timestamp(now));
            if (number as usize).is_multiple_of(BATCH) {
                table.drain_fresh(|id, _| {
                    black_box(id);
                });
                table.drain_dirty(|_, flow, _| {
                    black_box(flow.pending());
                });
                table.drain_departed(|departed| {
                    black_box(departed);
                });
            }
        };
        for _ in 0..limit {
            insert(&mut table);
        }
        group.bench_function(BenchmarkId::new("full", limit), |bencher| {
            bencher.iter(|| (0..NEW).for_each(|_| insert(&mut table)));
        });
        assert_eq!(table.stats().held, limit as u64);
    }
}

/// Measures the cost of one slot for the sweep if no flow expires.
fn sweep(criterion: &mut Criterion) {
    const SLOTS: usize = 4_096;
    let mut group = criterion.benchmark_group("sweep");
    group.throughput(Throughput::Elements(SLOTS as u64));
    let mut table = FlowTable::new(1_000_000).expect("a table of the default size");
    for number in 0..1_000_000 {
        table.record(&key(number), Direction::Send, 60, TcpFlags::ACK, Timestamp(0));
    }
    group.bench_function("idle", |bencher| bencher.iter(|| table.sweep(Timestamp(1), SLOTS)));
    assert_eq!(table.stats().held, 1_000_000);
}

criterion_group!(benches, record, churn, sweep);
criterion_main!(benches);
