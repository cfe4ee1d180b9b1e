//! The rate of the flood with an engine, with empty eBPF programs and with neither, and their CPU time. The
//! floods take turns in one run because the machine's other load changes from minute to minute.

use super::spread::Spread;
use super::stream::Stream;
use super::{allow, lines};
use crate::cpu;
use crate::engines::Engine;
use crate::scenarios::Protocol;
use crate::watcher::{Kind, Place, Watcher};
use capture_test_support::kernel_programs::{EmptyProgram, Hook};
use capture_test_support::lab::Lab;
use std::time::Duration;

/// The minimum rate with the engine `kernel`, as a share of the rate with empty eBPF programs.
const MIN_RATE: f64 = 0.95;

/// The maximum CPU time of `kernel`, as a multiple of that of empty eBPF programs.
const MAX_TIME: f64 = 1.25;

/// The number of rounds for each round that includes the engines that capture.
const OTHERS: usize = 2;

/// The software that runs beside a flood.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    /// eBPF programs that do nothing, at the hooks of the engine `kernel`.
    EmptyPrograms,
    Library(Engine),
}

/// All kinds, in the order of the tables and of a round.
const ALL: [Beside; 5] = [
    Beside::Nothing,
    Beside::EmptyPrograms,
    KERNEL,
    Beside::Library(Engine::Owners),
    Beside::Library(Engine::Portable),
];
const KERNEL: Beside = Beside::Library(Engine::Kernel);

impl Beside {
    fn name(self) -> &'static str {
        match self {
            Beside::Nothing => "unmonitored",
            Beside::EmptyPrograms => "empty programs",
            Beside::Library(engine) => engine.name(),
        }
    }

    fn is_in_round(self, number: usize) -> bool {
        match self {
            Beside::Library(engine) => !engine.captures() || number.is_multiple_of(OTHERS),
            Beside::Nothing | Beside::EmptyPrograms => true,
        }
    }
}

/// The result of a flood: datagrams sent and read per second, and nanoseconds of CPU time: of the sender per
/// datagram sent, of the reader per datagram read, and of the library's process per datagram sent. The
/// sender's time includes the kernel's work for a packet on its way: the copies for capturing processes, and
/// the eBPF programs.
#[derive(Clone, Copy)]
struct Flood {
    sent: f64,
    read: f64,
    sender: f64,
    reader: f64,
    library: f64,
}

/// One flood of each kind.
struct Round(Vec<(Beside, Flood)>);

impl Round {
    fn play(lab: &Lab, hooks: &[Hook], number: usize, length: Duration) -> Round {
        let mut turns: Vec<Beside> = ALL.into_iter().filter(|beside| beside.is_in_round(number)).collect();
        // Reversing the order makes a steady drift affect all kinds alike over two rounds, or four.
        if number / OTHERS % 2 == 1 {
            turns.reverse();
        }
        Round(turns.into_iter().map(|beside| (beside, flood(lab, beside, hooks, length))).collect())
    }

    fn of(&self, beside: Beside) -> Option<&Flood> {
        self.0.iter().find(|(other, _)| *other == beside).map(|(_, flood)| flood)
    }
}

/// All rounds.
struct Rounds(Vec<Round>);

impl Rounds {
    /// Returns the number of rounds that have a flood of this kind.
    fn count(&self, beside: Beside) -> usize {
        self.0.iter().filter(|round| round.of(beside).is_some()).count()
    }

    /// Returns a figure of the floods of one kind.
    fn each(&self, beside: Beside, figure: impl Fn(&Flood) -> f64) -> Spread {
        self.against(beside, beside, |flood, _| figure(flood))
    }

    /// Returns a figure that compares two floods of the same round.
    fn against(&self, beside: Beside, base: Beside, figure: impl Fn(&Flood, &Flood) -> f64) -> Spread {
        let floods = |round: &Round| Some(figure(round.of(beside)?, round.of(base)?));
        Spread::of(self.0.iter().filter_map(floods).collect())
    }

    /// Returns the CPU time per datagram beyond that of unmonitored floods.
    fn taken(&self, beside: Beside) -> Spread {
        let all = |flood: &Flood| flood.sender + flood.reader + flood.library;
        self.against(beside, Beside::Nothing, |flood, without| all(flood) - all(without))
    }
}

/// Prints the figures. Returns the floors that are missed.
pub fn measure(rounds: usize, length: Duration, is_markdown: bool) -> Vec<String> {
    let lab = Lab::new();
    let hooks = hooks();
    // The first flood warms up.
    flood(&lab, Beside::Nothing, &[], length);
    let play = |number| Round::play(&lab, &hooks, number, length);
    let rounds = Rounds((0..rounds).map(play).collect());
    println!(
        "\ndatagrams per second; floods of {} s by turns, medians (quartiles); empty programs at {} hooks",
        length.as_secs_f64(),
        hooks.len()
    );
    let mut missed = rates(&rounds, is_markdown);
    println!("\nCPU time beyond that of the unmonitored flood, ns per datagram, from the same floods");
    missed.extend(times(&rounds, is_markdown));
    missed
}

/// Returns the attach points of the engine `kernel`.
fn hooks() -> Vec<Hook> {
    let watcher = Watcher::start(Kind::Library(Engine::Kernel), &Place::All(Protocol::Udp.filter()));
    Hook::all_of(watcher.pid()).unwrap()
}

fn rates(rounds: &Rounds, is_markdown: bool) -> Vec<String> {
    let titles = ["", "rounds", "", "per second", "of unmonitored", "of empty programs"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    let mut missed = Vec::new();
    for beside in ALL {
        for name in ["sent", "read"] {
            let rate = |flood: &Flood| if name == "sent" { flood.sent } else { flood.read };
            let ratio = |base| rounds.against(beside, base, |flood, base| rate(flood) / rate(base));
            let of_empty = ratio(Beside::EmptyPrograms);
            rows.push(vec![
                beside.name().to_owned(),
                rounds.count(beside).to_string(),
                name.to_owned(),
                format!("{:.0}", rounds.each(beside, rate)),
                format!("{:.3}", ratio(Beside::Nothing)),
                format!("{of_empty:.3}"),
            ]);
            if beside == KERNEL && of_empty.median < MIN_RATE {
                let share = of_empty.median;
                missed.push(format!(
                    "{name} at {share:.3} of the rate with empty programs, less than {MIN_RATE}"
                ));
            }
        }
    }
    print!("{}", lines(&rows, is_markdown));
    missed
}

fn times(rounds: &Rounds, is_markdown: bool) -> Vec<String> {
    let titles = ["", "sender and kernel", "reader", "library's process", "together", "of empty programs"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    let empty = rounds.taken(Beside::EmptyPrograms).median;
    for beside in ALL.into_iter().filter(|&beside| beside != Beside::Nothing) {
        let more = |figure: fn(&Flood) -> f64| {
            rounds.against(beside, Beside::Nothing, |flood, without| figure(flood) - figure(without))
        };
        let taken = rounds.taken(beside);
        rows.push(vec![
            beside.name().to_owned(),
            format!("{:.0}", more(|flood| flood.sender)),
            format!("{:.0}", more(|flood| flood.reader)),
            format!("{:.0}", rounds.each(beside, |flood| flood.library)),
            format!("{taken:.0}"),
            format!("{:.2}", taken.median / empty),
        ]);
    }
    print!("{}", lines(&rows, is_markdown));
    let kernel = rounds.taken(KERNEL).median;
    for other in ALL.into_iter().filter(|other| matches!(other, Beside::Library(engine) if engine.captures()))
    {
        println!("kernel takes {:.3} of what {} takes", kernel / rounds.taken(other).median, other.name());
    }
    let share = kernel / empty;
    let is_met = empty > 0.0 && share <= MAX_TIME;
    (!is_met)
        .then(|| format!("kernel takes {share:.3} of what empty programs take, more than {MAX_TIME}"))
        .into_iter()
        .collect()
}

/// Runs one flood.
fn flood(lab: &Lab, beside: Beside, hooks: &[Hook], length: Duration) -> Flood {
    allow(length);
    let stream = Stream::prepare(lab, 1, length);
    let place = Place::All(Protocol::Udp.filter());
    let (mut watcher, mut programs) = (None, Vec::new());
    match beside {
        Beside::Nothing => {}
        Beside::EmptyPrograms => {
            programs.extend(hooks.iter().map(|&hook| EmptyProgram::attach(hook).unwrap()));
        }
        Beside::Library(engine) => watcher = Some(Watcher::start(Kind::Library(engine), &place)),
    }
    let used = |watcher: &Option<Watcher>| {
        watcher.as_ref().map_or(0.0, |watcher| cpu::seconds(watcher.pid()).expect("it lives"))
    };
    let before = used(&watcher);
    let passed = stream.run();
    if let Some(watcher) = &mut watcher {
        watcher.settle();
    }
    let library = used(&watcher) - before;
    drop(programs);
    let [sent, read] = [passed.all_sent(), passed.read.1].map(|count| count as f64);
    Flood {
        sent: sent / passed.took.as_secs_f64(),
        read: read / passed.took.as_secs_f64(),
        sender: passed.used[0] * 1e9 / sent,
        reader: passed.used[1] * 1e9 / read,
        library: library * 1e9 / sent,
    }
}
