//! eBPF programs through bpf(2) itself: the kernel's statistics, the attach points of a process's eBPF
//! programs, and empty eBPF programs to compare others with.

use std::collections::BTreeSet;
use std::fs::{File, read_dir, read_to_string};
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

// Commands of bpf(2) and constants of `linux/bpf.h`.
const PROGRAM_LOAD: i32 = 5;
const PROGRAM_BY_ID: i32 = 13;
const INFORMATION: i32 = 15;
const TRACEPOINT_OPEN: i32 = 17;
const LINK_CREATE: i32 = 28;
const ENABLE_STATISTICS: i32 = 32;
const SOCKET_FILTER: u32 = 1;
const CGROUP_SKB: u32 = 8;
const CGROUP_SOCK: u32 = 9;
const TRACING: u32 = 26;
const CGROUP_EGRESS: u32 = 1;
const TRACE_TRACEPOINT: u32 = 23;

/// The length of `struct bpf_prog_info` in words, up to the number of the attach point.
const INFORMATION_WORDS: usize = 58;
const KIND_WORD: usize = 0;
const NAME_WORD: usize = 16;
const RUN_TIME_WORD: usize = 48;
const RUNS_WORD: usize = 50;
const POINT_WORD: usize = 56;

/// Calls bpf(2) with attributes made of words.
///
/// # Errors
/// Fails with the kernel's error.
pub fn bpf(command: i32, words: &mut [u32]) -> Result<i32> {
    // SAFETY: the kernel reads and writes at most the given size; the memory that the words point to
    // outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, words.as_mut_ptr(), size_of_val(words)) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result as i32) }
}

fn opened(command: i32, words: &mut [u32]) -> Result<OwnedFd> {
    // SAFETY: the kernel made the descriptor for this call, and nothing else owns it.
    bpf(command, words).map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Returns the two halves of an address, as they are in the attributes.
pub fn halves<T>(place: *const T) -> [u32; 2] {
    let address = (place.addr() as u64).to_ne_bytes();
    [0, 4].map(|at| u32::from_ne_bytes([address[at], address[at + 1], address[at + 2], address[at + 3]]))
}

/// Makes the kernel count and time the runs of eBPF programs until it is dropped.
pub struct Statistics {
    _descriptor: OwnedFd,
}

impl Statistics {
    /// Enables the statistics (Linux 5.8).
    ///
    /// # Errors
    /// Fails with the error of bpf(2).
    pub fn enable() -> Result<Statistics> {
        // The kind of statistics: 0 is the run time.
        Ok(Statistics { _descriptor: opened(ENABLE_STATISTICS, &mut [0])? })
    }
}

/// The kernel's description of an eBPF program.
pub struct Information([u32; INFORMATION_WORDS]);

impl Information {
    /// Describes an eBPF program.
    ///
    /// # Errors
    /// Fails with the error of bpf(2).
    pub fn of(program: &OwnedFd) -> Result<Information> {
        let mut words = [0; INFORMATION_WORDS];
        let [low, high] = halves(words.as_mut_ptr());
        let size = size_of_val(&words) as u32;
        bpf(INFORMATION, &mut [program.as_raw_fd() as u32, size, low, high])?;
        Ok(Information(words))
    }

    /// Describes the eBPF program with this id; returns `None` if it no longer exists.
    ///
    /// # Errors
    /// Fails with the error of bpf(2).
    pub fn by_id(id: u32) -> Result<Option<Information>> {
        match opened(PROGRAM_BY_ID, &mut [id, 0, 0]) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            program => Information::of(&program?).map(Some),
        }
    }

    /// Returns the name, of which the kernel keeps 15 bytes.
    pub fn name(&self) -> String {
        let bytes: Vec<u8> =
            self.0[NAME_WORD..NAME_WORD + 4].iter().flat_map(|word| word.to_ne_bytes()).collect();
        String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
    }

    pub fn runs(&self) -> u64 {
        self.number(RUNS_WORD)
    }

    pub fn nanoseconds(&self) -> u64 {
        self.number(RUN_TIME_WORD)
    }

    fn number(&self, at: usize) -> u64 {
        let [low, high] = [self.0[at], self.0[at + 1]].map(u32::to_ne_bytes);
        u64::from_ne_bytes([low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]])
    }
}

/// Returns a number from the kernel's description of a descriptor, proc_pid_fdinfo(5).
pub fn field(text: &str, name: &str) -> Option<u64> {
    word(text, name)?.parse().ok()
}

fn word<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

/// An attach point in the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hook {
    program_kind: u32,
    attach_kind: u32,
    /// The id of the attach point in the kernel's BTF; 0 for control groups.
    point: u32,
}

impl Hook {
    /// The hook where packets leave control groups.
    pub const EGRESS: Hook = Hook { program_kind: CGROUP_SKB, attach_kind: CGROUP_EGRESS, point: 0 };
    /// A socket filter, which is attached by setsockopt(2).
    const FILTER: Hook = Hook { program_kind: SOCKET_FILTER, attach_kind: 0, point: 0 };

    /// Returns the attach points of a process's eBPF programs in all of its descriptor tables, one for each
    /// link. Iterators have none.
    ///
    /// # Errors
    /// Fails with the error of reading `/proc` or of bpf(2).
    pub fn all_of(pid: i32) -> Result<Vec<Hook>> {
        let (mut hooks, mut links) = (Vec::new(), BTreeSet::new());
        let threads = read_dir(format!("/proc/{pid}/task"))?.flatten();
        let tables = threads.filter_map(|thread| read_dir(thread.path().join("fdinfo")).ok());
        for entry in tables.flatten() {
            // A descriptor can be closed meanwhile, and threads can share a table.
            let Ok(text) = read_to_string(entry?.path()) else { continue };
            if field(&text, "link_id").is_some_and(|link| !links.insert(link)) {
                continue;
            }
            if let Some(kind) = word(&text, "link_type").filter(|&kind| kind != "iter") {
                hooks.extend(Hook::of_link(kind, &text)?);
            }
        }
        Ok(hooks)
    }

    fn of_link(kind: &str, text: &str) -> Result<Option<Hook>> {
        let number = |name| field(text, name).ok_or_else(|| Error::other(format!("a link without {name}")));
        let Some(program) = Information::by_id(number("prog_id")? as u32)? else { return Ok(None) };
        let attach_kind =
            if kind == "raw_tracepoint" { TRACE_TRACEPOINT } else { number("attach_type")? as u32 };
        let (program_kind, point) = (program.0[KIND_WORD], program.0[POINT_WORD]);
        if ![CGROUP_SKB, CGROUP_SOCK, TRACING].contains(&program_kind) {
            return Err(Error::other(format!("a {kind} link of a program of the kind {program_kind}")));
        }
        Ok(Some(Hook { program_kind, attach_kind, point }))
    }

    /// Loads an empty eBPF program for this hook.
    fn load_empty(self, name: &[u8; 16]) -> Result<OwnedFd> {
        // An eBPF program of a control group passes a packet by returning 1; r0 = 0 or 1; exit.
        let verdict = u8::from(self.program_kind == CGROUP_SKB || self.program_kind == CGROUP_SOCK);
        let instructions: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, verdict, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
        let mut load = [0; 30];
        load[0] = self.program_kind;
        load[1] = instructions.len() as u32;
        load[2..4].copy_from_slice(&halves(instructions.as_ptr()));
        load[4..6].copy_from_slice(&halves(c"GPL".as_ptr()));
        // The words in between are the verifier's log, the kernel's version and flags, all unused.
        for (word, bytes) in load[12..16].iter_mut().zip(name.as_chunks::<4>().0) {
            *word = u32::from_ne_bytes(*bytes);
        }
        load[17] = self.attach_kind;
        load[27] = self.point;
        opened(PROGRAM_LOAD, &mut load)
    }
}

/// Loads a socket filter that passes nothing, with this name.
///
/// # Errors
/// Fails with the error of bpf(2).
pub fn load_filter(name: &[u8; 16]) -> Result<OwnedFd> {
    Hook::FILTER.load_empty(name)
}

/// An empty eBPF program, attached.
pub struct EmptyProgram {
    _program: OwnedFd,
    _link: OwnedFd,
}

impl EmptyProgram {
    pub const NAME: &str = "empty";

    /// Attaches an empty eBPF program: in the kernel's code, or at the root of the control groups.
    ///
    /// # Errors
    /// Fails with the error of bpf(2), or if there is no cgroup v2 hierarchy.
    pub fn attach(hook: Hook) -> Result<EmptyProgram> {
        let _program = hook.load_empty(b"empty\0\0\0\0\0\0\0\0\0\0\0")?;
        let descriptor = _program.as_raw_fd() as u32;
        let _link = match hook.program_kind {
            TRACING => opened(TRACEPOINT_OPEN, &mut [0, 0, descriptor, 0])?,
            _ => {
                let root = cgroup_root()?;
                opened(LINK_CREATE, &mut [descriptor, root.as_raw_fd() as u32, hook.attach_kind, 0])?
            }
        };
        Ok(EmptyProgram { _program, _link })
    }
}

fn cgroup_root() -> Result<File> {
    let mounts = read_to_string("/proc/self/mountinfo")?;
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    let place = mount.and_then(|line| line.split(' ').nth(4));
    File::open(place.ok_or_else(|| Error::other("there is no cgroup v2 hierarchy"))?)
}
