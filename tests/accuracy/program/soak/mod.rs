//! Checks that all engines stay correct for as long as they run, in one process and amid all the changes on a
//! busy host. `scripts/soak` runs this and documents its options.

mod churn;
pub mod host;
mod vitals;

use super::engines::Engine;
use super::judge::{End, Verdict, judge, percent};
use super::scenarios::{Address, Protocol};
use super::watcher::{Sighting, hear};
use super::{failure, guard, lacks, lacks_engine, table};
use capture_test_support::lab::{Host, Lab, Maker, Offloads, Report};
use churn::Churn;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use vitals::Vitals;

/// The maximum time besides the traffic, seconds.
const ALLOWANCE: u64 = 120;

/// Connections a second of one living client, and processes a second with one connection each.
const CONNECTIONS: u64 = 200;
const PROCESSES: u64 = 20;

/// The minimum share that is right without eBPF programs: there, short-lived processes are a race.
const PORTABLE: f64 = 80.0;

/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);

pub fn main() -> ExitCode {
    let length = match length() {
        Ok(length) => length,
        Err(text) => return failure(&text),
    };
    if let Some(text) = lacks(false).or_else(lacks_engine) {
        return failure(&text);
    }
    guard::start();
    guard::allow(length.as_secs() + ALLOWANCE);
    println!("{}\n{} s of traffic", table::machine(), length.as_secs());
    let checks = soak(length);
    checks.missed.iter().for_each(|text| println!("missed: {text}"));
    let is_good = checks.missed.is_empty();
    // The same line as that of tests, so that scripts/test can sum it up.
    println!(
        "test result: {}. {} passed; {} failed; 0 ignored",
        if is_good { "ok" } else { "FAILED" },
        checks.held,
        checks.missed.len()
    );
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The number of checks that held, and the descriptions of those that did not.
#[derive(Default)]
struct Checks {
    held: u32,
    missed: Vec<String>,
}

impl Checks {
    /// Records whether a check holds, and its description if it does not.
    fn require(&mut self, is_so: bool, otherwise: String) {
        if is_so { self.held += 1 } else { self.missed.push(otherwise) }
    }
}

fn soak(length: Duration) -> Checks {
    let lab = Lab::on_wire(Offloads::On);
    for host in [Host::A, Host::B] {
        lab.allow_many_connections(host);
    }
    let [to_server, from_server] = Protocol::Tcp.matches();
    let mut server = lab.maker(Host::B, "tcp-server", &Address::V4.bound(), &[("named", 1)]);
    let mut clients = [("tcp-clients", CONNECTIONS), ("processes", PROCESSES)].map(|(mode, rate)| {
        let numbers = [("milliseconds", length.as_millis() as u64), ("named", 1), ("rate", rate)];
        lab.maker(Host::A, mode, &Address::V4.target(), &numbers)
    });
    lab.count(Host::A, &to_server, &from_server);
    let mut watched = start_host(&lab);
    let churn = Churn::start(&lab, watched.pid());
    clients.iter_mut().for_each(Maker::start);
    let mut vitals = Vitals::new(watched.pid());
    let began = Instant::now();
    let mut told = Duration::ZERO;
    while began.elapsed() < length {
        std::thread::sleep(Duration::from_secs(1));
        vitals.take();
        if began.elapsed() >= told {
            println!("{:>6} s  {}; {}", began.elapsed().as_secs(), vitals.last(), churn.summary());
            told += PROGRESS;
        }
    }
    let asked: Vec<Report> = clients.iter_mut().map(Maker::finish).collect();
    println!("came and went: {}", churn.end());
    server.start();
    let answered = server.finish();
    watched.start();
    assert_eq!(watched.line(), "settled", "the host lives");
    let counted = [Host::A, Host::B].map(|host| lab.counted(host));
    let ends = [
        End::of((counted[0].out_to, counted[0].in_from), asked.iter().flat_map(|report| &report.processes)),
        End::of((counted[1].out_from, counted[1].in_to), &answered.processes),
    ];
    let mut checks = Checks::default();
    vitals.check(&mut checks);
    for engine in Engine::ALL {
        let sighting = hear(&mut watched);
        verdict(engine, &ends, sighting, &mut checks);
    }
    farewell(&mut watched, &mut checks);
    checks
}

/// Starts the program's role of a host, at one end of the traffic.
fn start_host(lab: &Lab) -> Maker {
    let mut command = lab.command(Host::A, std::env::current_exe().unwrap());
    // Like the other roles, this one takes an engine as its second word. It uses all engines regardless.
    command.args(["--soak-host", Engine::Kernel.name(), &Protocol::Tcp.filter(), lab.name(Host::B)]);
    let mut host = Maker::start_of(&mut command);
    assert_eq!(host.line(), "ready", "the host has started");
    host
}

/// Compares an engine's figures with the truth.
fn verdict(engine: Engine, ends: &[End], mut sighting: Sighting, checks: &mut Checks) {
    if !engine.captures() {
        // It reports more than the filter of the other engines passes.
        sighting.unowned.clear();
    }
    sighting.forget_passing();
    let unowned: u64 = sighting.unowned.iter().map(|(_, bytes)| bytes).sum();
    let lost = sighting.lost.unwrap_or(0);
    let Verdict { truth, right, wrong, wrong_unflagged, .. } = judge(ends, &sighting.said);
    let told = right + wrong + unowned;
    let (right_share, wrong_share) = (percent(right, truth), percent(wrong, truth));
    println!(
        "{:<9} {:.1} MB, right {right_share:.4} %, wrong {wrong_share:.4} %, told of {:.4} %, lost {lost} frames",
        engine.name(),
        truth as f64 / 1e6,
        percent(told, truth)
    );
    let is_portable = engine == Engine::Portable;
    let floor = if is_portable { PORTABLE } else { 99.9 };
    let mut require = |is_so: bool, text: &str| checks.require(is_so, format!("{}: {text}", engine.name()));
    require(right_share >= floor, &format!("less than {floor} % right"));
    require(if is_portable { wrong_unflagged == 0 } else { wrong == 0 }, "bytes at a wrong process");
    require(lost == 0, "lost frames");
    // The engine `kernel` reports other bytes without an owner, too.
    require(!engine.captures() || told.abs_diff(truth) * 1000 <= truth, "the sum is not what passed");
}

/// Reads the host's final lines: the errors in its log, and the resources that it holds after closing all
/// sessions.
fn farewell(host: &mut Maker, checks: &mut Checks) {
    let (mut left, mut errors) = (Vec::new(), Vec::new());
    loop {
        let line = host.line();
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("left", text) => left.push(text.to_owned()),
            ("error", text) => errors.push(text.to_owned()),
            ("note", text) => println!("{text}"),
            ("end", _) => break,
            _ => panic!("the host said {line:?}"),
        }
    }
    host.end();
    checks.require(left.is_empty(), format!("left after closing: {}", left.join(", ")));
    checks.require(errors.is_empty(), format!("the log says: {}", errors.join("; ")));
}

fn length() -> Result<Duration, String> {
    let mut minutes = 30.0;
    let mut arguments = std::env::args().skip(2);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--minutes" => {
                let value = arguments.next().ok_or("--minutes needs a value")?;
                let number = value.parse().ok().filter(|number| (0.5..=1440.0).contains(number));
                minutes = number.ok_or("--minutes takes a number from 0.5 to 1440")?;
            }
            _ => return Err(format!("{argument} is not an option")),
        }
    }
    Ok(Duration::from_secs_f64(minutes * 60.0))
}
