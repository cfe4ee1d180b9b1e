//! Real traffic between real processes, in network namespaces that the tests make, compared with
//! nftables counters.
//!
//! Needs root, ip, nft and ethtool. If these are missing, the tests print a line and pass, or fail if
//! CAPTURE_REQUIRE_ALL=1 is set.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod burst;
mod changing;
mod counting;
mod devices;
mod dropped;
mod ended;
mod groups;
mod handed;
mod nat;
mod offload;
mod reuse;
mod routes;

use capture::internals::config::{Engine, Options};
use capture::internals::model::{ProcessRecord, Traffic};
use capture::internals::namespace::NamespaceChoice;
use capture::internals::session::Session;
use capture::internals::tap::TapOptions;
use capture_test_support::lab::{Host, Lab, Maker, Offloads};
use capture_test_support::namespaces::on_own_thread;
use capture_test_support::requirements::has_root_and;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Lets one test run at a time: the tests measure full rates on few CPUs.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs a test with two hosts on a wire, on a thread that may change its network namespace.
fn with_lab(test: impl FnOnce(Lab) + Send) {
    with(|| Lab::on_wire(Offloads::On), test);
}

/// Does the same as [`with_lab`] with the given lab.
fn with(lab: impl FnOnce() -> Lab + Send, test: impl FnOnce(Lab) + Send) {
    if !has_root_and(&["ip", "nft", "ethtool"]) {
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    on_own_thread(|| test(lab()));
}

/// Returns the options of a session with this engine that counts only in its own namespace, because other
/// namespaces have traffic, too.
fn options(engine: Engine) -> Options {
    let capture = TapOptions { namespaces: NamespaceChoice::Own, ..TapOptions::default() };
    Options { engine, capture, ..Options::default() }
}

/// A session on a host, with the results of its updates.
struct Watch {
    session: Session,
    removed: HashMap<i32, ProcessRecord>,
}

impl Watch {
    /// Opens a session; the calling thread stays on the host.
    fn on(lab: &Lab, host: Host) -> Watch {
        Watch::with(lab, host, Options::default())
    }

    /// Does the same as [`Watch::on`] with the given options.
    fn with(lab: &Lab, host: Host, options: Options) -> Watch {
        lab.enter(host);
        let session = Session::open(options).unwrap();
        Watch { session, removed: HashMap::new() }
    }

    fn update(&mut self) {
        self.session.update().unwrap();
        self.session.health().unwrap();
        for record in self.session.take_removed() {
            let id = record.sample.id;
            let before = self.removed.insert(id.pid, record);
            // A busy machine soon gives the pid to another process.
            assert!(before.is_none_or(|before| before.sample.id != id), "removed twice: {id:?}");
        }
    }

    /// Returns the traffic of every process that has any.
    fn traffic(&self) -> HashMap<i32, Traffic> {
        let all = self.session.processes().chain(self.removed.values());
        let with_traffic = all.filter(|record| !record.traffic.is_empty());
        with_traffic.map(|record| (record.sample.id.pid, record.traffic)).collect()
    }

    /// Updates until `wanted` returns true for the traffic of the processes.
    #[track_caller]
    fn wait_for_traffic(&mut self, wanted: impl Fn(&HashMap<i32, Traffic>) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !wanted(&self.traffic()) {
            assert!(Instant::now() < deadline, "{:?}", self.traffic());
            std::thread::sleep(Duration::from_millis(50));
            self.update();
        }
    }

    /// Updates until a process has all of its bytes and no other process has any; fails if that
    /// does not happen.
    #[track_caller]
    fn expect_all_at(&mut self, pid: i32, truth: (u64, u64)) {
        self.expect_all_within(Duration::from_secs(3), pid, truth);
    }

    /// Does the same as [`Watch::expect_all_at`] within the given time: without eBPF programs, the search for
    /// an owner may have to wait.
    #[track_caller]
    fn expect_all_within(&mut self, patience: Duration, pid: i32, (sent, received): (u64, u64)) {
        let deadline = Instant::now() + patience;
        let is_right = |found: u64, truth: u64| found.abs_diff(truth) as f64 <= truth as f64 * 0.001;
        loop {
            std::thread::sleep(Duration::from_millis(150));
            self.update();
            let mut traffic = self.traffic();
            let own = traffic.remove(&pid).unwrap_or_default();
            let wrong: u64 = traffic.values().map(Traffic::bytes).sum();
            let done = is_right(own.send_bytes, sent) && is_right(own.receive_bytes, received);
            if done && wrong == 0 {
                println!("  sent {} of {sent}, received {} of {received}", own.send_bytes, own.receive_bytes);
                return;
            }
            let stats = self.session.stats_reader().read();
            assert!(
                Instant::now() < deadline,
                "process {pid}: {own:?}, truth is sent {sent}, received {received}; at others: {traffic:?}; {stats:?}"
            );
        }
    }
}

struct Scenario {
    protocol: &'static str,
    address: &'static str,
    port: u16,
    bytes: u64,
    rate: u64,
}

impl Scenario {
    fn makers(&self, lab: &Lab) -> (Maker, Maker) {
        let (address, port) = (self.address, self.port);
        let target =
            if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") };
        let maker = |host, role| {
            let numbers = [("bytes", self.bytes), ("rate", self.rate)];
            lab.maker(host, &format!("{}-{role}", self.protocol), &target, &numbers)
        };
        let sink = maker(Host::B, "sink");
        (maker(Host::A, "source"), sink)
    }

    /// Runs the transfer, captured on one host, and compares.
    fn run(&self, watched: Host) {
        // A flood would overflow the queues of the wire; its datagrams are packets wherever they are counted.
        let is_flood = self.protocol == "udp" && self.rate == 0;
        let lab = || if is_flood { Lab::new() } else { Lab::on_wire(Offloads::On) };
        with(lab, |lab| {
            println!("{} {} at {} B/s, seen from {watched:?}:", self.protocol, self.address, self.rate);
            lab.count_port(watched, self.protocol, self.port);
            let mut watch = Watch::on(&lab, watched);
            let (mut source, mut sink) = self.makers(&lab);
            source.start();
            assert_eq!(source.finish().payload, self.bytes);
            sink.finish();
            let pid = if watched == Host::A { source.pid() } else { sink.pid() };
            let truth = lab.counted(watched).both();
            assert!(truth.0 + truth.1 > self.bytes / 2, "the counters have seen the traffic: {truth:?}");
            watch.expect_all_at(pid, truth);
        });
    }
}

const V4: &str = "10.77.0.2";
const V6: &str = "fd77::2";

macro_rules! scenarios {
    ($($name:ident: $protocol:literal $address:ident $bytes:literal MB at $rate:literal MB, $host:ident;)*) => {
        $(#[test]
        fn $name() {
            let (bytes, rate) = ($bytes * 1_000_000, $rate * 1_000_000);
            Scenario { protocol: $protocol, address: $address, port: 7001, bytes, rate }.run(Host::$host);
        })*
    };
}

scenarios! {
    tcp_at_full_rate_v4_sender_root: "tcp" V4 2000 MB at 0 MB, A;
    tcp_at_full_rate_v6_sender_root: "tcp" V6 2000 MB at 0 MB, A;
    tcp_at_full_rate_v4_receiver_root: "tcp" V4 2000 MB at 0 MB, B;
    tcp_at_full_rate_v6_receiver_root: "tcp" V6 2000 MB at 0 MB, B;
    tcp_at_moderate_rate_v4_sender_root: "tcp" V4 20 MB at 10 MB, A;
    tcp_at_moderate_rate_v6_sender_root: "tcp" V6 20 MB at 10 MB, A;
    tcp_at_moderate_rate_v4_receiver_root: "tcp" V4 20 MB at 10 MB, B;
    tcp_at_moderate_rate_v6_receiver_root: "tcp" V6 20 MB at 10 MB, B;
    connected_udp_v4_sender_root: "udp" V4 20 MB at 10 MB, A;
    connected_udp_v6_sender_root: "udp" V6 20 MB at 10 MB, A;
    udp_v4_receiver_root: "udp" V4 20 MB at 10 MB, B;
    udp_v6_receiver_root: "udp" V6 20 MB at 10 MB, B;
    connected_udp_flood_v4_root: "udp" V4 300 MB at 0 MB, A;
}

/// On loopback both ends are on this host: the bytes that one process sends, the other receives, and
/// both are credited.
#[test]
fn loopback_is_counted_at_both_ends_root() {
    with(Lab::new, |lab| {
        lab.count_port(Host::A, "tcp", 7002);
        let mut watch = Watch::on(&lab, Host::A);
        let mut sink = lab.maker(Host::A, "tcp-sink", "127.0.0.1:7002", &[]);
        let mut source = lab.maker(
            Host::A,
            "tcp-source",
            "127.0.0.1:7002",
            &[("bytes", 50_000_000), ("rate", 20_000_000)],
        );
        source.start();
        source.finish();
        assert_eq!(sink.finish().payload, 50_000_000);
        // Every packet passes the output hook once and the input hook once.
        let (out, into) = lab.counted(Host::A).both();
        // On a busy machine the two have been seen to differ by an acknowledgement.
        assert!(out.abs_diff(into) < 200, "{out} {into}");
        let (sent, received) = (out.max(into), out.max(into));
        let deadline = Instant::now() + Duration::from_secs(3);
        loop {
            std::thread::sleep(Duration::from_millis(150));
            watch.update();
            let traffic = watch.traffic();
            let of = |pid| traffic.get(&pid).copied().unwrap_or_default();
            let (from, to) = (of(source.pid()), of(sink.pid()));
            let all_sent = from.send_bytes + to.send_bytes;
            let all_received = from.receive_bytes + to.receive_bytes;
            if all_sent as f64 >= sent as f64 * 0.999 && all_received as f64 >= sent as f64 * 0.999 {
                assert!(all_sent <= sent && all_received <= received);
                assert_eq!((from.send_bytes, from.receive_bytes), (to.receive_bytes, to.send_bytes));
                assert!(from.send_bytes > 50_000_000 && traffic.len() == 2, "{traffic:?}");
                return;
            }
            assert!(Instant::now() < deadline, "{traffic:?}, truth {sent}");
        }
    });
}

/// The last bytes of a connection, including its FINs, are delivered with the removal of its process:
/// with the next update if that waits for them, otherwise with a later one. Until then no update
/// delivers the process.
fn the_last_figures_come_with_the_removal(wait_for_ended: bool) {
    with_lab(|lab| {
        lab.count_port(Host::A, "tcp", 7003);
        let mut watch = Watch::with(&lab, Host::A, Options { wait_for_ended, ..Options::default() });
        let mut sink = lab.maker(Host::B, "tcp-sink", "10.77.0.2:7003", &[]);
        let mut source =
            lab.maker(Host::A, "tcp-source", "10.77.0.2:7003", &[("bytes", 5_000_000), ("rate", 10_000_000)]);
        watch.update();
        source.start();
        source.finish();
        sink.finish();
        let pid = source.pid();
        source.end();
        watch.update();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !wait_for_ended && !watch.removed.contains_key(&pid) {
            assert!(Instant::now() < deadline, "the process is never removed");
            assert!(watch.session.processes().all(|record| record.sample.id.pid != pid), "it is not alive");
            std::thread::sleep(Duration::from_millis(1));
            watch.update();
        }
        let truth = lab.counted(Host::A).both();
        let record = watch.removed.get(&pid).expect("one update after its end the process is removed");
        assert_eq!((record.traffic.send_bytes, record.traffic.receive_bytes), truth);
        assert_eq!(record.identity.name, b"traffic_maker");
        // `Watch::update` fails if it is removed twice.
        watch.update();
    });
}

#[test]
fn the_last_figures_come_with_the_removal_that_is_waited_for_root() {
    the_last_figures_come_with_the_removal(true);
}

#[test]
fn the_last_figures_come_with_the_removal_that_is_not_waited_for_root() {
    the_last_figures_come_with_the_removal(false);
}

/// A process that starts and ends between two updates is delivered with its bytes, as removed.
#[test]
fn a_process_between_two_updates_is_delivered_root() {
    with_lab(|lab| {
        lab.count_port(Host::A, "tcp", 7004);
        let mut watch = Watch::on(&lab, Host::A);
        watch.update();
        let mut sink = lab.maker(Host::B, "tcp-sink", "10.77.0.2:7004", &[]);
        let mut source =
            lab.maker(Host::A, "tcp-source", "10.77.0.2:7004", &[("bytes", 5_000_000), ("rate", 10_000_000)]);
        source.start();
        source.finish();
        sink.finish();
        let pid = source.pid();
        source.end();
        let truth = lab.counted(Host::A).both();
        watch.expect_all_at(pid, truth);
        let record = &watch.removed[&pid];
        assert_eq!(record.identity.name, b"traffic_maker");
        assert!(record.identity.command_line.windows(10).any(|part| part == b"tcp-source"));
    });
}
