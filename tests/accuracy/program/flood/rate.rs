//! How fast the flood is with the engine `kernel` and without: in pairs, one after the other, since what else the
//! machine does changes from minute to minute.

use super::spread::Spread;
use super::stream::Stream;
use super::{allow, lines};
use crate::engines::Engine;
use crate::lab::Lab;
use crate::scenarios::Protocol;
use crate::watcher::{Kind, Place, Watcher};
use std::time::Duration;

/// The least that must be left of the rate.
const FLOOR: f64 = 0.95;

/// Datagrams a second: sent, and read at the other end.
type Rates = [f64; 2];

/// Prints the rates; returns the floors that are missed.
pub fn measure(pairs: usize, length: Duration, is_markdown: bool) -> Vec<String> {
    println!(
        "\ndatagrams a second with engine kernel and without, {pairs} pairs of {} s, medians (quartiles)",
        length.as_secs_f64()
    );
    let lab = Lab::new();
    // The first one warms up.
    flood(&lab, false, length);
    let mut measured: Vec<[Rates; 2]> = Vec::new();
    for pair in 0..pairs {
        // Without, with, with, without: a steady change hits both alike.
        let [first, second] =
            [pair % 2 == 1, pair % 2 == 0].map(|is_watched| flood(&lab, is_watched, length));
        measured.push(if pair % 2 == 0 { [first, second] } else { [second, first] });
    }
    let mut rows = vec![["", "without", "with", "with : without"].map(str::to_owned).to_vec()];
    let mut missed = Vec::new();
    for (at, name) in ["sent", "read"].into_iter().enumerate() {
        let spread = |value: fn(Rates, Rates, usize) -> f64| {
            Spread::of(measured.iter().map(|&[without, with]| value(without, with, at)).collect())
        };
        let ratio = spread(|without, with, at| with[at] / without[at]);
        rows.push(vec![
            name.to_owned(),
            format!("{:.0}", spread(|without, _, at| without[at])),
            format!("{:.0}", spread(|_, with, at| with[at])),
            format!("{ratio:.3}"),
        ]);
        if ratio.median < FLOOR {
            missed.push(format!("{name} at {:.3} of the rate, less than {FLOOR}", ratio.median));
        }
    }
    print!("{}", lines(&rows, is_markdown));
    missed
}

/// One flood.
fn flood(lab: &Lab, is_watched: bool, length: Duration) -> Rates {
    allow(length);
    let stream = Stream::prepare(lab, 1, length);
    let watcher = is_watched
        .then(|| Watcher::start(Kind::Library(Engine::Kernel), &Place::All(Protocol::Udp.filter())));
    let passed = stream.run();
    drop(watcher);
    [passed.all_sent(), passed.read.1].map(|count| count as f64 / passed.took.as_secs_f64())
}
