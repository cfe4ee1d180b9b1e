//! Every scenario: who talks to whom about what, where it is watched, and what must come of it.

use super::engines::Engine;
use super::needs::Need;
use Address::{Loopback, Mapped, V4, V6};
use Side::{Both, Client, Container, Everywhere, Server};

/// Which end is watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The client's host.
    Client,
    /// The server's host.
    Server,
    /// Both ends, which are on one host.
    Both,
    /// Both ends: the client's host is the machine's own, and the server in a container of it.
    Container,
    /// Both ends of all pairs, all of which are in containers.
    Everywhere,
}

/// Under which address the server is spoken to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Address {
    V4,
    V6,
    /// IPv4, at both ends over sockets of IPv6.
    Mapped,
    Loopback,
}

/// The server's port, one that no other program of this kind uses at the same time: who watches all namespaces tells
/// its traffic from others' by it. The next port is left for idle connections. It is below those of clients.
fn port() -> u32 {
    1024 + std::process::id() % 4000 * 2
}

impl Address {
    /// Where the server is bound: to no address in particular, as most are.
    pub fn bound(self) -> String {
        let address = match self {
            V4 => "0.0.0.0",
            V6 | Mapped => "[::]",
            Loopback => "127.0.0.1",
        };
        format!("{address}:{}", port())
    }

    /// Where the client sends to.
    pub fn target(self) -> String {
        let address = match self {
            V4 => "10.77.0.2",
            V6 => "[fd77::2]",
            Mapped => "[::ffff:10.77.0.2]",
            Loopback => "127.0.0.1",
        };
        format!("{address}:{}", port())
    }
}

/// What the packets are told by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    Tcp,
    Udp,
    /// UDP by a packet socket: the sender's nftables do not see it.
    Frames,
    Ping,
    Raw,
}

impl Protocol {
    /// The nftables matches of packets to the server and from it.
    pub fn matches(self) -> [String; 2] {
        let port = port();
        match self {
            Protocol::Tcp => [format!("tcp dport {port}"), format!("tcp sport {port}")],
            Protocol::Udp | Protocol::Frames => [format!("udp dport {port}"), format!("udp sport {port}")],
            Protocol::Ping => ["icmp type echo-request", "icmp type echo-reply"].map(str::to_owned),
            Protocol::Raw => ["daddr", "saddr"].map(|which| format!("ip protocol 253 ip {which} 10.77.0.2")),
        }
    }

    /// The same packets in the words of pcap-filter(7).
    pub fn filter(self) -> String {
        match self {
            Protocol::Tcp => format!("tcp port {}", port()),
            Protocol::Udp => format!("udp port {}", port()),
            _ => panic!("no other is watched in all namespaces"),
        }
    }
}

/// A mode of the traffic maker with its numbers.
#[derive(Clone, Debug)]
pub struct Role {
    pub mode: &'static str,
    pub numbers: Vec<(&'static str, u64)>,
}

/// What must be true at the end. Percentages are of the true bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Floor {
    /// Least share at the right process; at each end where both are watched.
    pub right: f64,
    /// Largest share at wrong processes.
    pub wrong: f64,
    /// Largest CPU share of one core, percent.
    pub cpu: Option<f64>,
    /// Most CPU time for a packet in terms of that of tcpdump.
    pub tcpdump: Option<f64>,
    /// Whether not one frame may be lost.
    pub lossless: bool,
    /// Whether bytes at a wrong process are excused when flagged as not certain.
    pub flag_excuses: bool,
    /// Whether the bytes with and without an owner must not be more than the true ones together.
    pub once: bool,
    /// Least share that is told of, with an owner or without; it may be as far beyond the whole as it may lack of it.
    pub told: f64,
}

impl Floor {
    /// One for the shares that are right and wrong alone.
    pub const fn of(right: f64, wrong: f64) -> Floor {
        Floor {
            right,
            wrong,
            cpu: None,
            tcpdump: None,
            lossless: false,
            flag_excuses: false,
            once: false,
            told: 0.0,
        }
    }
}

/// The least share at the right process when the kernel itself tells the owners.
const EXACT: f64 = 99.9;

/// One scenario.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: String,
    pub protocol: Protocol,
    pub address: Address,
    pub watched: Side,
    /// Without one nothing listens at the other end.
    pub server: Option<Role>,
    /// Without one it is `ping`.
    pub client: Option<Role>,
    /// Other processes on the watched host.
    pub bystanders: u64,
    /// How many pairs of hosts, all with the same addresses, have this traffic at once; one unless `Everywhere`.
    pub pairs: usize,
    /// What the kernel must have for it.
    pub need: Option<Need>,
    /// What the portable engine must reach; none where the result only informs.
    pub portable: Option<Floor>,
}

impl Scenario {
    pub fn new(name: impl Into<String>, protocol: Protocol, address: Address, watched: Side) -> Scenario {
        Scenario {
            name: name.into(),
            protocol,
            address,
            watched,
            server: None,
            client: None,
            bystanders: 0,
            pairs: 1,
            need: None,
            portable: None,
        }
    }

    pub fn server(self, mode: &'static str) -> Scenario {
        self.server_with(mode, &[])
    }

    pub fn server_with(mut self, mode: &'static str, numbers: &[(&'static str, u64)]) -> Scenario {
        self.server = Some(Role { mode, numbers: numbers.to_vec() });
        self
    }

    pub fn client(mut self, mode: &'static str, numbers: &[(&'static str, u64)]) -> Scenario {
        self.client = Some(Role { mode, numbers: numbers.to_vec() });
        self
    }

    pub fn floor(mut self, floor: Floor) -> Scenario {
        self.portable = Some(floor);
        self
    }

    pub fn needs(mut self, need: Need) -> Scenario {
        self.need = Some(need);
        self
    }

    /// What an engine must reach; none where the result only informs.
    pub fn floor_of(&self, engine: Engine) -> Option<Floor> {
        if engine == Engine::Portable {
            return self.portable;
        }
        let portable = self.portable.unwrap_or(Floor::of(0.0, 0.0));
        let floor = Floor { right: EXACT, wrong: 0.0, flag_excuses: false, ..portable };
        Some(match engine.captures() {
            true => floor,
            // There are no packets to compare with tcpdump's.
            false => Floor { lossless: true, tcpdump: None, ..floor },
        })
    }

    /// Connections a second from one living process.
    fn short(name: impl Into<String>, address: Address, watched: Side, rate: u64) -> Scenario {
        let cpu = (rate == 500).then_some(10.0);
        let floor = Floor { right: 99.0, wrong: 0.1, cpu, lossless: rate == 2000, ..Floor::default() };
        Scenario::new(name, Protocol::Tcp, address, watched)
            .server("tcp-server")
            .client("tcp-clients", &[("rate", rate)])
            .floor(floor)
    }

    pub fn udp(name: &str, address: Address, watched: Side, numbers: &[(&'static str, u64)]) -> Scenario {
        Scenario::new(name, Protocol::Udp, address, watched)
            .server("udp-server")
            .client("udp-clients", numbers)
            .floor(Floor { right: 99.9, ..Floor::default() })
    }
}

/// Bytes a second of bulk traffic that is not at full rate: enough that CPU time can be told from none.
const TCP_RATE: u64 = 200_000_000;
const UDP_RATE: u64 = 60_000_000;

/// All of them, in the order of the table.
pub fn all() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(bulk());
    all.extend(short());
    for rate in [20, 100, 300] {
        let floor = Floor { right: 90.0, wrong: 0.1, ..Floor::default() };
        let scenario = Scenario::new(format!("processes-{rate}"), Protocol::Tcp, V4, Client);
        all.push(scenario.server("tcp-server").client("processes", &[("rate", rate)]).floor(floor));
    }
    all.extend(udp());
    all.extend(crowded());
    all.extend(particular());
    all.extend(super::uncommon::all());
    all
}

fn bulk() -> Vec<Scenario> {
    let mut all = Vec::new();
    for (label, protocol, rate) in [("tcp", Protocol::Tcp, TCP_RATE), ("udp", Protocol::Udp, UDP_RATE)] {
        let (sink, source) = match protocol {
            Protocol::Tcp => ("tcp-sink", "tcp-source"),
            _ => ("udp-sink", "udp-source"),
        };
        for (version, address) in [("v4", V4), ("v6", V6)] {
            for (direction, side) in [("send", Client), ("receive", Server)] {
                for (speed, rate) in [("", rate), ("-full", 0)] {
                    let name = format!("bulk-{label}-{version}-{direction}{speed}");
                    let floor = Floor { right: 99.9, tcpdump: Some(1.3), ..Floor::default() };
                    let scenario = Scenario::new(name, protocol, address, side);
                    all.push(scenario.server(sink).client(source, &[("rate", rate)]).floor(floor));
                }
            }
        }
    }
    all
}

fn short() -> Vec<Scenario> {
    let mut all = Vec::new();
    for (label, side) in [("short", Client), ("server", Server)] {
        for (suffix, address) in [("", V4), ("-v6", V6)] {
            for rate in [50, 500, 2000] {
                all.push(Scenario::short(format!("{label}-{rate}{suffix}"), address, side, rate));
            }
        }
        all.push(Scenario::short(format!("{label}-500-mapped"), Mapped, side, 500));
    }
    all
}

fn udp() -> Vec<Scenario> {
    // Each conversation of 20 questions takes about 200 ms.
    let quic = |connected| [("sockets", 200), ("length", 20), ("rate", 20_000), ("connected", connected)];
    let peers = [("sockets", 500), ("rate", 5000)];
    let informing = Scenario::udp("udp-short", V4, Client, &[("length", 1), ("rate", 100), ("datagram", 64)]);
    vec![
        Scenario::udp("udp-connected", V4, Client, &[("rate", 1000)]),
        Scenario::udp("udp-connected-v6", V6, Client, &[("rate", 1000)]),
        Scenario::udp("udp-unconnected", V4, Client, &[("rate", 1000), ("connected", 0)]),
        Scenario::udp("udp-unconnected-v6", V6, Client, &[("rate", 1000), ("connected", 0)]),
        Scenario::udp("udp-server", V4, Server, &peers),
        Scenario::udp("udp-server-v6", V6, Server, &peers),
        Scenario::udp("udp-server-mapped", Mapped, Server, &peers),
        Scenario::udp("quic-client", V4, Client, &quic(1)),
        Scenario::udp("quic-client-unconnected", V4, Client, &quic(0)),
        Scenario::udp("quic-server", V4, Server, &quic(1)),
        Scenario { portable: None, ..informing },
    ]
}

/// Many other connections, many other processes.
fn crowded() -> Vec<Scenario> {
    let mut all = Vec::new();
    for (name, side) in [("idle-20000-client", Client), ("idle-20000-server", Server)] {
        let floor = Floor { right: 99.0, wrong: 0.1, cpu: Some(15.0), ..Floor::default() };
        let scenario = Scenario::short(name, V4, side, 500);
        let idle = ("idle", 20_000);
        let scenario = scenario.server_with("tcp-server", &[idle]);
        all.push(scenario.client("tcp-clients", &[("rate", 500), idle]).floor(floor));
    }
    for bystanders in [2000, 10_000] {
        let floor = Floor { right: 99.0, wrong: 0.1, cpu: Some(20.0), ..Floor::default() };
        let scenario = Scenario::short(format!("others-{bystanders}"), V4, Client, 500);
        all.push(Scenario { bystanders, ..scenario.floor(floor) });
    }
    all
}

fn particular() -> Vec<Scenario> {
    let both_ends = Floor { right: 99.9, ..Floor::default() };
    let each = Floor { right: 99.0, ..Floor::default() };
    let prefork = Scenario::new("prefork", Protocol::Tcp, V4, Server)
        .server("prefork-server")
        .client("tcp-clients", &[("rate", 200)])
        .floor(Floor { flag_excuses: true, ..each });
    let nothing_twice = Floor { once: true, ..each };
    // The same local ports too: only the namespace tells the connections apart.
    let same = Scenario::short("same-addresses", V4, Everywhere, 100)
        .client("tcp-clients", &[("rate", 100), ("first-port", 20_000)])
        .floor(nothing_twice);
    vec![
        Scenario::new("loopback-bulk", Protocol::Tcp, Loopback, Both)
            .server("tcp-sink")
            .client("tcp-source", &[("rate", 20_000_000)])
            .floor(both_ends),
        Scenario::short("loopback-short", Loopback, Both, 100).floor(both_ends),
        prefork,
        Scenario { pairs: 2, ..same },
        // The system's clock is set again and again, by hours and by fractions of a second.
        Scenario::short("clock-steps", V4, Server, 50).needs(Need::Clock),
        Scenario::short("container", V4, Container, 100).floor(nothing_twice),
        Scenario::new("ping", Protocol::Ping, V4, Client).floor(each),
        Scenario::new("raw", Protocol::Raw, V4, Client)
            .server("raw-sink")
            .client("raw-source", &[("rate", 500_000)])
            .floor(each),
    ]
}
