//! The cost of opening a session: time, resident set and its peak, threads, descriptors, and the kernel's
//! memory for maps.
//!
//! Each engine and each repetition opens in a process of its own, so that nothing is warm; medians are
//! printed. The capture buffers, which are shared with the kernel, have a column of their own and are part of
//! no other figure. File pages, which are the code of this program and its libraries as far as it has run,
//! have a column of their own, too, and are otherwise only part of the peak: they stay resident after all
//! sessions are closed, and take no memory of their own. `closed` is the process after its only session was
//! closed, `two` with two further sessions at once, `again` after these and eight others were opened and
//! closed. The engines with eBPF programs need root.

// A measurement that cannot be made must fail loudly.
#![allow(clippy::expect_used, clippy::panic)]

use capture::internals::config::{Engine, Options};
use capture::internals::model::ProbeState;
use capture::internals::session::Session;
use std::fs::{read_dir, read_to_string, write};
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

/// The number of processes for each engine.
const REPETITIONS: usize = 9;
/// The number of sessions that are opened and closed before the last measurement.
const MORE_SESSIONS: usize = 8;
/// Marks a process that opens sessions, and names the engine.
const ARGUMENT: &str = "--open=";

const ENGINES: [&str; 3] = ["portable", "owners", "kernel"];

fn main() {
    let argument = std::env::args().find_map(|argument| argument.strip_prefix(ARGUMENT).map(str::to_owned));
    match argument {
        Some(engine) => open_sessions(&engine),
        None => compare(),
    }
}

/// The moments of measurement, in the order in which a process prints them.
const MOMENTS: [&str; 6] = ["before", "open", "updated", "closed", "two", "again"];

/// The number of figures at each moment.
const FIGURES: usize = 6;

fn compare() {
    // Cargo passes `--bench` to measure; otherwise this only checks that the benchmark still runs.
    let is_measuring = std::env::args().any(|argument| argument == "--bench");
    let repetitions = if is_measuring { REPETITIONS } else { 1 };
    for engine in ENGINES {
        let runs: Vec<Vec<f64>> = (0..repetitions).filter_map(|_| run(engine)).collect();
        if runs.len() < repetitions {
            println!("{engine}: not available here");
            continue;
        }
        let column = |at: usize| median(runs.iter().map(|run| run[at]).collect());
        let times = [0, 1, 2].map(column);
        println!(
            "{engine}: opens in {:.1} ms, peak {:.1} MB above the start; second session {:.1} ms",
            times[0], times[2], times[1]
        );
        println!(
            "  {:<8} {:>9} {:>9} {:>9} {:>8} {:>8} {:>12}",
            "", "MB more", "code MB", "rings MB", "maps MB", "threads", "descriptors"
        );
        for (row, moment) in MOMENTS.iter().enumerate() {
            let [own, code, rings, maps, threads, files] =
                [0, 1, 2, 3, 4, 5].map(|at| column(3 + row * FIGURES + at));
            println!(
                "  {moment:<8} {own:>9.1} {code:>9.1} {rings:>9.1} {maps:>8.1} {threads:>8} {files:>12}"
            );
        }
    }
}

/// Opens sessions in another process; returns `None` if the engine is unavailable on this machine.
fn run(engine: &str) -> Option<Vec<f64>> {
    let program = std::env::current_exe().expect("this program has a path");
    let output =
        Command::new(program).arg(format!("{ARGUMENT}{engine}")).output().expect("it can be run again");
    let text = String::from_utf8(output.stdout).expect("figures are text");
    let figures: Vec<f64> = text.split_whitespace().filter_map(|figure| figure.parse().ok()).collect();
    (output.status.success() && figures.len() == 3 + MOMENTS.len() * FIGURES).then_some(figures)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn open_sessions(engine: &str) {
    let options = Options {
        engine: if engine == "kernel" { Engine::Kernel } else { Engine::Pcap },
        probes: engine != "portable",
        ..Options::default()
    };
    let open = || {
        let began = Instant::now();
        let session = Session::open(options.clone()).expect("a session opens");
        (session, began.elapsed().as_secs_f64() * 1e3)
    };
    let before = Holdings::now((0.0, 0.0));
    // Resets the peak so far (proc_pid_clear_refs(5)).
    write("/proc/self/clear_refs", "5").expect("the peak can be reset");
    let (mut session, time) = open();
    let start = (before.own, before.code);
    let opened = Holdings::now(start);
    let peak = status("VmHWM:") - before.own - before.code - opened.rings;
    let state = session.stats_reader().read().socket_probes;
    assert_eq!(state == ProbeState::Active, engine != "portable", "{engine}: the programs are {state:?}");
    session.update().expect("an update works");
    let updated = Holdings::now(start);
    drop(session);
    let closed = Holdings::now(start);
    let (first, _) = open();
    let (second, second_time) = open();
    let both = Holdings::now(start);
    drop((first, second));
    for _ in 0..MORE_SESSIONS {
        drop(open());
    }
    let again = Holdings::now(start);
    println!("{time} {second_time} {peak}");
    for Holdings { own, code, rings, maps, threads, files } in
        [Holdings { own: 0.0, code: 0.0, ..before }, opened, updated, closed, both, again]
    {
        println!("{own} {code} {rings} {maps} {threads} {files}");
    }
}

/// Resources of the process; memory in MB.
struct Holdings {
    /// Anonymous part of the resident set, above the start.
    own: f64,
    /// Pages of files, above the start.
    code: f64,
    /// The capture buffers.
    rings: f64,
    /// The kernel's memory for maps (proc_pid_fdinfo(5)).
    maps: f64,
    threads: usize,
    files: usize,
}

impl Holdings {
    fn now(start: (f64, f64)) -> Holdings {
        let (mut own, mut resident, mut rings, mut is_ring) = (0.0, 0.0, 0.0, false);
        let smaps = read_to_string("/proc/self/smaps").expect("own mappings can be read");
        for line in smaps.lines() {
            // A mapping begins with its addresses; the names of its figures end with a colon.
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("Rss:"), Some(kib)) => {
                    let size = mb(kib);
                    if is_ring { rings += size } else { resident += size }
                }
                (Some("Anonymous:"), Some(kib)) => own += mb(kib),
                (Some(word), _) if !word.ends_with(':') => is_ring = line.contains("socket:["),
                _ => {}
            }
        }
        let infos = tables().into_iter().filter_map(|table| read_dir(table.join("fdinfo")).ok());
        let infos = infos.flatten().flatten().filter_map(|entry| read_to_string(entry.path()).ok());
        let maps: Vec<String> = infos.filter(|info| info.contains("\nmap_id:")).collect();
        let memory = |info: &String| {
            let line = info.lines().find_map(|line| line.strip_prefix("memlock:"));
            line.map_or(0.0, |bytes| bytes.trim().parse::<f64>().expect("a number") / 1e6)
        };
        Holdings {
            own: own - start.0,
            code: resident - own - start.1,
            rings,
            maps: maps.iter().map(memory).sum(),
            threads: read_dir("/proc/self/task").expect("own threads can be read").count(),
            files: tables()
                .iter()
                .map(|table| read_dir(table.join("fd")).map_or(0, Iterator::count))
                .sum::<usize>()
                - 1,
        }
    }
}

/// Returns the descriptor tables of this process: the host's, and that of the sessions' threads.
fn tables() -> Vec<PathBuf> {
    let threads = read_dir("/proc/self/task").expect("own threads can be read").flatten();
    let is_of_session = |thread: &PathBuf| {
        read_to_string(thread.join("comm")).is_ok_and(|name| name.trim_end() == "capture-session")
    };
    let session = threads.map(|thread| thread.path()).find(is_of_session);
    [Some(PathBuf::from("/proc/self")), session].into_iter().flatten().collect()
}

fn status(field: &str) -> f64 {
    let status = read_to_string("/proc/self/status").expect("the own status can be read");
    mb(status.lines().find_map(|line| line.strip_prefix(field)).expect("the field is there"))
}

/// Converts KiB, as the kernel prints them, to MB.
fn mb(kib: &str) -> f64 {
    kib.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).expect("a number") * 1024.0 / 1e6
}
