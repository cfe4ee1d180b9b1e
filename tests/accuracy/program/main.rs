//! Measures how many bytes find their owner, and the cost. `scripts/accuracy` runs this and documents its
//! options. With `--flood` as the first option, this is the program of `scripts/flood`; with `--soak`, that
//! of `scripts/soak`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "it fails by panicking, as tests do"
)]

mod clock;
mod cpu;
mod engines;
mod flood;
mod guard;
mod judge;
mod monitor;
mod needs;
mod peers;
mod probes;
mod scenarios;
mod soak;
mod stage;
mod table;
mod tcpdump;
mod uncommon;
mod watcher;

use engines::Engine;
use peers::PeerKind;
use std::process::{Command, ExitCode};
use std::time::Duration;
use watcher::Kind;

/// The maximum time of a scenario besides its traffic, seconds: for example for creating and ending thousands
/// of processes.
const ALLOWANCE: u64 = 90;

/// The time for which tcpdump is measured: long enough to measure its CPU time for a packet.
const TCPDUMP_LENGTH: Duration = Duration::from_secs(5);

/// The options of the command line.
struct Wishes {
    scenarios: Vec<String>,
    /// The requested engines; if empty, all available ones.
    engines: Vec<Engine>,
    seconds: u64,
    peers: bool,
    markdown: bool,
    verbose: bool,
    list: bool,
    list_engines: bool,
    list_programs: bool,
    /// Set if figures for another program replace the table.
    figures: bool,
    /// Set if CPU time is compared with its floors. CPU time depends on the machine's other load.
    cpu: bool,
}

fn main() -> ExitCode {
    if let Some(role) = role() {
        role();
        return ExitCode::SUCCESS;
    }
    match std::env::args().nth(1).as_deref() {
        Some("--flood") => return flood::main(),
        Some("--soak") => return soak::main(),
        _ => {}
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
    if wishes.list_engines {
        list_engines();
        return ExitCode::SUCCESS;
    }
    if wishes.list_programs {
        engines::print_programs();
        return ExitCode::SUCCESS;
    }
    if chosen.is_empty() {
        return failure("no scenario has such a name; --list names them");
    }
    if let Some(text) = lacks(wishes.cpu) {
        return failure(&text);
    }
    let engines = match engines(&wishes.engines) {
        Ok(engines) => engines,
        Err(text) => return failure(&text),
    };
    guard::start();
    guard::allow(ALLOWANCE);
    run(&chosen, &engines, &wishes)
}

/// Returns the role of this program if another instance of it has started it.
fn role() -> Option<Box<dyn FnOnce()>> {
    let mut arguments = std::env::args().skip(1);
    let (role, engine, filter) = (arguments.next()?, arguments.next()?.parse::<Engine>(), arguments.next());
    match (role.as_str(), engine) {
        ("--monitor", Ok(engine)) => Some(Box::new(move || monitor::run(engine, filter))),
        ("--soak-host", Ok(_)) => Some(Box::new(move || {
            soak::host::run(&filter.unwrap_or_default(), &arguments.next().unwrap_or_default())
        })),
        ("--fault", Ok(engine)) => Some(Box::new(move || engine.print_fault())),
        _ => None,
    }
}

/// Returns the engines to compare: the requested ones, all of which must be available, or else all available
/// ones.
fn engines(wanted: &[Engine]) -> Result<Vec<Engine>, String> {
    if wanted.is_empty() {
        let missing = |engine: Engine| {
            let reason = engine.unavailable();
            reason.iter().for_each(|text| eprintln!("accuracy: no engine {}: {text}", engine.name()));
            reason.is_some()
        };
        return Ok(Engine::ALL.into_iter().filter(|&engine| !missing(engine)).collect());
    }
    let missing = wanted.iter().find_map(|engine| Some((engine.name(), engine.unavailable()?)));
    match missing {
        Some((name, text)) => Err(format!("the engine {name} is not available: {text}")),
        None => Ok(wanted.to_vec()),
    }
}

/// Returns the reason why a comparison of all engines cannot be made.
fn lacks_engine() -> Option<String> {
    Engine::ALL.into_iter().find_map(|engine| {
        let reason = engine.unavailable()?;
        Some(format!("the engine {} is not available: {reason}", engine.name()))
    })
}

/// Prints the engines, each with the reason if it is unavailable.
fn list_engines() {
    for engine in Engine::ALL {
        println!("{}\t{}", engine.name(), engine.unavailable().unwrap_or_default());
    }
}

fn failure(text: &str) -> ExitCode {
    eprintln!("accuracy: {text}");
    ExitCode::from(2)
}

/// Plays the scenarios. Fails if the library has missed a floor.
fn run(chosen: &[scenarios::Scenario], engines: &[Engine], wishes: &Wishes) -> ExitCode {
    let mut kinds: Vec<Kind> = engines.iter().map(|&engine| Kind::Library(engine)).collect();
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
        if let Some(text) = scenario.need.and_then(needs::Need::refusal) {
            println!("{}{}not played: {text}", scenario.name, if wishes.figures { "\t" } else { " " });
            continue;
        }
        for &kind in kinds.iter().filter(|&&kind| stage::suits(scenario, kind)) {
            let outcome = play(scenario, kind, wishes);
            if wishes.figures {
                println!("{}", table::figures(&outcome, wishes.cpu));
            } else {
                println!("{}", table::row(&outcome));
            }
            if wishes.verbose {
                print!("{}", table::details(&outcome));
            }
            if matches!(kind, Kind::Library(_)) && !wishes.figures {
                let missed = table::missed(&outcome, wishes.cpu);
                missed.iter().for_each(|text| println!("    missed: {text}"));
                misses.extend((!missed.is_empty()).then(|| format!("{} ({})", scenario.name, kind.name())));
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
            println!("floors missed in {} lines: {}", names.len(), names.join(", "));
            ExitCode::FAILURE
        }
    }
}

/// Plays one scenario, followed by tcpdump if the library is compared with it.
fn play(scenario: &scenarios::Scenario, kind: Kind, wishes: &Wishes) -> stage::Outcome {
    let length = Duration::from_secs(wishes.seconds);
    guard::allow(wishes.seconds + ALLOWANCE);
    let mut outcome = stage::play(scenario, kind, length);
    let is_compared = outcome.floor.is_some_and(|floor| floor.tcpdump.is_some());
    if is_compared && wishes.cpu {
        guard::allow(wishes.seconds + ALLOWANCE);
        let beside = stage::play(scenario, Kind::Tcpdump, length.min(TCPDUMP_LENGTH));
        outcome.tcpdump_cost = Some(beside.packet_cost);
    }
    outcome
}

fn wishes() -> Result<Wishes, String> {
    let mut wishes = Wishes {
        scenarios: Vec::new(),
        engines: Vec::new(),
        seconds: 12,
        peers: false,
        markdown: false,
        verbose: false,
        list: false,
        list_engines: false,
        list_programs: false,
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
            "--list-engines" => wishes.list_engines = true,
            "--list-programs" => wishes.list_programs = true,
            "--engine" => {
                let engine = value()?.parse()?;
                wishes.engines.retain(|&other| other != engine);
                wishes.engines.push(engine);
            }
            "--bytes-only" => wishes.cpu = false,
            _ => return Err(format!("{argument} is not an option")),
        }
    }
    Ok(wishes)
}

/// Returns true if a name matches a pattern, in which `*` stands for any text.
fn fits(name: &str, pattern: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return name == pattern };
    let Some(rest) = name.strip_prefix(before) else { return false };
    (0..=rest.len()).any(|skipped| fits(&rest[skipped..], after))
}

/// Returns the scenarios' requirements that this machine lacks. Set `with_cpu` if CPU time is compared with
/// that of tcpdump.
fn lacks(with_cpu: bool) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("only root can make network namespaces".to_owned());
    }
    let tools = ["ip", "nft", "ethtool", "ping", "ss"].into_iter().chain(with_cpu.then_some("tcpdump"));
    let missing: Vec<&str> = tools.filter(|tool| Command::new(tool).arg("-V").output().is_err()).collect();
    (!missing.is_empty()).then(|| format!("not installed: {}", missing.join(", ")))
}
