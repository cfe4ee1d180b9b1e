//! The threads of a session that read `/proc` and can be abandoned; the capture thread checks them.

use crate::blocking::Supervised;
use crate::sync::Mutex;
use std::time::Instant;
use tracing::warn;

/// The supervised threads.
#[derive(Default, Debug)]
pub struct Supervision {
    threads: Mutex<Vec<Supervised>>,
}

impl Supervision {
    /// Adds a thread to the supervised ones.
    pub fn add(&self, thread: Supervised) {
        self.threads.lock().push(thread);
    }

    /// Replaces threads that wait in a read that does not return. The capture thread calls it about once a
    /// second.
    pub fn check(&self, now: Instant) {
        for thread in self.threads.lock().iter_mut() {
            if let Err(error) = thread.check(now) {
                warn!("the thread {} cannot be replaced: {error}", thread.name());
            }
        }
    }

    /// Waits for all threads to end. Returns the number of those abandoned in reads that do not return.
    pub fn join(&self) -> usize {
        self.threads.lock().drain(..).map(|mut thread| usize::from(!thread.join())).sum()
    }
}
