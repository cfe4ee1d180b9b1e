//! Compares records of flows and counts of processes with the values that the programs at both ends
//! know by themselves.
//!
//! Needs root, ip, nft, ss and python3. If these are missing, the tests print a line and pass, or fail if
//! CAPTURE_REQUIRE_ALL=1 is set.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod counts;
mod floods;
mod link;
mod reasons;
mod times;
mod watch;

use capture::internals::config::Engine;
use capture_test_support::lab::Lab;
use capture_test_support::namespaces::on_own_thread;
use capture_test_support::requirements::has_root_and;
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
    if !has_root_and(&["ip", "nft", "ss", "python3"]) {
        return;
    }
    for engine in [Engine::Pcap, Engine::Kernel] {
        eprintln!("with {engine:?}");
        on_own_thread(|| test(&Lab::new(), engine));
    }
}
