//! Prints outcomes: a line for each as it arrives, the floors that were missed, and the table for
//! benches/README.md.

use super::judge::{percent, surplus};
use super::peers::PeerKind;
use super::stage::Outcome;
use super::watcher::Kind;
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

/// The number of connections in a thousand that may fail on a busy machine, and the number that may fail
/// regardless of the total.
const FAILURES: (u64, u64) = (1, 2);

/// Returns the line of titles.
pub fn titles() -> String {
    line(&TITLES.map(str::to_owned))
}

/// Returns the line of an outcome.
pub fn row(outcome: &Outcome) -> String {
    line(&cells(outcome))
}

fn line(cells: &[String; 10]) -> String {
    let mut text = String::new();
    for (at, (cell, width)) in cells.iter().zip(WIDTHS).enumerate() {
        // Names are left-aligned, figures right-aligned.
        let _ = if at < 2 { write!(text, "{cell:<width$} ") } else { write!(text, "{cell:>width$} ") };
    }
    text.trim_end().to_owned()
}

fn cells(outcome: &Outcome) -> [String; 10] {
    let (verdict, sighting) = (&outcome.verdict, &outcome.sighting);
    let share = |bytes| exactly(percent(bytes, verdict.truth.max(1)));
    let unowned = verdict.unowned();
    let reason = match sighting.unowned.iter().max_by_key(|(_, bytes)| bytes) {
        // Frames that are unrelated to the scenario have reasons, too.
        Some((name, bytes)) if bytes * 2 > unowned => format!(" {name}"),
        _ if sighting.lost > Some(0) => " lost".to_owned(),
        _ => String::new(),
    };
    let reason = if unowned > 0 { reason } else { String::new() };
    let tcpdump = times_tcpdump(outcome).map_or(String::new(), |times| format!(" ({times:.1}x)"));
    [
        outcome.scenario.clone(),
        outcome.watcher.name().to_owned() + if sighting.hangs { ", hangs" } else { "" },
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

/// Formats a percentage, so that 0 and 100 appear only if they are exact.
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

/// Returns the library's CPU time for a packet as a multiple of tcpdump's.
fn times_tcpdump(outcome: &Outcome) -> Option<f64> {
    outcome.tcpdump_cost.filter(|cost| *cost > 0.0).map(|cost| outcome.packet_cost / cost)
}

/// Bytes that do not count as wrong. On a busy machine, the counters at the two ends of a loopback device
/// have been seen to differ by an acknowledgement or two.
const SLACK: u64 = 200;

/// Returns the floors that were missed, in words.
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
    let wrong = percent(wrong.saturating_sub(SLACK), verdict.truth.max(1));
    check("wrong %, at most:", wrong, floor.wrong, wrong <= floor.wrong);
    let lost = outcome.sighting.lost.unwrap_or(0) as f64;
    check("lost packets, at most:", lost, 0.0, !floor.lossless || lost == 0.0);
    let told = percent(verdict.right + verdict.wrong + without_owner(outcome), verdict.truth.max(1));
    check("told of %, at least:", told, floor.told, told >= floor.told);
    check("told of %, at most:", told, 200.0 - floor.told, floor.told == 0.0 || told <= 200.0 - floor.told);
    let surplus = surplus(verdict, without_owner(outcome)) as f64;
    check("bytes counted twice, at most:", surplus, 0.0, !floor.once || surplus == 0.0);
    let few = (outcome.connections * FAILURES.0 / 1000).max(FAILURES.1) as f64;
    let failed = outcome.failed as f64;
    check("failed connections, at most:", failed, few, failed <= few);
    if let Some(most) = floor.cpu.filter(|_| with_cpu) {
        check("CPU %, at most:", outcome.cpu, most, outcome.cpu <= most);
    }
    if let (Some(most), Some(tcpdump), true) = (floor.tcpdump, outcome.tcpdump_cost, with_cpu) {
        let times = (outcome.packet_cost - outcome.fixed_cost) / tcpdump.max(1.0);
        check("CPU time of a packet in terms of tcpdump's, at most:", times, most, times <= most);
    }
    missed
}

/// Returns the bytes without an owner, for all reasons.
fn without_owner(outcome: &Outcome) -> u64 {
    outcome.sighting.unowned.iter().map(|(_, bytes)| bytes).sum()
}

/// Returns the details that the verbose output adds to the line.
pub fn details(outcome: &Outcome) -> String {
    let mut text = String::new();
    for (name, share) in &outcome.threads {
        let _ = writeln!(text, "    {share:6.2}% {name}");
    }
    let tcpdump = outcome.tcpdump_cost.map_or(String::new(), |cost| format!(", tcpdump {cost:.0} ns"));
    let _ = writeln!(text, "    {:.0} ns of CPU time for each packet{tcpdump}", outcome.packet_cost);
    if outcome.failed > 0 {
        let _ = writeln!(text, "    {} of {} connections failed", outcome.failed, outcome.connections);
    }
    for (reason, bytes) in outcome.sighting.unowned.iter().filter(|(_, bytes)| *bytes > 0) {
        let _ = writeln!(text, "    unowned, {reason}: {bytes}");
    }
    let _ = writeln!(text, "    {:?}", outcome.verdict);
    if outcome.verdict.right < outcome.verdict.truth {
        let said = outcome.sighting.said.iter().take(20);
        said.for_each(|(pid, credit)| {
            let _ = writeln!(text, "    said of {pid}: {:?}", credit.bytes);
        });
    }
    let _ = writeln!(text, "    {}", outcome.sighting.note);
    text
}

/// Returns the outcome in tab-separated figures for another program: the scenario, the watcher, then true
/// bytes, right, wrong, wrong and not flagged, all that were seen, packets lost, connections, failed ones,
/// the smallest share that is right of an end, and in words the floors that were missed.
pub fn figures(outcome: &Outcome, with_cpu: bool) -> String {
    let verdict = &outcome.verdict;
    let numbers = [
        verdict.truth,
        verdict.right,
        verdict.wrong,
        verdict.wrong_unflagged,
        verdict.right + verdict.wrong + without_owner(outcome),
        outcome.sighting.lost.unwrap_or(0),
        outcome.connections,
        outcome.failed,
    ];
    let numbers = numbers.map(|number| number.to_string()).join("\t");
    let measured = outcome.watcher.name();
    let missed = missed(outcome, with_cpu).join("; ");
    format!("{}\t{measured}\t{numbers}\t{}\t{missed}", outcome.scenario, verdict.least_right)
}

/// Returns the machine, the versions, and all outcomes as a Markdown table with a line for each scenario and
/// engine. If `with_peers` is set, each peer has a column, installed or not, which is filled in the first
/// line of a scenario.
pub fn markdown(outcomes: &[Outcome], seconds: u64, with_peers: bool) -> String {
    let peers: &[PeerKind] = if with_peers { &PeerKind::ALL } else { &[] };
    let mut titles = TITLES.to_vec();
    titles[1] = "engine";
    titles.extend(peers.iter().map(|peer| peer.program()));
    let mut text = format!("{}; {seconds} s each.\n\n| {} |\n", machine(), titles.join(" | "));
    let _ = writeln!(text, "|---|---|{}", "---:|".repeat(titles.len() - 2));
    let mut before = None;
    for own in outcomes.iter().filter(|outcome| matches!(outcome.watcher, Kind::Library(_))) {
        let mut row: Vec<String> = cells(own).into();
        let is_first = before.replace(&own.scenario) != Some(&own.scenario);
        row.extend(peers.iter().map(|&peer| {
            let same = |other: &&Outcome| other.scenario == own.scenario && other.watcher == Kind::Peer(peer);
            match outcomes.iter().find(same) {
                _ if !is_first => String::new(),
                Some(outcome) => in_short(outcome),
                None if peer.version().is_none() => "not installed".to_owned(),
                None => "cannot".to_owned(),
            }
        }));
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

/// Returns a peer's outcome as a cell: the shares that are right and wrong, the packets lost, and the share
/// of a core.
fn in_short(outcome: &Outcome) -> String {
    let verdict = &outcome.verdict;
    let share = |bytes| exactly(percent(bytes, verdict.truth.max(1)));
    let mut parts = vec![format!("{}% right", share(verdict.right))];
    parts.extend((verdict.wrong > 0).then(|| format!("{}% wrong", share(verdict.wrong))));
    let lost = outcome.sighting.lost.filter(|&lost| lost > 0);
    parts.extend(lost.map(|lost| format!("{lost} lost")));
    parts.push(format!("CPU {:.0}%", outcome.cpu));
    parts.extend(outcome.sighting.hangs.then(|| "hangs".to_owned()));
    parts.join(", ")
}

/// Returns the machine and the versions of everything that was measured.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown CPU", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism().map_or(0, |count| count.get());
    let tcpdump = Command::new("tcpdump").arg("--version").output().map(|output| {
        let text = [output.stdout, output.stderr].concat();
        let line = String::from_utf8_lossy(&text).lines().next().map(str::to_owned);
        // `tcpdump version 4.99.3`
        line.unwrap_or_default().replace(" version", "")
    });
    let mut parts = vec![
        format!("Linux {}", read("/proc/sys/kernel/osrelease").trim()),
        format!("{cores} cores of {model}"),
        format!("libcapture {}", env!("CARGO_PKG_VERSION")),
    ];
    parts.extend(tcpdump);
    let peers = PeerKind::ALL.iter();
    parts.extend(
        peers.map(|peer| peer.version().unwrap_or_else(|| format!("{} not installed", peer.program()))),
    );
    parts.join(", ")
}
