//! Locks that a child can use after a fork, because their entire state is in their own memory.
//!
//! `parking_lot` keeps the waiting threads in a table of the whole process. A forked child inherits it with
//! the parent's threads still in it, whose stacks the child's own threads reuse. The child then hangs in a
//! list that has become circular. The locks of the standard library use futexes alone. A panic while one of
//! these is held does not poison it: the panic is reported elsewhere, and later callers must be able to close
//! the session.

use std::sync::{self, PoisonError, TryLockError};
use std::time::Instant;

pub use std::sync::MutexGuard;

/// A lock around a value.
#[derive(Default, Debug)]
pub struct Mutex<T>(sync::Mutex<T>);

impl<T> Mutex<T> {
    /// Returns a lock around this value.
    pub const fn new(value: T) -> Mutex<T> {
        Mutex(sync::Mutex::new(value))
    }

    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lock if it is free.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// A condition variable: threads wait on it until a value behind a lock changes.
#[derive(Default, Debug)]
pub struct Condvar(sync::Condvar);

impl Condvar {
    /// Waits for a notification. It may also return spuriously.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits as [`Condvar::wait`] does, but not beyond `deadline`.
    pub fn wait_until<'a, T>(&self, guard: MutexGuard<'a, T>, deadline: Instant) -> MutexGuard<'a, T> {
        let patience = deadline.saturating_duration_since(Instant::now());
        self.0.wait_timeout(guard, patience).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Wakes one waiting thread.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Wakes all waiting threads.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_lock_that_is_held_is_not_taken() {
        let lock = Mutex::new(1);
        let held = lock.lock();
        assert!(lock.try_lock().is_none());
        drop(held);
        assert_eq!(lock.try_lock().map(|value| *value), Some(1));
    }

    #[test]
    fn a_panic_does_not_poison() {
        let lock = Mutex::new(1);
        let panicked = std::thread::scope(|scope| {
            let holder = scope.spawn(|| {
                *lock.lock() = 2;
                let _held = lock.lock();
                std::panic::resume_unwind(Box::new("dropped while held"));
            });
            holder.join().is_err()
        });
        assert!(panicked);
        assert_eq!(*lock.lock(), 2);
        assert!(lock.try_lock().is_some());
    }

    #[test]
    fn waiting_ends_with_a_notice_and_with_the_deadline() {
        let (lock, changed) = (Mutex::new(false), Condvar::default());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                *lock.lock() = true;
                changed.notify_all();
            });
            let mut state = lock.lock();
            while !*state {
                state = changed.wait(state);
            }
        });
        let before = Instant::now();
        let deadline = before + Duration::from_millis(5);
        let mut state = lock.lock();
        while Instant::now() < deadline {
            state = changed.wait_until(state, deadline);
        }
        assert!(*state && before.elapsed() >= Duration::from_millis(5));
    }
}
