//! The library's CPU time for each datagram of the flood, with each engine: that of its process, and
//! separately that of its eBPF programs, as the kernel measures them.

use super::spread::Spread;
use super::stream::Stream;
use super::{allow, lines};
use crate::cpu;
use crate::engines::Engine;
use crate::probes::{Probe, Probes};
use crate::scenarios::Protocol;
use crate::watcher::{Kind, Place, Watcher};
use capture_test_support::lab::Lab;
use std::time::Duration;

/// The number of turns of each engine.
const ROUNDS: usize = 3;

/// The result of one flood with an engine. Times are nanoseconds for each datagram.
struct Taken {
    library: f64,
    probes: Vec<Each>,
    /// Frames captured for each datagram, which passes a device at both ends.
    captured: f64,
}

/// The cost of an eBPF program.
struct Each {
    name: String,
    /// Runs for each datagram.
    runs: f64,
    /// Nanoseconds for each run, without the overhead of measuring.
    each: f64,
}

impl Taken {
    fn in_probes(&self) -> f64 {
        self.probes.iter().map(|probe| probe.runs * probe.each).sum()
    }

    fn all(&self) -> f64 {
        self.library + self.in_probes()
    }
}

/// Prints the times.
pub fn measure(length: Duration, is_markdown: bool) {
    let probes = Probes::measure().unwrap();
    let overhead = probes.overhead().unwrap();
    println!(
        "\nCPU time for each datagram, ns, both ends watched, {ROUNDS} floods of {} s, medians (quartiles)",
        length.as_secs_f64()
    );
    let lab = Lab::new();
    let rounds: Vec<Vec<Taken>> = (0..ROUNDS)
        .map(|_| Engine::ALL.map(|engine| flood(&lab, engine, &probes, overhead, length)).into())
        .collect();
    let spread = |at: usize, value: fn(&Taken) -> f64| {
        Spread::of(rounds.iter().map(|round| value(&round[at])).collect())
    };
    let mut rows =
        vec![["engine", "library", "probes", "together", "frames captured"].map(str::to_owned).to_vec()];
    for (at, engine) in Engine::ALL.into_iter().enumerate() {
        rows.push(vec![
            engine.name().to_owned(),
            format!("{:.0}", spread(at, |taken| taken.library)),
            format!("{:.0}", spread(at, Taken::in_probes)),
            format!("{:.0}", spread(at, Taken::all)),
            format!("{:.2}", spread(at, |taken| taken.captured)),
        ]);
    }
    print!("{}", lines(&rows, is_markdown));
    println!("\neach run of a probe of kernel, ns, without the {overhead:.0} ns that measuring it takes");
    let kernel = Engine::ALL.len() - 1;
    let mut rows = vec![["probe", "runs for each datagram", "ns"].map(str::to_owned).to_vec()];
    for (at, probe) in rounds[0][kernel].probes.iter().enumerate().filter(|(_, probe)| probe.runs > 0.01) {
        let spread = |value: fn(&Each) -> f64| {
            Spread::of(rounds.iter().map(|round| value(&round[kernel].probes[at])).collect())
        };
        let (runs, each) = (spread(|probe| probe.runs).median, spread(|probe| probe.each));
        rows.push(vec![probe.name.clone(), format!("{runs:.2}"), format!("{each:.0}")]);
    }
    print!("{}", lines(&rows, is_markdown));
}

fn flood(lab: &Lab, engine: Engine, probes: &Probes, overhead: f64, length: Duration) -> Taken {
    allow(length);
    let stream = Stream::prepare(lab, 1, length);
    let mut watcher = Watcher::start(Kind::Library(engine), &Place::All(Protocol::Udp.filter()));
    let pid = watcher.pid();
    let used = cpu::seconds(pid).unwrap();
    let before = sorted(probes, pid);
    let passed = stream.run();
    let after = sorted(probes, pid);
    watcher.settle();
    let used = cpu::seconds(pid).unwrap() - used;
    let sent = passed.all_sent() as f64;
    let each = |(before, after): (&Probe, &Probe)| {
        let runs = (after.runs - before.runs) as f64;
        let time = (after.nanoseconds - before.nanoseconds) as f64;
        Each { name: after.name.clone(), runs: runs / sent, each: (time / runs.max(1.0) - overhead).max(0.0) }
    };
    let probes = before.iter().zip(&after).map(each).collect();
    let sighting = watcher.finish(passed.sent[0].0);
    Taken { library: used * 1e9 / sent, probes, captured: sighting.packets as f64 / sent }
}

/// Returns the eBPF programs of a process, sorted by name.
fn sorted(probes: &Probes, pid: i32) -> Vec<Probe> {
    let mut all = probes.each(pid);
    all.sort_by(|one, other| one.name.cmp(&other.name));
    all
}
