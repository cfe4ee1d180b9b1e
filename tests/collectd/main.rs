//! The collectd plugin from end to end: processes' traffic, collectd, Prometheus, compared with nftables
//! counters.
//!
//! Most tests need root, ip, nft, ethtool, make, collectd with its headers, Prometheus and valgrind. If one
//! of these is missing, the tests print a line and pass; with CAPTURE_REQUIRE_ALL=1 they fail.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "so do tests fail")]

mod build;
mod crowd;
mod daemon;
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

use capture_test_support::counters::counters_of;
use capture_test_support::namespaces::on_own_thread;
use capture_test_support::requirements::{has_file, has_root_and};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

/// The time after which a test gives up on an expected event.
const TIMEOUT: Duration = Duration::from_secs(180);

/// A lock that all tests with daemons share. The test with very many processes takes it exclusively, because
/// each collectd sees all processes.
static MACHINE: RwLock<()> = RwLock::new(());

/// Runs a test, if it can run here, in a thread that may change its network namespace.
fn with_daemons(test: impl FnOnce() + Send) {
    let _shared = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
    run_where_possible(test);
}

/// As [`with_daemons`], while no other test runs.
fn with_daemons_alone(test: impl FnOnce() + Send) {
    let _alone = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
    run_where_possible(test);
}

fn run_where_possible(test: impl FnOnce() + Send) {
    let tools = ["ip", "nft", "ethtool", "make", "collectd", "prometheus", "valgrind"];
    if has_root_and(&tools) && has_file("/usr/include/collectd/core/daemon/plugin.h") {
        on_own_thread(test);
    }
}

/// Waits until a condition holds. Panics with the result of `shown` if it does not hold in time.
#[track_caller]
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool, shown: impl Fn() -> String) {
    let deadline = Instant::now() + TIMEOUT;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}\n{}", shown());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Bytes that had passed by a certain time, as nftables counts them.
#[derive(Clone, Copy)]
struct Reading {
    at: SystemTime,
    sent: u64,
    received: u64,
}

impl Reading {
    /// Reads the counters of a name in the calling thread's namespace.
    fn of(name: &str) -> Reading {
        let (clock, began) = (SystemTime::now(), Instant::now());
        let (sent, received) = counters_of(name);
        // The counters were read between the two times.
        Reading { at: clock + began.elapsed() / 2, sent, received }
    }
}

/// A figure from Prometheus, and its expected value.
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

/// Prints all comparisons, and fails if one is off by more than 2 %.
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
