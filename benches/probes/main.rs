//! The cost of each eBPF program per event, from the kernel's own statistics, on real traffic in network
//! namespaces that the benchmark makes. Needs root, ip and bpftool; takes about half a minute.
//!
//! The figures include the clock reads that the kernel makes before and after each run of an eBPF program.
//! The figure of the empty eBPF program, which is attached beside the others and runs for outgoing packets,
//! shows the cost of these reads. For the last lines, eBPF programs run on one packet without statistics; the
//! figure of the empty one shows the cost of entering an eBPF program.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a bench that cannot begin may stop"
)]

mod programs;
mod traffic;

use capture::internals::config::{Engine, Options};
use capture::internals::session::Session;
use capture_test_support::kernel_programs::{EmptyProgram, Hook, Statistics};
use capture_test_support::lab::Lab;
use programs::{Counted, Programs};
use traffic::TRAFFIC;

/// The purposes for which the eBPF programs are loaded.
const ENGINES: [(&str, Engine); 2] =
    [("owners for captured packets", Engine::Pcap), ("bytes counted in the kernel", Engine::Kernel)];

fn main() {
    if !nix::unistd::geteuid().is_root() {
        println!("probes: left out, since loading programs into the kernel and making namespaces needs root");
        return;
    }
    for (name, engine) in ENGINES {
        let statistics = Statistics::enable().expect("statistics, Linux 5.8");
        let mut session = Session::open(Options { engine, ..Options::default() }).expect("a session");
        let _empty = EmptyProgram::attach(Hook::EGRESS).expect("an empty program");
        let programs = Programs::of_this_process();
        println!("\n{name}: socket probes {:?}", session.stats_reader().read().socket_probes);
        println!("{:<26} {:<16} {:>10} {:>8}", "traffic", "program", "events", "ns each");
        print("opening the session", &programs.read());
        for (name, traffic) in TRAFFIC {
            let lab = Lab::new();
            session.update().expect("an update");
            let before = programs.read();
            traffic(&lab);
            print(name, &since(&before, &programs.read()));
        }
        drop(statistics);
        print("one packet, no statistics", &programs.run_on_one_packet());
    }
}

/// Returns the difference between two readings of the same eBPF programs.
fn since(before: &[Counted], after: &[Counted]) -> Vec<Counted> {
    let pairs = before.iter().zip(after);
    pairs.map(|(before, after)| after.since(before)).collect()
}

fn print(traffic: &str, counted: &[Counted]) {
    let mut traffic = traffic;
    for counted in counted.iter().filter(|counted| counted.events > 0) {
        let each = counted.time_ns as f64 / counted.events as f64;
        println!("{traffic:<26} {:<16} {:>10} {each:>8.0}", counted.name, counted.events);
        traffic = "";
    }
}
