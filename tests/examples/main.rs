//! The examples, compiled as their users compile them, and checked against traffic of this process whose size
//! is known; and the scripts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "so do tests fail")]

mod agent;
mod scripts;
mod traffic;
mod workshop;

use agent::Agent;
use capture_test_support::programs::source;
use capture_test_support::requirements::{has_root_and, has_tools};
use nix::sys::signal::Signal;
use std::fs::read_to_string;
use std::process::Command;
use traffic::{ALL_BYTES, BYTES_EACH_WAY, PACKETS_AWAY, PACKETS_EACH_WAY, Traffic};
use workshop::{Workshop, turn};

/// Parses the columns that all examples begin with: state, pid, bytes received, bytes sent.
fn row(state: &str, pid: u32, line: &str) -> Option<(usize, usize)> {
    let columns: Vec<&str> = line.split_whitespace().take(4).collect();
    match columns[..] {
        [found, number, received, sent] if found == state && number == pid.to_string() => {
            Some((received.parse().ok()?, sent.parse().ok()?))
        }
        _ => None,
    }
}

/// Runs an example until it shows exactly the bytes that this process sent and received, then ends it with a
/// signal. Returns all that it printed.
fn shows_the_traffic(command: &mut Command, signal: Signal) -> Vec<String> {
    let mut agent = Agent::start(command);
    agent.wait_for("the first round", |line| line == "round 1");
    let traffic = Traffic::make();
    for (pid, received, sent) in traffic.expected() {
        let what = format!("the row of {pid} with {received} bytes received and {sent} sent");
        agent.wait_for(&what, |line| row("live", pid, line) == Some((received, sent)));
    }
    let (status, complaint) = agent.end(Some(signal));
    assert!(status.success(), "{status}: {complaint}");
    // The library may have logged warnings, but no callback may have raised an error, which would not end a
    // Python program.
    assert!(!complaint.contains("Exception"), "{complaint}");
    std::mem::take(&mut agent.seen)
}

/// Returns the last row that an example has shown of a process.
fn last_row(lines: &[String], pid: u32) -> &str {
    lines.iter().rfind(|line| row("live", pid, line).is_some()).unwrap()
}

/// Checks that a row of the classic examples agrees with /proc, in the units of the classic interface.
fn agrees_with_proc(lines: &[String]) {
    let shown = last_row(lines, std::process::id());
    let columns: Vec<&str> = shown.split_whitespace().collect();
    let own = |file: &str| read_to_string(format!("/proc/self/{file}")).unwrap();
    assert_eq!(columns[10..12], [nix::unistd::geteuid().to_string(), nix::unistd::getegid().to_string()]);
    let (name, command) = (own("comm"), own("cmdline"));
    let tail = format!(" {:16} {}", name.trim_end(), command.trim_end_matches('\0').replace('\0', " "));
    assert!(shown.ends_with(&tail), "{shown} should end with {tail}");
    let written =
        own("io").lines().find_map(|line| line.strip_prefix("wchar: ")?.parse::<u64>().ok()).unwrap();
    let shown_written: u64 = columns[9].parse().unwrap();
    assert!((1..=written).contains(&shown_written), "{shown_written} of {written}");
    let memory: u64 = columns[6].parse().unwrap();
    let total: u64 =
        read_to_string("/proc/meminfo").unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    let share = format!("{:.2}", memory as f64 * 100.0 / total as f64);
    assert_eq!(columns[5], share, "{memory} kB of {total} kB");
    // Processes without traffic are shown as well.
    last_row(lines, 1);
    assert_eq!(row("live", 1, last_row(lines, 1)), Some((0, 0)));
}

/// Returns true if an example reports the size of all packets, which are those of this process
/// and any others.
fn sums_up_packets(lines: &[String], bytes_before: &str, least: usize) -> bool {
    let sums = lines.iter().filter(|line| line.starts_with("packets: "));
    let numbers = sums
        .filter_map(|line| line.split(bytes_before).nth(1)?.split(" bytes").next()?.parse::<usize>().ok());
    numbers.sum::<usize>() >= least
}

#[test]
fn the_cpp_example_shows_every_figure_and_exactly_the_traffic() {
    let _turn = turn();
    if !has_root_and(&["c++"]) {
        return;
    }
    let workshop = Workshop::new();
    let program = workshop.compile("c++", "c++11", "examples/exa_capture.cpp");
    let lines = shows_the_traffic(workshop.command(program).arg("40"), Signal::SIGTERM);
    agrees_with_proc(&lines);
    assert!(sums_up_packets(&lines, " UDP of ", ALL_BYTES), "{lines:#?}");
    let conversations = lines.iter().filter(|line| line.ends_with(&format!(" {BYTES_EACH_WAY} bytes")));
    assert_eq!(conversations.count(), 2, "one line for each direction: {lines:#?}");
    assert!(workshop.path().join("exa_capture.log").exists());
}

#[test]
fn the_c_example_shows_every_figure_and_exactly_the_traffic() {
    let _turn = turn();
    if !has_root_and(&["cc"]) {
        return;
    }
    let workshop = Workshop::new();
    let program = workshop.compile("cc", "c99", "examples/exa_capture.c");
    let lines = shows_the_traffic(workshop.command(program).arg("40"), Signal::SIGINT);
    agrees_with_proc(&lines);
    assert!(sums_up_packets(&lines, " UDP of ", ALL_BYTES), "{lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("last packet: 127.0.0.1:")), "{lines:#?}");
}

#[test]
fn the_loading_example_shows_exactly_the_traffic() {
    let _turn = turn();
    if !has_root_and(&["cc"]) {
        return;
    }
    let workshop = Workshop::new();
    let program = workshop.compile_loader();
    let lines =
        shows_the_traffic(workshop.command(program).arg(workshop.library()).arg("40"), Signal::SIGTERM);
    assert!(sums_up_packets(&lines, " of ", ALL_BYTES), "{lines:#?}");
}

#[test]
fn the_python_example_shows_exactly_the_traffic_and_its_packets() {
    let _turn = turn();
    if !has_root_and(&["python3"]) {
        return;
    }
    let workshop = Workshop::new();
    let mut command = workshop.command("python3");
    command.arg(source("examples/exa_capture.py")).arg("40").arg("--library").arg(workshop.library());
    let lines = shows_the_traffic(&mut command, Signal::SIGINT);
    let shown = last_row(&lines, std::process::id());
    let columns: Vec<&str> = shown.split_whitespace().collect();
    // Packets received and sent.
    let (received, sent) = (2 * PACKETS_EACH_WAY, 2 * PACKETS_EACH_WAY + PACKETS_AWAY);
    assert_eq!(columns[4..6], [received.to_string(), sent.to_string()], "{shown}");
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("packet of 242 bytes, 128 captured: protocol 17, 127.0.0.1:"))
    );
    let seen = |line: &String| line.strip_prefix("frames: ")?.split(' ').next()?.parse::<usize>().ok();
    assert!(lines.iter().filter_map(seen).max() >= Some(sent), "{lines:#?}");
}

#[test]
fn the_python_example_shows_flows_when_asked() {
    let _turn = turn();
    if !has_root_and(&["python3"]) {
        return;
    }
    let workshop = Workshop::new();
    let mut command = workshop.command("python3");
    command.args([source("examples/exa_capture.py").as_os_str(), "40".as_ref(), "--flows".as_ref()]);
    let lines = shows_the_traffic(command.arg("--library").arg(workshop.library()), Signal::SIGINT);
    let figures = format!("of {}: received {BYTES_EACH_WAY}, sent {BYTES_EACH_WAY}, ", std::process::id());
    let shown = lines.iter().filter(|line| line.starts_with("flow open ") && line.contains(&figures));
    assert!(shown.count() >= 2, "both ends of a conversation: {lines:#?}");
}

#[test]
fn all_examples_end_after_their_rounds_and_tell_of_ended_processes() {
    let _turn = turn();
    if !has_tools(&["cc", "c++", "python3"]) {
        return;
    }
    let (cpp, c, loading, python) = (Workshop::new(), Workshop::new(), Workshop::new(), Workshop::new());
    let mut commands = [
        cpp.command(cpp.compile("c++", "c++11", "examples/exa_capture.cpp")),
        c.command(c.compile("cc", "c99", "examples/exa_capture.c")),
        loading.command(loading.compile_loader()),
        python.command("python3"),
    ];
    commands[2].arg("libcapture.so.1");
    commands[3].arg(source("examples/exa_capture.py")).args(["--library", "libcapture.so.1"]);
    for command in &mut commands {
        command.env("LD_LIBRARY_PATH", python.path()).arg("3");
    }
    let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
    let mut agents: Vec<Agent> = commands.iter_mut().map(Agent::start).collect();
    for agent in &mut agents {
        agent.wait_for("the end of the first round", |line| {
            line.starts_with("packets: ") || line.starts_with("frames: ")
        });
    }
    // The next round finds that it has ended, and the round after that reports it.
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    for (number, agent) in agents.iter_mut().enumerate() {
        let (status, complaint) = agent.end(None);
        assert!(status.success(), "{:?}: {status}: {complaint}", commands[number]);
        let rounds: Vec<&String> = agent.seen.iter().filter(|line| line.starts_with("round ")).collect();
        assert_eq!(rounds, ["round 1", "round 2", "round 3"]);
        // The classic examples show every process.
        if number < 2 {
            assert!(
                agent.seen.iter().any(|line| row("live", sleeper.id(), line).is_some()),
                "{:#?}",
                agent.seen
            );
            assert!(agent.seen.iter().any(|line| row("ended", sleeper.id(), line) == Some((0, 0))));
        }
    }
}

#[test]
fn arguments_that_are_not_understood_are_refused() {
    let _turn = turn();
    if !has_tools(&["cc", "c++"]) {
        return;
    }
    let (cpp, c, loading) = (Workshop::new(), Workshop::new(), Workshop::new());
    let programs = [
        (cpp.command(cpp.compile("c++", "c++11", "examples/exa_capture.cpp")), vec!["two"]),
        (c.command(c.compile("cc", "c99", "examples/exa_capture.c")), vec!["1", "2"]),
        (loading.command(loading.compile_loader()), vec!["libcapture.so.1", "-1"]),
    ];
    for (mut command, arguments) in programs {
        let output = command.args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{command:?}");
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("usage: "), "{command:?}");
    }
    let output = loading.command(loading.path().join("program")).arg("/nowhere/lib.so").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere/lib.so"));
}
