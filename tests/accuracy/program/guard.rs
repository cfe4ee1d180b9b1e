//! Sees to it that the program ends in time and leaves nothing behind, however it ends.
//!
//! There are three processes. The worker plays the scenarios. The keeper, as which the program was started, waits for
//! the worker and takes the signals; in the end it ends all that the worker has started, and they come to it since it
//! is their subreaper. The janitor removes the network namespaces, which carry the worker's process id in their names;
//! it is told to by the keeper, or by the keeper's death.

use nix::sys::signal::{SigSet, Signal};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What the program ends with when it has taken too long.
const TOO_LONG: i32 = 3;

/// How long killed processes may take to end; one with many thousands of descriptors takes a while.
const TIMEOUT: Duration = Duration::from_secs(20);

/// How long no namespace of the worker may appear until the janitor believes that none will: when the keeper was
/// killed, commands of the worker may still be at work.
const QUIET: Duration = Duration::from_secs(1);

/// Returns in the worker; the keeper never returns. Called before there are other threads: forks go without them.
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
            // An interruption from the terminal goes to the keeper alone.
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

/// From now on so many seconds are allowed to the worker; what was allowed before is forgotten.
pub fn allow(seconds: u64) {
    // SAFETY: the call takes no pointers.
    unsafe { libc::alarm(seconds as u32) };
}

/// Waits for the worker's end or a signal, and tidies up. Returns what the program ends with.
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
            // SAFETY: no pointers; the child is not yet waited for, so that its number is its own.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
        std::thread::sleep(Duration::from_millis(5));
        reap(worker);
    }
    janitor.finish();
    status.unwrap_or(1)
}

/// What the program ends with when the worker has ended like this.
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

/// The children of this process, as `/proc` shows them: the second field after the name in parentheses is the parent.
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
    // SAFETY: this process has one thread, so that the child finds no lock held.
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
        // SAFETY: the call has just made them, and nobody else has them.
        let [hearing, telling] = ends.map(|end| File::from(unsafe { OwnedFd::from_raw_fd(end) }));
        match fork() {
            0 => {
                drop(telling);
                // Out of reach of what is sent to the keeper's group.
                // SAFETY: the call takes no pointers.
                unsafe { libc::setsid() };
                clean(worker, hearing);
                std::process::exit(0);
            }
            pid => Janitor { pid, telling },
        }
    }

    /// Has it clean up, and waits for that. All that could make more to clean has ended.
    fn finish(mut self) {
        // If it does not live any more there is nothing to wait for either.
        let _ = self.telling.write_all(b".");
        // SAFETY: without a pointer for the status the call writes nothing.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
    }
}

/// The janitor's life.
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

/// Returns how many it has removed.
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
