//! Plays one scenario: hosts, processes and traffic, a watcher beside them, and what came of it.

use super::cpu;
use super::judge::{Bytes, End, Verdict, judge};
use super::lab::{Counted, Host, Lab, Maker, Moved, Report};
use super::scenarios::{Address, Floor, Protocol, Role, Scenario, Side};
use super::watcher::{Kind, Sighting, Watcher};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Time between two packets of `ping`, seconds.
const PING_INTERVAL: f64 = 0.01;

/// A figure for the table and what lies behind it.
pub struct Outcome {
    pub scenario: String,
    pub watcher: &'static str,
    pub verdict: Verdict,
    pub sighting: Sighting,
    /// CPU time as a share of a core, percent.
    pub cpu: f64,
    /// CPU time of each thread as such a share.
    pub threads: Vec<(String, f64)>,
    /// CPU time of capturing for each packet, without that of sampling processes, nanoseconds.
    pub packet_cost: f64,
    /// That of tcpdump on the same kind of traffic.
    pub tcpdump_cost: Option<f64>,
    /// Connections, sockets or processes a second, where there was more than one.
    pub rate: Option<f64>,
    pub floor: Option<Floor>,
}

/// Who asks.
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
                Report { payload: 0, took: began.elapsed(), processes: vec![moved] }
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

/// A pair of hosts with all that is on them.
struct Pair {
    lab: Lab,
    host: Host,
    server: Option<Maker>,
    bystanders: Option<Maker>,
    client: Client,
    watcher: Watcher,
}

/// Plays a scenario for so long.
pub fn play(scenario: &Scenario, kind: Kind, length: Duration) -> Outcome {
    let mut pairs: Vec<Pair> = (0..scenario.pairs).map(|_| Pair::set_up(scenario, kind, length)).collect();
    let sum =
        |of: fn(i32) -> f64, pairs: &[Pair]| pairs.iter().map(|pair| of(pair.watcher.pid())).sum::<f64>();
    // What capturing takes: the library's first thread is that of its user, which samples the processes.
    let capturing = if kind == Kind::Library { cpu::seconds_beside_first } else { cpu::seconds };
    let (before, capturing_before) = (sum(cpu::seconds, &pairs), sum(capturing, &pairs));
    let threads_before = cpu::by_thread(pairs[0].watcher.pid());
    let began = Instant::now();
    pairs.iter_mut().for_each(|pair| pair.client.start());
    let asked: Vec<Report> = pairs.iter_mut().map(|pair| pair.client.finish()).collect();
    let lasted = began.elapsed().as_secs_f64();
    let used = sum(cpu::seconds, &pairs) - before;
    let used_capturing = sum(capturing, &pairs) - capturing_before;
    let share = 100.0 / lasted;
    let threads = cpu::by_thread(pairs[0].watcher.pid())
        .into_iter()
        .map(|(name, after)| {
            let before = threads_before.get(&name).unwrap_or(&0.0);
            (name, (after - before) * share)
        })
        .collect();
    let connections: u64 = asked.iter().flat_map(|report| &report.processes).map(|own| own.connections).sum();
    let took = asked.iter().map(|report| report.took).max().unwrap_or(length);
    let mut verdict = Verdict { least_right: 100.0, ..Verdict::default() };
    let mut all = Sighting { lost: Some(0), ..Sighting::default() };
    for (pair, asked) in pairs.into_iter().zip(asked) {
        let (own, sighting) = pair.judged(scenario, &asked);
        verdict.truth += own.truth;
        verdict.right += own.right;
        verdict.wrong += own.wrong;
        verdict.wrong_unflagged += own.wrong_unflagged;
        verdict.least_right = verdict.least_right.min(own.least_right);
        all.add(sighting);
    }
    let packets = all.packets.max(1);
    Outcome {
        scenario: scenario.name.clone(),
        watcher: kind.name(),
        verdict,
        sighting: all,
        cpu: used * share,
        threads,
        packet_cost: used_capturing * 1e9 / packets as f64,
        tcpdump_cost: None,
        rate: (connections > scenario.pairs as u64).then(|| connections as f64 / took.as_secs_f64()),
        floor: scenario.floor,
    }
}

impl Sighting {
    /// Adds what another watcher of the same scenario has said of other processes.
    fn add(&mut self, other: Sighting) {
        self.said.extend(other.said);
        for (reason, bytes) in other.unowned {
            match self.unowned.iter_mut().find(|(known, _)| *known == reason) {
                Some((_, sum)) => *sum += bytes,
                None => self.unowned.push((reason, bytes)),
            }
        }
        self.flagged += other.flagged;
        self.packets += other.packets;
        self.lost = self.lost.zip(other.lost).map(|(one, another)| one + another);
        self.hangs |= other.hangs;
        self.note.push_str(&other.note);
    }
}

impl Pair {
    fn set_up(scenario: &Scenario, kind: Kind, length: Duration) -> Pair {
        let lab = Lab::new();
        let is_local = scenario.address == Address::Loopback;
        let server_host = if is_local { Host::A } else { Host::B };
        let host = if scenario.watched == Side::Server { Host::B } else { Host::A };
        for host in [Host::A, Host::B] {
            lab.allow_many_connections(host);
        }
        let bound = if scenario.protocol == Protocol::Raw { "-" } else { scenario.address.bound() };
        let server = scenario.server.as_ref().map(|role| maker(&lab, server_host, role, bound, length));
        let bystanders = (scenario.bystanders > 0).then(|| {
            let role = Role { mode: "bystanders", numbers: vec![("count", scenario.bystanders)] };
            maker(&lab, host, &role, "-", length)
        });
        let target =
            if scenario.protocol == Protocol::Raw { "10.77.0.2:0" } else { scenario.address.target() };
        let client = scenario.client.as_ref().map(|role| maker(&lab, Host::A, role, target, length));
        // Counted is from here on, when nothing moves: what was needed to get here is not part of the traffic.
        let [to_server, from_server] = scenario.protocol.matches();
        lab.count(host, to_server, from_server);
        // When sessions can tap other namespaces, too, one watcher of the machine's own namespace takes the place of
        // a watcher in each.
        let watcher = Watcher::start(kind, &lab, host, if is_local { "lo" } else { "veth0" });
        let client = client.map_or_else(|| Client::Ping(ping(&lab, length), None), Client::Maker);
        Pair { lab, host, server, bystanders, client, watcher }
    }

    /// Ends everything, and compares.
    fn judged(mut self, scenario: &Scenario, asked: &Report) -> (Verdict, Sighting) {
        let answered = self.server.as_mut().map(|server| {
            server.start();
            server.finish()
        });
        let counted = self.lab.counted(self.host);
        let sighting = self.watcher.finish(self.client.pid());
        let ends = ends(scenario, counted, asked, answered.as_ref());
        // What processes hold open is closed only now.
        let makers = [self.server, self.bystanders, self.client.into_maker()];
        makers.into_iter().flatten().for_each(|mut maker| maker.end());
        (judge(&ends, &sighting.said), sighting)
    }
}

/// The ends on the watched host, with what is true of them.
fn ends(scenario: &Scenario, counted: Counted, asked: &Report, answered: Option<&Report>) -> Vec<End> {
    let mut ends = Vec::new();
    if scenario.watched != Side::Server {
        ends.push(end((counted.out_to, counted.in_from), asked));
    }
    if let (Side::Server | Side::Both, Some(answered)) = (scenario.watched, answered) {
        ends.push(end((counted.out_from, counted.in_to), answered));
    }
    ends
}

/// One end; the truth must go with the payload that the processes have counted themselves.
fn end(truth: Bytes, report: &Report) -> End {
    let sum = |payload: fn(&Moved) -> u64| report.processes.iter().map(payload).sum::<u64>();
    let (sent, received) = (sum(|own| own.sent), sum(|own| own.received));
    assert!(
        truth.0 >= sent && truth.1 >= received,
        "payload sent {sent} and received {received}, but nftables counted {truth:?}"
    );
    let connections = report.processes.iter().filter(|own| own.connections > 0);
    End { truth, connections: connections.map(|own| (own.pid, own.connections)).collect() }
}

/// A traffic maker in a role, called by its pid.
fn maker(lab: &Lab, host: Host, role: &Role, address: &str, length: Duration) -> Maker {
    let mut numbers = role.numbers.clone();
    numbers.extend([("milliseconds", length.as_millis() as u64), ("named", 1)]);
    lab.maker(host, role.mode, address, &numbers)
}

/// `ping` for so long.
fn ping(lab: &Lab, length: Duration) -> Command {
    let count = (length.as_secs_f64() / PING_INTERVAL) as u64;
    let mut command = lab.command(Host::A, "ping");
    command.args(["-q", "-i", &PING_INTERVAL.to_string(), "-c", &count.to_string(), "10.77.0.2"]);
    command.stdout(Stdio::null());
    command
}
