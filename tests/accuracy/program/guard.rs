//! Ensures that the program ends in time and leaves nothing behind, however it ends.
//!
//! There are three processes. The worker plays the scenarios. The keeper, which is the process as it was
//! started, waits for the worker and handles signals. At the end it ends all processes that the worker has
//! started; they become its children because it is their subreaper. The janitor removes the network
//! namespaces, whose names contain the worker's process id, when the keeper requests it or dies.

use nix::sys::signal::{SigSet, Signal};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The program's exit code after it has taken too long.
const TOO_LONG: i32 = 3;

/// The time that killed processes may take to end. A process with many thousands of descriptors takes a
/// while.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The time without a new namespace of the worker after which the janitor expects no more: if the keeper was
/// killed, commands of the worker may still run.
const QUIET: Duration = Duration::from_secs(1);

/// Starts the guard. Returns in the worker; the keeper never returns. Must be called before there are other
/// threads, because a fork has only the calling thread.
pub fn start() {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals.thread_block().unwrap();
    let keeper = std::process::id();
    // SAFETY: this option takes a number and no pointers.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) }, 0);
    match fork() {
        0 => {
            // An interrupt from the terminal reaches only the keeper.
            // SAFETY: the call takes no pointers.
            unsafe { libc::setpgid(0, 0) };
            // SAFETY: this option takes a number and no pointers.
            assert_eq!(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) }, 0);
            assert_eq!(std::os::unix::process::parent_id(), keeper, "the keeper lives");
            signals.thread_unblock().unwrap();
        }
        worker => std::process::exit(keep(worker, &signals)),
    }
}

/// Limits the worker to this many seconds from now on. Replaces the previous limit.
pub fn allow(seconds: u64) {
    // SAFETY: the call takes no pointers.
    unsafe { libc::alarm(seconds as u32) };
}

/// Waits for the worker's end or a signal, and cleans up. Returns the program's exit code.
fn keep(worker: i32, signals: &SigSet) -> i32 {
    let janitor = Janitor::start(worker);
    let mut status = None;
    while status.is_none() {
        status = match signals.wait().unwrap() {
            Signal::SIGCHLD => reap(worker).map(meaning),
            signal => Some(128 + signal as i32),
        };
    }
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        let left: Vec<i32> = children().into_iter().filter(|&child| child != janitor.pid).collect();
        if left.is_empty() {
            break;
        }
        for child in left {
            // SAFETY: the call takes no pointers. The child has not been waited for, so that its pid is not
            // reused.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
        std::thread::sleep(Duration::from_millis(5));
        reap(worker);
    }
    janitor.finish();
    status.unwrap_or(1)
}

/// Returns the program's exit code for the worker's wait status.
fn meaning(status: i32) -> i32 {
    if libc::WIFEXITED(status) {
        return libc::WEXITSTATUS(status);
    }
    let signal = libc::WTERMSIG(status);
    if signal == libc::SIGALRM {
        eprintln!("accuracy: this takes too long");
        return TOO_LONG;
    }
    eprintln!("accuracy: ended by signal {signal}");
    128 + signal
}

/// Waits for all children that have ended. Returns the status of the worker if it was among them.
fn reap(worker: i32) -> Option<i32> {
    let mut found = None;
    loop {
        let mut status = 0;
        // SAFETY: the pointer is to a number, which the call fills.
        match unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) } {
            pid if pid <= 0 => return found,
            pid if pid == worker => found = Some(status),
            _ => {}
        }
    }
}

/// Returns the children of this process from `/proc`. The second field after the name in parentheses is the
/// parent.
fn children() -> Vec<i32> {
    let own = std::process::id().to_string();
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_own = |pid: &i32| {
        let text = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)) == Some(&own)
    };
    pids.filter(is_own).collect()
}

fn fork() -> i32 {
    // SAFETY: this process has one thread, so that no lock is held in the child.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "a process can be made");
    pid
}

/// The process that removes the namespaces.
struct Janitor {
    pid: i32,
    /// Closed by the kernel when this process ends.
    telling: File,
}

impl Janitor {
    fn start(worker: i32) -> Janitor {
        let mut ends = [0; 2];
        // SAFETY: the pointer is to two numbers, which the call fills.
        assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
        // SAFETY: the call has just created the descriptors, and nothing else owns them.
        let [hearing, telling] = ends.map(|end| File::from(unsafe { OwnedFd::from_raw_fd(end) }));
        match fork() {
            0 => {
                drop(telling);
                // The janitor leaves the keeper's process group, so that signals to the group do not reach
                // it.
                // SAFETY: the call takes no pointers.
                unsafe { libc::setsid() };
                clean(worker, hearing);
                std::process::exit(0);
            }
            pid => Janitor { pid, telling },
        }
    }

    /// Makes the janitor clean up, and waits for it. Every process that could create namespaces has ended by
    /// then.
    fn finish(mut self) {
        // If the janitor is dead, there is nothing to wait for either.
        let _ = self.telling.write_all(b".");
        // SAFETY: the call writes nothing because the pointer for the status is null.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
    }
}

/// Runs the janitor.
fn clean(worker: i32, mut hearing: File) {
    let told = hearing.read(&mut [0]).unwrap_or(0) > 0;
    let mut quiet_since = Instant::now();
    loop {
        if remove_namespaces(worker) > 0 {
            quiet_since = Instant::now();
        } else if told || quiet_since.elapsed() > QUIET {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Removes the worker's namespaces. Returns the number of those that it removed.
fn remove_namespaces(worker: i32) -> usize {
    let own = format!("capture-{worker}-");
    let Ok(namespaces) = std::fs::read_dir("/run/netns") else { return 0 };
    let names = namespaces.flatten().map(|entry| entry.file_name());
    let is_own = |name: &std::ffi::OsString| name.to_string_lossy().starts_with(&own);
    let removed = |name: &std::ffi::OsString| {
        let mut command = Command::new("ip");
        command.args(["netns", "del"]).arg(name).stdin(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    names.filter(is_own).filter(removed).count()
}
