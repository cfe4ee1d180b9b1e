//! The cost of one whole update of a session with many idle processes: CPU time, compared with the floor of
//! bare system calls for sampling, and with `ps` on the same machine.
//!
//! Every contender has a run of the floor in every round, alternately before and after it, and the median of
//! the rounds' ratios is printed. CPU time is that of getrusage(2), user and system: of this process with all
//! its threads for the sessions and the floor, of the ended child for `ps`.
//!
//! After that, the duration of updates that are made four times a second while a hundred processes end each
//! second: the median and the longest, for a session that waits for the last packets of ended processes, and
//! for one that does not.

// A measurement that cannot be made must fail loudly.
#![allow(clippy::expect_used)]

mod common {
    pub mod processes;
}

use capture::internals::config::{Options, Source};
use capture::internals::model::SampleSet;
use capture::internals::session::Session;
use common::processes::{Floor, Sleepers, Turnover, cpu_ms_of, cpu_of, median};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PROCESSES: usize = 10_000;
const ROUNDS: usize = 21;

/// Rounds that fill tables and caches.
const FIRST_ROUNDS: usize = 2;

fn main() {
    // Cargo passes `--bench` to measure; otherwise this only checks that the benchmark still runs.
    let measuring = std::env::args().any(|argument| argument == "--bench");
    let (processes, rounds) = if measuring { (PROCESSES, ROUNDS) } else { (50, 2) };
    let sleepers = Sleepers::start(processes);
    let turnover = Turnover::start();
    measure_length(processes, if measuring { 80 } else { 8 });
    drop(turnover);
    measure(processes, rounds);
    drop(sleepers);
}

/// Prints the median and the longest duration of an update while processes end.
fn measure_length(processes: usize, updates: usize) {
    const INTERVAL: Duration = Duration::from_millis(250);
    println!("{processes} idle processes and {} that end each second", Turnover::RATE);
    for wait_for_ended in [false, true] {
        let options = Options { wait_for_ended, ..Options::default() };
        let mut session = Session::open(options).expect("a session opens");
        session.update().expect("proc can be sampled");
        let (mut lengths, mut ended) = (Vec::new(), 0);
        for _ in 0..updates {
            std::thread::sleep(INTERVAL);
            let began = Instant::now();
            session.update().expect("proc can be sampled");
            lengths.push(began.elapsed().as_secs_f64() * 1e3);
            ended += session.take_removed().len();
        }
        let name = if wait_for_ended { "update that waits" } else { "update" };
        let longest = lengths.iter().copied().fold(0.0, f64::max);
        let middle = median(&mut lengths);
        println!("  {name:<28}{middle:>8.2} ms, longest {longest:.2} ms, {ended} processes ended");
    }
}

fn measure(processes: usize, rounds: usize) {
    let figures = SampleSet::MEMORY | SampleSet::IO | SampleSet::DESCRIPTORS;
    let all = SampleSet::USUAL | SampleSet::SWITCHES;
    let mut contenders = vec![
        Contender::new("update, no packets", updating(Source::None, all)),
        Contender::new("the same, no command lines", updating(Source::None, figures)),
        Contender::new("ps", Some(Box::new(ps))),
        Contender::new("update, live capture", updating(Source::Live, all)),
    ];
    let mut floor = Floor::new();
    let mut floor_cost = Vec::new();
    for round in 0..rounds + FIRST_ROUNDS {
        for contender in &mut contenders {
            let Some(run) = &mut contender.run else { continue };
            let (cost, base) = if round % 2 == 0 {
                let base = cpu_of(|| floor.run());
                (run(), base)
            } else {
                let cost = run();
                (cost, cpu_of(|| floor.run()))
            };
            if round >= FIRST_ROUNDS {
                contender.cost.push(cost);
                contender.ratio.push(cost / base);
                floor_cost.push(base);
            }
        }
    }
    println!("{processes} idle processes, median CPU time of {rounds} rounds");
    println!("  {:<28}{:>8.2} ms", "floor", median(&mut floor_cost));
    for contender in contenders.iter_mut().filter(|contender| contender.run.is_some()) {
        let (cost, ratio) = (median(&mut contender.cost), median(&mut contender.ratio));
        println!("  {:<28}{cost:>8.2} ms  {ratio:>6.3} x the floor", contender.name);
    }
}

/// A function that does the work once and returns the CPU time that it took, in milliseconds.
type Run = Box<dyn FnMut() -> f64>;

struct Contender {
    name: &'static str,
    run: Option<Run>,
    cost: Vec<f64>,
    ratio: Vec<f64>,
}

impl Contender {
    fn new(name: &'static str, run: Option<Run>) -> Contender {
        Contender { name, run, cost: Vec::new(), ratio: Vec::new() }
    }
}

/// Returns a run of a session's updates, or `None` if the session cannot capture.
fn updating(source: Source, sample: SampleSet) -> Option<Run> {
    let is_live = source == Source::Live;
    let mut session =
        Session::open(Options { source, sample, ..Options::default() }).expect("a session opens");
    session.update().expect("proc can be sampled");
    // Processes in other network namespaces never have this bit.
    let is_own =
        |record: &capture::internals::model::ProcessRecord| record.sample.id.pid == std::process::id() as i32;
    let own = session.processes().find(|record| is_own(record));
    if is_live && !own.is_some_and(|record| record.valid.has(capture::internals::model::Validity::NETWORK)) {
        println!("live capture is not measured: it is not permitted here");
        return None;
    }
    Some(Box::new(move || {
        cpu_of(|| {
            session.update().expect("proc can be sampled");
            std::hint::black_box((session.processes().count(), session.take_removed().len()));
        })
    }))
}

fn ps() -> f64 {
    let before = cpu_ms_of(libc::RUSAGE_CHILDREN);
    let mut command = Command::new("ps");
    command.args(["-eo", "pid,ppid,user,group,stat,nlwp,cputime,rss,vsz,comm,args"]).stdout(Stdio::null());
    assert!(command.status().expect("ps can be run").success());
    cpu_ms_of(libc::RUSAGE_CHILDREN) - before
}
