//! Plays one scenario: hosts, processes, traffic, a watcher, and the result.

use super::clock::Steps;
use super::cpu;
use super::engines::Engine;
use super::judge::{Bytes, End, Verdict, judge};
use super::needs::{FAST_OPEN, Need};
use super::probes::Probes;
use super::scenarios::{Address, Floor, Protocol, Role, Scenario, Side};
use super::watcher::{Kind, Place, Sighting, Watcher};
use capture_test_support::lab::{Host, Lab, Maker, Moved, Offloads, Report};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Time between two packets of `ping`, seconds.
const PING_INTERVAL: f64 = 0.01;

/// A row of the table and the details behind it.
pub struct Outcome {
    pub scenario: String,
    pub watcher: Kind,
    pub verdict: Verdict,
    pub sighting: Sighting,
    /// CPU time of the whole process and of its eBPF programs as a share of a core, from the first packet
    /// until everything was reported, percent.
    pub cpu: f64,
    /// CPU time of each thread as a share of a core, percent.
    pub threads: Vec<(String, f64)>,
    /// CPU time for each packet, nanoseconds.
    pub packet_cost: f64,
    /// The part of it that does not depend on packets; see [`FIXED`].
    pub fixed_cost: f64,
    /// CPU time of tcpdump for each packet of the same kind of traffic, nanoseconds.
    pub tcpdump_cost: Option<f64>,
    /// Connections, sockets or processes.
    pub connections: u64,
    /// The number of those that failed.
    pub failed: u64,
    /// Their number a second, if there was more than one.
    pub rate: Option<f64>,
    pub floor: Option<Floor>,
}

/// The client of a scenario.
enum Client {
    Maker(Maker),
    Ping(Command, Option<Child>),
}

impl Client {
    fn start(&mut self) {
        match self {
            Client::Maker(maker) => maker.start(),
            Client::Ping(command, child) => *child = Some(command.spawn().unwrap()),
        }
    }

    fn finish(&mut self) -> Report {
        let began = Instant::now();
        match self {
            Client::Maker(maker) => maker.finish(),
            Client::Ping(_, child) => {
                assert!(child.as_mut().unwrap().wait().unwrap().success(), "ping has its answers");
                let moved = Moved { pid: self.pid(), connections: 1, sent: 0, received: 0 };
                Report { payload: 0, took: began.elapsed(), failed: 0, processes: vec![moved] }
            }
        }
    }

    fn pid(&self) -> i32 {
        match self {
            Client::Maker(maker) => maker.pid(),
            Client::Ping(_, child) => child.as_ref().map_or(0, |child| child.id() as i32),
        }
    }

    fn into_maker(self) -> Option<Maker> {
        match self {
            Client::Maker(maker) => Some(maker),
            Client::Ping(..) => None,
        }
    }
}

/// A pair of hosts with everything on them.
struct Pair {
    lab: Lab,
    server: Option<Maker>,
    bystanders: Option<Maker>,
    client: Client,
}

/// The share of a core that the library may take in addition to its work for each packet, and that tcpdump
/// does not need. Sampling some hundred processes once a second takes half of it, and waking up 20 times a
/// second the rest.
const FIXED: f64 = 0.002;

/// Returns true if this watcher can see anything of a scenario.
pub fn suits(scenario: &Scenario, kind: Kind) -> bool {
    scenario.watched != Side::Everywhere || matches!(kind, Kind::Library(_))
}

/// Plays a scenario for this time.
pub fn play(scenario: &Scenario, kind: Kind, length: Duration) -> Outcome {
    let mut pairs: Vec<Pair> = (0..scenario.pairs).map(|_| Pair::set_up(scenario, length)).collect();
    let probes = loads_probes(kind).then(|| Probes::measure().unwrap());
    let mut watcher = Watcher::start(kind, &place(scenario, &pairs[0].lab));
    let pid = watcher.pid();
    let before = cpu::seconds(pid).unwrap_or(0.0);
    let probed =
        || probes.as_ref().map_or(0.0, |probes| probes.seconds(pid).expect("the monitor has probes"));
    let probed_before = probed();
    let threads_before = cpu::by_thread(pid);
    let began = Instant::now();
    let steps = (scenario.need == Some(Need::Clock)).then(Steps::start);
    pairs.iter_mut().for_each(|pair| pair.client.start());
    let asked: Vec<Report> = pairs.iter_mut().map(|pair| pair.client.finish()).collect();
    watcher.settle();
    drop(steps);
    let in_kernel = probed() - probed_before;
    let used = cpu::seconds(pid).unwrap_or(before) - before + in_kernel;
    let lasted = began.elapsed().as_secs_f64();
    let share = 100.0 / lasted;
    let mut threads: Vec<(String, f64)> = cpu::by_thread(pid)
        .into_iter()
        .map(|(name, after)| {
            let before = threads_before.get(&name).unwrap_or(&0.0);
            (name, (after - before) * share)
        })
        .collect();
    threads.extend(probes.iter().map(|_| ("probes".to_owned(), in_kernel * share)));
    let client = pairs[0].client.pid();
    let ends: Vec<End> =
        pairs.iter_mut().zip(&asked).flat_map(|(pair, own)| pair.ends(scenario, own)).collect();
    let mut sighting = watcher.finish(client);
    if sees_others(scenario, kind) {
        sighting.forget_others();
    }
    if is_everywhere(scenario) {
        sighting.forget_passing();
    }
    // Processes keep their sockets open until now.
    pairs.into_iter().for_each(Pair::end);
    let failed = asked.iter().map(|report| report.failed).sum();
    let connections: u64 = asked.iter().flat_map(|report| &report.processes).map(|own| own.connections).sum();
    let took = asked.iter().map(|report| report.took).max().unwrap_or(length);
    Outcome {
        scenario: scenario.name.clone(),
        watcher: kind,
        verdict: judge(&ends, &sighting.said),
        cpu: used * share,
        threads,
        packet_cost: used * 1e9 / sighting.packets.max(1) as f64,
        fixed_cost: FIXED * lasted * 1e9 / sighting.packets.max(1) as f64,
        sighting,
        tcpdump_cost: None,
        connections,
        failed,
        rate: (connections > scenario.pairs as u64).then(|| connections as f64 / took.as_secs_f64()),
        floor: match kind {
            Kind::Library(engine) => scenario.floor_of(engine),
            _ => None,
        },
    }
}

fn loads_probes(kind: Kind) -> bool {
    matches!(kind, Kind::Library(Engine::Owners | Engine::Kernel))
}

/// Returns true if traffic of processes outside this program is seen: all namespaces, without a filter.
fn sees_others(scenario: &Scenario, kind: Kind) -> bool {
    is_everywhere(scenario) && matches!(kind, Kind::Library(engine) if !engine.captures())
}

/// Returns true if all namespaces are watched, including the wire between the hosts.
fn is_everywhere(scenario: &Scenario) -> bool {
    matches!(scenario.watched, Side::Container | Side::Everywhere)
}

/// Returns the hosts. TCP goes over a wire, because the hosts' own counters see it before segmentation and
/// after merging. Other traffic of the scenarios is no larger than a packet, and a flood of it would overflow
/// the queues between the counters.
fn hosts(scenario: &Scenario) -> Lab {
    match scenario.protocol == Protocol::Tcp && scenario.address != Address::Loopback {
        true => Lab::on_wire(Offloads::On),
        false => Lab::new(),
    }
}

/// Returns the place of a scenario's watcher.
fn place<'a>(scenario: &Scenario, lab: &'a Lab) -> Place<'a> {
    match scenario.watched {
        Side::Client => Place::Device(lab, Host::A, "veth0"),
        Side::Server => Place::Device(lab, Host::B, "veth0"),
        Side::Both => Place::Device(lab, Host::A, "lo"),
        Side::Container => Place::HostAndAll(lab, Host::A, scenario.protocol.filter()),
        Side::Everywhere => Place::All(scenario.protocol.filter()),
    }
}

impl Pair {
    fn set_up(scenario: &Scenario, length: Duration) -> Pair {
        let lab = hosts(scenario);
        let server_host = if scenario.address == Address::Loopback { Host::A } else { Host::B };
        for host in [Host::A, Host::B] {
            lab.allow_many_connections(host);
            if scenario.need == Some(Need::FastOpen) {
                lab.set(host, FAST_OPEN.0, FAST_OPEN.1);
            }
        }
        let (bound, target) = match scenario.protocol {
            Protocol::Raw => ("-".to_owned(), "10.77.0.2:0".to_owned()),
            _ => (scenario.address.bound(), scenario.address.target()),
        };
        let server = scenario.server.as_ref().map(|role| maker(&lab, server_host, role, &bound, length));
        let bystanders = (scenario.bystanders > 0).then(|| {
            let host = if scenario.watched == Side::Server { Host::B } else { Host::A };
            let role = Role { mode: "bystanders", numbers: vec![("count", scenario.bystanders)] };
            maker(&lab, host, &role, "-", length)
        });
        let client = scenario.client.as_ref().map(|role| maker(&lab, Host::A, role, &target, length));
        // Counting starts here, before any traffic: the packets of the preparation do not count.
        let [to_server, from_server] = scenario.protocol.matches();
        for host in [Host::A, Host::B] {
            lab.count(host, &to_server, &from_server);
        }
        let client = client.map_or_else(|| Client::Ping(ping(&lab, length), None), Client::Maker);
        Pair { lab, server, bystanders, client }
    }

    /// Returns the watched ends with their true figures.
    fn ends(&mut self, scenario: &Scenario, asked: &Report) -> Vec<End> {
        let counted = [Host::A, Host::B].map(|host| self.lab.counted(host));
        let answered = self.server.as_mut().map(|server| {
            server.start();
            server.finish()
        });
        let at_client = counted[0];
        let at_server = counted[usize::from(scenario.watched != Side::Both)];
        let mut ends = Vec::new();
        if scenario.watched != Side::Server {
            let sent = match scenario.protocol {
                // Frames are counted where they arrive.
                Protocol::Frames => counted[1].in_to,
                _ => at_client.out_to,
            };
            ends.push(end((sent, at_client.in_from), asked));
        }
        if let (false, Some(answered)) = (scenario.watched == Side::Client, answered) {
            ends.push(end((at_server.out_from, at_server.in_to), &answered));
        }
        ends
    }

    /// Ends all processes.
    fn end(self) {
        let makers = [self.server, self.bystanders, self.client.into_maker()];
        makers.into_iter().flatten().for_each(|mut maker| maker.end());
    }
}

/// Returns one end. The truth must be at least the payload that the processes have counted themselves.
fn end(truth: Bytes, report: &Report) -> End {
    let sum = |payload: fn(&Moved) -> u64| report.processes.iter().map(payload).sum::<u64>();
    let (sent, received) = (sum(|own| own.sent), sum(|own| own.received));
    assert!(
        truth.0 >= sent && truth.1 >= received,
        "payload sent {sent} and received {received}, but nftables counted {truth:?}"
    );
    End::of(truth, &report.processes)
}

/// Starts a traffic maker in a role, named after its pid.
fn maker(lab: &Lab, host: Host, role: &Role, address: &str, length: Duration) -> Maker {
    let mut numbers = role.numbers.clone();
    numbers.extend([("milliseconds", length.as_millis() as u64), ("named", 1)]);
    lab.maker(host, role.mode, address, &numbers)
}

/// Returns a `ping` command for this time.
fn ping(lab: &Lab, length: Duration) -> Command {
    let count = (length.as_secs_f64() / PING_INTERVAL) as u64;
    let mut command = lab.command(Host::A, "ping");
    command.args(["-q", "-i", &PING_INTERVAL.to_string(), "-c", &count.to_string(), "10.77.0.2"]);
    command.stdout(Stdio::null());
    command
}
