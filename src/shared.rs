//! Values that all sessions of a process share. The first session that needs one loads it, and the last
//! releases it.

use crate::sync::Mutex;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Weak};

/// A static value of which a forked child gets its own instance. A lock in the parent's value may have been
/// held at the fork by a thread that does not exist in the child.
pub(crate) struct PerProcess<T>(AtomicPtr<ProcessValue<T>>);

struct ProcessValue<T> {
    process: u32,
    value: T,
}

impl<T: Default + Send + Sync + 'static> PerProcess<T> {
    /// Returns a cell without a value.
    pub(crate) const fn new() -> PerProcess<T> {
        PerProcess(AtomicPtr::new(ptr::null_mut()))
    }

    /// Returns the value of the calling process. It is never freed: there is one for each process in a line
    /// of forks.
    pub(crate) fn get(&self) -> &'static T {
        let process = std::process::id();
        let mut current = self.0.load(Ordering::Acquire);
        let mut new: *mut ProcessValue<T> = ptr::null_mut();
        loop {
            // SAFETY: values that the pointer was ever set to are never freed, and change only through their
            // locks.
            if let Some(owned) = unsafe { current.as_ref() }.filter(|owned| owned.process == process) {
                if !new.is_null() {
                    // SAFETY: the value was made below and was not published, because another thread was
                    // faster.
                    drop(unsafe { Box::from_raw(new) });
                }
                return &owned.value;
            }
            if new.is_null() {
                new = Box::into_raw(Box::new(ProcessValue { process, value: T::default() }));
            }
            match self.0.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    (current, new) = (new, ptr::null_mut());
                }
                Err(other) => current = other,
            }
        }
    }
}

/// Values that sessions share, found by key.
pub(crate) struct Shared<K, T>(Mutex<Vec<(K, Weak<T>)>>);

impl<K, T> Default for Shared<K, T> {
    fn default() -> Shared<K, T> {
        Shared(Mutex::new(Vec::new()))
    }
}

impl<K: PartialEq, T> Shared<K, T> {
    /// Returns the value for `key`, and loads it if no session has it. If two callers need it at the same
    /// time, the later one waits, and both get the same value.
    ///
    /// # Errors
    /// Fails with the error of `load`. The next call retries.
    pub(crate) fn get<E>(&self, key: K, load: impl FnOnce() -> Result<T, E>) -> Result<Arc<T>, E> {
        let mut entries = self.0.lock();
        entries.retain(|(_, value)| value.strong_count() > 0);
        let found = entries.iter().find(|(other, _)| *other == key);
        if let Some(value) = found.and_then(|(_, value)| value.upgrade()) {
            return Ok(value);
        }
        let value = Arc::new(load()?);
        entries.push((key, Arc::downgrade(&value)));
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_loaded_once_and_again_when_nobody_has_it() {
        let shared = Shared::default();
        let get = |key: u8, value: u8| shared.get(key, || Ok::<_, ()>(value)).unwrap();
        let (first, other) = (get(1, 10), get(2, 20));
        assert_eq!((*get(1, 11), *get(2, 21)), (10, 20));
        drop(first);
        assert_eq!((*get(1, 12), *other), (12, 20));
        assert_eq!(shared.get(1, || Err(())), Err(()), "nothing is kept of what nobody has");
        assert_eq!(*get(1, 13), 13);
    }

    #[test]
    fn all_threads_of_a_process_get_one_value() {
        static VALUE: PerProcess<Mutex<u32>> = PerProcess::new();
        std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(|| *VALUE.get().lock() += 1))));
        assert_eq!(*VALUE.get().lock(), 8);
    }
}
