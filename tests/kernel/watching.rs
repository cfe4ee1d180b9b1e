//! A session on host A, compared with counts from other sources.

use crate::lab::{Counted, Host, Lab, Maker};
use crate::may_run;
use capture::internals::config::{Engine, Options};
use capture::internals::log::LogOptions;
use capture::internals::model::{ProcessRecord, Traffic, Unowned};
use capture::internals::namespace::NamespaceChoice;
use capture::internals::session::{Session, Stats};
use capture::internals::tap::TapOptions;
use capture_test_support::programs::program;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The time after which a test gives up on an expected event.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// The other host, which answers.
pub const B: &str = "10.77.0.2";
pub const B6: &str = "fd77::2";
/// Headers of Ethernet, IPv4 and UDP.
pub const UDP_HEADERS: u64 = 14 + 20 + 8;

/// Runs a test with two hosts, in a thread that may change its network namespace.
pub fn with_lab(test: impl FnOnce(&Lab) + Send) {
    if may_run() && cfg!(feature = "ebpf") {
        std::thread::scope(|scope| scope.spawn(|| test(&Lab::new())).join().unwrap());
    }
}

/// Returns the options of a session with eBPF programs.
pub fn options(engine: Engine) -> Options {
    let log = LogOptions { queue: true, ..LogOptions::default() };
    // Other namespaces belong to other tests.
    let capture = TapOptions { namespaces: NamespaceChoice::Own, ..TapOptions::default() };
    Options { engine, flows: true, log, capture, ..Options::default() }
}

/// Starts a mode of the program that uses sockets.
pub fn user(lab: &Lab, host: Host, mode: &str, address: &str, numbers: &[(&str, u64)]) -> Maker {
    let mut command = lab.command(host, program("socket_user"));
    command.arg(mode).arg(address);
    command.args(numbers.iter().map(|(name, number)| format!("{name}={number}")));
    let mut user = Maker::start_of(&mut command);
    assert_eq!(user.line(), "ready", "{mode}");
    user
}

/// The counts that one process has reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Done {
    pub pid: i32,
    /// Messages sent.
    pub calls: u64,
    /// Payload bytes sent.
    pub sent: u64,
    /// Payload bytes received.
    pub received: u64,
}

impl Done {
    /// Returns the bytes of its datagrams on the wire, over IPv4.
    pub fn datagrams(&self) -> u64 {
        self.sent + self.calls * UDP_HEADERS
    }
}

/// Returns the counts that the processes report until one of them prints the line `end`.
pub fn said_until(user: &mut Maker, end: &str) -> Vec<Done> {
    let mut all = Vec::new();
    loop {
        let line = user.line();
        if line == end {
            return all;
        }
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!((words[0], words.len()), ("process", 5), "it said {line:?}");
        let [pid, calls, sent, received] = [1, 2, 3, 4].map(|at| words[at].parse::<u64>().unwrap());
        all.push(Done { pid: pid as i32, calls, sent, received });
    }
}

/// A session that is updated all the time.
pub struct Watch {
    pub session: Session,
    removed: HashMap<i32, ProcessRecord>,
}

impl Watch {
    /// Opens a session. The calling thread is on host A from then on.
    pub fn new(lab: &Lab, options: Options) -> Watch {
        lab.enter(Host::A);
        let engine = options.engine;
        let mut watch = Watch { session: Session::open(options).unwrap(), removed: HashMap::new() };
        let stats = watch.stats();
        assert_eq!(
            (stats.engine, stats.socket_probes),
            (engine, capture::internals::model::ProbeState::Active)
        );
        watch.update();
        watch
    }

    pub fn update(&mut self) {
        self.session.update().unwrap();
        self.session.health().unwrap();
        for record in self.session.take_removed() {
            let pid = record.sample.id.pid;
            if let Some(before) = self.removed.insert(pid, record) {
                // The pid was reused by another process.
                assert_ne!(before.sample.id, self.removed[&pid].sample.id, "removed twice");
                self.removed.entry(pid).and_modify(|record| record.traffic += before.traffic);
            }
        }
    }

    /// Updates until a program has printed the line `end`. Returns the counts that it reported before.
    pub fn while_running(&mut self, user: &mut Maker, end: &str) -> Vec<Done> {
        std::thread::scope(|scope| {
            let said = scope.spawn(|| said_until(user, end));
            while !said.is_finished() {
                self.update();
                std::thread::sleep(Duration::from_millis(5));
            }
            said.join().unwrap()
        })
    }

    pub fn stats(&self) -> Stats {
        self.session.stats_reader().read()
    }

    pub fn unowned(&self, reason: Unowned) -> u64 {
        self.stats().bytes.unowned[reason as usize]
    }

    /// Returns the record of a process, living or ended.
    pub fn record(&self, pid: i32) -> Option<&ProcessRecord> {
        let living = self.session.processes().find(|record| record.sample.id.pid == pid);
        living.or_else(|| self.removed.get(&pid))
    }

    pub fn traffic(&self, pid: i32) -> Traffic {
        self.record(pid).map(|record| record.traffic).unwrap_or_default()
    }

    /// Returns the traffic of every process that has any.
    pub fn all(&self) -> HashMap<i32, Traffic> {
        let mut all: HashMap<i32, Traffic> = HashMap::new();
        for record in self.session.processes().chain(self.removed.values()) {
            if !record.traffic.is_empty() {
                *all.entry(record.sample.id.pid).or_default() += record.traffic;
            }
        }
        all
    }

    /// Returns the bytes sent and received by all processes together.
    pub fn sums(&self) -> (u64, u64) {
        self.all().values().fold((0, 0), |(sent, received), traffic| {
            (sent + traffic.send_bytes, received + traffic.receive_bytes)
        })
    }

    /// Updates until a condition holds.
    #[track_caller]
    pub fn until(&mut self, what: &str, is_so: impl Fn(&Watch) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        self.update();
        while !is_so(self) {
            if Instant::now() >= deadline {
                panic!(
                    "not so: {what}; {:?} {:?} {:?}",
                    self.all(),
                    self.stats(),
                    self.session.take_log_lines()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
            self.update();
        }
    }
}

/// Counts at host A all packets to the other host and from it.
pub fn count_all(lab: &Lab) {
    lab.count(Host::A, "meta nfproto ipv4 ip daddr 10.77.0.2", "meta nfproto ipv4 ip saddr 10.77.0.2");
}

/// Makes both hosts pass every packet to the link separately, so that nftables counts as many packets as the
/// wire carries.
pub fn without_offloads(lab: &Lab) {
    for host in [Host::A, Host::B] {
        let name = lab.name(host);
        crate::lab::run(&format!("ip -n {name} link set veth0 gso_max_segs 1 gso_max_size 1500"));
    }
}

/// Returns the bytes that host A has sent and received.
pub fn truth(lab: &Lab) -> (u64, u64) {
    let Counted { out_to, in_from, .. } = lab.counted(Host::A);
    (out_to, in_from)
}
