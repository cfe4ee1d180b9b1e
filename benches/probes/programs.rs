//! The kernel's programs that this process holds, their statistics, and an empty one to compare them with.

use std::collections::HashMap;
use std::fs::{File, read_dir, read_to_string};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

// Commands of bpf(2) and constants of `linux/bpf.h`.
const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_TEST_RUN: i32 = 10;
const BPF_LINK_CREATE: i32 = 28;
const BPF_ENABLE_STATS: i32 = 32;
const BPF_PROG_TYPE_CGROUP_SKB: u32 = 8;
const BPF_CGROUP_INET_EGRESS: u32 = 1;

/// The name of the empty program.
const EMPTY: &str = "empty";

/// How often a program is run on one packet.
const REPEATS: u32 = 1_000_000;

/// Calls bpf(2) with attributes of words; a descriptor or 0 comes back.
fn bpf(command: i32, words: &mut [u32]) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes no more than it is told there is; what the words point to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, words.as_mut_ptr(), size_of_val(words)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn opened(descriptor: i32) -> OwnedFd {
    // SAFETY: the kernel has just made the descriptor for us.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// The two halves of an address, as they lie in the attributes.
fn halves<T>(place: *const T) -> [u32; 2] {
    let address = (place.addr() as u64).to_ne_bytes();
    [0, 4].map(|at| u32::from_ne_bytes([address[at], address[at + 1], address[at + 2], address[at + 3]]))
}

/// Lets the kernel count and time the runs of programs, as long as it is held.
pub struct Statistics {
    _descriptor: OwnedFd,
}

impl Statistics {
    pub fn enable() -> Statistics {
        Statistics { _descriptor: opened(bpf(BPF_ENABLE_STATS, &mut [0]).expect("statistics, Linux 5.8")) }
    }
}

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
        let sees_packets =
            |(_, name): &&(u32, String)| ["capture_egress", "capture_ingress", EMPTY].contains(&&name[..]);
        self.0.iter().filter(sees_packets).filter_map(run).collect()
    }
}

/// A number in what the kernel says of a descriptor, proc_pid_fdinfo(5).
fn field(text: &str, name: &str) -> Option<u64> {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok();
    text.lines().find_map(value)
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

/// A program that lets every packet pass and does nothing else, attached where packets leave.
pub struct Empty {
    _program: OwnedFd,
    _link: OwnedFd,
}

impl Empty {
    pub fn attach() -> Empty {
        let _program = load_empty();
        let mounts = read_to_string("/proc/self/mountinfo").expect("/proc");
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("a cgroup v2 hierarchy");
        let root = File::open(mount.split(' ').nth(4).expect("a place")).expect("its root");
        let mut link = [_program.as_raw_fd() as u32, root.as_raw_fd() as u32, BPF_CGROUP_INET_EGRESS, 0];
        let _link = opened(bpf(BPF_LINK_CREATE, &mut link).expect("a link"));
        Empty { _program, _link }
    }
}

fn load_empty() -> OwnedFd {
    // r0 = 1; exit
    let instructions: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 1, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let mut load = [0; 18];
    load[0] = BPF_PROG_TYPE_CGROUP_SKB;
    load[1] = instructions.len() as u32;
    load[2..4].copy_from_slice(&halves(instructions.as_ptr()));
    load[4..6].copy_from_slice(&halves(c"GPL".as_ptr()));
    // Between them the verifier's log, the kernel's version and flags, none of which is wanted; behind it the device.
    load[12] = u32::from_ne_bytes(*b"empt");
    load[13] = u32::from_ne_bytes(*b"y\0\0\0");
    load[17] = BPF_CGROUP_INET_EGRESS;
    opened(bpf(BPF_PROG_LOAD, &mut load).expect("an empty program"))
}
