//! Other programs that report processes' traffic, for comparison: nethogs and bandwhich.

use super::judge::Credit;
use super::watcher::Sighting;
use capture_test_support::lab::{Host, Lab, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The time that a peer may take from its start until it watches.
const START: Duration = Duration::from_millis(1500);

/// The time that a peer may take to show the last second's traffic.
pub const SETTLING: Duration = Duration::from_millis(2500);

/// The time that a peer may take to end after SIGTERM.
const TIMEOUT: Duration = Duration::from_secs(5);

/// bandwhich's name for processes whose name it does not know.
const UNKNOWN: &str = "<UNKNOWN>";

/// A kind of peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerKind {
    Nethogs,
    Bandwhich,
}

impl PeerKind {
    pub const ALL: [PeerKind; 2] = [PeerKind::Nethogs, PeerKind::Bandwhich];

    pub fn program(self) -> &'static str {
        match self {
            PeerKind::Nethogs => "nethogs",
            PeerKind::Bandwhich => "bandwhich",
        }
    }

    /// Returns the peer's version if it is installed.
    pub fn version(self) -> Option<String> {
        let option = if self == PeerKind::Nethogs { "-V" } else { "--version" };
        let output = Command::new(self.program()).arg(option).output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        let word = String::from_utf8_lossy(&text).split_whitespace().last()?.to_owned();
        Some(format!("{} {word}", self.program()))
    }

    /// Returns the arguments that make the peer print totals of bytes each second.
    fn arguments(self, device: &str) -> Vec<&str> {
        match self {
            // nethogs needs options for capturing on a loopback device and for UDP.
            PeerKind::Nethogs => vec!["-a", "-C", "-t", "-d", "1", "-v", "2", device],
            PeerKind::Bandwhich => vec!["--raw", "--total-utilization", "--no-resolve", "-i", device],
        }
    }
}

/// A running peer.
pub struct Peer {
    kind: PeerKind,
    child: Child,
    output: File,
    started: Instant,
    host: String,
}

impl Peer {
    pub fn start(kind: PeerKind, lab: &Lab, host: Host, device: &str) -> Peer {
        let output = tempfile::tempfile().unwrap();
        let mut command = lab.command(host, kind.program());
        command.args(kind.arguments(device)).stdin(Stdio::null()).stderr(output.try_clone().unwrap());
        let child = command.stdout(output.try_clone().unwrap()).spawn().unwrap();
        std::thread::sleep(START);
        Peer { kind, child, output, started: Instant::now(), host: lab.name(host).to_owned() }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn finish(mut self, client: i32) -> Sighting {
        let lost = self.lost();
        let watched = self.started.elapsed();
        let hangs = !self.end();
        let mut text = String::new();
        self.output.rewind().unwrap();
        let mut bytes = Vec::new();
        self.output.read_to_end(&mut bytes).unwrap();
        text.push_str(&String::from_utf8_lossy(&bytes));
        let rounds = text.matches("Refreshing:").count();
        let (said, unknown) = match self.kind {
            PeerKind::Nethogs => nethogs(&text),
            PeerKind::Bandwhich => bandwhich(&text, client),
        };
        Sighting {
            said,
            unowned: vec![("unknown".to_owned(), unknown)],
            lost,
            // A working peer prints each second.
            hangs: hangs || rounds < watched.as_secs() as usize / 3,
            note: format!("{rounds} rounds in {:.0} s, at last: {}", watched.as_secs_f64(), last_line(&text)),
            ..Sighting::default()
        }
    }

    /// Returns the packets dropped at the peer's packet sockets, as the kernel reports them through
    /// sock_diag.
    fn lost(&self) -> Option<u64> {
        let text = run(&format!("ip netns exec {} ss --packet --memory --processes --no-header", self.host));
        let own = format!("pid={},", self.pid());
        let lines = text.lines().filter(|line| line.contains(&own));
        let drops = lines.map(|line| line.rsplit(",d").next()?.split(')').next()?.parse::<u64>().ok());
        drops.reduce(|one, other| Some(one? + other?)).flatten()
    }

    /// Ends the peer with SIGTERM. Returns true if it has ended in time.
    fn end(&mut self) -> bool {
        // The peer may have ended by itself.
        let _ = kill(Pid::from_raw(self.pid()), Signal::SIGTERM);
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            if self.child.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn last_line(text: &str) -> &str {
    text.lines().rfind(|line| !line.is_empty()).unwrap_or_default()
}

/// Parses lines `PROGRAM/PID/UID<tab>SENT<tab>RECEIVED` of every second. The figures are totals: the last
/// line of each process counts. Traffic without an owner has pid 0.
fn nethogs(text: &str) -> (BTreeMap<i32, Credit>, u64) {
    let mut said = BTreeMap::new();
    let mut unknown = BTreeMap::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, sent, received] = fields[..] else { continue };
        let (Ok(sent), Ok(received)) = (sent.parse::<f64>(), received.parse::<f64>()) else { continue };
        let bytes = (sent as u64, received as u64);
        match name.rsplit('/').nth(1).and_then(|pid| pid.parse::<i32>().ok()) {
            Some(pid) if pid > 0 => drop(said.insert(pid, Credit { bytes, flagged: 0 })),
            _ => drop(unknown.insert(name, bytes.0 + bytes.1)),
        }
    }
    (said, unknown.values().sum())
}

/// Parses lines `process: <TIME> "NAME" up/down Bps: SENT/RECEIVED connections: N` of every second. The
/// figures are totals: the last round counts. There are no pids, but the names of traffic makers contain
/// them.
fn bandwhich(text: &str, client: i32) -> (BTreeMap<i32, Credit>, u64) {
    let mut said: BTreeMap<i32, Credit> = BTreeMap::new();
    let mut unknown = 0;
    let last = text.rsplit("Refreshing:").find(|round| round.contains("process: ")).unwrap_or("");
    for line in last.lines().filter(|line| line.starts_with("process: ")) {
        let name = line.split('"').nth(1).unwrap_or(UNKNOWN);
        let Some(figures) = line.split("Bps: ").nth(1).and_then(|rest| rest.split(' ').next()) else {
            continue;
        };
        let Some((sent, received)) = figures.split_once('/') else { continue };
        let bytes: (u64, u64) = (sent.parse().unwrap_or(0), received.parse().unwrap_or(0));
        if name == UNKNOWN {
            unknown += bytes.0 + bytes.1;
            continue;
        }
        // All other processes are wrong; their pids do not matter.
        let pid = match name.strip_prefix("maker-") {
            Some(pid) => pid.parse().unwrap_or(-1),
            None if name == "ping" => client,
            None => -1,
        };
        let credit = said.entry(pid).or_default();
        credit.bytes = (credit.bytes.0 + bytes.0, credit.bytes.1 + bytes.1);
    }
    (said, unknown)
}
