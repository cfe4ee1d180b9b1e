//! Tests of the pipeline while the clock is set.

use super::*;

const HERE: &str = "192.0.2.1:80";
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const FIN_ACK: u8 = 0x11;

const HOUR: u64 = 3_600_000_000_000;

/// Milliseconds after which the whole table is swept at once.
const SWEEP: u64 = SWEEP_NANOSECONDS / 1_000_000;

impl PipelineFixture {
    /// Lets this much time pass, and reports it to the pipeline as the capture thread does.
    pub(super) fn pass(&mut self, milliseconds: u64) {
        self.now += milliseconds * 1_000_000;
        self.pipeline.set_time(&self.clocks());
    }

    /// Returns the current clocks.
    pub(super) fn clocks(&self) -> Clocks {
        Clocks { now_ns: self.now - self.epoch, epoch_ns: self.epoch, at: Instant::now() }
    }

    /// Sets the time of day without a report to the pipeline.
    fn set_clock_forward(&mut self, nanoseconds: u64) {
        (self.now, self.epoch) = (self.now + nanoseconds, self.epoch + nanoseconds);
    }

    fn set_clock_back(&mut self, nanoseconds: u64) {
        (self.now, self.epoch) = (self.now - nanoseconds, self.epoch - nanoseconds);
    }
}

/// Flows that are captured but not published when the clock is set forward are looked up like others.
/// Otherwise they would seem as old as the step and leave the table before a lookup, as flows that are over,
/// for which no socket is looked up.
#[test]
fn flows_captured_before_the_clock_was_set_are_asked_about_like_others() {
    for captured_after in [false, true] {
        let mut bench = PipelineFixture::new(8);
        bench.pass(SWEEP);
        let mut bytes = 0;
        for (number, flags) in [[SYN, ACK].as_slice(), &[SYN, ACK, FIN_ACK]].into_iter().enumerate() {
            let peer = format!("198.51.100.1:{}", 4000 + number);
            for &flag in flags {
                bytes += bench.packet(tcp(flag, &peer, HERE));
            }
            bytes += bench.packet(tcp(FIN_ACK, HERE, &peer));
        }
        let first = bench.now;
        bench.set_clock_forward(3 * HOUR);
        if captured_after {
            bytes += bench.packet(tcp(ACK, "198.51.100.1:4000", HERE));
        }
        bench.pass(10);
        bench.publish(&[], usize::MAX);
        assert_eq!(bench.asked.len(), 2);
        for request in &bench.asked {
            assert!(
                !request.is_over && request.first.0 <= first,
                "by the time that the packet bears: {request:?}"
            );
        }
        bench.answer_all(|_| exact(7));
        let (sent, received) = bench.credited(7);
        assert_eq!((sent + received, bench.unowned(Unowned::Pending)), (bytes, 0));
        assert_eq!(bench.pipeline.flow_stats().expired, 0);
    }
}

/// A living connection remains one flow after the clock was set, in either direction.
#[test]
fn a_flow_outlives_every_step() {
    let mut bench = PipelineFixture::new(8);
    let there = "198.51.100.1:4000";
    let mut bytes = bench.packet(tcp(SYN, there, HERE));
    bytes += bench.packet(tcp(ACK, there, HERE));
    bench.pass(1);
    bench.answer_all(|_| exact(7));
    for _ in 0..3 {
        bench.set_clock_forward(5 * HOUR);
        bench.pass(SWEEP);
        bench.publish(&[], usize::MAX);
        bytes += bench.packet(tcp(ACK, HERE, there));
        bench.set_clock_back(4 * HOUR);
        bench.pass(SWEEP);
        bench.publish(&[], usize::MAX);
        bytes += bench.packet(tcp(ACK, HERE, there));
    }
    bench.publish(&[], usize::MAX);
    let (sent, received) = bench.credited(7);
    let stats = bench.pipeline.flow_stats();
    assert_eq!((sent + received, stats.held, stats.expired), (bytes, 1, 0));
}
