//! Marks of the reads of a thread, and the reads that are marked.

use super::blocked;
use nix::errno::Errno;
use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, Ordering};
use tracing::warn;

/// The process or lock that a read may have to wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ReadKind {
    /// The process: an exec that does not end, or a process that lists one of its directories.
    Process = 1,
    /// The process's memory lock.
    Memory = 2,
    /// The lock of all control groups.
    Groups = 3,
    /// The root of the tree.
    Root = 4,
}

/// A short identifier of the `/proc` tree that is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ProcTree(pub u64);

/// The subject of a read: tree, process and kind in one word that is not 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Subject(pub(super) u64);

impl Subject {
    fn new(tree: ProcTree, pid: i32, kind: ReadKind) -> Subject {
        let pid = match kind {
            ReadKind::Process | ReadKind::Memory => pid.unsigned_abs(),
            ReadKind::Groups | ReadKind::Root => 0,
        };
        Subject(u64::from(pid) | u64::from(kind as u8) << 32 | tree.0 << 40)
    }

    /// Returns true if this is the lock of memory or of control groups.
    pub(super) fn is_of_lock(self) -> bool {
        let kind = (self.0 >> 32) as u8;
        kind == ReadKind::Memory as u8 || kind == ReadKind::Groups as u8
    }

    /// Returns the root of its tree.
    pub(super) fn root(self) -> Subject {
        Subject::new(ProcTree(self.0 >> 40), 0, ReadKind::Root)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pid = self.0 as u32;
        match (self.0 >> 32) as u8 {
            number if number == ReadKind::Memory as u8 => write!(f, "the command line of process {pid}"),
            number if number == ReadKind::Groups as u8 => f.write_str("the control groups of processes"),
            number if number == ReadKind::Root as u8 => f.write_str("the list of processes"),
            _ => write!(f, "process {pid}"),
        }
    }
}

/// The reads that are refused for a caller that has waited long enough.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[repr(u8)]
pub enum Hurry {
    /// No reads are refused.
    #[default]
    None = 0,
    /// Reads are refused if they take locks that any process can easily hold for a long time.
    Locks = 1,
    /// All reads of processes are refused.
    All = 2,
}

/// Replaces the count of steps once the thread has been abandoned.
const ABANDONED: u64 = u64::MAX;

/// The read that one thread is in.
#[derive(Debug, Default)]
pub struct Watch {
    /// Counts entries into reads and returns from them. It is odd inside a read.
    step: AtomicU64,
    subject: AtomicU64,
    /// The reads that are refused because the caller has waited long enough, as a [`Hurry`].
    hurry: AtomicU8,
    /// The thread's number, or 0 before it runs.
    thread: AtomicI32,
}

/// The payload with which an abandoned thread unwinds.
struct Left;

thread_local! {
    static CURRENT: RefCell<Option<Arc<Watch>>> = const { RefCell::new(None) };
}

impl Watch {
    /// Returns the watch of a thread that has not started yet.
    pub fn new() -> Arc<Watch> {
        blocked::claim_process();
        Arc::default()
    }

    /// Runs the body of a thread and marks its reads here. Returns `None` if the thread was abandoned
    /// meanwhile.
    pub fn run<T>(self: &Arc<Watch>, body: impl FnOnce() -> T) -> Option<T> {
        self.thread.store(nix::unistd::gettid().as_raw(), Ordering::Relaxed);
        CURRENT.with_borrow_mut(|current| *current = Some(Arc::clone(self)));
        let outcome = catch_unwind(AssertUnwindSafe(body));
        CURRENT.with_borrow_mut(|current| *current = None);
        match outcome {
            Ok(value) => Some(value),
            Err(payload) if <dyn Any>::is::<Left>(&*payload) => None,
            Err(payload) => resume_unwind(payload),
        }
    }

    /// Refuses the reads of `hurry` from now on.
    pub fn hurry(&self, hurry: Hurry) {
        self.hurry.store(hurry as u8, Ordering::Relaxed);
    }

    fn refuses(&self, kind: ReadKind) -> bool {
        let hurry = self.hurry.load(Ordering::Relaxed);
        match kind {
            ReadKind::Root => false,
            ReadKind::Process => hurry > Hurry::Locks as u8,
            ReadKind::Memory | ReadKind::Groups => hurry > 0,
        }
    }

    /// Returns the current step if the thread is inside a read.
    pub fn inside(&self) -> Option<u64> {
        Some(self.step.load(Ordering::Acquire)).filter(|step| step % 2 == 1 && *step != ABANDONED)
    }

    /// Returns true if the thread is running or runnable, and so does not wait in its read.
    pub fn is_running(&self) -> bool {
        let thread = self.thread.load(Ordering::Relaxed);
        // proc_pid_stat(5): the state follows the name in parentheses.
        let stat = std::fs::read(format!("/proc/thread-self/../{thread}/stat")).unwrap_or_default();
        let behind = stat.iter().rposition(|&byte| byte == b')').and_then(|at| stat.get(at + 2));
        behind == Some(&b'R')
    }

    /// Abandons the thread if it is still inside the read of this step. Returns true if it was.
    pub fn abandon(&self, step: u64) -> bool {
        let subject = Subject(self.subject.load(Ordering::Relaxed));
        // The subject is refused before the thread can return and release it.
        blocked::add(subject);
        let left = self.step.compare_exchange(step, ABANDONED, Ordering::AcqRel, Ordering::Relaxed);
        if left.is_err() {
            blocked::cancel(subject);
            return false;
        }
        warn!("a read of {subject} does not return; a thread continues to wait for it");
        true
    }

    fn enter(&self, subject: Subject) {
        self.subject.store(subject.0, Ordering::Relaxed);
        self.step.store(self.step.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// Ends a read, or one of its parts. An abandoned thread unwinds here.
    fn advance(&self, steps: u64) {
        let step = self.step.load(Ordering::Relaxed);
        let next = step.wrapping_add(steps);
        if step == ABANDONED
            || self.step.compare_exchange(step, next, Ordering::AcqRel, Ordering::Relaxed).is_err()
        {
            blocked::release(Subject(self.subject.load(Ordering::Relaxed)));
            resume_unwind(Box::new(Left));
        }
    }
}

/// Makes a read that may never return, marked with its subject. Threads without a [`Watch`] make it unmarked.
///
/// # Errors
/// Fails with the error of the read. Fails with `EAGAIN`, without reading, if an earlier read of the subject
/// has not returned or its rest has not ended, if too many threads are abandoned, or if [`Watch::hurry`]
/// refuses the read.
pub fn guarded<T>(
    tree: ProcTree,
    pid: i32,
    kind: ReadKind,
    read: impl FnOnce() -> nix::Result<T>,
) -> nix::Result<T> {
    CURRENT.with_borrow(|current| {
        let Some(watch) = current else { return read() };
        let subject = Subject::new(tree, pid, kind);
        if blocked::is_refused(subject, kind) || watch.refuses(kind) {
            return Err(Errno::EAGAIN);
        }
        watch.enter(subject);
        let outcome = read();
        watch.advance(1);
        outcome
    })
}

/// Returns true if another thread watches the reads of the calling thread.
pub(super) fn is_watched() -> bool {
    CURRENT.with_borrow(Option::is_some)
}

/// Reports that one more part of a guarded read of many parts has returned.
pub fn progress() {
    CURRENT.with_borrow(|current| {
        if let Some(watch) = current.as_ref().filter(|watch| watch.step.load(Ordering::Relaxed) % 2 == 1) {
            watch.advance(2);
        }
    });
}
