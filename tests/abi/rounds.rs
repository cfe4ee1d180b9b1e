//! Sessions that are opened and closed repeatedly, or live long: descriptors, threads and memory do not grow.

use crate::tools::{Program, has_tools, is_root};
use std::time::Duration;

/// Runs a number of rounds in a pid namespace, so that other programs' processes and traffic do not
/// interfere. A round takes as long as the kernel needs to release a packet socket; most of that is waiting,
/// not work.
fn play(program: &Program, scenario: &str, rounds: &str) {
    let log = program.folder().join("log");
    let namespace = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    program.run_under(&namespace, &[scenario.as_ref(), rounds.as_ref(), log.as_os_str()]);
}

fn run(scenario: &str, rounds: &str) {
    if is_root() && has_tools(&["unshare"]) {
        play(&Program::new("rounds.c"), scenario, rounds);
    }
}

#[test]
fn classic_rounds_as_root() {
    if is_root() && has_tools(&["unshare"]) {
        play(&Program::new("rounds.c").limit(Duration::from_secs(900)), "classic", "2000");
    }
}

#[test]
fn session_rounds_as_root() {
    run("session", "200");
}

#[test]
fn rounds_of_several_sessions_at_once_as_root() {
    run("several", "20");
}

#[test]
fn rounds_that_fail_as_root() {
    run("failures", "100");
}

#[test]
fn a_long_life_as_root() {
    run("long_life", "");
}

#[test]
fn valgrind_finds_no_error_and_no_leak_as_root() {
    if !is_root() || !has_tools(&["valgrind"]) {
        return;
    }
    let program = Program::new("rounds.c").limit(Duration::from_secs(300));
    let report = program.folder().join("valgrind");
    let (log, log_file) = (program.folder().join("log"), format!("--log-file={}", report.display()));
    // Possibly lost blocks are held by pointers to their inside, as those of Rust's threads are.
    let kinds = "definite,indirect";
    let valgrind = [
        "valgrind",
        "--quiet",
        "--leak-check=full",
        &format!("--show-leak-kinds={kinds}"),
        &format!("--errors-for-leak-kinds={kinds}"),
        "--error-exitcode=9",
        // Valgrind does not know every ioctl(2) request by name, for example the one for the kind of a
        // namespace.
        "--sim-hints=lax-ioctls",
        &log_file,
    ];
    program.run_under(&valgrind, &["leaks".as_ref(), "".as_ref(), log.as_os_str()]);
    let report = std::fs::read_to_string(report).unwrap();
    // Valgrind does not know every bpf(2) command either; it then only checks it less closely.
    let is_known = |line: &&str| !line.contains("WARNING: unhandled eBPF command");
    assert_eq!(report.lines().filter(is_known).collect::<Vec<_>>(), [""; 0]);
}
