//! Programs in the kernel and the rights they take: with just enough, with less, forbidden; and that nothing is left.
//!
//! The tests need root, ip, unshare, setpriv and bpftool. Where these are missing they say so and do nothing, unless
//! CAPTURE_REQUIRE_ALL=1.

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

/// Whether what every test here needs is there; says so where it is not, and fails where everything is required.
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

/// The state of the socket probes where nothing stands in their way.
fn at_best() -> &'static str {
    if cfg!(feature = "ebpf") { "Active" } else { "NotBuilt" }
}
