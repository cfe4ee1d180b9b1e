//! Checks that the engine `kernel` counts every byte of a flood from as many processes as there are
//! processors.

use super::allow;
use super::stream::{Stream, WIRE};
use crate::engines::Engine;
use crate::scenarios::Protocol;
use crate::watcher::{Kind, Place, Watcher};
use capture_test_support::lab::{Host, Lab};
use std::time::Duration;

/// Prints the counts. Returns the differences.
pub fn measure(length: Duration) -> Vec<String> {
    let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    println!("\nbytes with engine kernel, {cpus} processes sending for {} s", length.as_secs_f64());
    allow(length);
    let lab = Lab::new();
    let [to_server, from_server] = Protocol::Udp.matches();
    for host in [Host::A, Host::B] {
        lab.count(host, &to_server, &from_server);
    }
    let stream = Stream::prepare(&lab, cpus, length);
    let mut watcher = Watcher::start(Kind::Library(Engine::Kernel), &Place::All(Protocol::Udp.filter()));
    let passed = stream.run();
    watcher.settle();
    let left = lab.counted(Host::A).out_to;
    let arrived = lab.counted(Host::B).in_to;
    let said = watcher.finish(passed.sent[0].0).said;
    let credited = |pid: i32| said.get(&pid).map_or((0, 0), |credit| credit.bytes);
    let made = passed.all_sent() * WIRE;
    let sent: u64 = passed.sent.iter().map(|&(pid, _)| credited(pid).0).sum();
    let received = credited(passed.read.0).1;
    println!(
        "  {:.0} datagrams a second\n  sent: {made} by the senders' own count, {left} by nftables, {sent} by the \
         library\n  received: {arrived} by nftables, {received} by the library; of them {} read",
        passed.all_sent() as f64 / passed.took.as_secs_f64(),
        passed.read.1 * WIRE
    );
    let mut missed = Vec::new();
    for (pid, count) in &passed.sent {
        let (own, said) = (count * WIRE, credited(*pid).0);
        if own != said {
            missed.push(format!("a sender has sent {own} bytes and is credited with {said}"));
        }
    }
    if left != made || sent != left {
        missed.push(format!("{made} bytes were sent; {left} counted by nftables, {sent} by the library"));
    }
    if arrived != received {
        missed.push(format!("{arrived} bytes arrived by nftables' count, {received} by the library's"));
    }
    missed
}
