//! The reads that are refused at present because a thread waits in one. All sessions of the process share
//! them.
//!
//! They are in a table of atomics without a lock, so that a forked child can use it.

use super::watch::{ReadKind, Subject};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The maximum number of threads that may wait in reads at the same time. At this limit, no process is read
/// any more.
pub const MAX_ABANDONED: usize = 16;

/// The maximum number of these that may wait for locks of memory and control groups. It is below the total
/// limit, so that figures of processes are read even if many command lines cannot be.
pub const MAX_FOR_LOCKS: usize = MAX_ABANDONED / 2;

/// Subjects whose reads have been abandoned: those that threads wait for, and those that rest afterwards.
const SLOTS: usize = 4 * MAX_ABANDONED;

/// The rest of a subject after its read has returned. It doubles with each further time.
const MIN_REST: Duration = Duration::from_secs(1);
const MAX_REST: Duration = Duration::from_secs(300);

/// Stands for the end of a rest while a thread waits.
const WAITING: u64 = u64::MAX;

#[derive(Default)]
struct SubjectSlot {
    /// The subject; 0 for none.
    subject: AtomicU64,
    /// The end of the subject's rest, in nanoseconds of [`now`]; [`WAITING`] while a thread waits for it.
    until: AtomicU64,
    /// The number of its reads that have been abandoned.
    times: AtomicU32,
}

struct Blocked {
    /// Threads that wait, and those of them that wait for locks of memory and control groups.
    abandoned: AtomicUsize,
    for_locks: AtomicUsize,
    /// Not 0 while slots may be in force. Reads skip the table while it is 0, as in a process in which no
    /// read was ever abandoned.
    used: AtomicUsize,
    slots: [SubjectSlot; SLOTS],
    /// The process whose threads these are.
    process: AtomicU32,
}

static BLOCKED: Blocked = Blocked {
    abandoned: AtomicUsize::new(0),
    for_locks: AtomicUsize::new(0),
    used: AtomicUsize::new(0),
    slots: [const {
        SubjectSlot { subject: AtomicU64::new(0), until: AtomicU64::new(0), times: AtomicU32::new(0) }
    }; SLOTS],
    process: AtomicU32::new(0),
};

/// Returns the number of threads that wait in reads now.
pub fn abandoned() -> usize {
    BLOCKED.abandoned.load(Ordering::Relaxed)
}

/// Clears the state inherited by a fork, because the threads are the parent's.
pub(super) fn claim_process() {
    let process = std::process::id();
    if BLOCKED.process.swap(process, Ordering::Relaxed) == process {
        return;
    }
    for slot in &BLOCKED.slots {
        slot.subject.store(0, Ordering::Relaxed);
    }
    BLOCKED.used.store(0, Ordering::Relaxed);
    BLOCKED.abandoned.store(0, Ordering::Relaxed);
    BLOCKED.for_locks.store(0, Ordering::Relaxed);
}

/// Lets reads skip the table if no slot is in force.
pub fn sweep() {
    if BLOCKED.used.load(Ordering::Relaxed) == 0 {
        return;
    }
    let now = now();
    if BLOCKED.slots.iter().all(|slot| slot.until.load(Ordering::SeqCst) <= now) {
        BLOCKED.used.store(0, Ordering::SeqCst);
        // A read may have been abandoned meanwhile.
        if BLOCKED.abandoned.load(Ordering::SeqCst) > 0 {
            BLOCKED.used.store(SLOTS, Ordering::SeqCst);
        }
    }
}

/// Returns true if a subject must not be read now.
#[inline]
pub(super) fn is_refused(subject: Subject, kind: ReadKind) -> bool {
    BLOCKED.used.load(Ordering::Relaxed) > 0 && is_in_table(subject, kind)
}

#[cold]
fn is_in_table(subject: Subject, kind: ReadKind) -> bool {
    let is_full = match kind {
        // There are few roots, and without them nothing is known.
        ReadKind::Root => false,
        ReadKind::Process => abandoned() >= MAX_ABANDONED,
        ReadKind::Memory | ReadKind::Groups => BLOCKED.for_locks.load(Ordering::Relaxed) >= MAX_FOR_LOCKS,
    };
    if is_full {
        return true;
    }
    // Everything in a directory that is locked may be locked as well.
    [subject, subject.root()]
        .into_iter()
        .filter_map(slot_of)
        .any(|slot| slot.until.load(Ordering::Relaxed) > now())
}

/// Records that a thread has been abandoned in a read of this subject.
pub(super) fn add(subject: Subject) {
    BLOCKED.abandoned.fetch_add(1, Ordering::SeqCst);
    BLOCKED.for_locks.fetch_add(subject.is_of_lock().into(), Ordering::Relaxed);
    if let Some(slot) = slot_for(subject) {
        slot.until.store(WAITING, Ordering::Relaxed);
        slot.times.fetch_add(1, Ordering::Relaxed);
    }
    BLOCKED.used.store(SLOTS, Ordering::SeqCst);
}

/// Reverts [`add`], because the read returned at that moment.
pub(super) fn cancel(subject: Subject) {
    BLOCKED.abandoned.fetch_sub(1, Ordering::Relaxed);
    BLOCKED.for_locks.fetch_sub(subject.is_of_lock().into(), Ordering::Relaxed);
    if let Some(slot) = slot_of(subject) {
        slot.until.store(0, Ordering::Relaxed);
        slot.times.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Records that the read of an abandoned thread has returned.
pub(super) fn release(subject: Subject) {
    BLOCKED.abandoned.fetch_sub(1, Ordering::Relaxed);
    BLOCKED.for_locks.fetch_sub(subject.is_of_lock().into(), Ordering::Relaxed);
    if let Some(slot) = slot_of(subject) {
        let doublings = slot.times.load(Ordering::Relaxed).saturating_sub(1).min(16);
        let rest = MIN_REST.saturating_mul(1 << doublings).min(MAX_REST);
        slot.until.store(now() + rest.as_nanos() as u64, Ordering::Relaxed);
    }
}

fn slot_of(subject: Subject) -> Option<&'static SubjectSlot> {
    BLOCKED.slots.iter().find(|slot| slot.subject.load(Ordering::Acquire) == subject.0)
}

/// Returns the subject's slot, else an unused slot, else the one whose rest ends first.
fn slot_for(subject: Subject) -> Option<&'static SubjectSlot> {
    let known = slot_of(subject);
    if known.is_some() {
        return known;
    }
    loop {
        let slot = BLOCKED.slots.iter().min_by_key(|slot| match slot.subject.load(Ordering::Relaxed) {
            0 => 0,
            _ => slot.until.load(Ordering::Relaxed),
        })?;
        let known = slot.subject.load(Ordering::Relaxed);
        if known != 0 && slot.until.load(Ordering::Relaxed) == WAITING {
            return None;
        }
        let taken = slot.subject.compare_exchange(known, subject.0, Ordering::Release, Ordering::Relaxed);
        if taken.is_ok() {
            slot.times.store(0, Ordering::Relaxed);
            return Some(slot);
        }
    }
}

/// Returns the nanoseconds since the first call.
fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}
