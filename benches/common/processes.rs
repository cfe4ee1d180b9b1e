//! Processes to measure on, the floor of bare system calls for sampling them, and CPU time.

// A measurement that cannot be made must fail loudly.
#![allow(clippy::expect_used, clippy::panic)]
#![allow(dead_code, reason = "every bench uses a part of it")]

use std::ffi::CString;

/// The paths of all processes, and the bare system calls on them.
pub struct Floor {
    root: i32,
    paths: Vec<([CString; 3], CString)>,
    buffer: [u8; 4096],
}

impl Floor {
    /// Finds the processes that exist now.
    pub fn new() -> Floor {
        let pids = std::fs::read_dir("/proc").expect("proc is mounted").flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let path = |pid: i32, name: &str| CString::new(format!("{pid}/{name}")).expect("no NUL");
        let paths = pids.map(|pid| (["stat", "statm", "io"].map(|name| path(pid, name)), path(pid, "fd")));
        let paths = paths.collect();
        // SAFETY: the path is a C string that lives as long as the program.
        let root = unsafe { libc::open(c"/proc".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY) };
        Floor { root, paths, buffer: [0; 4096] }
    }

    /// Opens, reads and closes everything once.
    pub fn run(&mut self) {
        for (files, descriptors) in &self.paths {
            for file in files {
                // SAFETY: the path is a C string that lives during the call. The kernel writes at most the
                // buffer's length to the buffer. The descriptor was just opened and is closed once.
                unsafe {
                    let fd = libc::openat(self.root, file.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
                    if fd >= 0 {
                        libc::read(fd, self.buffer.as_mut_ptr().cast(), self.buffer.len());
                        libc::close(fd);
                    }
                }
            }
            // SAFETY: the path is a C string that lives during the call. All bits zero are a valid `stat`,
            // and only the kernel writes to it.
            unsafe {
                let mut stat: libc::stat = std::mem::zeroed();
                libc::fstatat(self.root, descriptors.as_ptr(), &mut stat, 0);
                std::hint::black_box(stat.st_size);
            }
        }
        std::hint::black_box(&self.buffer);
    }
}

/// Processes that sleep until this is dropped or this program ends in any way.
pub struct Sleepers(Vec<libc::pid_t>);

impl Sleepers {
    /// Starts `count` processes. The calling program must have only one thread.
    pub fn start(count: usize) -> Sleepers {
        let mut sleepers = Sleepers(Vec::with_capacity(count));
        for _ in 0..count {
            // SAFETY: this program has one thread, and the child makes only system calls until it is killed.
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
            // SAFETY: a system call without pointers; the pid is that of a child that has not
            // been waited for.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        for &pid in &self.0 {
            // SAFETY: a null status pointer is allowed (waitpid(2)).
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        }
    }
}

/// A process that starts a child every ten milliseconds; each child ends after a second.
pub struct Turnover(libc::pid_t);

impl Turnover {
    /// The number of processes that end each second.
    pub const RATE: u32 = 100;

    /// Starts the process. The calling program must have only one thread.
    pub fn start() -> Turnover {
        // SAFETY: this program has one thread, and the child and its children make only system calls.
        match unsafe { libc::fork() } {
            0 => loop {
                // SAFETY: the child makes only system calls, as stated above; a null status pointer is
                // allowed (waitpid(2)).
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    if libc::fork() == 0 {
                        libc::usleep(990_000);
                        libc::_exit(0);
                    }
                    libc::usleep(1_000_000 / Turnover::RATE);
                    while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
                }
            },
            pid if pid > 0 => Turnover(pid),
            _ => panic!("no process can be started: {}", std::io::Error::last_os_error()),
        }
    }
}

impl Drop for Turnover {
    fn drop(&mut self) {
        // SAFETY: the only pointer is the status pointer, which may be null (waitpid(2)). The pid is that of
        // a child that has not been waited for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

/// Returns the CPU time of this process during `run`, in milliseconds.
pub fn cpu_of(run: impl FnOnce()) -> f64 {
    let before = cpu_ms();
    run();
    cpu_ms() - before
}

/// Returns the CPU time of this process so far, in milliseconds.
fn cpu_ms() -> f64 {
    cpu_ms_of(libc::RUSAGE_SELF)
}

/// Returns the CPU time so far, in milliseconds, of this process or of its children that were waited for.
pub fn cpu_ms_of(who: libc::c_int) -> f64 {
    // SAFETY: all bits zero are a valid `rusage`, and only the kernel writes to it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(who, &mut usage);
        usage
    };
    let ms = |time: libc::timeval| time.tv_sec as f64 * 1e3 + time.tv_usec as f64 / 1e3;
    ms(usage.ru_utime) + ms(usage.ru_stime)
}

/// Returns the median of the values, and sorts them.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
