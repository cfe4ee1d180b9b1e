//! Frames of many packets (GSO, TSO, GRO): processes are credited with what the wire carried, bytes and packets.
//!
//! The truth is counted in the middle of the wire, where no frame exceeds the MTU whatever the hosts do.

use super::lab::{Host, Lab, Maker, Offloads};
use super::{V4, V6, Watch, with};
use capture::config::{Engine, Options};
use capture::engine::Stats;
use capture::model::Traffic;
use std::time::{Duration, Instant};

/// The engines that must have it right.
const ENGINES: [Engine; 2] = [Engine::Pcap, Engine::Kernel];

/// Far beyond the time in which bytes find their owner.
const PATIENCE: Duration = Duration::from_secs(20);

/// What may be missing of the truth, or be too much: packets under way that found a queue full.
const TOLERANCE: f64 = 0.001;

const PORT: u16 = 7050;

/// What the wire carried for a process, and what it was credited with.
struct Outcome {
    truth: Traffic,
    found: Traffic,
    stats: Stats,
}

/// Who makes the traffic: the modes of the server, on host B, and of the client on host A, with their numbers.
struct Talk {
    protocol: &'static str,
    server: (&'static str, &'static [(&'static str, u64)]),
    client: (&'static str, &'static [(&'static str, u64)]),
}

const BULK: Talk =
    Talk { protocol: "tcp", server: ("tcp-sink", &[]), client: ("tcp-source", &[("bytes", 200_000_000)]) };

/// Requests of three segments and responses of many.
const REQUESTS: Talk = Talk {
    protocol: "tcp",
    server: ("tcp-server", &[("request", 4096), ("response", 50_000)]),
    client: (
        "tcp-clients",
        &[("rate", 200), ("milliseconds", 2000), ("request", 4096), ("response", 50_000)],
    ),
};

impl Talk {
    /// Has them talk, watched from one host, and returns what came of it when all has been credited.
    fn watched_from(&self, lab: &Lab, engine: Engine, address: &str, host: Host) -> Outcome {
        let target = std::net::SocketAddr::new(address.parse().unwrap(), PORT).to_string();
        let mut watch = Watch::with(lab, host, Options { engine, ..Options::default() });
        assert_eq!(watch.session.stats_reader().read().engine, engine);
        let mut server = lab.maker(Host::B, self.server.0, &target, self.server.1);
        let protocol = self.protocol;
        lab.count(host, &format!("{protocol} dport {PORT}"), &format!("{protocol} sport {PORT}"));
        let mut client = lab.maker(Host::A, self.client.0, &target, self.client.1);
        client.start();
        assert_eq!(client.finish().failed, 0);
        server.start();
        server.finish();
        let (bytes, packets) = (lab.counted(host), lab.counted_packets(host));
        let truth = Traffic {
            send_bytes: bytes.both().0,
            receive_bytes: bytes.both().1,
            send_packets: packets.both().0,
            receive_packets: packets.both().1,
        };
        let own: &Maker = if host == Host::A { &client } else { &server };
        let (found, stats) = settled(&mut watch, own.pid());
        println!(
            "{engine:?}, {} {address} seen from {host:?}:\n  wire  {truth:?}\n  found {found:?}\n  {} frames of {} packets, {} bytes estimated, {} frames lost",
            self.client.0,
            stats.offloaded_frames,
            stats.offloaded_packets,
            stats.estimated_bytes,
            stats.lost_in_kernel
        );
        Outcome { truth, found, stats }
    }
}

/// The traffic of a process once it stands still; no other process has any.
fn settled(watch: &mut Watch, pid: i32) -> (Traffic, Stats) {
    let deadline = Instant::now() + PATIENCE;
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

fn is_near(found: u64, truth: u64) -> bool {
    found.abs_diff(truth) as f64 <= truth as f64 * TOLERANCE
}

/// Whether the hosts' offloads make frames of many packets that are seen from there.
fn on_wire(offloads: Offloads, test: impl FnOnce(&Lab) + Send) {
    with(|| Lab::on_wire(offloads), |lab| test(&lab));
}

fn exact(talk: &Talk, address: &str, host: Host, offloads: Offloads) {
    for engine in ENGINES {
        on_wire(offloads, |lab| {
            let Outcome { truth, found, stats } = talk.watched_from(lab, engine, address, host);
            assert!(truth.send_packets > 0 && truth.receive_packets > 0, "the wire has seen it");
            let is_right = is_near(found.send_bytes, truth.send_bytes)
                && is_near(found.receive_bytes, truth.receive_bytes)
                && is_near(found.send_packets, truth.send_packets)
                && is_near(found.receive_packets, truth.receive_packets);
            assert!(is_right, "found {found:?}, truth {truth:?}; {stats:?}");
            // The test means something only if such frames were there.
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
    requests_sent_v4_root: REQUESTS V4 seen from A, offloads On;
    requests_received_v6_root: REQUESTS V6 seen from B, offloads On;
    requests_without_offloads_v6_root: REQUESTS V6 seen from A, offloads Off;
    requests_received_without_offloads_v4_root: REQUESTS V4 seen from B, offloads Off;
}

/// Segments that are smaller than the MTU lets them be, which engine `pcap` cannot know.
struct Smaller {
    talk: Talk,
    /// The largest parts of the bytes and of the packets that may be missing, percent, as README states.
    missing: (f64, f64),
}

fn smaller(case: &Smaller, host: Host) {
    on_wire(Offloads::On, |lab| {
        let Outcome { truth, found, stats } = case.talk.watched_from(lab, Engine::Pcap, V4, host);
        let (way, bytes, packets) = match host {
            Host::A => {
                ("sent", (found.send_bytes, truth.send_bytes), (found.send_packets, truth.send_packets))
            }
            Host::B => (
                "received",
                (found.receive_bytes, truth.receive_bytes),
                (found.receive_packets, truth.receive_packets),
            ),
        };
        let missing = |(found, truth): (u64, u64)| (truth as f64 - found as f64) * 100.0 / truth as f64;
        let (bytes, packets) = (missing(bytes), missing(packets));
        println!("  missing of what was {way}: {bytes:.2} % of the bytes, {packets:.1} % of the packets");
        assert!(stats.offloaded_frames > 100, "{stats:?}");
        assert!(bytes > -0.1 && packets > -0.1, "never more than passed");
        assert!(bytes < case.missing.0 && packets < case.missing.1, "{bytes} % and {packets} % are missing");
    });
}

macro_rules! smaller {
    ($($name:ident: $protocol:literal segments of $segment:literal, $bytes:literal and $packets:literal, $host:ident;)*) => {
        $(#[test]
        fn $name() {
            let (server, client): (&'static [_], &'static [_]) = match $protocol {
                "tcp" => (&[("segment", $segment)], &[("bytes", 50_000_000)]),
                _ => (
                    &[("bytes", 20_000_000), ("merged", 1)],
                    &[("bytes", 20_000_000), ("rate", 10_000_000), ("segment", $segment), ("segments", 40)],
                ),
            };
            let talk = Talk {
                protocol: $protocol,
                server: (concat!($protocol, "-sink"), server),
                client: (concat!($protocol, "-source"), client),
            };
            smaller(&Smaller { talk, missing: ($bytes, $packets) }, Host::$host);
        })*
    };
}

smaller! {
    datagrams_of_1200_bytes_sent_root: "udp" segments of 1200, 1.0 and 20.0, A;
    datagrams_of_1200_bytes_received_root: "udp" segments of 1200, 1.0 and 20.0, B;
    datagrams_of_1472_bytes_sent_root: "udp" segments of 1472, 0.1 and 0.1, A;
    tcp_segments_of_1200_bytes_sent_root: "tcp" segments of 1200, 1.0 and 20.0, A;
    tcp_segments_of_536_bytes_received_root: "tcp" segments of 536, 10.0 and 70.0, B;
}
