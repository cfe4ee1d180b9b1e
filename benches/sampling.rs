//! What sampling costs above the bare system calls: CPU time of a whole sample, set against a floor that only opens,
//! reads and closes the same files of the same processes, and against the `procfs` crate for the same facts.
//!
//! The floor is made of bare libc calls with reused buffers and paths made beforehand; it neither lists, parses nor
//! keeps anything. Samplers and floor take turns in every round, and the median of the rounds' ratios is printed.
//! CPU time is that of getrusage(2), user and system. Processes are forks of this program that sleep.

// A measurement that cannot be made has to end loudly.
#![allow(clippy::expect_used, clippy::panic)]

use capture::model::{SampleSet, Selection};
use capture::process::{ProcRoot, Sampler};
use std::ffi::CString;
use std::path::Path;

const SIZES: [usize; 2] = [2_000, 10_000];
const ROUNDS: usize = 21;

fn main() {
    // Cargo says `--bench` when the figures are wanted; otherwise this only has to show that it still runs.
    let measuring = std::env::args().any(|argument| argument == "--bench");
    let (sizes, rounds) = if measuring { (&SIZES[..], ROUNDS) } else { (&[50][..], 2) };
    for &size in sizes {
        let sleepers = Sleepers::start(size);
        measure(size, rounds);
        drop(sleepers);
    }
}

fn measure(size: usize, rounds: usize) {
    let figures = SampleSet::MEMORY | SampleSet::IO | SampleSet::DESCRIPTORS;
    let mut all = Contender::new("sampler, everything", sampling(SampleSet::ALL));
    let mut some = Contender::new("sampler, no command lines", sampling(figures));
    let mut procfs = Contender::new("procfs crate", Box::new(by_procfs));
    let mut floor = Floor::new();
    let mut floor_cost = Vec::new();
    for round in 0..rounds + 2 {
        for contender in [&mut all, &mut some, &mut procfs] {
            // Each has its own run of the floor beside it, before or after by turns.
            let (cost, base) = if round % 2 == 0 {
                let base = cpu_of(|| floor.run());
                (cpu_of(&mut contender.run), base)
            } else {
                let cost = cpu_of(&mut contender.run);
                (cost, cpu_of(|| floor.run()))
            };
            // The first rounds fill tables and caches.
            if round >= 2 {
                contender.cost.push(cost);
                contender.ratio.push(cost / base);
                floor_cost.push(base);
            }
        }
    }
    println!("{size} processes, median of {rounds} rounds");
    println!("  {:<28}{:>8.2} ms", "floor", median(&mut floor_cost));
    for contender in [&mut all, &mut some, &mut procfs] {
        let (cost, ratio) = (median(&mut contender.cost), median(&mut contender.ratio));
        println!("  {:<28}{cost:>8.2} ms  {ratio:>5.3} x the floor", contender.name);
    }
}

struct Contender {
    name: &'static str,
    run: Box<dyn FnMut()>,
    cost: Vec<f64>,
    ratio: Vec<f64>,
}

impl Contender {
    fn new(name: &'static str, run: Box<dyn FnMut()>) -> Contender {
        Contender { name, run, cost: Vec::new(), ratio: Vec::new() }
    }
}

fn sampling(what: SampleSet) -> Box<dyn FnMut()> {
    let root = ProcRoot::open(Path::new("/proc")).expect("proc is mounted");
    let mut sampler = Sampler::new(root, what, Selection::default()).expect("proc can be read");
    Box::new(move || {
        sampler.sample().expect("proc can be sampled");
        std::hint::black_box(sampler.processes().count());
    })
}

fn by_procfs() {
    for process in procfs::process::all_processes().expect("proc can be listed").flatten() {
        let owner = process.uid();
        let _ =
            std::hint::black_box((process.stat(), process.statm(), process.io(), process.fd_count(), owner));
    }
}

/// The paths of all processes there are, and the bare calls on them.
struct Floor {
    root: i32,
    paths: Vec<([CString; 3], CString)>,
    buffer: [u8; 4096],
}

impl Floor {
    fn new() -> Floor {
        let pids = std::fs::read_dir("/proc").expect("proc is mounted").flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let path = |pid: i32, name: &str| CString::new(format!("{pid}/{name}")).expect("no NUL");
        let paths = pids.map(|pid| (["stat", "statm", "io"].map(|name| path(pid, name)), path(pid, "fd")));
        let paths = paths.collect();
        // SAFETY: the path is a C string that lives as long as the program.
        let root = unsafe { libc::open(c"/proc".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY) };
        Floor { root, paths, buffer: [0; 4096] }
    }

    fn run(&mut self) {
        for (files, descriptors) in &self.paths {
            for file in files {
                // SAFETY: the path is a C string that lives during the call; the kernel writes at most the
                // buffer's length to it; the descriptor is the one just opened and is closed once.
                unsafe {
                    let fd = libc::openat(self.root, file.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
                    if fd >= 0 {
                        libc::read(fd, self.buffer.as_mut_ptr().cast(), self.buffer.len());
                        libc::close(fd);
                    }
                }
            }
            // SAFETY: the path is a C string that lives during the call, and `stat`, for which all bits zero are
            // valid, is written by the kernel only.
            unsafe {
                let mut stat: libc::stat = std::mem::zeroed();
                libc::fstatat(self.root, descriptors.as_ptr(), &mut stat, 0);
                std::hint::black_box(stat.st_size);
            }
        }
        std::hint::black_box(&self.buffer);
    }
}

/// Processes that sleep until this is dropped, or this program ends in whatever way.
struct Sleepers(Vec<libc::pid_t>);

impl Sleepers {
    fn start(count: usize) -> Sleepers {
        let mut sleepers = Sleepers(Vec::with_capacity(count));
        for _ in 0..count {
            // SAFETY: this program has one thread, and the child makes nothing but system calls until it is killed.
            match unsafe { libc::fork() } {
                0 => unsafe {
                    // SAFETY: system calls without pointers.
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    loop {
                        libc::pause();
                    }
                },
                pid if pid > 0 => sleepers.0.push(pid),
                _ => panic!("only {} processes: {}", sleepers.0.len(), std::io::Error::last_os_error()),
            }
        }
        sleepers
    }
}

impl Drop for Sleepers {
    fn drop(&mut self) {
        for &pid in &self.0 {
            // SAFETY: a system call without pointers; the pid is that of a child not yet waited for.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        for &pid in &self.0 {
            // SAFETY: a null status pointer is allowed (waitpid(2)).
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        }
    }
}

fn cpu_of(run: impl FnOnce()) -> f64 {
    let before = cpu_ms();
    run();
    cpu_ms() - before
}

/// CPU time of this process so far, milliseconds.
fn cpu_ms() -> f64 {
    // SAFETY: all bits zero are a valid `rusage`, and the kernel writes only to it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let ms = |time: libc::timeval| time.tv_sec as f64 * 1e3 + time.tv_usec as f64 / 1e3;
    ms(usage.ru_utime) + ms(usage.ru_stime)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
