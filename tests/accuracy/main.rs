//! Measures how many bytes find their owner, what that costs, and compares with what must be true.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "it fails by panicking, as tests do"
)]

#[path = "../traffic/lab.rs"]
mod lab;
mod monitor;

use lab::{Host, Lab, Maker};
use std::time::Instant;

fn main() {
    if std::env::args().nth(1).as_deref() == Some("--monitor") {
        return monitor::run();
    }
    let own = std::env::current_exe().unwrap();
    let lab = Lab::new();
    let mut server = lab.maker(Host::B, "tcp-server", "10.77.0.2:7001", &[]);
    let rate: u64 = std::env::var("RATE").ok().and_then(|r| r.parse().ok()).unwrap_or(500);
    let numbers = [("rate", rate), ("milliseconds", 12000)];
    let mut clients = lab.maker(Host::A, "tcp-clients", "10.77.0.2:7001", &numbers);
    lab.count_port(Host::A, "tcp", 7001);
    let mut monitor = Maker::start_of(lab.command(Host::A, &own).arg("--monitor"));
    assert_eq!(monitor.line(), "ready");
    let began = Instant::now();
    let cpu = |maker: &Maker| {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", maker.pid())).unwrap();
        let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = cpu(&monitor);
    clients.start();
    let report = clients.finish();
    let took = began.elapsed();
    server.start();
    let served = server.finish();
    let counted = lab.counted(Host::A);
    let after = cpu(&monitor);
    println!(
        "{} connections in {:?}, {} payload, {} at the server, {:?}, cpu {:.1}%",
        report.processes[0].connections,
        report.took,
        report.payload,
        served.payload,
        counted.both(),
        (after - before) as f64 / took.as_secs_f64()
    );
    monitor.start();
    loop {
        let line = monitor.line();
        println!("{line}  (client {} server {})", clients.pid(), server.pid());
        if line == "end" || line.is_empty() {
            break;
        }
    }
}
