//! Frames of many packets (GSO, TSO, GRO): processes are credited with the bytes and packets that
//! the wire carried.
//!
//! The reference is counted in the middle of the wire, where no frame exceeds the MTU whatever the hosts do.

use super::{V4, V6, Watch, options, with};
use capture::internals::config::{Engine, Options};
use capture::internals::model::Traffic;
use capture::internals::namespace::NamespaceChoice;
use capture::internals::session::{Session, Stats};
use capture::internals::tap::TapOptions;
use capture_test_support::lab::{Host, Lab, Maker, Offloads, run};
use capture_test_support::requirements::left_out;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

/// The engines that must count exactly.
const ENGINES: [Engine; 2] = [Engine::Pcap, Engine::Kernel];

/// The time limit, far longer than it takes to find the owner of bytes.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The permitted deviation from the reference: packets under way that found a full queue.
const TOLERANCE: f64 = 0.001;

const PORT: u16 = 7050;

/// The traffic of a process on the wire, and the traffic that it was credited with.
struct Outcome {
    truth: Traffic,
    found: Traffic,
    stats: Stats,
}

impl Outcome {
    /// Fails if the process was not credited with the traffic on the wire.
    #[track_caller]
    fn is_exact(&self) {
        let Outcome { truth, found, stats } = self;
        assert!(truth.send_packets + truth.receive_packets > 0, "the wire has seen it");
        let is_near = |found: u64, truth: u64| found.abs_diff(truth) as f64 <= truth as f64 * TOLERANCE;
        let is_right = is_near(found.send_bytes, truth.send_bytes)
            && is_near(found.receive_bytes, truth.receive_bytes)
            && is_near(found.send_packets, truth.send_packets)
            && is_near(found.receive_packets, truth.receive_packets);
        assert!(is_right, "found {found:?}, truth {truth:?}; {stats:?}");
    }
}

/// The traffic makers: the modes of the server on host B and of the client on host A, with their numbers.
struct Talk<'a> {
    protocol: &'static str,
    server: (&'static str, &'a [(&'static str, u64)]),
    client: (&'static str, &'a [(&'static str, u64)]),
}

const BULK: Talk =
    Talk { protocol: "tcp", server: ("tcp-sink", &[]), client: ("tcp-source", &[("bytes", 200_000_000)]) };

/// The sender learns from the receiver's SYN that it accepts no larger segments.
const BULK_1200: Talk<'_> = Talk { server: ("tcp-sink", &[("segment", 1200)]), ..BULK };
const BULK_536: Talk<'_> = Talk { server: ("tcp-sink", &[("segment", 536)]), ..BULK };
const BULK_300: Talk<'_> = Talk { server: ("tcp-sink", &[("segment", 300)]), ..BULK };

/// Requests of three segments and responses of many.
const REQUESTS: Talk<'_> = Talk {
    protocol: "tcp",
    server: ("tcp-server", &[("request", 4096), ("response", 50_000)]),
    client: (
        "tcp-clients",
        &[("rate", 200), ("milliseconds", 2000), ("request", 4096), ("response", 50_000)],
    ),
};

/// Requests of two segments, which together fit a frame of the device.
const REQUESTS_536: Talk<'_> = Talk {
    protocol: "tcp",
    server: ("tcp-server", &[("request", 900), ("response", 700), ("segment", 536)]),
    client: ("tcp-clients", &[("rate", 500), ("milliseconds", 2000), ("request", 900), ("response", 700)]),
};

impl Talk<'_> {
    /// Makes the traffic, captured on one host, and returns the outcome once everything is credited.
    fn watched_from(&self, lab: &Lab, engine: Engine, address: &str, host: Host) -> Outcome {
        let mut watch = Watch::with(lab, host, options(engine));
        assert_eq!(watch.session.stats_reader().read().engine, engine);
        self.seen_by(&mut watch, lab, address, host)
    }

    /// Does the same with a session that is already open.
    fn seen_by(&self, watch: &mut Watch, lab: &Lab, address: &str, host: Host) -> Outcome {
        self.count(lab);
        let makers = self.makers(lab, address);
        played(makers, watch, lab, host)
    }

    fn count(&self, lab: &Lab) {
        let protocol = self.protocol;
        lab.count(Host::A, &format!("{protocol} dport {PORT}"), &format!("{protocol} sport {PORT}"));
    }

    /// Starts the server and the client; with [`BULK`] they are connected.
    fn makers(&self, lab: &Lab, address: &str) -> [Maker; 2] {
        let target = SocketAddr::new(address.parse().unwrap(), PORT).to_string();
        let server = lab.maker(Host::B, self.server.0, &target, self.server.1);
        [server, lab.maker(Host::A, self.client.0, &target, self.client.1)]
    }
}

/// Runs the makers, and returns the outcome at one of them.
fn played([mut server, mut client]: [Maker; 2], watch: &mut Watch, lab: &Lab, host: Host) -> Outcome {
    client.start();
    assert_eq!(client.finish().failed, 0);
    server.start();
    server.finish();
    let (bytes, packets) = (lab.counted(host).both(), lab.counted_packets(host).both());
    let truth = Traffic {
        send_bytes: bytes.0,
        receive_bytes: bytes.1,
        send_packets: packets.0,
        receive_packets: packets.1,
    };
    let pid = if host == Host::A { client.pid() } else { server.pid() };
    let (found, stats) = settled(watch, pid);
    println!("from {host:?} by {:?}: wire {truth:?}", stats.engine);
    println!("  found {found:?}, {} frames lost", stats.lost_in_kernel);
    let (frames, packets, bytes) = (stats.offloaded_frames, stats.offloaded_packets, stats.estimated_bytes);
    println!("  {frames} frames of {packets} packets, {bytes} bytes estimated");
    Outcome { truth, found, stats }
}

/// Returns the traffic of a process once it no longer changes; asserts that no other process has any.
fn settled(watch: &mut Watch, pid: i32) -> (Traffic, Stats) {
    let deadline = Instant::now() + TIMEOUT;
    let mut before = None;
    loop {
        std::thread::sleep(Duration::from_millis(500));
        watch.update();
        let (mut traffic, stats) = (watch.traffic(), watch.session.stats_reader().read());
        let own = traffic.remove(&pid).unwrap_or_default();
        let is_still = before == Some(own) && stats.flows_waiting == 0;
        if is_still && !own.is_empty() && traffic.is_empty() {
            return (own, stats);
        }
        before = Some(own);
        assert!(Instant::now() < deadline, "{own:?}, others {traffic:?}; {stats:?}");
    }
}

/// Runs a test with two hosts on a wire.
fn on_wire(offloads: Offloads, test: impl FnOnce(&Lab) + Send) {
    with(|| Lab::on_wire(offloads), |lab| test(&lab));
}

fn exact(talk: &Talk<'_>, address: &str, host: Host, offloads: Offloads) {
    for engine in ENGINES {
        on_wire(offloads, |lab| {
            let outcome = talk.watched_from(lab, engine, address, host);
            outcome.is_exact();
            let stats = outcome.stats;
            // The test is meaningful only if there were such frames.
            if engine == Engine::Pcap {
                assert_eq!(stats.offloaded_frames > 100, offloads == Offloads::On, "{stats:?}");
            }
        });
    }
}

macro_rules! exact {
    ($($name:ident: $talk:ident $address:ident seen from $host:ident, offloads $offloads:ident;)*) => {
        $(#[test]
        fn $name() {
            exact(&$talk, $address, Host::$host, Offloads::$offloads);
        })*
    };
}

exact! {
    bulk_sent_v4_root: BULK V4 seen from A, offloads On;
    bulk_sent_v6_root: BULK V6 seen from A, offloads On;
    bulk_received_v4_root: BULK V4 seen from B, offloads On;
    bulk_received_v6_root: BULK V6 seen from B, offloads On;
    bulk_sent_without_offloads_v4_root: BULK V4 seen from A, offloads Off;
    bulk_received_without_offloads_v6_root: BULK V6 seen from B, offloads Off;
    segments_of_1200_bytes_sent_root: BULK_1200 V4 seen from A, offloads On;
    segments_of_1200_bytes_received_root: BULK_1200 V6 seen from B, offloads On;
    segments_of_536_bytes_received_root: BULK_536 V4 seen from B, offloads On;
    segments_of_300_bytes_sent_root: BULK_300 V4 seen from A, offloads On;
    segments_of_300_bytes_received_root: BULK_300 V6 seen from B, offloads On;
    requests_sent_v4_root: REQUESTS V4 seen from A, offloads On;
    requests_received_v6_root: REQUESTS V6 seen from B, offloads On;
    requests_of_two_segments_sent_v6_root: REQUESTS_536 V6 seen from A, offloads On;
    requests_of_two_segments_received_v4_root: REQUESTS_536 V4 seen from B, offloads On;
    requests_without_offloads_v6_root: REQUESTS V6 seen from A, offloads Off;
    requests_received_without_offloads_v4_root: REQUESTS V4 seen from B, offloads Off;
}

/// Frames of more than 64 KB, whose headers state no length and have an option that is not on the
/// wire (BIG TCP).
#[test]
fn big_frames_v6_root() {
    ENGINES.into_iter().for_each(big_frames);
}

fn big_frames(engine: Engine) {
    on_wire(Offloads::On, |lab| {
        let mut command = Command::new("ip");
        command.args(["-n", lab.name(Host::A), "link", "set", "veth0", "gso_max_size", "200000"]);
        if !command.status().unwrap().success() {
            left_out("BIG TCP is unavailable (Linux 5.19)");
            return;
        }
        // Otherwise the window prevents frames from becoming that big.
        lab.set(Host::B, "net/ipv4/tcp_rmem", "4096 131072 2097152");
        let outcome = BULK.watched_from(lab, engine, V6, Host::A);
        outcome.is_exact();
        // 64 KB are 46 packets.
        let stats = &outcome.stats;
        assert!(
            engine != Engine::Pcap || stats.offloaded_packets > stats.offloaded_frames * 47,
            "frames are not big: {stats:?}"
        );
    });
}

/// The MTU is that of the device in its own namespace, and changes of it are followed.
#[test]
fn the_mtu_is_followed_in_every_namespace_root() {
    const MTU: u64 = 1300;
    on_wire(Offloads::On, |lab| {
        let path = format!("/run/netns/{}", lab.name(Host::A));
        let capture = TapOptions {
            namespaces: NamespaceChoice::Chosen(vec![path.into()]),
            filter: Some(format!("tcp port {PORT}")),
            ..TapOptions::default()
        };
        let session = Session::open(Options { capture, ..Options::default() }).unwrap();
        let mut watch = Watch { session, removed: HashMap::new() };
        run(&format!("ip -n {} link set veth0 mtu {MTU}", lab.name(Host::A)));
        // Longer than the interval at which devices are checked.
        std::thread::sleep(Duration::from_millis(2500));
        let outcome = BULK.seen_by(&mut watch, lab, V4, Host::A);
        assert!(outcome.truth.send_packets > 200_000_000 / (MTU - 52), "{:?}", outcome.truth);
        outcome.is_exact();
    });
}

/// Datagrams that the sender let the kernel cut (UDP_SEGMENT) or the receiver let it merge (UDP_GRO): engine
/// `pcap` cannot know the length of each. `src/abi/README.md` states how much is missing.
fn datagrams(segment: u64, host: Host, most: (f64, f64)) {
    let client = [("bytes", 20_000_000), ("rate", 10_000_000), ("segment", segment), ("segments", 40)];
    let talk = Talk {
        protocol: "udp",
        server: ("udp-sink", &[("bytes", 20_000_000), ("merged", 1)]),
        client: ("udp-source", &client),
    };
    on_wire(Offloads::On, |lab| {
        talk.watched_from(lab, Engine::Pcap, V4, host).lacks(host, most);
    });
    on_wire(Offloads::On, |lab| talk.watched_from(lab, Engine::Kernel, V4, host).is_exact());
}

/// The largest segment of a connection is known only from its opening.
fn opened_before(talk: &Talk<'_>, host: Host, most: (f64, f64)) {
    for engine in ENGINES {
        on_wire(Offloads::On, |lab| {
            let makers = talk.makers(lab, V4);
            let mut watch = Watch::with(lab, host, options(engine));
            talk.count(lab);
            let outcome = played(makers, &mut watch, lab, host);
            match engine {
                Engine::Pcap => outcome.lacks(host, most),
                _ => outcome.is_exact(),
            }
        });
    }
}

impl Outcome {
    /// Fails if more than these percentages of the bytes and packets that host A sent or host B received are
    /// missing, or if more was counted than had passed.
    #[track_caller]
    fn lacks(&self, host: Host, (most_bytes, most_packets): (f64, f64)) {
        let Outcome { truth, found, stats } = self;
        let part = |traffic: &Traffic| match host {
            Host::A => [traffic.send_bytes, traffic.send_packets],
            Host::B => [traffic.receive_bytes, traffic.receive_packets],
        };
        let [bytes, packets] = [0, 1].map(|which| {
            let (found, truth) = (part(found)[which] as f64, part(truth)[which] as f64);
            (truth - found) * 100.0 / truth
        });
        println!("  missing: {bytes:.2} % of the bytes, {packets:.1} % of the packets");
        assert!(stats.offloaded_frames > 100, "{stats:?}");
        assert!(bytes > -0.1 && packets > -0.1, "never more than passed: {bytes} %, {packets} %");
        assert!(bytes < most_bytes && packets < most_packets, "{bytes} % and {packets} % are missing");
    }
}

#[test]
fn segments_of_1200_bytes_of_a_connection_opened_before_root() {
    opened_before(&BULK_1200, Host::A, (1.0, 18.0));
}

#[test]
fn segments_of_536_bytes_of_a_connection_opened_before_root() {
    opened_before(&BULK_536, Host::B, (7.5, 65.0));
}

#[test]
fn datagrams_of_1200_bytes_sent_root() {
    datagrams(1200, Host::A, (0.65, 18.5));
}

#[test]
fn datagrams_of_1200_bytes_received_root() {
    datagrams(1200, Host::B, (0.65, 18.5));
}

#[test]
fn datagrams_that_fill_the_mtu_root() {
    datagrams(1472, Host::A, (0.1, 0.1));
}
