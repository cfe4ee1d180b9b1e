//! Measures how many bytes find their owner, and what that costs: `scripts/accuracy` runs it and tells its options.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "it fails by panicking, as tests do"
)]

mod cpu;
mod guard;
mod judge;
#[path = "../../traffic/lab.rs"]
#[allow(dead_code, reason = "the tests of traffic use more of it")]
mod lab;
mod monitor;
mod peers;
mod scenarios;
mod stage;
mod table;
mod tcpdump;
mod watcher;

use peers::PeerKind;
use std::process::{Command, ExitCode};
use std::time::Duration;
use watcher::Kind;

/// Seconds that a scenario may take besides its traffic: for making and ending thousands of processes, say.
const ALLOWANCE: u64 = 90;

/// How long tcpdump is measured: long enough for its time for a packet.
const TCPDUMP_LENGTH: Duration = Duration::from_secs(5);

/// What the arguments ask for.
struct Wishes {
    scenarios: Vec<String>,
    seconds: u64,
    peers: bool,
    markdown: bool,
    verbose: bool,
    list: bool,
    /// Whether figures for another program take the place of the table.
    figures: bool,
    /// Whether CPU time is compared with its floors; it depends on what else runs.
    cpu: bool,
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("--monitor") {
        monitor::run(std::env::args().nth(2));
        return ExitCode::SUCCESS;
    }
    let wishes = match wishes() {
        Ok(wishes) => wishes,
        Err(text) => return failure(&text),
    };
    let mut chosen = scenarios::all();
    if !wishes.scenarios.is_empty() {
        chosen.retain(|scenario| wishes.scenarios.iter().any(|pattern| fits(&scenario.name, pattern)));
    }
    if wishes.list {
        chosen.iter().for_each(|scenario| println!("{}", scenario.name));
        return ExitCode::SUCCESS;
    }
    if chosen.is_empty() {
        return failure("no scenario has such a name; --list names them");
    }
    if let Some(text) = lacks() {
        return failure(&text);
    }
    guard::start();
    guard::allow(ALLOWANCE);
    run(&chosen, &wishes)
}

fn failure(text: &str) -> ExitCode {
    eprintln!("accuracy: {text}");
    ExitCode::from(2)
}

/// Plays the scenarios; fails when the library has missed a floor.
fn run(chosen: &[scenarios::Scenario], wishes: &Wishes) -> ExitCode {
    let mut kinds = vec![Kind::Library];
    if wishes.peers {
        let installed = PeerKind::ALL.into_iter().filter(|peer| peer.version().is_some());
        kinds.extend(installed.map(Kind::Peer));
    }
    if !wishes.figures {
        println!("{}\n{}", table::machine(), table::titles());
    }
    let mut outcomes = Vec::new();
    let mut misses = Vec::new();
    for scenario in chosen {
        for &kind in kinds.iter().filter(|&&kind| stage::suits(scenario, kind)) {
            let outcome = play(scenario, kind, wishes);
            if wishes.figures {
                println!("{}", table::figures(&outcome));
            } else {
                println!("{}", table::row(&outcome));
            }
            if wishes.verbose {
                print!("{}", table::details(&outcome));
            }
            if kind == Kind::Library && !wishes.figures {
                let missed = table::missed(&outcome, wishes.cpu);
                missed.iter().for_each(|text| println!("    missed: {text}"));
                misses.extend((!missed.is_empty()).then(|| scenario.name.clone()));
            }
            outcomes.push(outcome);
        }
    }
    if wishes.markdown {
        print!("\n{}", table::markdown(&outcomes, wishes.seconds, wishes.peers));
    }
    match misses.as_slice() {
        [] => ExitCode::SUCCESS,
        names => {
            println!("floors missed in {} of {} scenarios: {}", names.len(), chosen.len(), names.join(" "));
            ExitCode::FAILURE
        }
    }
}

/// Plays one, and tcpdump after it where the library is compared with it.
fn play(scenario: &scenarios::Scenario, kind: Kind, wishes: &Wishes) -> stage::Outcome {
    let length = Duration::from_secs(wishes.seconds);
    guard::allow(wishes.seconds + ALLOWANCE);
    let mut outcome = stage::play(scenario, kind, length);
    let is_compared = scenario.floor.is_some_and(|floor| floor.tcpdump.is_some());
    if kind == Kind::Library && wishes.cpu && is_compared {
        guard::allow(wishes.seconds + ALLOWANCE);
        let beside = stage::play(scenario, Kind::Tcpdump, length.min(TCPDUMP_LENGTH));
        outcome.tcpdump_cost = Some(beside.packet_cost);
    }
    outcome
}

fn wishes() -> Result<Wishes, String> {
    let mut wishes = Wishes {
        scenarios: Vec::new(),
        seconds: 12,
        peers: false,
        markdown: false,
        verbose: false,
        list: false,
        figures: false,
        cpu: true,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--scenario" => wishes.scenarios.push(value()?),
            "--seconds" => {
                let seconds = value()?.parse().ok().filter(|seconds| (1..=600).contains(seconds));
                wishes.seconds = seconds.ok_or("--seconds takes a number from 1 to 600")?;
            }
            "--peers" => wishes.peers = true,
            "--markdown" => wishes.markdown = true,
            "--verbose" => wishes.verbose = true,
            "--figures" => wishes.figures = true,
            "--list" => wishes.list = true,
            "--bytes-only" => wishes.cpu = false,
            _ => return Err(format!("{argument} is not an option")),
        }
    }
    Ok(wishes)
}

/// Whether a name fits a pattern, in which `*` stands for anything.
fn fits(name: &str, pattern: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return name == pattern };
    let Some(rest) = name.strip_prefix(before) else { return false };
    (0..=rest.len()).any(|skipped| fits(&rest[skipped..], after))
}

/// What the scenarios need and this machine lacks.
fn lacks() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("only root can make network namespaces".to_owned());
    }
    let tools = ["ip", "nft", "ping", "tcpdump", "ss"];
    let missing: Vec<&str> =
        tools.into_iter().filter(|tool| Command::new(tool).arg("-V").output().is_err()).collect();
    (!missing.is_empty()).then(|| format!("not installed: {}", missing.join(", ")))
}
