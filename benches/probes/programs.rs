//! The kernel's programs that this process holds, and their statistics.

use super::kernel_programs::{EmptyProgram, bpf, field, halves};
use std::collections::HashMap;
use std::fs::{read_dir, read_to_string};
use std::process::Command;

/// Command of bpf(2) in `linux/bpf.h`.
const BPF_PROG_TEST_RUN: i32 = 10;

/// How often a program is run on one packet.
const REPEATS: u32 = 1_000_000;

/// What a program has done.
pub struct Counted {
    pub name: String,
    pub events: u64,
    pub time_ns: u64,
}

impl Counted {
    pub fn since(&self, before: &Counted) -> Counted {
        let (events, time_ns) = (self.events - before.events, self.time_ns - before.time_ns);
        Counted { name: self.name.clone(), events, time_ns }
    }
}

/// Those that this process has descriptors of: each descriptor and its program's name.
pub struct Programs(Vec<(u32, String)>);

impl Programs {
    pub fn of_this_process() -> Programs {
        let names = names();
        let mut found = Vec::new();
        for entry in read_dir("/proc/self/fdinfo").expect("/proc").flatten() {
            let text = read_to_string(entry.path()).unwrap_or_default();
            // A link tells of its program as well.
            if let (Some(id), None) = (field(&text, "prog_id"), field(&text, "link_id")) {
                let descriptor = entry.file_name().to_str().and_then(|name| name.parse().ok());
                found.push((descriptor.expect("a number"), names.get(&id).cloned().unwrap_or_default()));
            }
        }
        Programs(found)
    }

    /// What each has done so far.
    pub fn read(&self) -> Vec<Counted> {
        let read = |(descriptor, name): &(u32, String)| {
            let text = read_to_string(format!("/proc/self/fdinfo/{descriptor}")).expect("held");
            let number = |name| field(&text, name).expect("statistics");
            Counted { name: name.clone(), events: number("run_cnt"), time_ns: number("run_time_ns") }
        };
        self.0.iter().map(read).collect()
    }

    /// Runs those that see packets on one again and again, where the kernel allows that; the clock is then read only
    /// before the first run and after the last. The packet's socket is none that a process has made.
    pub fn run_on_one_packet(&self) -> Vec<Counted> {
        let mut packet = [0u8; 14 + 20 + 8 + 100];
        // Ethernet with IPv4; IPv4 with 20 bytes of header; UDP.
        packet[12..15].copy_from_slice(&[8, 0, 0x45]);
        packet[14 + 9] = 17;
        let [low, high] = halves(packet.as_ptr());
        let run = |(descriptor, name): &(u32, String)| {
            // Program, its answer, length of the packet and of its copy, packet, copy, repeats, nanoseconds for each.
            let mut run = [*descriptor, 0, packet.len() as u32, 0, low, high, 0, 0, REPEATS, 0];
            bpf(BPF_PROG_TEST_RUN, &mut run).ok()?;
            let time_ns = u64::from(run[9]) * u64::from(REPEATS);
            Some(Counted { name: name.clone(), events: REPEATS.into(), time_ns })
        };
        let sees_packets = |(_, name): &&(u32, String)| {
            ["capture_egress", "capture_ingress", EmptyProgram::NAME].contains(&&name[..])
        };
        self.0.iter().filter(sees_packets).filter_map(run).collect()
    }
}

/// The names of all programs by their numbers.
fn names() -> HashMap<u64, String> {
    let output = Command::new("bpftool").args(["prog", "list"]).output().expect("bpftool");
    let name = |line: &str| {
        let (id, rest) = line.split_once(": ")?;
        Some((id.parse().ok()?, rest.split_once("name ")?.1.split(' ').next()?.to_owned()))
    };
    String::from_utf8_lossy(&output.stdout).lines().filter_map(name).collect()
}
