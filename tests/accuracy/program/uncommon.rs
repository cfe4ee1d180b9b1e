//! Scenarios that use sockets in uncommon ways.

use super::needs::Need;
use super::scenarios::Address::V4;
use super::scenarios::Side::{Client, Server};
use super::scenarios::{Floor, Protocol, Scenario, Side};

/// The floor of the portable engine if the kernel's tables show which process holds a socket.
const USUAL: Floor = Floor::of(99.0, 0.0);

/// The floor of the portable engine if nothing of a socket's use is visible from outside: it reports all
/// bytes, and none twice. A packet socket's bytes are in no table. A passed socket belongs to the acceptor or
/// the worker, depending on which of them the first lookup, at a connection of a millisecond, happens to
/// find.
const UNSEEN: Floor = Floor { told: 99.9, ..Floor::of(0.0, 100.0) };

/// Bytes a second over one connection, and connections a second.
const RATE: u64 = 20_000_000;
const CONNECTIONS: u64 = 100;

/// Returns a scenario of short connections, each over a new socket.
fn connections(name: &str, watched: Side, server: &'static str, client: &'static str) -> Scenario {
    let scenario = Scenario::new(name, Protocol::Tcp, V4, watched);
    scenario.server(server).client(client, &[("rate", CONNECTIONS)]).floor(USUAL)
}

pub fn all() -> Vec<Scenario> {
    let echoed = ("request", 8192);
    let mut all = vec![
        Scenario::new("sendfile", Protocol::Tcp, V4, Client)
            .server("tcp-sink")
            .client("sendfile-source", &[("rate", RATE)])
            .floor(Floor { right: 99.9, ..USUAL }),
        connections("splice", Server, "splice-server", "tcp-clients").client(
            "tcp-clients",
            &[("rate", CONNECTIONS), ("client-closes", 1), echoed, ("response", echoed.1)],
        ),
        connections("io-uring-client", Client, "tcp-server", "uring-clients").needs(Need::IoUring),
        connections("io-uring-server", Server, "uring-server", "tcp-clients").needs(Need::IoUring),
        connections("io-uring-polled", Server, "uring-server", "tcp-clients")
            .server_with("uring-server", &[("polled", 1)])
            .needs(Need::IoUring),
        connections("peek-tcp", Server, "peek-server", "tcp-clients"),
        Scenario::udp("peek-udp", V4, Server, &[("rate", 1000), ("sockets", 50)])
            .server_with("udp-server", &[("peek", 1)]),
        Scenario::new("packet-socket", Protocol::Frames, V4, Client)
            .server("udp-sink")
            .client("frame-source", &[("rate", 1_200_000)])
            .floor(Floor { wrong: 0.0, ..UNSEEN }),
    ];
    for (name, side) in [("mmsg-client", Client), ("mmsg-server", Server)] {
        let scenario = Scenario::udp(name, V4, side, &[]);
        all.push(scenario.server("batch-server").client("batch-clients", &[("rate", 4000)]));
    }
    for (name, acceptor) in [("passed", 0), ("passed-kept", 1), ("passed-exit", 2)] {
        let scenario = connections(name, Server, "passing-server", "tcp-clients");
        all.push(scenario.server_with("passing-server", &[("acceptor", acceptor)]).floor(UNSEEN));
    }
    for (name, side) in [("fast-open-client", Client), ("fast-open-server", Server)] {
        let scenario = connections(name, side, "serial-server", "fast-open-clients");
        all.push(scenario.server_with("serial-server", &[("fast-open", 1)]).needs(Need::FastOpen));
    }
    for (name, side) in [("mptcp-client", Client), ("mptcp-server", Server)] {
        let scenario = connections(name, side, "serial-server", "multipath-clients");
        all.push(scenario.server_with("serial-server", &[("multipath", 1)]).needs(Need::Multipath));
    }
    all
}
