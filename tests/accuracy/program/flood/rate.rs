//! How fast the flood is with an engine and without, and what the engine takes of the machine's CPU time: in pairs, one
//! after the other, since what else the machine does changes from minute to minute.

use super::spread::Spread;
use super::stream::Stream;
use super::{allow, lines};
use crate::cpu;
use crate::engines::Engine;
use crate::lab::Lab;
use crate::scenarios::Protocol;
use crate::watcher::{Kind, Place, Watcher};
use std::time::Duration;

/// The least that must be left of the rate with the engine `kernel`.
const LEAST_RATE: f64 = 0.95;

/// The most CPU time that `kernel` may take, as a share of what an engine takes that captures.
const MOST_TIME: f64 = 0.2;

/// Pairs with `kernel` for each with another engine.
const OTHERS: usize = 2;

/// What a flood comes to: datagrams sent and read a second, and nanoseconds of CPU time of the sender for each that is
/// sent, of the reader for each that is read, and of the library's process for each that is sent. What the kernel does
/// for a packet on its way is in the sender's time: the copies for those who capture, and the probes.
struct Flood {
    sent: f64,
    read: f64,
    sender: f64,
    reader: f64,
    library: f64,
}

/// A flood without the library and one with it.
struct Pair {
    without: Flood,
    with: Flood,
}

impl Pair {
    /// What the engine takes of the time of all processors.
    fn taken(&self) -> f64 {
        let traffic = |flood: &Flood| flood.sender + flood.reader;
        traffic(&self.with) - traffic(&self.without) + self.with.library
    }
}

/// Prints the figures; returns the floors that are missed.
pub fn measure(pairs: usize, length: Duration, is_markdown: bool) -> Vec<String> {
    let lab = Lab::new();
    // The first one warms up.
    flood(&lab, None, length);
    let measured: Vec<(Engine, Vec<Pair>)> = Engine::ALL
        .into_iter()
        .rev()
        .map(|engine| {
            let pairs = if engine.captures() { pairs.div_ceil(OTHERS) } else { pairs };
            (engine, (0..pairs).map(|number| pair(&lab, engine, number, length)).collect())
        })
        .collect();
    let seconds = length.as_secs_f64();
    println!("\ndatagrams a second; pairs of {seconds} s with the library and without, medians (quartiles)");
    let mut missed = rates(&measured, is_markdown);
    println!("\nCPU time that the engines take for each datagram, ns, from the same floods");
    missed.extend(times(&measured, is_markdown));
    missed
}

fn rates(measured: &[(Engine, Vec<Pair>)], is_markdown: bool) -> Vec<String> {
    let mut rows =
        vec![["engine", "pairs", "", "without", "with", "with : without"].map(str::to_owned).to_vec()];
    let mut missed = Vec::new();
    for (engine, pairs) in measured {
        for name in ["sent", "read"] {
            let rate = |flood: &Flood| if name == "sent" { flood.sent } else { flood.read };
            let ratio = spread(pairs, |pair| rate(&pair.with) / rate(&pair.without));
            rows.push(vec![
                engine.name().to_owned(),
                pairs.len().to_string(),
                name.to_owned(),
                format!("{:.0}", spread(pairs, |pair| rate(&pair.without))),
                format!("{:.0}", spread(pairs, |pair| rate(&pair.with))),
                format!("{ratio:.3}"),
            ]);
            if *engine == Engine::Kernel && ratio.median < LEAST_RATE {
                missed.push(format!("{name} at {:.3} of the rate, less than {LEAST_RATE}", ratio.median));
            }
        }
    }
    print!("{}", lines(&rows, is_markdown));
    missed
}

fn times(measured: &[(Engine, Vec<Pair>)], is_markdown: bool) -> Vec<String> {
    let mut rows = vec![
        ["engine", "in sender and kernel", "in reader", "in the library's process", "together"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (engine, pairs) in measured {
        rows.push(vec![
            engine.name().to_owned(),
            format!("{:.0}", spread(pairs, |pair| pair.with.sender - pair.without.sender)),
            format!("{:.0}", spread(pairs, |pair| pair.with.reader - pair.without.reader)),
            format!("{:.0}", spread(pairs, |pair| pair.with.library)),
            format!("{:.0}", spread(pairs, Pair::taken)),
        ]);
    }
    print!("{}", lines(&rows, is_markdown));
    let taken = |pairs: &[Pair]| spread(pairs, Pair::taken).median;
    let kernel = measured.iter().find(|(engine, _)| *engine == Engine::Kernel);
    let kernel = kernel.map_or(f64::NAN, |(_, pairs)| taken(pairs));
    let mut missed = Vec::new();
    for (engine, pairs) in measured.iter().filter(|(engine, _)| engine.captures()) {
        let share = kernel / taken(pairs);
        let text = format!("kernel takes {share:.3} of what {} takes", engine.name());
        println!("{text}");
        if share.is_nan() || share > MOST_TIME {
            missed.push(format!("{text}, more than {MOST_TIME}"));
        }
    }
    missed
}

fn spread(pairs: &[Pair], value: impl Fn(&Pair) -> f64) -> Spread {
    Spread::of(pairs.iter().map(value).collect())
}

/// A flood without the library and one with it. Over two pairs: without, with, with, without, so that a steady change
/// hits both alike.
fn pair(lab: &Lab, engine: Engine, number: usize, length: Duration) -> Pair {
    if number.is_multiple_of(2) {
        let without = flood(lab, None, length);
        Pair { without, with: flood(lab, Some(engine), length) }
    } else {
        let with = flood(lab, Some(engine), length);
        Pair { without: flood(lab, None, length), with }
    }
}

/// One flood.
fn flood(lab: &Lab, engine: Option<Engine>, length: Duration) -> Flood {
    allow(length);
    let stream = Stream::prepare(lab, 1, length);
    let place = Place::All(Protocol::Udp.filter());
    let mut watcher = engine.map(|engine| Watcher::start(Kind::Library(engine), &place));
    let used = |watcher: &Option<Watcher>| {
        watcher.as_ref().map_or(0.0, |watcher| cpu::seconds(watcher.pid()).expect("it lives"))
    };
    let before = used(&watcher);
    let passed = stream.run();
    if let Some(watcher) = &mut watcher {
        watcher.settle();
    }
    let library = used(&watcher) - before;
    let [sent, read] = [passed.all_sent(), passed.read.1].map(|count| count as f64);
    Flood {
        sent: sent / passed.took.as_secs_f64(),
        read: read / passed.took.as_secs_f64(),
        sender: passed.used[0] * 1e9 / sent,
        reader: passed.used[1] * 1e9 / read,
        library: library * 1e9 / sent,
    }
}
