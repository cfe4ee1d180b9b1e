//! Tests with constructed connections: lost bytes are recovered once, and never more than were lost.

use super::*;
use crate::model::{Direction, Endpoint, Namespace, Protocol, TcpFlags, Timestamp, Traffic, WireSize};
use crate::netlink::TcpInfo;
use Direction::{Receive, Send};
use std::time::Duration;

const SECOND: u64 = 1_000_000_000;
/// Times at which the connections of the tests begin, and at which their ends are reported.
const BEGIN: Timestamp = Timestamp(100 * SECOND);
const TOLD: Timestamp = Timestamp(110 * SECOND);
/// Size of the headers of a packet on the wire: IPv4 and TCP with time stamps, and a link header.
const WIRE_HEADERS: u32 = 66;

fn key(port: u16) -> FlowKey {
    FlowKey {
        local: Endpoint::new(Address::v4([10, 0, 0, 1]), port),
        remote: Endpoint::new(Address::v4([10, 0, 0, 2]), 80),
        protocol: Protocol::TCP,
        namespace: Namespace::HOME,
    }
}

struct ReconcilerFixture {
    flows: FlowTable,
    completion: TcpReconciler,
    start: Instant,
}

impl ReconcilerFixture {
    fn new() -> ReconcilerFixture {
        ReconcilerFixture {
            flows: FlowTable::new(64).unwrap(),
            completion: TcpReconciler::default(),
            start: Instant::now() + Duration::from_secs(1000),
        }
    }

    fn packet(&mut self, key: &FlowKey, direction: Direction, flags: u8, payload: u32, time: Timestamp) {
        self.flows.record(key, direction, WIRE_HEADERS + payload, TcpFlags(flags), time);
    }

    /// Counts a connection from its opening to its end, with this payload in packets of 1,000 bytes each way.
    fn connection(&mut self, key: &FlowKey, sent: u32, received: u32, begin: Timestamp) {
        for (direction, flags) in [(Send, 0x02), (Receive, 0x12), (Send, 0x10)] {
            self.packet(key, direction, flags, 0, begin);
        }
        for _ in 0..sent / 1000 {
            self.packet(key, Send, 0x18, 1000, begin);
        }
        for _ in 0..received / 1000 {
            self.packet(key, Receive, 0x18, 1000, begin);
        }
        for (direction, flags) in [(Send, 0x11), (Receive, 0x11), (Send, 0x10)] {
            self.packet(key, direction, flags, 0, begin);
        }
    }

    fn end(&self, key: FlowKey, sent: u64, received: u64) -> Connection {
        let carried = Some(Carried { sent, received });
        Connection {
            key,
            carried,
            cookie: 0,
            info: TcpInfo::default(),
            told: TOLD,
            told_at: self.start,
            all_told_since: Timestamp(0),
        }
    }

    /// Adds ends and compares them all.
    fn compare(&mut self, ends: Vec<Connection>) -> ReconcilerStats {
        self.compare_by(ends, TOLD)
    }

    /// Adds ends and compares them all by a clock that, as it is set now, showed this time when the ends were
    /// reported.
    fn compare_by(&mut self, ends: Vec<Connection>, told: Timestamp) -> ReconcilerStats {
        self.completion.take_in(ends);
        let moment = self.start + Duration::from_secs(10);
        let clocks = Clocks { now_ns: 10 * SECOND, epoch_ns: told.0, at: moment };
        self.completion.compare(&mut self.flows, moment, &clocks);
        self.completion.stats()
    }

    fn totals(&self, key: &FlowKey) -> Traffic {
        let id = self.flows.find(key).unwrap();
        self.flows.get(id).unwrap().totals()
    }
}

fn stats(checked: u64, short: u64, bytes: u64) -> ReconcilerStats {
    ReconcilerStats { checked, short, bytes }
}

#[test]
fn nothing_is_added_to_what_was_seen_whole() {
    let mut bench = ReconcilerFixture::new();
    bench.connection(&key(1), 5_000, 20_000, BEGIN);
    // Sent again, and captured twice.
    bench.connection(&key(2), 8_000, 20_000, BEGIN);
    let before = [key(1), key(2)].map(|key| bench.totals(&key));
    let ends = vec![bench.end(key(1), 5_000, 20_000), bench.end(key(2), 5_000, 20_000)];
    assert_eq!(bench.compare(ends), stats(2, 0, 0));
    assert_eq!([key(1), key(2)].map(|key| bench.totals(&key)), before);
}

#[test]
fn what_is_missing_is_counted_once_and_pending_like_the_rest() {
    let mut bench = ReconcilerFixture::new();
    bench.connection(&key(1), 5_000, 20_000, BEGIN);
    let before = bench.totals(&key(1));
    bench.flows.drain_dirty(|_, flow, _| assert_eq!(flow.take_pending(), before));
    // One direction lacks 90,000 bytes; each of the 26 packets captured that way may have had up to 26 bytes
    // more.
    let end = bench.end(key(1), 5_000, 110_000);
    let stats = bench.compare(vec![end]);
    let most = 90_000;
    let least = most - 26 * before.receive_packets;
    assert_eq!((stats.checked, stats.short, stats.bytes), (1, 1, least));
    let after = bench.totals(&key(1));
    assert_eq!(after, Traffic { receive_bytes: before.receive_bytes + least, ..before });
    assert!(after.receive_bytes >= 110_000, "no less than the payload");
    let mut pending = Vec::new();
    bench.flows.drain_dirty(|_, flow, _| pending.push(flow.take_pending()));
    assert_eq!(pending, [Traffic { receive_bytes: least, ..Traffic::default() }]);
    // A repeated notice recovers nothing more.
    assert_eq!(bench.compare(vec![end]), stats);
    assert_eq!(bench.totals(&key(1)), after);
}

/// The headers of the segments that an offloaded frame was counted as hide no lost bytes.
#[test]
fn a_frame_of_many_segments_is_compared_as_it_was_captured() {
    const SEGMENTS: u32 = 44;
    const LOST: u64 = 5_000;
    let mut bench = ReconcilerFixture::new();
    bench.connection(&key(1), 0, 0, BEGIN);
    let payload = SEGMENTS * 1_448;
    let size = WireSize { bytes: payload + SEGMENTS * WIRE_HEADERS, packets: SEGMENTS };
    let id = bench.flows.record(&key(1), Receive, size, TcpFlags(0x10), BEGIN);
    let estimated = WireSize { bytes: (SEGMENTS - 1) * WIRE_HEADERS, packets: SEGMENTS - 1 };
    bench.flows.record_estimate(id, Receive, estimated);
    let before = bench.totals(&key(1));
    let ends = vec![bench.end(key(1), 0, u64::from(payload) + LOST)];
    // Three frames were received, each of which may have had up to 26 bytes more.
    assert_eq!(bench.compare(ends), stats(1, 1, LOST - 3 * 26));
    let after = bench.totals(&key(1));
    assert_eq!(after, Traffic { receive_bytes: before.receive_bytes + LOST - 3 * 26, ..before });
}

#[test]
fn headers_are_those_of_the_version_of_ip() {
    let mut bench = ReconcilerFixture::new();
    let six = |last| Address::v6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    let key = FlowKey { local: Endpoint::new(six(1), 1), remote: Endpoint::new(six(2), 80), ..key(1) };
    bench.connection(&key, 0, 0, BEGIN);
    // Four packets of 66 bytes were sent; with IPv6 each can have had six bytes of payload.
    let ends = vec![bench.end(key, 4 * 6 + 100, 0)];
    assert_eq!(bench.compare(ends), stats(1, 1, 100));
}

#[test]
fn a_connection_waits_until_all_of_it_has_been_read() {
    let mut bench = ReconcilerFixture::new();
    bench.connection(&key(1), 1_000, 0, BEGIN);
    bench.completion.take_in(vec![bench.end(key(1), 50_000, 0)]);
    bench.completion.compare(&mut bench.flows, bench.start, &Clocks::now());
    assert_eq!(bench.completion.stats(), stats(0, 0, 0));
    // The rest is read.
    for _ in 0..49 {
        bench.packet(&key(1), Send, 0x18, 1000, BEGIN);
    }
    assert_eq!(bench.compare(Vec::new()), stats(1, 0, 0));
}

#[test]
fn only_what_was_seen_from_its_opening_on_is_compared() {
    let mut bench = ReconcilerFixture::new();
    bench.packet(&key(1), Send, 0x18, 1_000, BEGIN);
    bench.packet(&key(1), Receive, 0x10, 0, BEGIN);
    bench.packet(&key(2), Receive, 0x02, 0, BEGIN);
    // The notice of a reset connection may not name it.
    for (direction, flags) in [(Send, 0x02), (Receive, 0x12), (Send, 0x10), (Send, 0x14)] {
        bench.packet(&key(3), direction, flags, 0, BEGIN);
    }
    let ends = [1, 2, 3, 4].map(|port| bench.end(key(port), 50_000, 0)).to_vec();
    assert_eq!(bench.compare(ends), stats(0, 0, 0));
}

#[test]
fn another_connection_between_the_same_endpoints_is_not_taken_for_the_one_that_ended() {
    let mut bench = ReconcilerFixture::new();
    // This flow began after the notice.
    bench.connection(&key(1), 1_000, 0, Timestamp(TOLD.0 + 1));
    // Two connections have ended, and the flow is one of them.
    bench.connection(&key(2), 1_000, 0, BEGIN);
    // The flow's own end was compared before that of the other connection, whose socket had been kept.
    bench.connection(&key(3), 1_000, 0, BEGIN);
    let own = vec![bench.end(key(3), 1_000, 0)];
    assert_eq!(bench.compare(own), stats(1, 0, 0));
    let ends = [1, 2, 2, 3].map(|port| bench.end(key(port), 50_000, 0)).to_vec();
    assert_eq!(bench.compare(ends), stats(1, 0, 0));
    // The later connection is compared when it ends.
    let (told, told_at) = (Timestamp(TOLD.0 + SECOND), bench.start + Duration::from_secs(1));
    let later = Connection { told, told_at, ..bench.end(key(1), 1_000, 0) };
    assert_eq!(bench.compare(vec![later]), stats(2, 0, 0));
}

#[test]
fn what_cannot_be_judged_leaves_nothing_to_compare_with() {
    let mut bench = ReconcilerFixture::new();
    for port in 1..=2 {
        bench.connection(&key(port), 1_000, 0, BEGIN);
    }
    // A notice was lost after the flow had begun, and it may have been the flow's own.
    let lost = Connection { all_told_since: Timestamp(BEGIN.0 + 1), ..bench.end(key(1), 50_000, 0) };
    let bound_to_a_device = Connection { carried: None, ..bench.end(key(2), 0, 0) };
    let (again, after) = (bench.end(key(1), 50_000, 0), bench.end(key(2), 50_000, 0));
    assert_eq!(bench.compare(vec![lost]), stats(0, 0, 0));
    assert_eq!(bench.compare(vec![bound_to_a_device]), stats(0, 0, 0));
    assert_eq!(bench.compare(vec![again, after]), stats(0, 0, 0));
}

/// The clock is set after the notice. The ended connection is compared by its time then. Another connection
/// between the same endpoints that begins before or after the step is not taken for it.
#[test]
fn the_clock_may_be_set_before_a_connection_is_compared() {
    for step in [3_600, -3_600, -20] {
        let (begin, told) = (Timestamp(100_000 * SECOND), Timestamp(100_001 * SECOND));
        let now = told.moved(step * SECOND as i64);
        let mut bench = ReconcilerFixture::new();
        bench.connection(&key(1), 1_000, 0, begin);
        bench.connection(&key(2), 1_000, 0, Timestamp(told.0 + 1));
        bench.connection(&key(3), 1_000, 0, Timestamp(now.0 + SECOND));
        let ends = [1, 2, 3].map(|port| Connection { told, ..bench.end(key(port), 50_000, 0) });
        let compared = bench.compare_by(ends.to_vec(), now);
        assert_eq!((compared.checked, compared.short), (1, 1), "{step}");
        assert!(bench.totals(&key(1)).send_bytes >= 50_000, "{step}");
    }
}

#[test]
fn the_same_endpoints_in_two_namespaces_stay_apart() {
    let mut bench = ReconcilerFixture::new();
    let there = FlowKey { namespace: Namespace(1), ..key(1) };
    bench.connection(&key(1), 1_000, 0, BEGIN);
    bench.connection(&there, 50_000, 0, BEGIN);
    let ends = vec![bench.end(there, 50_000, 0), bench.end(key(1), 1_000, 0)];
    assert_eq!(bench.compare(ends), stats(2, 0, 0));
}

#[test]
fn no_more_are_held_than_there_is_room_for() {
    let mut bench = ReconcilerFixture::new();
    let end = bench.end(key(1), 1, 1);
    bench.completion.take_in(vec![end; LIMIT]);
    assert_eq!(bench.completion.room(), 0);
    bench.compare(Vec::new());
    assert_eq!((bench.completion.room(), bench.completion.alike.len()), (LIMIT, 0));
}
