//! What watches the traffic in a namespace: the library in this program's other role, a peer, or tcpdump.

use super::judge::Credit;
use super::lab::{Host, Lab, Maker};
use super::peers::{Peer, PeerKind};
use super::tcpdump::Tcpdump;
use std::collections::BTreeMap;

/// Which program watches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Library,
    Peer(PeerKind),
    Tcpdump,
}

impl Kind {
    /// What it is called in the table.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Library => "libcapture",
            Kind::Peer(peer) => peer.program(),
            Kind::Tcpdump => "tcpdump",
        }
    }
}

/// What a watcher has said at its end.
#[derive(Default)]
pub struct Sighting {
    pub said: BTreeMap<i32, Credit>,
    /// Bytes without an owner, by reason.
    pub unowned: Vec<(String, u64)>,
    /// Bytes whose owner is not certain.
    pub flagged: u64,
    /// Packets that it did not see, if that is known.
    pub lost: Option<u64>,
    /// Packets that it did see; 0 if that is not known.
    pub packets: u64,
    /// Whether it had to be killed.
    pub hangs: bool,
    /// More that it says of itself.
    pub note: String,
}

/// A running watcher.
pub enum Watcher {
    Library(Maker),
    Peer(Peer),
    Tcpdump(Tcpdump),
}

impl Watcher {
    /// Starts it on a host, and waits until it watches.
    pub fn start(kind: Kind, lab: &Lab, host: Host, device: &str) -> Watcher {
        match kind {
            Kind::Library => {
                let program = std::env::current_exe().unwrap();
                let mut monitor = Maker::start_of(lab.command(host, program).arg("--monitor"));
                assert_eq!(monitor.line(), "ready", "the monitor has started");
                Watcher::Library(monitor)
            }
            Kind::Peer(kind) => Watcher::Peer(Peer::start(kind, lab, host, device)),
            Kind::Tcpdump => Watcher::Tcpdump(Tcpdump::start(lab, host)),
        }
    }

    pub fn pid(&self) -> i32 {
        match self {
            Watcher::Library(monitor) => monitor.pid(),
            Watcher::Peer(peer) => peer.pid(),
            Watcher::Tcpdump(tcpdump) => tcpdump.pid(),
        }
    }

    /// Lets it come to its end. The pid is that of the client, should it be told by its name only.
    pub fn finish(self, client: i32) -> Sighting {
        match self {
            Watcher::Library(monitor) => heard(monitor),
            Watcher::Peer(peer) => peer.finish(client),
            Watcher::Tcpdump(tcpdump) => tcpdump.finish(),
        }
    }
}

/// Asks the monitor for its report.
fn heard(mut monitor: Maker) -> Sighting {
    monitor.start();
    let mut sighting = Sighting::default();
    loop {
        let line = monitor.line();
        let (kind, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let words: Vec<&str> = rest.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        match kind {
            "process" => {
                // A process that had the same pid before would be wrong, and its bytes too many.
                let credit = sighting.said.entry(number(0) as i32).or_default();
                credit.bytes = (credit.bytes.0 + number(2), credit.bytes.1 + number(3));
                credit.flagged += number(4);
            }
            "unowned" => sighting.unowned.push((words[0].to_owned(), number(1))),
            "flagged" => sighting.flagged = number(0),
            "packets" => sighting.packets = number(0),
            "lost" => sighting.lost = Some(number(0)),
            "note" => rest.clone_into(&mut sighting.note),
            "end" => break,
            _ => panic!("the monitor said {line:?}"),
        }
    }
    monitor.end();
    sighting
}
