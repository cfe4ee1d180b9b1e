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
mod churn;
mod containers;
mod counting;
mod ending;
mod full;
mod hammer;
mod handing;
mod holding;
mod hosting;
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

use capture_test_support::requirements::has_root_and;
use capture_test_support::{group, lab};

/// Returns true if everything that the tests need is available, and reports what is missing.
fn may_run() -> bool {
    has_root_and(&["ip", "unshare", "setpriv", "bpftool"])
}

/// Returns the state of the eBPF programs at sockets if nothing prevents them.
fn at_best() -> &'static str {
    if cfg!(feature = "ebpf") { "Active" } else { "NotBuilt" }
}
