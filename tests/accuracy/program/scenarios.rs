//! Every scenario: its ends, their traffic, the watched side, and the required result.

use super::engines::Engine;
use super::needs::Need;
use Address::{Loopback, Mapped, V4, V6};
use Side::{Both, Client, Container, Everywhere, Server};

/// The watched end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The client's host.
    Client,
    /// The server's host.
    Server,
    /// Both ends, which are on one host.
    Both,
    /// Both ends. The client's host is the machine itself, and the server is in a container on it.
    Container,
    /// Both ends of all pairs, all of which are in containers.
    Everywhere,
}

/// The kind of the server's address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Address {
    V4,
    V6,
    /// IPv4 over IPv6 sockets at both ends.
    Mapped,
    Loopback,
}

/// Returns the server's port. No other instance of this program uses it at the same time: a watcher of all
/// namespaces separates its traffic from others' by the port. The next port is left for idle connections. The
/// port is below those of clients.
fn port() -> u32 {
    1024 + std::process::id() % 4000 * 2
}

impl Address {
    /// Returns the address that the server is bound to. It is unspecified (except on loopback), as with most
    /// servers.
    pub fn bound(self) -> String {
        let address = match self {
            V4 => "0.0.0.0",
            V6 | Mapped => "[::]",
            Loopback => "127.0.0.1",
        };
        format!("{address}:{}", port())
    }

    /// Returns the address that the client sends to.
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

/// The property that identifies a scenario's packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    Tcp,
    Udp,
    /// UDP through a packet socket. The sender's nftables do not see it.
    Frames,
    Ping,
    Raw,
}

impl Protocol {
    /// Returns the nftables matches of packets to the server and from it.
    pub fn matches(self) -> [String; 2] {
        let port = port();
        match self {
            Protocol::Tcp => [format!("tcp dport {port}"), format!("tcp sport {port}")],
            Protocol::Udp | Protocol::Frames => [format!("udp dport {port}"), format!("udp sport {port}")],
            Protocol::Ping => ["icmp type echo-request", "icmp type echo-reply"].map(str::to_owned),
            Protocol::Raw => ["daddr", "saddr"].map(|which| format!("ip protocol 253 ip {which} 10.77.0.2")),
        }
    }

    /// Returns the same packets as a pcap-filter(7) expression.
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

/// The required result. Percentages are of the true bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Floor {
    /// The minimum share at the right process, for each end if both are watched.
    pub right: f64,
    /// The maximum share at wrong processes.
    pub wrong: f64,
    /// The maximum CPU time as a share of one core, percent.
    pub cpu: Option<f64>,
    /// The maximum CPU time for a packet, as a multiple of tcpdump's.
    pub tcpdump: Option<f64>,
    /// Set if no frame may be lost.
    pub lossless: bool,
    /// Set if bytes at a wrong process are excused when they are flagged as uncertain.
    pub flag_excuses: bool,
    /// Set if the bytes with and without an owner must not exceed the true bytes together.
    pub once: bool,
    /// The minimum share that is reported, with an owner or without. It may exceed the whole by as much as it
    /// may fall short of it.
    pub told: f64,
}

impl Floor {
    /// Returns a floor that limits only the right and wrong shares.
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

/// The minimum share at the right process if the kernel provides the owners.
const EXACT: f64 = 99.9;

/// One scenario.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: String,
    pub protocol: Protocol,
    pub address: Address,
    pub watched: Side,
    /// If `None`, nothing listens at the other end.
    pub server: Option<Role>,
    /// If `None`, the client is `ping`.
    pub client: Option<Role>,
    /// The number of other processes on the watched host.
    pub bystanders: u64,
    /// The number of pairs of hosts that have this traffic at the same time, all with the same addresses. 1
    /// unless `Everywhere`.
    pub pairs: usize,
    /// The feature that the kernel must have.
    pub need: Option<Need>,
    /// The floor of the portable engine; `None` if the result only informs.
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

    /// Returns the floor of an engine; `None` if the result only informs.
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

    /// Returns a scenario with this many connections a second from one living process.
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

/// Bytes a second of bulk traffic below the full rate: enough that CPU time is measurable.
const TCP_RATE: u64 = 200_000_000;
const UDP_RATE: u64 = 60_000_000;

/// Returns all scenarios in the order of the table.
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
    // Each conversation of 20 requests takes about 200 ms.
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

/// Returns the scenarios with many other connections or processes.
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
    // The local ports are the same too: only the namespace distinguishes the connections.
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
        // The system's clock is stepped repeatedly, by hours and by fractions of a second.
        Scenario::short("clock-steps", V4, Server, 50).needs(Need::Clock),
        Scenario::short("container", V4, Container, 100).floor(nothing_twice),
        Scenario::new("ping", Protocol::Ping, V4, Client).floor(each),
        Scenario::new("raw", Protocol::Raw, V4, Client)
            .server("raw-sink")
            .client("raw-source", &[("rate", 500_000)])
            .floor(each),
    ]
}
