//! Processes that share memory, in which they count and through which they wait for one another.

use super::{Outcome, say};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};

/// The maximum number of processes that can count.
const PROCESSES: usize = 64;

/// The counts of one process.
#[derive(Default)]
pub struct Counts {
    pid: AtomicU64,
    calls: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Counts {
    /// Counts a message that was sent.
    pub fn sent(&self, bytes: usize) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// The memory that all processes share.
pub struct Board {
    pub counts: [Counts; PROCESSES],
    arrived: AtomicU64,
    /// Words for the modes' own use.
    pub words: [AtomicU64; 8],
}

impl Board {
    /// Creates a board that every child will share.
    pub fn new() -> Outcome<&'static Board> {
        let length = NonZeroUsize::new(size_of::<Board>()).ok_or("the board is empty")?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: this is a new mapping, which is never unmapped.
        let memory = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_SHARED) }?;
        // SAFETY: a mapping begins at a page boundary and is zeroed, which is valid for atomics.
        Ok(unsafe { memory.cast::<Board>().as_ref() })
    }

    /// Returns the counts of this process, which has this number.
    pub fn own(&self, number: usize) -> &Counts {
        self.counts[number].pid.store(std::process::id().into(), Ordering::Relaxed);
        &self.counts[number]
    }

    /// Waits until all of `count` processes have called this as often as this one.
    pub fn meet(&self, meetings: &mut u64, count: u64) {
        *meetings += 1;
        self.arrived.fetch_add(1, Ordering::AcqRel);
        wait_for(|| self.arrived.load(Ordering::Acquire) >= *meetings * count);
    }

    /// Prints the counts of each process.
    pub fn report(&self) -> Outcome<()> {
        for counts in &self.counts {
            let [pid, calls, sent, received] = [&counts.pid, &counts.calls, &counts.sent, &counts.received]
                .map(|count| count.load(Ordering::Relaxed));
            if pid != 0 {
                say(&format!("process {pid} {calls} {sent} {received}"))?;
            }
        }
        Ok(())
    }
}

/// Waits actively, so that processes go on at the same moment, but yields the processor now and then.
pub fn wait_for(is_so: impl Fn() -> bool) {
    for attempt in 1_u64.. {
        if is_so() {
            return;
        }
        match attempt % 2048 {
            0 => std::thread::yield_now(),
            _ => std::hint::spin_loop(),
        }
    }
}

/// Forked processes. Dropping this ends them.
#[derive(Default)]
pub struct Children(Vec<Pid>);

impl Children {
    /// Forks a child that does `work` and then waits until it is killed.
    pub fn fork(&mut self, work: impl FnOnce() -> Outcome<()>) -> Outcome<()> {
        // SAFETY: this process has one thread, so that no lock is held in the child.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => self.0.push(child),
            ForkResult::Child => {
                if let Err(error) = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL) {
                    eprintln!("{error}");
                }
                if let Err(error) = work() {
                    eprintln!("a child: {error}");
                }
                loop {
                    nix::unistd::pause();
                }
            }
        }
        Ok(())
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for &child in &self.0 {
            // The child may have ended already.
            let _ = kill(child, Signal::SIGKILL);
            let _ = waitpid(child, None);
        }
    }
}

/// Pins this thread to one of the machine's processors.
pub fn pin(number: usize) {
    let mut set = nix::sched::CpuSet::new();
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    // Without permission the threads meet all the same, only less often at the same moment.
    let _ = set.set(number % count);
    let _ = nix::sched::sched_setaffinity(Pid::from_raw(0), &set);
}
