//! Rates over a minute and more of steady traffic, read through Prometheus' HTTP interface: of each process
//! and direction, of hosts, and of all. Three hosts with a collectd each, one for each engine, and one
//! Prometheus.

use crate::daemon::Collectd;
use crate::prometheus::Prometheus;
use crate::site::{Place, Site};
use crate::{Comparison, Reading, all_within_two_percent, snippets, with_daemons};
use capture_test_support::lab::Maker;
use capture_test_support::requirements::requires_all;
use std::thread::sleep;
use std::time::Duration;

/// The hosts' engines, which are also the hosts' names.
const ENGINES: [&str; 3] = ["pcap", "kernel", "auto"];

/// The time over which rates are measured.
const WINDOW: Duration = Duration::from_secs(62);

/// The duration of the traffic.
const TRAFFIC_MS: u64 = 74_000;

/// The names of the processes that make the traffic, as they are reported. Two of them are called `worker`.
const NAMES: [&str; 6] = ["uploader", "downloader", "resolver", "caller", "web", "worker"];

const SENT: &str = "collectd_capture_network_bytes_send_total";
const DIRECTIONS: [(&str, &str); 2] =
    [(SENT, "sent"), ("collectd_capture_network_bytes_receive_total", "received")];

/// Makers of a host's traffic. Clients end first, so that no client loses its server.
struct Traffic {
    clients: Vec<Maker>,
    #[expect(dead_code, reason = "they serve as long as they are held")]
    servers: Vec<Maker>,
}

/// Starts the makers of a host's traffic. Each host has the same processes, at rates of its own.
fn traffic(site: &Site, number: usize) -> Traffic {
    let (host, hub, factor) = (Place::Host(number), Place::Hub, number as u64);
    let at_hub = |port: u16| format!("10.78.{number}.1:{port}");
    let at_host = |port: u16| format!("10.78.{number}.2:{port}");
    let lasting = ("milliseconds", TRAFFIC_MS);
    let tcp = |rate: u64| [("rate", rate * factor), lasting];
    let mut matches = vec![("all", "meta l4proto { tcp, udp }".to_owned())];
    for (name, ports) in NAMES.iter().zip(["7001", "7002", "7003", "7004", "7005", "{ 7006, 7007 }"]) {
        matches.push((name, format!("th dport {ports}")));
        matches.push((name, format!("th sport {ports}")));
    }
    let matches: Vec<_> = matches.iter().map(|(name, is)| (*name, is.as_str())).collect();
    site.count(Place::Wire(number), &matches);
    let servers = vec![
        site.maker(hub, "peer", "tcp-sink", &at_hub(7001), &[]),
        site.maker(host, "downloader", "tcp-sink", &at_host(7002), &[]),
        site.maker(hub, "peer", "udp-server", &at_hub(7003), &[]),
        site.maker(hub, "peer", "tcp-server", &at_hub(7004), &[]),
        site.maker(host, "web", "tcp-server", &at_host(7005), &[]),
        site.maker(hub, "peer", "udp-sink", &at_hub(7006), &[]),
        site.maker(host, "worker", "udp-sink", &at_host(7007), &[]),
    ];
    let clients = vec![
        site.maker(host, "uploader", "tcp-source", &at_hub(7001), &tcp(300_000)),
        site.maker(hub, "peer", "tcp-source", &at_host(7002), &tcp(400_000)),
        site.maker(host, "resolver", "udp-clients", &at_hub(7003), &[("rate", 100 * factor), lasting]),
        site.maker(host, "caller", "tcp-clients", &at_hub(7004), &[("rate", 10 * factor), lasting]),
        site.maker(hub, "peer", "tcp-clients", &at_host(7005), &[("rate", 8 * factor), lasting]),
        site.maker(host, "worker", "udp-source", &at_hub(7006), &[("rate", 40_000 * factor), lasting]),
        site.maker(hub, "peer", "udp-source", &at_host(7007), &[("rate", 60_000), lasting]),
    ];
    Traffic { clients, servers }
}

/// Reads the nftables counters of each name at each host, in the order of the hosts.
fn read(site: &Site) -> Vec<Vec<(&'static str, Reading)>> {
    let names = || NAMES.into_iter().chain(["all"]).map(|name| (name, Reading::of(name))).collect();
    let numbered = ENGINES.iter().zip(1..);
    numbered.map(|(_, number)| site.at(Place::Wire(number), names)).collect()
}

#[test]
fn rates_of_processes_hosts_and_all_are_those_of_nftables_with_every_engine_root() {
    with_daemons(|| all_within_two_percent(&measured()));
}

fn measured() -> Vec<Comparison> {
    let site = Site::new(ENGINES.len());
    let mut traffic: Vec<Traffic> = (1..=ENGINES.len()).map(|number| traffic(&site, number)).collect();
    let agents: Vec<Collectd> = ENGINES
        .iter()
        .enumerate()
        .map(|(index, engine)| {
            let changes = [("Engine \"auto\" ", &*format!("Engine \"{engine}\" "))];
            Collectd::start(&site, Place::Host(index + 1), engine, 1, &[snippets::capture(1, &changes)])
        })
        .collect();
    let targets: Vec<String> = (1..=ENGINES.len()).map(|number| format!("10.78.{number}.2")).collect();
    let prometheus = Prometheus::start(&site, &targets, 1);
    let hosts = format!("count(count by (instance) ({SENT})) == {}", ENGINES.len());
    prometheus.wait_for(&hosts);

    for (engine, agent) in ENGINES.iter().zip(&agents) {
        // Only the pcap engine captures on devices. If eBPF programs cannot be loaded, all engines are pcap.
        let is_pcap = agent.log().contains("capturing on ");
        println!("{engine}: {} counts", if is_pcap { "pcap" } else { "the kernel" });
        assert!(is_pcap == (*engine == "pcap") || !requires_all(), "{}", agent.log());
    }

    traffic.iter_mut().flat_map(|traffic| &mut traffic.clients).for_each(Maker::start);
    sleep(Duration::from_secs(5));
    let before = read(&site);
    sleep(WINDOW);
    let after = read(&site);
    // Prometheus needs this time to fetch the last samples of the window.
    sleep(Duration::from_secs(3));

    let mut compared = Vec::new();
    let mut sums = [0.0; 2];
    for ((engine, before), after) in ENGINES.iter().zip(&before).zip(&after) {
        for ((name, before), (_, after)) in before.iter().zip(after) {
            let length = after.at.duration_since(before.at).unwrap();
            let truths = [after.sent - before.sent, after.received - before.received];
            for (direction, &truth) in truths.iter().enumerate() {
                let (metric, way) = DIRECTIONS[direction];
                // Bare acknowledgements are sent when the receiver gets to run, not at a steady rate.
                if truth < truths[1 - direction] / 100 {
                    continue;
                }
                let is_host = *name == "all";
                let selector = match is_host {
                    true => format!("{metric}{{instance=\"{engine}\"}}"),
                    false => format!("{metric}{{instance=\"{engine}\",capture=\"{name}\"}}"),
                };
                let value = |function: &str| {
                    let expression = format!("sum({function}({selector}[{}ms]))", length.as_millis());
                    prometheus.value_at(&expression, after.at)
                };
                let rate = truth as f64 / length.as_secs_f64();
                let what = format!("{engine} {name} {way}");
                compared.push(Comparison::new(format!("{what}, B/s"), rate, value("rate")));
                compared.push(Comparison::new(format!("{what}, B"), truth as f64, value("increase")));
                sums[direction] += if is_host { rate } else { 0.0 };
            }
        }
    }
    let (at, length) = (after[0][0].1.at, WINDOW.as_secs());
    for ((metric, way), sum) in DIRECTIONS.into_iter().zip(sums) {
        let found = prometheus.value_at(&format!("sum(rate({metric}[{length}s]))"), at);
        compared.push(Comparison::new(format!("all hosts {way} B/s"), sum, found));
    }
    rules_are_at_work(&prometheus);
    for agent in agents {
        agent.stop();
    }
    compared
}

/// Checks that every series that the rules use exists, that each rate that they record has a value, and that
/// no alert is raised.
fn rules_are_at_work(prometheus: &Prometheus) {
    let rules = snippets::changed("rules.yml", &[]);
    let words = rules.split(|char: char| !char.is_ascii_alphanumeric() && !"_:".contains(char));
    for name in words.filter(|word| word.starts_with("collectd_") || word.contains(":capture_")) {
        assert!(!prometheus.query(name).is_empty(), "{name} has no value");
    }
    let alerts = prometheus.query("ALERTS");
    assert!(alerts.is_empty(), "{alerts:?}");
}
