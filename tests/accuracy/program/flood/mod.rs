//! The engines' cost in a flood of the smallest datagrams, and their effect on its rate and losses.
//! `scripts/flood` runs this and documents its options.

mod cost;
mod loss;
mod rate;
mod spread;
mod stream;

use super::{failure, guard, lacks, lacks_engine, table};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

/// The maximum time of one flood besides its traffic, seconds.
const ALLOWANCE: u64 = 60;

/// The options of the command line.
struct Wishes {
    rounds: usize,
    length: Duration,
    markdown: bool,
}

pub fn main() -> ExitCode {
    let wishes = match wishes() {
        Ok(wishes) => wishes,
        Err(text) => return failure(&text),
    };
    if let Some(text) = lacks(true).or_else(lacks_engine) {
        return failure(&text);
    }
    guard::start();
    guard::allow(ALLOWANCE);
    println!("{}\nload before {}", table::machine(), load());
    let mut missed = Vec::new();
    missed.extend(rate::measure(wishes.rounds, wishes.length, wishes.markdown));
    cost::measure(wishes.length, wishes.markdown);
    missed.extend(loss::measure(wishes.length));
    println!("\nload after {}", load());
    missed.iter().for_each(|text| println!("missed: {text}"));
    if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Sets the time limit of one flood.
fn allow(length: Duration) {
    guard::allow(length.as_secs() + ALLOWANCE);
}

/// Returns the number of processes that wanted a processor over the last minute, 5 and 15 minutes
/// (proc_loadavg(5)).
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Returns the lines of a table for benches/README.md or for a terminal. The first row has the titles.
fn lines(rows: &[Vec<String>], is_markdown: bool) -> String {
    let width = |at: usize| rows.iter().map(|row| row[at].len()).max().unwrap_or(0);
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row
            .iter()
            .enumerate()
            .map(|(at, cell)| {
                let width = width(at);
                if at == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            })
            .collect();
        if is_markdown {
            text += &format!("| {} |\n", cells.join(" | "));
            if number == 0 {
                text += &format!("|---{}|\n", "|--:".repeat(row.len() - 1));
            }
        } else {
            text += &format!("  {}\n", cells.join("  "));
        }
    }
    text
}

fn wishes() -> Result<Wishes, String> {
    let mut wishes = Wishes { rounds: 12, length: Duration::from_secs(3), markdown: false };
    let mut arguments = std::env::args().skip(2);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--rounds" => wishes.rounds = number(&value()?, "--rounds", 1, 1000)?,
            "--seconds" => {
                wishes.length = Duration::from_secs_f64(number(&value()?, "--seconds", 0.5, 60.0)?)
            }
            "--markdown" => wishes.markdown = true,
            _ => return Err(format!("{argument} is not an option")),
        }
    }
    Ok(wishes)
}

fn number<T: FromStr + PartialOrd + std::fmt::Display>(
    text: &str,
    name: &str,
    least: T,
    most: T,
) -> Result<T, String> {
    let number = text.parse().ok().filter(|number| (&least..=&most).contains(&number));
    number.ok_or_else(|| format!("{name} takes a number from {least} to {most}"))
}
