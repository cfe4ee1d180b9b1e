//! The threads of a session that read `/proc` by themselves, watched by the capture thread.

use crate::blocking::Supervised;
use crate::sync::Mutex;
use std::time::Instant;
use tracing::warn;

/// The watched threads.
#[derive(Default, Debug)]
pub struct Supervision {
    threads: Mutex<Vec<Supervised>>,
}

impl Supervision {
    /// Watches another one.
    pub fn add(&self, thread: Supervised) {
        self.threads.lock().push(thread);
    }

    /// Replaces threads that wait in a read that does not return. To be called about once a second.
    pub fn check(&self, now: Instant) {
        for thread in self.threads.lock().iter_mut() {
            if let Err(error) = thread.check(now) {
                warn!("the thread {} cannot be replaced: {error}", thread.name());
            }
        }
    }

    /// Waits for all to end. Returns how many are left behind in reads that do not return.
    pub fn join(&self) -> usize {
        self.threads.lock().drain(..).map(|mut thread| usize::from(!thread.join())).sum()
    }
}
