//! A short version of `scripts/accuracy`: representative scenarios of a few seconds, which check bytes only.
//!
//! Needs root, ip, nft, ping, tcpdump and ss. If one of these is missing, the tests print a line and pass;
//! with CAPTURE_REQUIRE_ALL=1 they fail.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "so do tests fail")]

use capture_test_support::commands::die_with_this;
use capture_test_support::programs::{program_with_library, traffic_maker};
use capture_test_support::requirements::{has_root_and, requires_all};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, RwLock};
use std::time::{Duration, Instant};

/// The time after which a test gives up on an expected event.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Returns the path of the `accuracy` program, built like this test.
fn program() -> PathBuf {
    // Builds the maker once here; otherwise several programs would build it at the same time.
    traffic_maker();
    program_with_library("accuracy", cfg!(feature = "ebpf"))
}

/// Returns true if the tests can run here, and reports what is missing.
fn can_run() -> bool {
    has_root_and(&["ip", "nft", "ping", "tcpdump", "ss"])
}

/// The result of a scenario, in bytes except for the last three fields.
#[derive(Debug)]
struct Figures {
    truth: u64,
    right: u64,
    wrong: u64,
    wrong_unflagged: u64,
    /// Bytes with or without an owner.
    seen: u64,
    lost: u64,
    connections: u64,
    failed: u64,
    /// The smallest share that is right of an end's bytes, percent.
    least_right: f64,
}

/// Returns the engines of the program, each with the reason if it is unavailable.
fn engines() -> &'static [(String, Option<String>)] {
    static ENGINES: OnceLock<Vec<(String, Option<String>)>> = OnceLock::new();
    ENGINES.get_or_init(|| {
        let output = Command::new(program()).arg("--list-engines").stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let engine = |line: &str| {
            let (name, reason) = line.split_once('\t').unwrap();
            (name.to_owned(), (!reason.is_empty()).then(|| reason.to_owned()))
        };
        text.lines().map(engine).collect()
    })
}

/// Plays a scenario for `length` seconds. Returns `None` if the kernel lacks something that it needs.
fn play(scenario: &str, engine: &str, length: &str) -> Option<Figures> {
    // With permission, it runs at a higher priority than the rest of the machine's work.
    let mut command = Command::new("nice");
    command.args(["-n", "-20"]).arg(program());
    command.args(["--figures", "--bytes-only", "--seconds", length]);
    command.args(["--engine", engine, "--scenario", scenario]);
    let output = die_with_this(command).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{scenario}: {}: {text}{errors}", output.status);
    let words: Vec<&str> = text.trim_end_matches('\n').split('\t').collect();
    if let [name, reason] = words[..] {
        assert!(!requires_all(), "{name}: {reason}");
        eprintln!("{name}: {reason}");
        return None;
    }
    assert_eq!((words.len(), words[0], words[1]), (12, scenario, engine), "{text}");
    let number = |at: usize| words[at].parse::<u64>().unwrap();
    Some(Figures {
        truth: number(2),
        right: number(3),
        wrong: number(4),
        wrong_unflagged: number(5),
        seen: number(6),
        lost: number(7),
        connections: number(8),
        failed: number(9),
        least_right: words[10].parse().unwrap(),
    })
}

/// Coexistence of scenarios: beside others or alone.
#[derive(Clone, Copy)]
enum Pace {
    Beside,
    Alone,
}

/// The required result of a short play, whatever else the machine does.
#[derive(Clone, Copy)]
struct Floor {
    /// The minimum of true bytes. Fewer would prove nothing.
    truth: u64,
    /// The minimum percentage that is right: of the bytes of each end, or of all bytes if `once` is set.
    right: f64,
    /// The maximum percentage that is wrong.
    wrong: f64,
    /// True if wrong bytes that are flagged as uncertain are excused.
    flag_excuses: bool,
    /// Coexistence with other scenarios.
    pace: Pace,
    /// True if the scenario watches many namespaces: all bytes, credited or not, must then not exceed the
    /// true bytes. Its ends share the processors, so on a busy machine all connections of some ends may be
    /// too short to find their owner.
    once: bool,
}

/// The share without an owner may be ten times that of a long play. A process is searched for from its first
/// connections on, and those of them that were too short make up a larger part of a short play.
const USUAL: Floor =
    Floor { truth: 1_000_000, right: 90.0, wrong: 0.1, flag_excuses: false, pace: Pace::Beside, once: false };
const ALONE: Floor = Floor { pace: Pace::Alone, ..USUAL };

/// An uncommon use of sockets that is visible from outside is counted as exactly as a common one.
const UNCOMMON: Floor = Floor { wrong: 0.0, ..USUAL };

/// A use that is not visible from outside at all.
const UNSEEN: Floor = Floor { right: 0.0, ..UNCOMMON };

/// The maximum number of plays until one reaches its floor. A process that needs all processors for a second
/// lets connections pass unseen, so that a busy machine takes more than one play. Wrong, duplicate and lost
/// bytes do not depend on the load.
const PLAYS: usize = 4;

/// A lock that scenarios with much traffic take exclusively, and that the others share.
static BUSY: RwLock<()> = RwLock::new(());

#[track_caller]
fn holds(scenario: &str, engine: &str, floor: &Floor) {
    let play = || {
        if matches!(floor.pace, Pace::Alone) {
            let _alone = BUSY.write().unwrap_or_else(|poisoned| poisoned.into_inner());
            return play(scenario, engine, "1");
        }
        let _beside = BUSY.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        play(scenario, engine, "2")
    };
    for number in 1..=PLAYS {
        let Some(figures) = play() else { return };
        println!("{scenario}, {engine}: {figures:?}");
        let wrong = if floor.flag_excuses { figures.wrong_unflagged } else { figures.wrong };
        let share = |bytes: u64| bytes as f64 * 100.0 / figures.truth as f64;
        assert!(figures.right <= figures.truth, "{scenario}: no more is right than there was: {figures:?}");
        assert!(share(wrong) <= floor.wrong, "{scenario}: not much is wrong: {figures:?}");
        assert!(share(figures.seen) >= 99.0, "{scenario}: each end is watched: {figures:?}");
        assert!(!floor.once || figures.seen <= figures.truth, "{scenario}: nothing is twice: {figures:?}");
        assert_eq!(figures.lost, 0, "{scenario}: the tap has kept up: {figures:?}");
        let right = match floor.once {
            true => share(figures.right),
            false => figures.least_right + share(figures.wrong - wrong),
        };
        let with_traffic = figures.truth >= floor.truth && figures.failed <= 2 + figures.connections / 100;
        if with_traffic && right >= floor.right {
            return;
        }
        assert!(number < PLAYS, "{scenario}: enough moves, and enough of it is right: {figures:?}");
    }
}

/// The number of scenarios that play at the same time in a test of several.
const AT_ONCE: usize = 4;

/// Plays several scenarios at the same time.
fn all_hold(scenarios: &[(&str, &Floor)], engine: &str) {
    let waiting = Mutex::new(scenarios.iter());
    let next = || waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).next();
    let play_on = || {
        while let Some((scenario, floor)) = next() {
            holds(scenario, engine, floor);
        }
    };
    std::thread::scope(|scope| (0..AT_ONCE).for_each(|_| drop(scope.spawn(play_on))));
}

/// Defines a test for each scenario, with the engine that needs nothing of the kernel, and the constant
/// `COMMON` with the names and floors of all of them.
macro_rules! scenarios {
    ($($name:ident: $scenario:literal $floor:expr;)*) => {
        $(#[test]
        fn $name() {
            if can_run() {
                holds($scenario, PORTABLE, &$floor);
            }
        })*

        const COMMON: &[(&str, &Floor)] = &[$(($scenario, &$floor)),*];
    };
}

/// The engine that needs nothing of the kernel.
const PORTABLE: &str = "portable";

scenarios! {
    short_connections_of_a_client_root: "short-500" USUAL;
    short_connections_to_a_server_root: "server-500-v6" USUAL;
    a_udp_server_with_many_peers_root: "udp-server" Floor { wrong: 0.0, right: 99.0, ..ALONE };
    udp_over_many_sockets_root: "quic-client" Floor { wrong: 0.0, ..ALONE };
    loopback_at_both_ends_root: "loopback-short" Floor { wrong: 0.0, ..USUAL };
    a_prefork_server_root: "prefork" Floor { wrong: 0.0, flag_excuses: true, ..USUAL };
    the_same_addresses_in_two_namespaces_root: "same-addresses" Floor { wrong: 0.0, once: true, ..USUAL };
    a_container_tapped_outside_and_inside_root: "container" Floor { wrong: 0.0, once: true, ..USUAL };
    ping_root: "ping" Floor { truth: 10_000, wrong: 0.0, ..USUAL };
    a_raw_socket_root: "raw" Floor { truth: 100_000, wrong: 0.0, ..USUAL };
    bulk_root: "bulk-tcp-v4-send" Floor { truth: 10_000_000, right: 99.0, wrong: 0.0, ..ALONE };
}

/// Uncommon ways to use sockets. From outside, a passed socket belongs to the process that happens to hold it
/// at the first lookup.
const UNCOMMON_ONES: &[(&str, &Floor)] = &[
    ("sendfile", &UNCOMMON),
    ("splice", &UNCOMMON),
    ("io-uring-client", &UNCOMMON),
    ("io-uring-server", &UNCOMMON),
    ("mmsg-client", &UNCOMMON),
    ("mmsg-server", &UNCOMMON),
    ("peek-tcp", &UNCOMMON),
    ("peek-udp", &UNCOMMON),
    ("packet-socket", &UNSEEN),
    ("passed", &Floor { wrong: 100.0, ..UNSEEN }),
    ("passed-exit", &Floor { wrong: 100.0, ..UNSEEN }),
    ("fast-open-client", &UNCOMMON),
    ("fast-open-server", &UNCOMMON),
    ("mptcp-client", &UNCOMMON),
    ("mptcp-server", &UNCOMMON),
];

#[test]
fn uncommon_ways_to_use_sockets_root() {
    if can_run() {
        all_hold(UNCOMMON_ONES, PORTABLE);
    }
}

/// Further uses of sockets that end before they can be observed from outside, or that only the kernel can
/// attribute.
const ONLY_IN_THE_KERNEL: &[(&str, &Floor)] = &[
    ("processes-300", &USUAL),
    ("passed-kept", &USUAL),
    ("io-uring-polled", &USUAL),
    ("udp-short", &UNCOMMON_SMALL),
];

/// A floor for little traffic.
const UNCOMMON_SMALL: Floor = Floor { truth: 10_000, ..UNCOMMON };

/// Checks that everything is exact with an engine that gets the owners from the kernel.
fn is_exact_with(engine: &str) {
    if !can_run() {
        return;
    }
    let found = engines().iter().find(|(name, _)| name == engine).expect("the program knows it");
    if let Some(reason) = &found.1 {
        // A library that was built without eBPF programs has no such engine.
        assert!(!requires_all() || !cfg!(feature = "ebpf"), "{engine} is not available: {reason}");
        eprintln!("not run: {engine} is not available: {reason}");
        return;
    }
    let all = [COMMON, UNCOMMON_ONES, ONLY_IN_THE_KERNEL].concat();
    let exact = |floor: &Floor| Floor { right: 99.9, wrong: 0.0, flag_excuses: false, ..*floor };
    let floors: Vec<Floor> = all.iter().map(|(_, floor)| exact(floor)).collect();
    let all: Vec<(&str, &Floor)> = all.iter().zip(&floors).map(|((name, _), floor)| (*name, floor)).collect();
    all_hold(&all, engine);
}

#[test]
fn owners_from_the_kernel_are_exact_root() {
    is_exact_with("owners");
}

#[test]
fn bytes_counted_in_the_kernel_are_exact_root() {
    is_exact_with("kernel");
}

/// The running program, with all processes that it has started so far.
struct AtWork {
    program: Child,
    /// Process ids with their start times.
    descendants: BTreeSet<(i32, u64)>,
}

/// Starts the program, and waits until it has created this many namespaces and processes.
fn at_work(namespaces: usize, processes: usize) -> AtWork {
    let mut command = Command::new(program());
    command.args(["--bytes-only", "--seconds", "30", "--scenario", "prefork"]);
    let mut command = die_with_this(command);
    let program = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pid = program.id() as i32;
    let mut work = AtWork { program, descendants: BTreeSet::new() };
    wait_until("it works", || {
        work.descendants = descendants(pid);
        namespaces_of(&work.descendants).len() >= namespaces && work.descendants.len() >= processes
    });
    work
}

/// Returns the living descendants of a process.
fn descendants(of: i32) -> BTreeSet<(i32, u64)> {
    let all: Vec<(i32, i32, u64)> = procfs::process::all_processes()
        .unwrap()
        .filter_map(|process| process.ok()?.stat().ok())
        .filter(|stat| stat.state != 'Z')
        .map(|stat| (stat.pid, stat.ppid, stat.starttime))
        .collect();
    let mut found = BTreeSet::new();
    let mut parents = vec![of];
    while let Some(parent) = parents.pop() {
        for &(pid, _, started) in all.iter().filter(|process| process.1 == parent) {
            found.insert((pid, started));
            parents.push(pid);
        }
    }
    found
}

/// Returns true if a process still lives.
fn lives(&(pid, started): &(i32, u64)) -> bool {
    let stat = procfs::process::Process::new(pid).and_then(|process| process.stat());
    stat.is_ok_and(|stat| stat.starttime == started && stat.state != 'Z')
}

/// Returns the network namespaces that are named after one of these processes.
fn namespaces_of(processes: &BTreeSet<(i32, u64)>) -> Vec<String> {
    let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_theirs = |name: &String| {
        let owner = name.strip_prefix("capture-").and_then(|rest| rest.split('-').next()?.parse().ok());
        owner.is_some_and(|owner: i32| processes.iter().any(|&(pid, _)| pid == owner))
    };
    names.filter(is_theirs).collect()
}

#[track_caller]
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Ends the program by a signal, and checks that nothing of it is left. Returns the exit code.
fn ends_by(signal: Signal, mut work: AtWork) -> Option<i32> {
    kill(Pid::from_raw(work.program.id() as i32), signal).unwrap();
    let status = work.program.wait().unwrap();
    if signal != Signal::SIGKILL {
        // The program ends only after everything else is removed.
        assert_eq!(namespaces_of(&work.descendants), [""; 0], "{signal}");
    }
    wait_until("its processes are gone", || !work.descendants.iter().any(lives));
    wait_until("its namespaces are gone", || namespaces_of(&work.descendants).is_empty());
    status.code()
}

#[test]
fn interrupted_it_leaves_nothing_root() {
    if !can_run() {
        return;
    }
    // While the program creates its hosts; and while there is traffic, with the keeper's two processes, the
    // server's nine and the client.
    for (namespaces, processes) in [(1, 2), (2, 2), (2, 12)] {
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
            let code = ends_by(signal, at_work(namespaces, processes));
            assert_eq!(code, (signal != Signal::SIGKILL).then_some(128 + signal as i32));
        }
    }
}
