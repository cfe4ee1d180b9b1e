//! Tests of the recorder with constructed flows and notices, and of the mailbox between the threads.

use super::mailbox::{FlowMailbox, NamespacedRecord, SocketEnd};
use super::recorder::Recorder;
use crate::flow::{FlowId, FlowTable};
use crate::model::{
    Address, CloseReason, Direction, Endpoint, FlowKey, FlowPhase, FlowRecord, FlowValidity, Namespace,
    Owner, ProcId, Protocol, Quality, TcpFlags, Timestamp, Unowned,
};
use crate::namespace::Known;
use crate::netlink::TcpInfo;
use Direction::{Receive, Send};
use std::sync::Arc;
use std::time::{Duration, Instant};

const MILLISECOND: u64 = 1_000_000;
const OWNER: Owner = Owner { process: ProcId { pid: 7, start_ticks: 70 }, quality: Quality::Exact };
const INODE: u64 = 4_026_531_840;

fn at(millisecond: u64) -> Timestamp {
    Timestamp((1_000_000 + millisecond) * MILLISECOND)
}

fn key(port: u16) -> FlowKey {
    FlowKey {
        local: Endpoint::new(Address::v4([10, 0, 0, 1]), port),
        remote: Endpoint::new(Address::v4([10, 0, 0, 2]), 80),
        protocol: Protocol::TCP,
        namespace: Namespace::HOME,
    }
}

struct RecorderFixture {
    flows: FlowTable,
    recorder: Recorder,
    mailbox: Arc<FlowMailbox>,
}

impl RecorderFixture {
    fn new(limit: usize) -> RecorderFixture {
        let mut flows = FlowTable::new(64).unwrap();
        flows.keep_details().unwrap();
        let mailbox = Arc::new(FlowMailbox::new(limit));
        RecorderFixture {
            flows,
            recorder: Recorder::new(Arc::clone(&mailbox), INODE, Known::default()),
            mailbox,
        }
    }

    fn packet(&mut self, port: u16, millisecond: u64, direction: Direction, flags: u8) -> FlowId {
        let (flags, now) = (TcpFlags(flags), at(millisecond));
        let id = self.flows.record(&key(port), direction, 100, flags, now);
        self.flows.observe(id, direction, flags, flags == TcpFlags(0x18), now);
        id
    }

    fn open(&mut self, port: u16, millisecond: u64) -> FlowId {
        self.packet(port, millisecond, Send, 0x02);
        self.packet(port, millisecond + 5, Receive, 0x12);
        self.packet(port, millisecond + 5, Send, 0x10)
    }

    fn close(&mut self, port: u16, millisecond: u64) {
        self.packet(port, millisecond, Send, 0x11);
        self.packet(port, millisecond, Receive, 0x11);
    }

    fn bind(&mut self, id: FlowId, answer: Result<Owner, Unowned>) {
        self.flows.get_mut(id).unwrap().bind(answer);
    }

    fn gone(&self, port: u16, millisecond: u64, info: TcpInfo) {
        let notice = SocketEnd { key: key(port), told: at(millisecond), cookie: 9, info };
        self.mailbox.add_notices(std::iter::once(notice));
    }

    /// Ends a batch at the given time. Returns the records that can be taken then.
    fn publish(&mut self, millisecond: u64) -> Vec<FlowRecord> {
        let now = at(millisecond);
        let RecorderFixture { flows, recorder, .. } = self;
        flows.drain_departed(|departed| recorder.depart(&departed, None));
        flows.drain_dirty(|id, flow, detail| {
            flow.take_pending();
            recorder.look(id, detail.unwrap(), now);
        });
        flows.drain_fresh(|_, _| ());
        recorder.publish(flows, now);
        self.living(millisecond);
        self.mailbox.take_ended().into_iter().map(|seen| seen.record).collect()
    }

    fn living(&mut self, millisecond: u64) -> Vec<FlowRecord> {
        let RecorderFixture { flows, recorder, mailbox } = self;
        let wake = || recorder.publish(flows, at(millisecond));
        let shown = mailbox.living(Instant::now() + Duration::from_secs(60), wake).unwrap();
        shown.into_iter().map(|seen| seen.record).collect()
    }
}

#[test]
fn a_flow_is_told_of_once_when_its_owner_is_known_and_the_kernel_had_its_time() {
    let mut bench = RecorderFixture::new(10);
    let id = bench.open(1, 0);
    bench.close(1, 50);
    bench.bind(id, Ok(OWNER));
    assert_eq!(bench.publish(60), []);
    let living = bench.living(60);
    assert_eq!((living.len(), living[0].phase), (1, FlowPhase::Closing));
    bench.gone(1, 70, TcpInfo { state: 7, round_trip_us: 5_100, retransmits: 3, ..TcpInfo::default() });
    assert_eq!(bench.publish(350), []);
    let told = bench.publish(361);
    assert_eq!((told.len(), bench.living(361).len()), (1, 0));
    let record = told[0];
    assert_eq!((record.id, record.owner, record.phase), (id.number(), Some(OWNER), FlowPhase::Ended));
    assert_eq!((record.reason, record.errno, record.namespace_inode), (CloseReason::Orderly, 0, INODE));
    assert_eq!((record.opened, record.established, record.last), (at(0), at(5), at(50)));
    assert_eq!((record.connect_latency_ns, record.duration_ns), (5 * MILLISECOND, 50 * MILLISECOND));
    assert_eq!((record.smoothed_rtt_ns, record.retransmits, record.cookie), (5_100_000, 3, 9));
    assert_eq!((record.traffic.send_bytes, record.traffic.receive_packets), (300, 2));
    assert_eq!(record.valid, FlowValidity::ALL);
    bench.flows.sweep(Timestamp(u64::MAX), usize::MAX);
    assert_eq!(bench.publish(10_000), [], "not again when it leaves the table");
}

/// A socket that ignores an RST goes on sending; one that takes it sends RSTs at most.
#[test]
fn a_forged_reset_ends_no_record() {
    let mut bench = RecorderFixture::new(10);
    let id = bench.open(1, 0);
    bench.bind(id, Ok(OWNER));
    bench.packet(1, 100, Receive, 0x04);
    assert_eq!(bench.publish(105), []);
    bench.packet(1, 110, Send, 0x18);
    assert_eq!(bench.living(115)[0].phase, FlowPhase::Closing, "it may have been sent before");
    bench.packet(1, 150, Send, 0x18);
    assert_eq!(bench.publish(600), []);
    let living = bench.living(600);
    assert_eq!((living.len(), living[0].phase), (1, FlowPhase::Open));
    bench.close(1, 700);
    assert_eq!(bench.publish(710), []);
    let told = bench.publish(1_100);
    assert_eq!((told.len(), told[0].id, told[0].reason), (1, id.number(), CloseReason::Orderly));
    assert_eq!((told[0].opened, told[0].traffic.send_packets), (at(0), 5));

    // What follows the last record has a record of its own.
    let id = bench.open(2, 2_000);
    bench.bind(id, Ok(OWNER));
    bench.packet(2, 2_100, Receive, 0x04);
    assert_eq!(bench.publish(2_110), []);
    let told = bench.publish(2_500);
    assert_eq!((told.len(), told[0].reason), (1, CloseReason::Reset));
    bench.packet(2, 2_600, Receive, 0x18);
    bench.packet(2, 2_600, Send, 0x04);
    assert_eq!(bench.living(2_600).len(), 0, "a socket that is gone sends this, too");
    bench.packet(2, 2_700, Send, 0x10);
    bench.packet(2, 2_710, Send, 0x18);
    let living = bench.living(2_710);
    assert_eq!((living.len(), living[0].phase), (1, FlowPhase::Open));
    assert_eq!((living[0].id == id.number(), living[0].traffic.send_packets), (false, 1));
}

#[test]
fn an_owner_is_waited_for_but_not_for_ever() {
    let mut bench = RecorderFixture::new(10);
    for (port, found) in [(1, true), (2, false)] {
        let id = bench.open(port, 0);
        bench.close(port, 10);
        assert_eq!(bench.publish(20), []);
        assert_eq!(bench.publish(1_000), []);
        if found {
            bench.bind(id, Ok(OWNER));
            assert_eq!(bench.publish(1_400)[0].owner, Some(OWNER));
        } else {
            assert_eq!(bench.publish(2_900), []);
            let told = bench.publish(3_300);
            assert_eq!((told.len(), told[0].owner), (1, None));
        }
    }
    let id = bench.open(3, 0);
    bench.close(3, 10);
    bench.publish(20);
    bench.bind(id, Err(Unowned::NoSocket));
    assert_eq!(bench.publish(320).len(), 1, "nobody is waited for in vain");
}

#[test]
fn an_owner_that_has_ended_is_not_forgotten() {
    let mut bench = RecorderFixture::new(10);
    let id = bench.open(1, 0);
    bench.flows.detail_mut(id).unwrap().1.set_owner(OWNER);
    bench.bind(id, Err(Unowned::NoSocket));
    bench.close(1, 10);
    bench.publish(20);
    assert_eq!(bench.publish(320)[0].owner, Some(OWNER));
}

#[test]
fn what_leaves_the_table_is_told_of_at_once() {
    let mut bench = RecorderFixture::new(10);
    bench.open(1, 0);
    bench.flows.sweep(Timestamp(u64::MAX), usize::MAX);
    let told = bench.publish(20);
    assert_eq!((told.len(), told[0].phase, told[0].reason), (1, FlowPhase::Ended, CloseReason::Unknown));
    assert!(!told[0].valid.has(FlowValidity::REASON));
    assert_eq!(told[0].duration_ns, 5 * MILLISECOND, "until its latest packet");
    // Another connection between the same endpoints.
    bench.open(2, 100);
    bench.close(2, 110);
    bench.open(2, 120);
    let told = bench.publish(130);
    assert_eq!((told.len(), told[0].reason), (1, CloseReason::Orderly));
    assert_eq!(bench.living(130).len(), 1);
}

#[test]
fn a_socket_that_goes_without_a_packet_ends_its_flow() {
    let retrying = TcpInfo { retrying: 3, timeout_us: 800_000, ..TcpInfo::default() };
    for (info, told, reason, lasted) in [
        // The process closed the socket some time after the kernel had given up.
        (retrying, 1_700, CloseReason::TimedOut, 805),
        (retrying, 760, CloseReason::TimedOut, 765),
        // Closed before the kernel would have retransmitted.
        (retrying, 400, CloseReason::Unknown, 405),
        (TcpInfo { retrying: 0, ..retrying }, 805, CloseReason::Unknown, 810),
    ] {
        let mut bench = RecorderFixture::new(10);
        let id = bench.open(1, 0);
        bench.bind(id, Ok(OWNER));
        bench.gone(1, 5 + told, info);
        assert_eq!(bench.publish(1_900), [], "its packets may yet come");
        let records = bench.publish(5 + told + 2_001);
        assert_eq!((records.len(), records[0].reason), (1, reason), "{info:?} {told}");
        assert_eq!(records[0].duration_ns, lasted * MILLISECOND);
        assert_eq!(bench.living(4_000).len(), 0);
        // A SYN can only belong to another connection now.
        let next = bench.packet(1, 4_000, Send, 0x02);
        assert_ne!(next, id);
    }
}

#[test]
fn a_notice_ends_no_flow_that_ends_by_itself_or_began_later() {
    let mut bench = RecorderFixture::new(10);
    // The kernel waits for the other end without the socket.
    let waiting = bench.open(1, 0);
    bench.packet(1, 10, Send, 0x11);
    bench.gone(1, 11, TcpInfo::default());
    // This notice is of the previous connection.
    bench.gone(2, 11, TcpInfo { retransmits: 5, ..TcpInfo::default() });
    let later = bench.open(2, 12);
    for id in [waiting, later] {
        bench.bind(id, Ok(OWNER));
    }
    assert_eq!(bench.publish(50), []);
    assert_eq!(bench.publish(3_000), []);
    bench.packet(1, 3_100, Receive, 0x11);
    bench.packet(2, 3_100, Receive, 0x04);
    bench.publish(3_110);
    let told = bench.publish(3_500);
    let reasons: Vec<_> = told.iter().map(|record| (record.reason, record.errno)).collect();
    assert_eq!(reasons, [(CloseReason::Orderly, 0), (CloseReason::Reset, libc::ECONNRESET)]);
    assert!(told.iter().all(|record| !record.valid.has(FlowValidity::RETRANSMITS)));
}

#[test]
fn the_end_of_the_capture_tells_all_that_has_ended_and_shows_the_rest() {
    let mut bench = RecorderFixture::new(10);
    let id = bench.open(1, 0);
    bench.open(2, 0);
    bench.close(1, 10);
    bench.bind(id, Ok(OWNER));
    assert_eq!(bench.publish(11), []);
    bench.recorder.finish(&mut bench.flows, at(11));
    let shown = bench.mailbox.living(Instant::now(), || panic!("nobody is there to be woken")).unwrap();
    assert_eq!((shown.len(), shown[0].key()), (1, key(2)));
    assert_eq!(bench.mailbox.take_ended().len(), 1);
    assert!(bench.mailbox.living(Instant::now(), || ()).is_none(), "shown once");
}

#[test]
fn the_oldest_records_make_room_and_are_counted() {
    let mailbox = FlowMailbox::new(3);
    let mut records: Vec<NamespacedRecord> = (0..5)
        .map(|id| {
            let FlowKey { local, remote, protocol, namespace } = key(1);
            NamespacedRecord {
                namespace,
                is_translated: false,
                record: FlowRecord::unknown(id, protocol, local, remote),
            }
        })
        .collect();
    let mut late = records.split_off(4);
    mailbox.add_ended(&mut records);
    assert!(records.is_empty() && mailbox.take_ended().is_empty(), "the living were not seen since");
    let see =
        || assert_eq!(mailbox.living(Instant::now(), || mailbox.show(true, Vec::new)).unwrap().len(), 0);
    see();
    mailbox.add_ended(&mut late);
    let ids = |taken: std::collections::VecDeque<NamespacedRecord>| -> Vec<u64> {
        taken.into_iter().map(|seen| seen.record.id).collect()
    };
    assert_eq!((ids(mailbox.take_ended()), mailbox.lost()), (vec![2, 3], 2));
    mailbox.show(true, Vec::new);
    see();
    assert_eq!((ids(mailbox.take_ended()), mailbox.lost()), (vec![4], 2));
}

/// Notices are dropped after a clock was set back. Otherwise they would wait until it had caught up, and
/// later ones behind them.
#[test]
fn notices_do_not_wait_for_a_clock_that_was_set_back() {
    let mut bench = RecorderFixture::new(10);
    for port in [1, 2] {
        let id = bench.open(port, 10_000_000);
        bench.bind(id, Ok(OWNER));
    }
    bench.gone(1, 10_000_020, TcpInfo::default());
    assert_eq!(bench.publish(10_000_030).len(), 0);
    let told = bench.publish(3_000);
    let ended: Vec<_> = told.iter().map(|record| (record.local, record.phase)).collect();
    assert_eq!(ended, [(key(1).local, FlowPhase::Ended)]);
    // A notice that is read while the time is read is not in the future.
    bench.gone(2, 3_030, TcpInfo::default());
    bench.publish(3_020);
    assert_eq!(bench.recorder.waiting(), (1, 1));
    bench.publish(5_031);
    assert_eq!(bench.recorder.waiting(), (0, 0));
}

#[test]
fn notices_are_bounded() {
    let mut bench = RecorderFixture::new(10);
    for number in 0..100_000_u32 {
        let mut key = key(1);
        key.remote.port = number as u16;
        key.local.port = (number >> 16) as u16;
        let (told, info) = (at(0), TcpInfo::default());
        bench.mailbox.add_notices(std::iter::once(SocketEnd { key, told, cookie: 0, info }));
        if number % 50_000 == 49_999 {
            bench.publish(1);
        }
    }
    assert_eq!(bench.recorder.waiting(), (65_536, 65_536));
    bench.publish(5_000);
    assert_eq!(bench.recorder.waiting(), (0, 0));
}
