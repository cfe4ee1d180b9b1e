//! The CPU time of the library's eBPF programs, which is in no process's own time: bpf(2).

use capture_test_support::kernel_programs::{Information, Statistics, field, load_filter};
use std::collections::BTreeSet;
use std::io::{Error, Result};
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};

/// The prefix of the names of the library's eBPF programs. The kernel keeps 15 bytes of a name.
const PREFIX: &str = "capture_";

/// The number of runs of an empty eBPF program that determine the overhead of measuring.
const TRIALS: u32 = 200_000;

/// The runs of an eBPF program so far.
#[derive(Clone)]
pub struct Probe {
    pub name: String,
    pub runs: u64,
    pub nanoseconds: u64,
}

/// Keeps the kernel measuring as long as it exists.
pub struct Probes {
    _measuring: Statistics,
}

impl Probes {
    /// Makes the kernel measure from now on.
    pub fn measure() -> Result<Probes> {
        Ok(Probes { _measuring: Statistics::enable()? })
    }

    /// Returns the seconds that the eBPF programs of a process have run so far, or `None` if it has none.
    /// Another process may have eBPF programs of the same names at the same time.
    pub fn seconds(&self, pid: i32) -> Option<f64> {
        let times = self.each(pid).into_iter().map(|probe| probe.nanoseconds);
        times.reduce(|one, other| one + other).map(|sum| sum as f64 / 1e9)
    }

    /// Returns the runs of each eBPF program of a process so far.
    pub fn each(&self, pid: i32) -> Vec<Probe> {
        let all = programs(pid).into_iter().filter_map(|id| Information::by_id(id).ok()?);
        all.map(|program| Probe::of(&program)).filter(|probe| probe.name.starts_with(PREFIX)).collect()
    }

    /// Returns the nanoseconds that measuring adds to the time of each run, determined with an empty eBPF
    /// program.
    pub fn overhead(&self) -> Result<f64> {
        let program = load_filter(b"nothing\0\0\0\0\0\0\0\0\0")?;
        run(&program, TRIALS)?;
        let nothing = Probe::of(&Information::of(&program)?);
        Ok(nothing.nanoseconds as f64 / nothing.runs.max(1) as f64)
    }
}

impl Probe {
    fn of(program: &Information) -> Probe {
        Probe { name: program.name(), runs: program.runs(), nanoseconds: program.nanoseconds() }
    }
}

/// Makes a socket run a filter for this many datagrams.
fn run(program: &OwnedFd, datagrams: u32) -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let descriptor = program.as_raw_fd();
    let length = size_of_val(&descriptor) as libc::socklen_t;
    // SAFETY: the pointer is to a number of that length, which the call only reads.
    let status = unsafe {
        let pointer = (&raw const descriptor).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_BPF, pointer, length)
    };
    if status != 0 {
        return Err(Error::last_os_error());
    }
    let address = socket.local_addr()?;
    (0..datagrams).try_for_each(|_| socket.send_to(b"x", address).map(drop))
}

/// Returns the ids of the eBPF programs that a process holds descriptors of, directly or through links
/// (`fdinfo` of proc_pid_fdinfo(5)), in any of its descriptor tables.
fn programs(pid: i32) -> BTreeSet<u32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return BTreeSet::new() };
    let tables = threads.flatten().filter_map(|thread| std::fs::read_dir(thread.path().join("fdinfo")).ok());
    let texts = tables.flatten().flatten().filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    texts.filter_map(|text| Some(field(&text, "prog_id")? as u32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use capture_test_support::requirements::left_out;

    #[test]
    fn time_of_the_programs_with_the_prefix_counts_root() {
        let first = match load_filter(b"capture_first\0\0\0") {
            Ok(program) => program,
            Err(error) => {
                left_out(&format!("no eBPF program can be loaded: {error}"));
                return;
            }
        };
        let own = std::process::id() as i32;
        let probes = Probes::measure().unwrap();
        let other = load_filter(b"others_program\0\0").unwrap();
        run(&other, 100).unwrap();
        assert_eq!(probes.seconds(own), Some(0.0), "what has another name is not the library's");
        run(&first, 100).unwrap();
        let time = probes.seconds(own).unwrap();
        assert!(time > 0.0 && time < 1.0, "{time}");
        let each = probes.each(own);
        assert_eq!(each.len(), 1);
        assert_eq!((each[0].name.as_str(), each[0].runs), ("capture_first", 100));
        let overhead = probes.overhead().unwrap();
        assert!(overhead > 0.0 && overhead < 1e5, "{overhead}");
        let second = load_filter(b"capture_second\0\0").unwrap();
        run(&second, 1000).unwrap();
        assert!(probes.seconds(own).unwrap() > time);
        drop((first, second));
        assert_eq!(probes.seconds(own), None, "whoever has no descriptor has no probe");
    }
}
