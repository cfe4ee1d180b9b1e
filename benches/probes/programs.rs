//! The eBPF programs that this process holds, and their statistics.

use capture_test_support::kernel_programs::{EmptyProgram, bpf, field, halves};
use std::collections::{BTreeSet, HashMap};
use std::fs::{read_dir, read_to_string};
use std::process::Command;

/// Commands of bpf(2) in `linux/bpf.h`.
const BPF_PROG_TEST_RUN: i32 = 10;
const BPF_PROG_GET_FD_BY_ID: i32 = 13;

/// The number of runs of an eBPF program on one packet.
const REPEATS: u32 = 1_000_000;

/// The statistics of one eBPF program.
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

/// The eBPF programs that threads of this process hold: for each, a descriptor that was opened
/// here, and its name.
pub struct Programs(Vec<(u32, String)>);

impl Programs {
    pub fn of_this_process() -> Programs {
        let names = names();
        // The library's threads have a descriptor table of their own, and some eBPF programs are held only
        // by their links.
        let threads = read_dir("/proc/self/task").expect("/proc").flatten();
        let tables = threads.filter_map(|thread| read_dir(thread.path().join("fdinfo")).ok());
        let texts = tables.flatten().flatten().filter_map(|entry| read_to_string(entry.path()).ok());
        let numbers: BTreeSet<u64> = texts.filter_map(|text| field(&text, "prog_id")).collect();
        let opened = numbers.into_iter().filter_map(|number| {
            let descriptor = bpf(BPF_PROG_GET_FD_BY_ID, &mut [number as u32, 0, 0]).ok()?;
            Some((descriptor.unsigned_abs(), names.get(&number).cloned().unwrap_or_default()))
        });
        Programs(opened.collect())
    }

    /// Reads the statistics of each so far.
    pub fn read(&self) -> Vec<Counted> {
        let read = |(descriptor, name): &(u32, String)| {
            let text = read_to_string(format!("/proc/self/fdinfo/{descriptor}")).expect("held");
            let number = |name| field(&text, name).expect("statistics");
            Counted { name: name.clone(), events: number("run_cnt"), time_ns: number("run_time_ns") }
        };
        self.0.iter().map(read).collect()
    }

    /// Runs the eBPF programs that process packets repeatedly on one packet, where the kernel permits that.
    /// The kernel then reads the clock only before the first run and after the last. The packet's socket is
    /// not one that a process opened.
    pub fn run_on_one_packet(&self) -> Vec<Counted> {
        let mut packet = [0u8; 14 + 20 + 8 + 100];
        // Ethernet with IPv4; IPv4 with a header of 20 bytes; UDP.
        packet[12..15].copy_from_slice(&[8, 0, 0x45]);
        packet[14 + 9] = 17;
        let [low, high] = halves(packet.as_ptr());
        let run = |(descriptor, name): &(u32, String)| {
            // Fields: program, its return value, length of the packet and of its copy, packet, copy, repeats,
            // nanoseconds for each run.
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

/// Returns the names of all eBPF programs by their ids.
fn names() -> HashMap<u64, String> {
    let output = Command::new("bpftool").args(["prog", "list"]).output().expect("bpftool");
    let name = |line: &str| {
        let (id, rest) = line.split_once(": ")?;
        Some((id.parse().ok()?, rest.split_once("name ")?.1.split(' ').next()?.to_owned()))
    };
    String::from_utf8_lossy(&output.stdout).lines().filter_map(name).collect()
}
