//! Marks of what a thread is reading, and the reads that are marked.

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
    /// The process: an exec that does not end, or whoever lists one of its directories.
    Process = 1,
    /// The lock of its memory.
    Memory = 2,
    /// The lock of all control groups.
    Groups = 3,
    /// The root of the tree.
    Root = 4,
}

/// Which `/proc` tree is read, for short.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ProcTree(pub u64);

/// What is read: tree, process and kind in one word that is not 0.
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

    /// Whether it is the lock of memory or of control groups.
    pub(super) fn is_of_lock(self) -> bool {
        let kind = (self.0 >> 32) as u8;
        kind == ReadKind::Memory as u8 || kind == ReadKind::Groups as u8
    }

    /// The root of its tree.
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

/// What is not read for a caller that has waited long enough.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[repr(u8)]
pub enum Hurry {
    /// Everything is read.
    #[default]
    None = 0,
    /// Nothing that takes the locks which any process can easily hold for long.
    Locks = 1,
    /// No process is read at all.
    All = 2,
}

/// In place of the count of steps, once the thread has been abandoned.
const ABANDONED: u64 = u64::MAX;

/// What one thread is reading.
#[derive(Debug, Default)]
pub struct Watch {
    /// Counts entries into reads and returns from them: odd while inside.
    step: AtomicU64,
    subject: AtomicU64,
    /// How much is refused because the caller has waited long enough.
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
    /// The watch of a thread that is not started yet.
    pub fn new() -> Arc<Watch> {
        blocked::claim_process();
        Arc::default()
    }

    /// Runs the body of a thread, whose reads are marked here. Returns `None` when the thread was abandoned meanwhile.
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

    /// From now on refuses what `hurry` says.
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

    /// The step that the thread is inside of, if it is inside a read.
    pub fn inside(&self) -> Option<u64> {
        Some(self.step.load(Ordering::Acquire)).filter(|step| step % 2 == 1 && *step != ABANDONED)
    }

    /// True for a thread that runs, or would if it were given a processor: it does not wait in its read.
    pub fn is_running(&self) -> bool {
        let thread = self.thread.load(Ordering::Relaxed);
        // proc_pid_stat(5): the state follows the name in parentheses.
        let stat = std::fs::read(format!("/proc/thread-self/../{thread}/stat")).unwrap_or_default();
        let behind = stat.iter().rposition(|&byte| byte == b')').and_then(|at| stat.get(at + 2));
        behind == Some(&b'R')
    }

    /// Leaves the thread behind, if it is still inside the read of this step. Returns whether it was.
    pub fn abandon(&self, step: u64) -> bool {
        let subject = Subject(self.subject.load(Ordering::Relaxed));
        // Refused before the thread can return and release it.
        blocked::add(subject);
        let left = self.step.compare_exchange(step, ABANDONED, Ordering::AcqRel, Ordering::Relaxed);
        if left.is_err() {
            blocked::cancel(subject);
            return false;
        }
        warn!("{subject} cannot be read: a read has not returned, and is waited for on a thread left behind");
        true
    }

    fn enter(&self, subject: Subject) {
        self.subject.store(subject.0, Ordering::Relaxed);
        self.step.store(self.step.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// Ends a read, or one of its parts. An abandoned thread goes no further than here.
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

/// Makes a read that may never return, of what `kind` says. Threads without a [`Watch`] just make it.
///
/// # Errors
/// What the read returns; `EAGAIN` when it is not made, because such a read has not returned.
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

/// Whether another thread watches the reads of this one.
pub(super) fn is_watched() -> bool {
    CURRENT.with_borrow(Option::is_some)
}

/// Says, inside a guarded read of many parts, that another one of them has returned.
pub fn progress() {
    CURRENT.with_borrow(|current| {
        if let Some(watch) = current.as_ref().filter(|watch| watch.step.load(Ordering::Relaxed) % 2 == 1) {
            watch.advance(2);
        }
    });
}
