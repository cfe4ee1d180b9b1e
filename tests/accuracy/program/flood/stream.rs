//! The flood: processes that send from one host, and one process that reads on the other.

use crate::cpu;
use crate::scenarios::Address;
use capture_test_support::lab::{Host, Lab, Maker, Report};
use std::time::Duration;

/// The size of a datagram on the wire: link header, IPv4, UDP, and one byte.
pub const WIRE: u64 = 14 + 20 + 8 + 1;

/// Processes that are ready to flood.
pub struct Stream {
    reader: Maker,
    senders: Vec<Maker>,
}

/// The traffic of a flood. The processes live as long as this is held.
pub struct Passed {
    /// Process and datagrams of each sender.
    pub sent: Vec<(i32, u64)>,
    /// Process and datagrams of the reader.
    pub read: (i32, u64),
    pub took: Duration,
    /// CPU seconds of the senders and of the reader.
    pub used: [f64; 2],
    _stream: Stream,
}

impl Stream {
    /// Starts the processes, each on the next processor.
    pub fn prepare(lab: &Lab, senders: u64, length: Duration) -> Stream {
        let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        let reader = lab.maker(Host::B, "flood-sink", &Address::V4.bound(), &[("cpu", senders % cpus)]);
        let sender = |number: u64| {
            let numbers = [("cpu", number % cpus), ("milliseconds", length.as_millis() as u64)];
            lab.maker(Host::A, "flood-source", &Address::V4.target(), &numbers)
        };
        Stream { reader, senders: (0..senders).map(sender).collect() }
    }

    /// Floods until the time is over and the reader has read all that has arrived.
    pub fn run(mut self) -> Passed {
        let used = |stream: &Stream| {
            let seconds = |maker: &Maker| cpu::seconds(maker.pid()).expect("it lives");
            [stream.senders.iter().map(seconds).sum::<f64>(), seconds(&stream.reader)]
        };
        let before = used(&self);
        self.senders.iter_mut().for_each(Maker::start);
        let reports: Vec<Report> = self.senders.iter_mut().map(Maker::finish).collect();
        self.reader.start();
        let read = self.reader.finish();
        let after = used(&self);
        let sent = reports.iter().flat_map(|report| &report.processes).map(|own| (own.pid, own.sent));
        Passed {
            sent: sent.collect(),
            read: (self.reader.pid(), read.processes.iter().map(|own| own.received).sum()),
            took: reports.iter().map(|report| report.took).max().unwrap_or_default(),
            used: [after[0] - before[0], after[1] - before[1]],
            _stream: self,
        }
    }
}

impl Passed {
    /// Returns the datagrams of all senders.
    pub fn all_sent(&self) -> u64 {
        self.sent.iter().map(|(_, count)| count).sum()
    }
}
