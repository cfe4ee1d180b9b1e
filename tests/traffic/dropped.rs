//! Packets that the firewall or a queue drops on the way, and the engine that counts them.
//! `src/abi/README.md` states it.

use super::counting::{expect, me, on, socket};
use super::{V4, Watch, options, with_lab};
use capture::internals::config::Engine;
use capture_test_support::lab::{Host, Lab, nft, run};
use capture_test_support::requirements::left_out;
use std::time::Duration;

const DATAGRAMS: u64 = 50;
/// Payload of the dropped packets, and of those that pass.
const DROPPED: usize = 600;
const PASSED: usize = 100;
/// Ethernet, IPv4 and UDP.
const HEADERS: usize = 14 + 20 + 8;

/// A point on the way from host A to host B where packets to one port are dropped.
struct Place {
    host: Host,
    drop: fn(&Lab),
    /// True if engine `pcap` and engine `kernel`, respectively, count the dropped packets.
    counted: [bool; 2],
}

const DROPPED_PORT: u16 = 7060;
const PASSED_PORT: u16 = 7061;

fn drop_at(lab: &Lab, host: Host, family: &str, hook: &str) {
    let rules = format!(
        "table {family} dropping {{
           chain here {{
             type filter hook {hook} priority 0;
             udp dport {DROPPED_PORT} drop
           }}
         }}"
    );
    nft(lab.name(host), &rules);
}

/// Sends datagrams through such a point, with a session on the host that it is on, with each engine.
fn dropped(place: &Place) {
    for (engine, is_counted) in [Engine::Pcap, Engine::Kernel].into_iter().zip(place.counted) {
        with_lab(|lab| {
            (place.drop)(&lab);
            let mut watch = Watch::with(&lab, place.host, options(engine));
            if watch.session.stats_reader().read().engine != engine {
                left_out("engine kernel is unavailable");
                return;
            }
            let sender = socket(&lab, Host::A, "10.77.0.1:0");
            let receivers =
                [DROPPED_PORT, PASSED_PORT].map(|port| socket(&lab, Host::B, &format!("{V4}:{port}")));
            for _ in 0..DATAGRAMS {
                // The call returns the firewall's refusal as an error.
                let _ = sender.send_to(&[7; DROPPED], (V4, DROPPED_PORT));
                sender.send_to(&[7; PASSED], (V4, PASSED_PORT)).unwrap();
            }
            let passed = DATAGRAMS * (PASSED + HEADERS) as u64;
            let all = passed + DATAGRAMS * (DROPPED + HEADERS) as u64;
            let counted = if is_counted { all } else { passed };
            // With engine `kernel`, bytes that no process has read are pending.
            std::thread::sleep(Duration::from_millis(100));
            for receiver in &receivers {
                receiver.set_nonblocking(true).unwrap();
                while receiver.recv(&mut [0; 2048]).is_ok() {}
            }
            let expected = if place.host == Host::A { (me(), counted, 0) } else { (me(), 0, counted) };
            // A process that this one starts holds its sockets, too, for a moment.
            watch.wait_for_traffic(|traffic| !traffic.is_empty());
            expect(&mut watch, vec![expected]);
        });
    }
}

macro_rules! dropped {
    ($($name:ident: $host:ident, $drop:expr, pcap $pcap:literal, kernel $kernel:literal;)*) => {
        $(#[test]
        fn $name() {
            dropped(&Place { host: Host::$host, drop: $drop, counted: [$pcap, $kernel] });
        })*
    };
}

dropped! {
    by_the_firewall_on_output_root:
        A, |lab| drop_at(lab, Host::A, "inet", "output"), pcap false, kernel false;
    by_the_firewall_behind_the_routing_root:
        A, |lab| drop_at(lab, Host::A, "inet", "postrouting"), pcap false, kernel false;
    by_the_firewall_of_the_device_on_output_root:
        A, |lab| drop_at(lab, Host::A, "netdev", "egress device veth0"), pcap false, kernel true;
    by_a_queue_root: A, too_small_a_queue, pcap false, kernel true;
    by_the_firewall_of_the_device_on_input_root:
        B, |lab| drop_at(lab, Host::B, "netdev", "ingress device veth0"), pcap true, kernel false;
    by_the_firewall_before_the_routing_root:
        B, |lab| drop_at(lab, Host::B, "inet", "prerouting"), pcap true, kernel false;
    by_the_firewall_on_input_root:
        B, |lab| drop_at(lab, Host::B, "inet", "input"), pcap true, kernel false;
}

/// Adds a queue that does not accept packets as long as those that are to be dropped.
fn too_small_a_queue(lab: &Lab) {
    let limits = "rate 100mbit burst 400 limit 100000";
    on(lab, Host::A, || drop(run(&format!("tc qdisc add dev veth0 root tbf {limits}"))));
}

/// A program sends far more than a queue passes on: `pcap` counts the packets that have left the device,
/// `kernel` those that were sent.
#[test]
fn of_a_shaped_flood_each_engine_counts_its_part_root() {
    const FLOOD: u64 = 8000;
    const PORT: u16 = 7062;
    for engine in [Engine::Pcap, Engine::Kernel] {
        with_lab(|lab| {
            let limits = "rate 8mbit burst 8kb limit 16kb";
            on(&lab, Host::A, || drop(run(&format!("tc qdisc add dev veth0 root tbf {limits}"))));
            lab.count_port(Host::A, "udp", PORT);
            let mut watch = Watch::with(&lab, Host::A, options(engine));
            if watch.session.stats_reader().read().engine != engine {
                left_out("engine kernel is unavailable");
                return;
            }
            let sender = socket(&lab, Host::A, "10.77.0.1:0");
            let _receiver = socket(&lab, Host::B, &format!("{V4}:{PORT}"));
            for _ in 0..FLOOD {
                sender.send_to(&[7; DROPPED * 2], (V4, PORT)).unwrap();
            }
            let left = lab.counted(Host::A).both().0;
            let sent = FLOOD * (DROPPED * 2 + HEADERS) as u64;
            assert!(left > 0 && left < sent / 2, "{left} of {sent}");
            let counted = if engine == Engine::Pcap { left } else { sent };
            println!("{engine:?}: sent {sent}, left the device {left}, counted {counted}");
            expect(&mut watch, vec![(me(), counted, 0)]);
        });
    }
}
