//! The program's other role: a session in the namespace that it was started in, until it is told to report.

use super::engines::Engine;
use capture::internals::model::{ProcessRecord, Unowned};
use capture::internals::namespace::NamespaceChoice;
use capture::internals::session::{Session, Stats};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{BufWriter, Seek, Write};
use std::os::fd::AsFd;
use std::time::Duration;

/// Time between two updates, as an operator would choose it.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// Updates after the last packet: bytes are reported after the capture's read timeout and a search for
/// owners.
pub const SETTLING: usize = 2;

/// The reasons in the order of the statistics.
const REASONS: [Unowned; 11] = [
    Unowned::Pending,
    Unowned::NoSocket,
    Unowned::NoHolder,
    Unowned::Ambiguous,
    Unowned::NotPermitted,
    Unowned::QueueFull,
    Unowned::Fragment,
    Unowned::NotLocal,
    Unowned::NoPorts,
    Unowned::OwnerEnded,
    Unowned::Unreadable,
];

/// The interval of the checks whether all devices are captured on.
const DEVICES_POLL: Duration = Duration::from_millis(20);

/// The report's lines about processes. They are in a file because they may be many and the memory of this
/// process is measured.
pub struct Figures {
    lines: BufWriter<File>,
}

impl Figures {
    pub fn new() -> Figures {
        Figures { lines: BufWriter::new(tempfile::tempfile().unwrap()) }
    }

    fn add(&mut self, record: &ProcessRecord) {
        let (traffic, id) = (&record.traffic, record.sample.id);
        if !traffic.is_empty() {
            let (sent, received) = (traffic.send_bytes, traffic.receive_bytes);
            let uncertain = record.uncertain_bytes;
            writeln!(self.lines, "process {} {} {sent} {received} {uncertain}", id.pid, id.start_ticks)
                .unwrap();
        }
    }

    /// Adds the living processes. Must be called only at the end.
    pub fn add_living(&mut self, session: &Session) {
        session.processes().for_each(|record| self.add(record));
    }
}

/// Opens a session with the options of the engine. Given a filter, the session watches all namespaces, with
/// this filter if packets are captured. Prints `ready`, updates until it reads a line and then until
/// everything is reported, and prints `settled`. At another line it prints the report:
/// `process PID START SENT RECEIVED UNCERTAIN`, `unowned REASON BYTES`, `flagged BYTES`, `lost FRAMES`,
/// `packets FRAMES`, `note TEXT`, `end`.
pub fn run(engine: Engine, filter: Option<String>) {
    let mut options = engine.options();
    if filter.is_some() {
        // Other namespaces of this machine have traffic that is unrelated to this program.
        options.capture.filter = filter.filter(|_| engine.captures());
        options.capture.namespaces = NamespaceChoice::All;
    }
    let mut session = Session::open(options).unwrap();
    let mut figures = Figures::new();
    update(&mut session, &mut figures);
    let stats = session.stats_reader();
    let is_starting = |stats: Stats| stats.devices == 0 || stats.devices_pending > 0;
    let fault = engine.fault(&stats.read());
    assert!(fault.is_none(), "{}: {}", engine.name(), fault.unwrap_or_default());
    while engine.captures() && is_starting(stats.read()) {
        std::thread::sleep(DEVICES_POLL);
    }
    println!("ready");
    while !told_within(INTERVAL) {
        update(&mut session, &mut figures);
    }
    read_line();
    for _ in 0..SETTLING {
        std::thread::sleep(INTERVAL);
        update(&mut session, &mut figures);
    }
    println!("settled");
    read_line();
    let stats = stats.read();
    figures.add_living(&session);
    report(figures, &stats);
}

/// Updates, and adds the figures of processes that have ended.
pub fn update(session: &mut Session, figures: &mut Figures) {
    session.update().unwrap();
    session.health().unwrap();
    session.take_removed().iter().for_each(|record| figures.add(record));
}

/// Returns true if the input has a line or ends within this time.
fn told_within(longest: Duration) -> bool {
    let input = std::io::stdin();
    let mut waited = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(longest.as_millis() as u32).unwrap();
    poll(&mut waited, timeout).unwrap() > 0
}

pub fn read_line() {
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// Prints the report.
pub fn report(figures: Figures, stats: &Stats) {
    let mut out = std::io::stdout().lock();
    let mut lines = figures.lines.into_inner().unwrap();
    lines.rewind().unwrap();
    std::io::copy(&mut lines, &mut out).unwrap();
    for (number, bytes) in stats.bytes.unowned.iter().enumerate() {
        let reason = REASONS.get(number).map_or(format!("Reason{number}"), |reason| format!("{reason:?}"));
        writeln!(out, "unowned {reason} {bytes}").unwrap();
    }
    let flagged: u64 = stats.bytes.owned[1..].iter().sum();
    writeln!(out, "flagged {flagged}").unwrap();
    writeln!(out, "lost {}", stats.lost_in_kernel + stats.lost_in_device).unwrap();
    writeln!(out, "packets {}", stats.frames).unwrap();
    writeln!(out, "note {stats:?}").unwrap();
    writeln!(out, "end").unwrap();
}
