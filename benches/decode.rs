//! The cost of decoding per frame, compared with the minimum that any decoder must do: reading the 4-tuple
//! at fixed offsets.

#![allow(clippy::expect_used, missing_docs)] // A benchmark that cannot build its input has nothing to measure.

mod common {
    pub mod traffic;
}

use capture::internals::decode::decode;
use capture::internals::model::LinkType;
use common::traffic::fixed_offsets;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use etherparse::{
    IpAuthHeader, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header,
    Ipv6RawExtHeader, PacketBuilder, PacketBuilderStep, VlanId,
};
use std::hint::black_box;
use std::time::Duration;

const PAYLOAD: [u8; 64] = [0x55; 64];
const SOURCE: [u8; 6] = [2, 0, 0, 0, 0, 1];
const DESTINATION: [u8; 6] = [2, 0, 0, 0, 0, 2];

type Sample = (&'static str, LinkType, Vec<u8>);

fn v4() -> IpHeaders {
    let header = Ipv4Header {
        source: [10, 1, 2, 3],
        destination: [10, 4, 5, 6],
        time_to_live: 64,
        ..Default::default()
    };
    IpHeaders::Ipv4(header, Ipv4Extensions::default())
}

fn v6(extensions: Ipv6Extensions) -> IpHeaders {
    let mut header = Ipv6Header { hop_limit: 64, ..Default::default() };
    header.source[..2].copy_from_slice(&[0x20, 0x01]);
    header.destination[..3].copy_from_slice(&[0x20, 0x01, 0x0d]);
    IpHeaders::Ipv6(header, extensions)
}

fn tcp(ip: PacketBuilderStep<IpHeaders>) -> Vec<u8> {
    let mut frame = vec![];
    ip.tcp(443, 50_000, 7, 512).ack(9).write(&mut frame, &PAYLOAD).expect("a vector takes every byte");
    frame
}

fn udp(ip: PacketBuilderStep<IpHeaders>) -> Vec<u8> {
    let mut frame = vec![];
    ip.udp(53, 50_000).write(&mut frame, &PAYLOAD).expect("a vector takes every byte");
    frame
}

/// Returns the fixed inputs.
fn samples() -> Vec<Sample> {
    let ethernet = || PacketBuilder::ethernet2(SOURCE, DESTINATION);
    let vlan = VlanId::try_new(100).expect("below 4096");
    let options = Ipv6RawExtHeader::new_raw(IpNumber(0), &[1, 4, 0, 0, 0, 0]).expect("a whole header");
    let extensions = Ipv6Extensions {
        hop_by_hop_options: Some(options.clone()),
        destination_options: Some(options),
        auth: Some(IpAuthHeader::new(IpNumber(0), 1, 2, &[0; 12]).expect("whole words")),
        ..Default::default()
    };
    let mut cooked = vec![0; 20];
    cooked[..2].copy_from_slice(&[0x08, 0x00]);
    cooked[9] = 1;
    cooked.extend(tcp(PacketBuilder::ip(v4())));
    vec![
        ("tcp_v4", LinkType::Ethernet, tcp(ethernet().ip(v4()))),
        ("tcp_v6", LinkType::Ethernet, tcp(ethernet().ip(v6(Ipv6Extensions::default())))),
        ("udp_v4_vlan", LinkType::Ethernet, udp(ethernet().single_vlan(vlan).ip(v4()))),
        ("tcp_v4_cooked2", LinkType::Cooked2, cooked),
        ("udp_v6_3_extensions", LinkType::Ethernet, udp(ethernet().ip(v6(extensions)))),
    ]
}

/// Returns all inputs in an order that no branch predictor learns: a fixed linear congruential sequence.
fn mixed(samples: &[Sample]) -> Vec<(LinkType, Vec<u8>)> {
    let mut state = 1u64;
    (0..4096)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (_, link, frame) = &samples[(state >> 33) as usize % samples.len()];
            (*link, frame.clone())
        })
        .collect()
}

/// Results are passed by reference: a caller reads a packet where it was written and does not copy it.
fn benches(criterion: &mut Criterion) {
    let samples = samples();
    let mut group = criterion.benchmark_group("decode");
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    group.throughput(Throughput::Elements(1));
    for (name, link, frame) in &samples {
        assert!(decode(*link, frame).is_ok_and(|packet| packet.destination.port == 50_000), "{name}");
        group.bench_function(*name, |bencher| {
            bencher.iter(|| {
                black_box(&decode(black_box(*link), black_box(frame)));
            });
        });
    }
    let plain = &samples[0].2;
    group.bench_function("floor_fixed_offsets", |bencher| {
        bencher.iter(|| {
            black_box(&fixed_offsets(black_box(plain)));
        });
    });

    let frames = mixed(&samples);
    group.throughput(Throughput::Elements(frames.len() as u64));
    group.bench_function("mixed_4096", |bencher| {
        bencher.iter(|| {
            for (link, frame) in &frames {
                black_box(&decode(*link, frame));
            }
        });
    });
    group.bench_function("mixed_4096_floor_fixed_offsets", |bencher| {
        bencher.iter(|| {
            for (_, frame) in &frames {
                black_box(&fixed_offsets(frame));
            }
        });
    });
    group.finish();
}

criterion_group!(decode_benches, benches);
criterion_main!(decode_benches);
