//! How fast the flood is with an engine and without: in pairs, one after the other, since what else the machine does
//! changes from minute to minute.

use super::spread::Spread;
use super::stream::Stream;
use super::{allow, lines};
use crate::engines::Engine;
use crate::lab::Lab;
use crate::scenarios::Protocol;
use crate::watcher::{Kind, Place, Watcher};
use std::time::Duration;

/// The least that must be left of the rate with the engine `kernel`.
const FLOOR: f64 = 0.95;

/// Pairs with `kernel` for each with another engine, whose figures only inform.
const OTHERS: usize = 4;

/// What a flood comes to: datagrams sent a second, read a second at the other end, and the same for each second of CPU
/// time of the sender and of the reader, which what else runs does not take away.
type Rates = [f64; 4];

const NAMES: [&str; 4] = ["sent", "read", "sent, CPU time", "read, CPU time"];

/// Prints the rates; returns the floors that are missed.
pub fn measure(pairs: usize, length: Duration, is_markdown: bool) -> Vec<String> {
    println!(
        "\ndatagrams a second without the library and with it, and what each takes longer; pairs of {} s, medians \
         (quartiles)",
        length.as_secs_f64()
    );
    let lab = Lab::new();
    // The first one warms up.
    flood(&lab, None, length);
    let mut rows = vec![
        ["engine", "pairs", "", "without", "with", "with : without", "ns more"].map(str::to_owned).to_vec(),
    ];
    let mut missed = Vec::new();
    for engine in Engine::ALL.into_iter().rev() {
        let pairs = if engine.captures() { pairs.div_ceil(OTHERS) } else { pairs };
        let measured: Vec<[Rates; 2]> = (0..pairs).map(|pair| both(&lab, engine, pair, length)).collect();
        for (at, name) in NAMES.into_iter().enumerate() {
            let spread = |value: fn(Rates, Rates, usize) -> f64| {
                Spread::of(measured.iter().map(|&[without, with]| value(without, with, at)).collect())
            };
            let ratio = spread(|without, with, at| with[at] / without[at]);
            rows.push(vec![
                engine.name().to_owned(),
                pairs.to_string(),
                name.to_owned(),
                format!("{:.0}", spread(|without, _, at| without[at])),
                format!("{:.0}", spread(|_, with, at| with[at])),
                format!("{ratio:.3}"),
                format!("{:.0}", spread(|without, with, at| 1e9 / with[at] - 1e9 / without[at])),
            ]);
            if engine == Engine::Kernel && at < 2 && ratio.median < FLOOR {
                missed.push(format!("{name} at {:.3} of the rate, less than {FLOOR}", ratio.median));
            }
        }
    }
    print!("{}", lines(&rows, is_markdown));
    missed
}

/// A flood without the library and one with it. Over two pairs: without, with, with, without, so that a steady change
/// hits both alike.
fn both(lab: &Lab, engine: Engine, pair: usize, length: Duration) -> [Rates; 2] {
    if pair.is_multiple_of(2) {
        [None, Some(engine)].map(|engine| flood(lab, engine, length))
    } else {
        let [with, without] = [Some(engine), None].map(|engine| flood(lab, engine, length));
        [without, with]
    }
}

/// One flood.
fn flood(lab: &Lab, engine: Option<Engine>, length: Duration) -> Rates {
    allow(length);
    let stream = Stream::prepare(lab, 1, length);
    let place = Place::All(Protocol::Udp.filter());
    let watcher = engine.map(|engine| Watcher::start(Kind::Library(engine), &place));
    let passed = stream.run();
    drop(watcher);
    let counts = [passed.all_sent(), passed.read.1].map(|count| count as f64);
    let by_clock = counts.map(|count| count / passed.took.as_secs_f64());
    [by_clock[0], by_clock[1], counts[0] / passed.used[0], counts[1] / passed.used[1]]
}
