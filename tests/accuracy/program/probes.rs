//! The time that the library's probes take on the processors, which is not in any process's own: bpf(2).

use std::collections::BTreeSet;
use std::io::{Error, Result};
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Commands of bpf(2) and a type of programs, of <linux/bpf.h>.
const LOAD: i32 = 5;
const SOCKET_FILTER: u32 = 1;
const PROGRAM_BY_ID: i32 = 13;
const INFO_BY_DESCRIPTOR: i32 = 15;
const ENABLE_STATISTICS: i32 = 32;

/// How the library's probes are named; the kernel keeps 15 bytes of a name.
const PREFIX: &[u8] = b"capture_";

/// The beginning of `struct bpf_prog_info`, and where the name, the time and the number of runs stand in it.
const INFO: usize = 208;
const NAME_AT: usize = 64;
const NAME: usize = 16;
const RUN_TIME_AT: usize = 192;
const RUNS_AT: usize = 200;

/// `r0 = 0; exit`: a socket filter that lets nothing through.
const NOTHING: [u64; 2] = [0xb7, 0x95];

/// How often it is run to find out what measuring takes.
const TRIALS: u32 = 200_000;

/// What a program has done so far.
#[derive(Clone)]
pub struct Probe {
    pub name: String,
    pub runs: u64,
    pub nanoseconds: u64,
}

/// Keeps the kernel measuring as long as it is there.
pub struct Probes {
    _measuring: OwnedFd,
}

impl Probes {
    /// Has the kernel measure from here on.
    pub fn measure() -> Result<Probes> {
        // The kind of statistics: 0 is the run time.
        let descriptor = bpf(ENABLE_STATISTICS, &mut [0; 16])?;
        // SAFETY: the call has just returned it, and nobody else has it.
        Ok(Probes { _measuring: unsafe { OwnedFd::from_raw_fd(descriptor) } })
    }

    /// Seconds that the probes of a process have run so far; `None` when it has no probe. Another process may have
    /// probes of the same names at the same time.
    pub fn seconds(&self, pid: i32) -> Option<f64> {
        let times = self.each(pid).into_iter().map(|probe| probe.nanoseconds);
        times.reduce(|one, other| one + other).map(|sum| sum as f64 / 1e9)
    }

    /// What each probe of a process has done so far.
    pub fn each(&self, pid: i32) -> Vec<Probe> {
        let infos = programs(pid).into_iter().filter_map(|id| info(id).ok()?);
        let own = infos.filter(|info| info[NAME_AT..NAME_AT + NAME].starts_with(PREFIX));
        own.map(|info| Probe::of(&info)).collect()
    }

    /// Nanoseconds that measuring adds to the time of each run, as those of a program have it that does nothing.
    pub fn overhead(&self) -> Result<f64> {
        let program = load_nothing(b"nothing\0\0\0\0\0\0\0\0\0")?;
        run(&program, TRIALS)?;
        let nothing = Probe::of(&info_of(&program)?);
        Ok(nothing.nanoseconds as f64 / nothing.runs.max(1) as f64)
    }
}

impl Probe {
    fn of(info: &[u8; INFO]) -> Probe {
        let number = |at: usize| u64::from_ne_bytes(info[at..at + 8].try_into().unwrap_or_default());
        let name = String::from_utf8_lossy(&info[NAME_AT..NAME_AT + NAME]);
        Probe {
            name: name.trim_end_matches('\0').to_owned(),
            runs: number(RUNS_AT),
            nanoseconds: number(RUN_TIME_AT),
        }
    }
}

/// Loads the filter under a name.
fn load_nothing(name: &[u8; NAME]) -> Result<OwnedFd> {
    let mut attributes = [0; 72];
    attributes[..4].copy_from_slice(&SOCKET_FILTER.to_ne_bytes());
    attributes[4..8].copy_from_slice(&(NOTHING.len() as u32).to_ne_bytes());
    attributes[8..16].copy_from_slice(&(NOTHING.as_ptr() as u64).to_ne_bytes());
    attributes[16..24].copy_from_slice(&(c"GPL".as_ptr() as u64).to_ne_bytes());
    attributes[48..64].copy_from_slice(name);
    // SAFETY: the call has just returned it, and nobody else has it.
    bpf(LOAD, &mut attributes).map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Has a socket run a filter for so many datagrams.
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

/// The ids of the programs that a process has descriptors of, also by links (`fdinfo` of proc_pid_fdinfo(5)).
fn programs(pid: i32) -> BTreeSet<u32> {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return BTreeSet::new() };
    let texts = descriptors.flatten().filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    let id = |text: String| text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok());
    texts.filter_map(id).collect()
}

/// What the kernel tells of a program, unless it is gone meanwhile.
fn info(id: u32) -> Result<Option<[u8; INFO]>> {
    let mut attributes = [0; 16];
    attributes[..4].copy_from_slice(&id.to_ne_bytes());
    let program = match bpf(PROGRAM_BY_ID, &mut attributes) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        // SAFETY: the call has just returned it, and nobody else has it.
        descriptor => unsafe { OwnedFd::from_raw_fd(descriptor?) },
    };
    info_of(&program).map(Some)
}

fn info_of(program: &OwnedFd) -> Result<[u8; INFO]> {
    let mut info = [0; INFO];
    let mut attributes = [0; 16];
    attributes[..4].copy_from_slice(&program.as_raw_fd().to_ne_bytes());
    attributes[4..8].copy_from_slice(&(INFO as u32).to_ne_bytes());
    attributes[8..].copy_from_slice(&(info.as_mut_ptr() as u64).to_ne_bytes());
    bpf(INFO_BY_DESCRIPTOR, &mut attributes)?;
    Ok(info)
}

/// The call; what the attributes point to must be as the command wants it.
fn bpf(command: i32, attributes: &mut [u8]) -> Result<i32> {
    // SAFETY: the kernel reads and writes the attributes within their length. The only pointer in them is that of
    // `info`, which is to as many bytes as they say.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), attributes.len()) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result as i32) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_the_programs_with_the_prefix_counts_root() {
        let first = match load_nothing(b"capture_first\0\0\0") {
            Ok(program) => program,
            Err(error) => {
                let is_required = std::env::var_os("CAPTURE_REQUIRE_ALL").is_some_and(|value| value == "1");
                assert!(!is_required, "programs can be loaded: {error}");
                eprintln!("not run: no program can be loaded: {error}");
                return;
            }
        };
        let own = std::process::id() as i32;
        let probes = Probes::measure().unwrap();
        let other = load_nothing(b"others_program\0\0").unwrap();
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
        let second = load_nothing(b"capture_second\0\0").unwrap();
        run(&second, 1000).unwrap();
        assert!(probes.seconds(own).unwrap() > time);
        drop((first, second));
        assert_eq!(probes.seconds(own), None, "whoever has no descriptor has no probe");
    }
}
