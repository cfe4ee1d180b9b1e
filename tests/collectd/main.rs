//! The collectd plugin from end to end: processes' traffic, collectd, Prometheus, against nftables counters.
//!
//! Most need root, ip, nft, ethtool, make, collectd with its headers, Prometheus and valgrind. Where these are missing the tests
//! say so and do nothing, unless CAPTURE_REQUIRE_ALL=1.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "so do tests fail")]

mod build;
#[allow(dead_code, reason = "the tests of namespaces use the rest of it")]
#[path = "../namespaces/counters.rs"]
mod counters;
mod crowd;
mod daemon;
#[allow(dead_code, reason = "the tests of traffic use the rest of it")]
#[path = "../traffic/lab.rs"]
mod lab;
mod life;
mod memory;
mod network;
mod prometheus;
mod rates;
mod rules;
mod short;
mod site;
mod snippets;
mod units;
#[allow(dead_code, reason = "the tests of the examples use the rest of it")]
#[path = "../examples/workshop.rs"]
mod workshop;

use counters::counters_of;
use lab::run;
use std::path::Path;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};
use workshop::{has_tools, left_out};

/// When a test gives up on what should long have happened.
const TIMEOUT: Duration = Duration::from_secs(180);

/// Held by all tests with daemons, by one with very many processes alone: each collectd sees all of them.
static MACHINE: RwLock<()> = RwLock::new(());

/// Runs a test, where it can run, in a thread that may change its network namespace.
fn with_daemons(test: impl FnOnce() + Send) {
    let _shared = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
    run_where_possible(test);
}

/// The same while no other test runs.
fn with_daemons_alone(test: impl FnOnce() + Send) {
    let _alone = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
    run_where_possible(test);
}

fn run_where_possible(test: impl FnOnce() + Send) {
    let has_headers = Path::new("/usr/include/collectd/core/daemon/plugin.h").exists();
    if !nix::unistd::geteuid().is_root() {
        return left_out("this user is not root");
    } else if !has_headers {
        return left_out("collectd's headers are not installed");
    } else if !has_tools(&["ip", "nft", "ethtool", "make", "collectd", "prometheus", "valgrind"]) {
        return;
    }
    let outcome = std::thread::scope(|scope| scope.spawn(test).join());
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Whether what cannot be tested fails.
fn requires_all() -> bool {
    std::env::var_os("CAPTURE_REQUIRE_ALL").is_some_and(|value| value == "1")
}

/// Waits until something is so; what it shows otherwise is in the message.
#[track_caller]
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool, shown: impl Fn() -> String) {
    let deadline = Instant::now() + TIMEOUT;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}\n{}", shown());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Bytes that had passed at some time, as nftables counts them.
#[derive(Clone, Copy)]
struct Reading {
    at: SystemTime,
    sent: u64,
    received: u64,
}

impl Reading {
    /// What has been counted under a name in the calling thread's namespace.
    fn of(name: &str) -> Reading {
        let (clock, began) = (SystemTime::now(), Instant::now());
        let (sent, received) = counters_of(name);
        // They were read at some time in between.
        Reading { at: clock + began.elapsed() / 2, sent, received }
    }
}

/// A figure that came out of Prometheus, and what it should be.
struct Comparison {
    what: String,
    truth: f64,
    found: f64,
}

impl Comparison {
    fn new(what: String, truth: f64, found: f64) -> Comparison {
        Comparison { what, truth, found }
    }
}

/// Shows all of them, and fails when one is off by more than 2 %.
#[track_caller]
fn all_within_two_percent(comparisons: &[Comparison]) {
    let is_wrong = |is: &Comparison| is.truth <= 0.0 || (is.found / is.truth - 1.0).abs() > 0.02;
    for comparison in comparisons {
        let Comparison { what, truth, found } = comparison;
        println!("{what:40} {found:15.1} {:+.2} %", (found / truth - 1.0) * 100.0);
    }
    let wrong = comparisons.iter().filter(|comparison| is_wrong(comparison));
    let wrong: Vec<String> =
        wrong.map(|is| format!("{}: {} should be {}", is.what, is.found, is.truth)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
