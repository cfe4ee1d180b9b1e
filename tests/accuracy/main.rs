//! A short version of `scripts/accuracy`: representative scenarios of a few seconds, for their bytes only.
//!
//! Needs root, ip, nft, ping, tcpdump and ss. Where these are missing the tests say so and do nothing, unless
//! CAPTURE_REQUIRE_ALL=1.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "so do tests fail")]

#[path = "../traffic/lab.rs"]
#[allow(dead_code, reason = "the program and the tests of traffic use the rest of it")]
mod lab;

use lab::{built_example, die_with_this};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, RwLock};
use std::time::{Duration, Instant};

/// When a test gives up on what should long have happened.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The program, built like this one.
fn program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let built = || {
        // Built here once, not by several programs at a time.
        lab::traffic_maker();
        built_example("accuracy")
    };
    PROGRAM.get_or_init(built).clone()
}

/// Whether what cannot be tested fails.
fn is_required() -> bool {
    std::env::var_os("CAPTURE_REQUIRE_ALL").is_some_and(|value| value == "1")
}

/// Whether a test can run; fails where it must.
fn can_run() -> bool {
    let has_tool = |tool: &str| Command::new(tool).arg("-V").output().is_ok();
    let tools = ["ip", "nft", "ping", "tcpdump", "ss"];
    if nix::unistd::geteuid().is_root() && tools.into_iter().all(has_tool) {
        return true;
    }
    assert!(!is_required(), "root and {tools:?} are required");
    eprintln!("not run: needs root and {tools:?}");
    false
}

/// What a scenario came to: bytes, but for the last three.
#[derive(Debug)]
struct Figures {
    truth: u64,
    right: u64,
    wrong: u64,
    wrong_unflagged: u64,
    /// With an owner or without.
    seen: u64,
    lost: u64,
    connections: u64,
    failed: u64,
    /// Percent of the bytes of that end which has the least.
    least_right: f64,
}

/// The engines of the program, each with the reason for which it is not available, if so.
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

/// Plays a scenario for so many seconds; `None` when the kernel lacks what it needs.
fn play(scenario: &str, engine: &str, length: &str) -> Option<Figures> {
    // Where it may, it goes before whatever else the machine does.
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
        assert!(!is_required(), "{name}: {reason}");
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

/// Whether a scenario leaves room for others.
#[derive(Clone, Copy)]
enum Pace {
    Beside,
    Alone,
}

/// What must come of a short play, whatever else the machine does.
#[derive(Clone, Copy)]
struct Floor {
    /// Least true bytes: fewer would say nothing.
    truth: u64,
    /// Least percentage that is right: of the bytes of each end, or, with `once`, of all.
    right: f64,
    /// Most percentage that is wrong.
    wrong: f64,
    /// Whether wrong bytes that are flagged as not certain are excused.
    flag_excuses: bool,
    /// Whether others may play beside it.
    pace: Pace,
    /// Whether it watches many namespaces: then all bytes, credited or not, must not be more than the true ones. Its
    /// ends share the processors, so that on a busy one all connections of some may be too short to find their owner.
    once: bool,
}

/// Ten times as much may lack its owner as in a long play: a process is looked for from its first connections on, and
/// those of them that were too short are a larger part of a short play.
const USUAL: Floor =
    Floor { truth: 1_000_000, right: 90.0, wrong: 0.1, flag_excuses: false, pace: Pace::Beside, once: false };
const ALONE: Floor = Floor { pace: Pace::Alone, ..USUAL };

/// What can be seen from outside of an uncommon use of sockets is as exact as that of a common one.
const UNCOMMON: Floor = Floor { wrong: 0.0, ..USUAL };

/// What cannot be seen from outside at all.
const UNSEEN: Floor = Floor { right: 0.0, ..UNCOMMON };

/// Plays until one has its floor. Whoever needs all processors for a second lets connections pass unseen, so that a
/// busy machine takes more than one; what is wrong, counted twice or lost is so however busy it is.
const PLAYS: usize = 4;

/// Those who move much play alone, others beside one another.
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

/// How many play at once where it is not a test for each.
const AT_ONCE: usize = 4;

/// Plays scenarios beside one another.
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

/// A test for each, with the engine that needs nothing of the kernel; and the names and floors of all of them.
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

/// Uncommon ways to use sockets. One that was passed on is, from outside, whosever it happens to be at the first look.
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

/// More that is over before anybody can look from outside, or that only the kernel itself can tell.
const ONLY_IN_THE_KERNEL: &[(&str, &Floor)] = &[
    ("processes-300", &USUAL),
    ("passed-kept", &USUAL),
    ("io-uring-polled", &USUAL),
    ("udp-short", &UNCOMMON_SMALL),
];

/// Little traffic.
const UNCOMMON_SMALL: Floor = Floor { truth: 10_000, ..UNCOMMON };

/// With an engine whose owners are the kernel's, everything is exact.
fn is_exact_with(engine: &str) {
    if !can_run() {
        return;
    }
    let found = engines().iter().find(|(name, _)| name == engine).expect("the program knows it");
    if let Some(reason) = &found.1 {
        // Built without probes the library has no such engine.
        assert!(!is_required() || !cfg!(feature = "ebpf"), "{engine} is not available: {reason}");
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

/// The program at work, with all that it has started so far.
struct AtWork {
    program: Child,
    /// Process ids with the times of their starts.
    descendants: BTreeSet<(i32, u64)>,
}

/// Starts the program, and waits until it is so far: so many namespaces, and so many processes of its own.
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

/// The living descendants of a process.
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

/// Whether a process still lives.
fn lives(&(pid, started): &(i32, u64)) -> bool {
    let stat = procfs::process::Process::new(pid).and_then(|process| process.stat());
    stat.is_ok_and(|stat| stat.starttime == started && stat.state != 'Z')
}

/// The network namespaces that one of these processes has named.
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

/// Ends the program by a signal; nothing of it may be left. Returns what it ended with.
fn ends_by(signal: Signal, mut work: AtWork) -> Option<i32> {
    kill(Pid::from_raw(work.program.id() as i32), signal).unwrap();
    let status = work.program.wait().unwrap();
    if signal != Signal::SIGKILL {
        // It is gone only after all else.
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
    // While it makes its hosts; while there is traffic, with the keeper's two, the server's nine and the client.
    for (namespaces, processes) in [(1, 2), (2, 2), (2, 12)] {
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
            let code = ends_by(signal, at_work(namespaces, processes));
            assert_eq!(code, (signal != Signal::SIGKILL).then_some(128 + signal as i32));
        }
    }
}
