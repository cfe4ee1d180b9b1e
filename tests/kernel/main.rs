//! eBPF programs and the privileges that they need: with just enough, with fewer, and forbidden; and that
//! nothing is left behind.
//!
//! The tests need root, ip, unshare, setpriv and bpftool. If one of these is missing, they print a line and
//! pass; with CAPTURE_REQUIRE_ALL=1 they fail.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "so do tests fail")]

mod absence;
mod again;
mod busy;
mod cgroups;
#[path = "../process/children.rs"]
#[allow(dead_code, reason = "the tests of processes use the rest of it")]
mod children;
mod churn;
mod containers;
mod counting;
mod ending;
mod full;
#[path = "../process/group.rs"]
#[allow(dead_code, reason = "the tests of processes use the rest of it")]
mod group;
mod hammer;
mod handing;
mod holding;
mod hosting;
#[path = "../traffic/lab.rs"]
#[allow(dead_code, reason = "the tests of traffic use the rest of it")]
mod lab;
mod links;
mod maps;
mod names;
mod parts;
mod privilege;
mod reading;
mod sharing;
mod together;
mod turns;
mod types;
mod watching;

use std::process::Command;

/// Returns true if everything that the tests need is available. Otherwise prints what is missing, or fails if
/// everything is required.
fn may_run() -> bool {
    let mut missing = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        missing.push("root");
    }
    let is_missing = |tool: &&str| Command::new(tool).arg("--version").output().is_err();
    missing.extend(["ip", "unshare", "setpriv", "bpftool"].iter().filter(|tool| is_missing(tool)));
    if missing.is_empty() {
        return true;
    }
    let reason = format!("this test needs {}", missing.join(", "));
    assert!(
        std::env::var_os("CAPTURE_REQUIRE_ALL").is_none_or(|value| value != "1"),
        "required, but {reason}"
    );
    eprintln!("left out: {reason}");
    false
}

/// Returns the state of the eBPF programs at sockets if nothing prevents them.
fn at_best() -> &'static str {
    if cfg!(feature = "ebpf") { "Active" } else { "NotBuilt" }
}
