//! Shows outcomes: a line for each as it comes, floors that were missed, and the table for the README.

use super::judge::percent;
use super::peers::PeerKind;
use super::stage::Outcome;
use std::fmt::Write;
use std::process::Command;

const TITLES: [&str; 10] = [
    "scenario",
    "measured",
    "true MB",
    "right %",
    "wrong %",
    "unowned %",
    "flagged %",
    "lost",
    "CPU %",
    "per second",
];
const WIDTHS: [usize; 10] = [24, 10, 8, 7, 7, 22, 9, 8, 12, 10];

/// The titles of the lines.
pub fn titles() -> String {
    line(&TITLES.map(str::to_owned))
}

/// The line of an outcome.
pub fn row(outcome: &Outcome) -> String {
    line(&cells(outcome))
}

fn line(cells: &[String; 10]) -> String {
    let mut text = String::new();
    for (at, (cell, width)) in cells.iter().zip(WIDTHS).enumerate() {
        // Names to the left, figures to the right.
        let _ = if at < 2 { write!(text, "{cell:<width$} ") } else { write!(text, "{cell:>width$} ") };
    }
    text.trim_end().to_owned()
}

fn cells(outcome: &Outcome) -> [String; 10] {
    let (verdict, sighting) = (&outcome.verdict, &outcome.sighting);
    let share = |bytes| exactly(percent(bytes, verdict.truth.max(1)));
    let unowned = verdict.unowned();
    let reason = match sighting.unowned.iter().max_by_key(|(_, bytes)| bytes) {
        // Frames that have nothing to do with the scenario have reasons, too.
        Some((name, bytes)) if bytes * 2 > unowned => format!(" {name}"),
        _ if sighting.lost > Some(0) => " lost".to_owned(),
        _ => String::new(),
    };
    let reason = if unowned > 0 { reason } else { String::new() };
    let tcpdump = times_tcpdump(outcome).map_or(String::new(), |times| format!(" ({times:.1}x)"));
    [
        outcome.scenario.clone(),
        outcome.watcher.to_owned() + if sighting.hangs { ", hangs" } else { "" },
        format!("{:.1}", verdict.truth as f64 / 1e6),
        share(verdict.right),
        share(verdict.wrong),
        share(unowned) + &reason,
        share(sighting.flagged),
        sighting.lost.map_or("-".to_owned(), |lost| lost.to_string()),
        format!("{:.1}{tcpdump}", outcome.cpu),
        outcome.rate.map_or("-".to_owned(), |rate| format!("{rate:.0}")),
    ]
}

/// A percentage that is 0 or 100 only when it is so exactly.
fn exactly(share: f64) -> String {
    if share == 0.0 || share == 100.0 {
        format!("{share:.0}")
    } else if share > 99.0 && share < 100.0 {
        // Rounded down: 99.999 is not 100.
        format!("{:.2}", (share * 100.0).floor() / 100.0)
    } else if share < 1.0 {
        format!("{:.2}", (share * 100.0).ceil() / 100.0)
    } else {
        format!("{share:.1}")
    }
}

/// What the CPU time of the library for a packet is in terms of tcpdump's.
fn times_tcpdump(outcome: &Outcome) -> Option<f64> {
    outcome.tcpdump_cost.filter(|cost| *cost > 0.0).map(|cost| outcome.packet_cost / cost)
}

/// The floors that were missed, in words.
pub fn missed(outcome: &Outcome, with_cpu: bool) -> Vec<String> {
    let Some(floor) = outcome.floor else { return Vec::new() };
    let verdict = &outcome.verdict;
    let mut missed = Vec::new();
    let mut check = |what: &str, is: f64, limit: f64, holds: bool| {
        if !holds {
            missed.push(format!("{what} {} instead of {limit}", exactly(is)));
        }
    };
    let wrong = if floor.flag_excuses { verdict.wrong_unflagged } else { verdict.wrong };
    let excused = if floor.flag_excuses { percent(verdict.wrong - wrong, verdict.truth) } else { 0.0 };
    let right = verdict.least_right + excused;
    check("right %, at least:", right, floor.right, right >= floor.right);
    let wrong = percent(wrong, verdict.truth.max(1));
    check("wrong %, at most:", wrong, floor.wrong, wrong <= floor.wrong);
    let lost = outcome.sighting.lost.unwrap_or(0) as f64;
    check("lost packets, at most:", lost, 0.0, !floor.lossless || lost == 0.0);
    if let Some(most) = floor.cpu.filter(|_| with_cpu) {
        check("CPU %, at most:", outcome.cpu, most, outcome.cpu <= most);
    }
    if let (Some(most), Some(times), true) = (floor.tcpdump, times_tcpdump(outcome), with_cpu) {
        check("CPU time of a packet in terms of tcpdump's, at most:", times, most, times <= most);
    }
    missed
}

/// What is told besides the line when more is wanted.
pub fn details(outcome: &Outcome) -> String {
    let mut text = String::new();
    for (name, share) in &outcome.threads {
        let _ = writeln!(text, "    {share:6.2}% {name}");
    }
    let tcpdump = outcome.tcpdump_cost.map_or(String::new(), |cost| format!(", tcpdump {cost:.0} ns"));
    let _ = writeln!(text, "    {:.0} ns of CPU time for each packet{tcpdump}", outcome.packet_cost);
    for (reason, bytes) in outcome.sighting.unowned.iter().filter(|(_, bytes)| *bytes > 0) {
        let _ = writeln!(text, "    unowned, {reason}: {bytes}");
    }
    let _ = writeln!(text, "    {:?}", outcome.verdict);
    if outcome.verdict.wrong > 0 {
        let said = outcome.sighting.said.iter().take(20);
        said.for_each(|(pid, credit)| {
            let _ = writeln!(text, "    said of {pid}: {:?}", credit.bytes);
        });
    }
    let _ = writeln!(text, "    {}", outcome.sighting.note);
    text
}

/// All outcomes as a table in Markdown, with the machine and the versions above it.
pub fn markdown(outcomes: &[Outcome], seconds: u64) -> String {
    let mut text = format!("{}; {seconds} s each.\n\n", machine());
    let _ = writeln!(text, "| {} |", TITLES.join(" | "));
    let _ = writeln!(text, "|---|---|{}", "---:|".repeat(TITLES.len() - 2));
    for outcome in outcomes {
        let _ = writeln!(text, "| {} |", cells(outcome).join(" | "));
    }
    text
}

/// The machine and the versions of what was measured.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, |count| count.get());
    let first_line = |text: String| text.lines().next().unwrap_or_default().to_owned();
    let tcpdump = Command::new("tcpdump").arg("--version").output();
    let mut parts = vec![
        format!("Linux {}", read("/proc/sys/kernel/osrelease").trim()),
        format!("{cores} cores"),
        format!("libcapture {}", env!("CARGO_PKG_VERSION")),
    ];
    if let Ok(output) = tcpdump {
        parts
            .push(first_line(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()));
    }
    parts.extend([PeerKind::Nethogs, PeerKind::Bandwhich].iter().filter_map(|peer| peer.version()));
    parts.join(", ")
}
