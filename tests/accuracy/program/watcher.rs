//! A watcher of the traffic in a namespace: the library in this program's other role, a peer, or tcpdump.

use super::engines::Engine;
use super::judge::Credit;
use super::peers::{Peer, PeerKind};
use super::tcpdump::Tcpdump;
use capture_test_support::lab::{Host, Lab, Maker, die_with_this};
use std::collections::BTreeMap;
use std::process::Command;

/// The program that watches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Library(Engine),
    Peer(PeerKind),
    Tcpdump,
}

impl Kind {
    /// Returns the name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Library(engine) => engine.name(),
            Kind::Peer(peer) => peer.program(),
            Kind::Tcpdump => "tcpdump",
        }
    }
}

/// The final report of a watcher.
#[derive(Default)]
pub struct Sighting {
    pub said: BTreeMap<i32, Credit>,
    /// Bytes without an owner, by reason.
    pub unowned: Vec<(String, u64)>,
    /// Bytes whose owner is uncertain.
    pub flagged: u64,
    /// Packets that the watcher did not see, if known.
    pub lost: Option<u64>,
    /// Packets that the watcher saw; 0 if unknown.
    pub packets: u64,
    /// True if the watcher had to be killed.
    pub hangs: bool,
    /// Further information from the watcher.
    pub note: String,
}

impl Sighting {
    /// Removes all processes but this program's, all of which still live. Also removes the bytes without an
    /// owner, because their origin is unknown.
    pub fn forget_others(&mut self) {
        self.said.retain(|&pid, _| is_descendant(pid));
        self.unowned.clear();
    }

    /// Removes the bytes that passed a namespace without an end there. The wire is such a namespace.
    pub fn forget_passing(&mut self) {
        self.unowned.retain(|(reason, _)| reason != "NotLocal");
    }
}

/// Returns true if a living process is a descendant of this one.
fn is_descendant(mut pid: i32) -> bool {
    let own = std::process::id() as i32;
    let parent = |pid: i32| {
        let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        // The second field after the name in parentheses.
        let text = String::from_utf8_lossy(&text);
        text.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<i32>().ok()
    };
    while pid > 1 && pid != own {
        pid = parent(pid).unwrap_or(0);
    }
    pid == own
}

/// A running watcher.
pub enum Watcher {
    Library(Maker),
    Peer(Peer),
    Tcpdump(Tcpdump),
}

/// The place of a watcher, and the traffic that it watches.
pub enum Place<'a> {
    /// On a host: one of its devices.
    Device(&'a Lab, Host, &'static str),
    /// On a host. The library also watches all other namespaces, for traffic that matches the filter. Other
    /// watchers watch only the host's device.
    HostAndAll(&'a Lab, Host, String),
    /// In the namespace of this program. Watches traffic that matches the filter in all others.
    All(String),
}

impl Watcher {
    /// Starts a watcher, and waits until it watches.
    pub fn start(kind: Kind, place: &Place<'_>) -> Watcher {
        if let Kind::Library(engine) = kind {
            return Watcher::Library(monitor(engine, place));
        }
        let (lab, host, device) = match place {
            Place::Device(lab, host, device) => (lab, *host, *device),
            Place::HostAndAll(lab, host, _) => (lab, *host, "veth0"),
            Place::All(_) => panic!("{} knows one namespace only", kind.name()),
        };
        match kind {
            Kind::Peer(kind) => Watcher::Peer(Peer::start(kind, lab, host, device)),
            _ => Watcher::Tcpdump(Tcpdump::start(lab, host)),
        }
    }

    /// Waits until the watcher has reported, or will have reported, everything that it has seen. Traffic has
    /// ended.
    pub fn settle(&mut self) {
        match self {
            Watcher::Library(monitor) => {
                monitor.start();
                assert_eq!(monitor.line(), "settled", "the monitor lives");
            }
            Watcher::Peer(_) => std::thread::sleep(super::peers::SETTLING),
            Watcher::Tcpdump(_) => std::thread::sleep(super::tcpdump::SETTLING),
        }
    }

    pub fn pid(&self) -> i32 {
        match self {
            Watcher::Library(monitor) => monitor.pid(),
            Watcher::Peer(peer) => peer.pid(),
            Watcher::Tcpdump(tcpdump) => tcpdump.pid(),
        }
    }

    /// Ends a settled watcher. `client` is the pid to credit if the watcher reports the client only by its
    /// name.
    pub fn finish(self, client: i32) -> Sighting {
        match self {
            Watcher::Library(mut monitor) => {
                monitor.start();
                let sighting = hear(&mut monitor);
                monitor.end();
                sighting
            }
            Watcher::Peer(peer) => peer.finish(client),
            Watcher::Tcpdump(tcpdump) => tcpdump.finish(),
        }
    }
}

/// Starts the library.
fn monitor(engine: Engine, place: &Place<'_>) -> Maker {
    let program = std::env::current_exe().unwrap();
    let mut command = match place {
        Place::Device(lab, host, _) | Place::HostAndAll(lab, host, _) => lab.command(*host, program),
        Place::All(_) => die_with_this(Command::new(program)),
    };
    command.args(["--monitor", engine.name()]);
    if let Place::HostAndAll(_, _, filter) | Place::All(filter) = place {
        command.arg(filter);
    }
    let mut monitor = Maker::start_of(&mut command);
    assert_eq!(monitor.line(), "ready", "the monitor has started");
    monitor
}

/// Reads the report of a monitor.
pub fn hear(monitor: &mut Maker) -> Sighting {
    let mut sighting = Sighting::default();
    loop {
        let line = monitor.line();
        let (kind, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let words: Vec<&str> = rest.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        match kind {
            "process" => {
                // A process that had the same pid before would be wrong, and its bytes would be surplus.
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
    sighting
}
