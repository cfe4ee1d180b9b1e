//! Compares records of flows and counts of processes with the values that the programs at both ends
//! know by themselves.
//!
//! Needs root, ip, nft, ss and python3. If these are missing, the tests print a line and pass, or fail if
//! CAPTURE_REQUIRE_ALL is set.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "the tests of traffic use the rest of it")]
#[path = "../traffic/lab.rs"]
mod lab;

mod counts;
mod floods;
mod link;
mod reasons;
mod times;
mod watch;

use capture::config::Engine;
use lab::Lab;
use std::process::Command;
use std::sync::Mutex;

/// Lets one test run at a time, so that no test takes CPU time from the clocks of another.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs a test with each engine, alone, on a thread that may change its network namespace.
fn with_lab(test: impl Fn(&Lab, Engine) + Sync) {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    beside_others(test);
}

/// Does the same as [`with_lab`] beside other tests, for a test that only waits.
fn beside_others(test: impl Fn(&Lab, Engine) + Sync) {
    let has_tool = |tool: &&str| Command::new(tool).arg("-V").output().is_ok();
    if !nix::unistd::geteuid().is_root() || !["ip", "nft", "ss", "python3"].iter().all(has_tool) {
        let required = std::env::var_os("CAPTURE_REQUIRE_ALL").is_some();
        assert!(!required, "root, ip, nft, ss and python3 are required");
        eprintln!("not run: needs root, ip, nft, ss and python3");
        return;
    }
    for engine in [Engine::Pcap, Engine::Kernel] {
        eprintln!("with {engine:?}");
        std::thread::scope(|scope| scope.spawn(|| test(&Lab::new(), engine)).join().unwrap());
    }
}
