//! Records of flows and counts of processes against what the programs at both ends know of them by themselves.
//!
//! Needs root, ip, nft, ss and python3. Where these are missing the tests say so and do nothing, unless CAPTURE_REQUIRE_ALL=1.

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

/// One test at a time, so that none takes the processor from another one's clocks.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs a test with each engine, each time in a thread that may change its network namespace, alone.
fn with_lab(test: impl Fn(&Lab, Engine) + Sync) {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    beside_others(test);
}

/// The same for a test that does nothing but wait.
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
