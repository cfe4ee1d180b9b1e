//! A thread that works by itself, and is replaced if it waits in a read that does not return.

use super::helper::Observed;
use super::watch::Watch;
use crate::error::Result;
use crate::thread::spawn;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The minimum time between two checks of a thread.
const TICK: Duration = Duration::from_millis(10);
/// A thread is abandoned if two checks this far apart found it in the same read.
const TIMEOUT: Duration = Duration::from_millis(250);
/// The same limit for a thread that is running or runnable.
const RUNNING_TIMEOUT: Duration = Duration::from_secs(2);
/// The interval of the checks for the end of a thread.
const JOIN_TICK: Duration = Duration::from_millis(1);

/// A thread, and the functions for its replacement.
pub struct Supervised {
    name: &'static str,
    body: Arc<dyn Fn() + Send + Sync>,
    on_panic: Arc<dyn Fn(String) + Send + Sync>,
    thread: Option<(Arc<Watch>, JoinHandle<()>)>,
    /// The read that the last check found the thread in, and the time of the first check that did.
    inside: Option<(u64, Instant)>,
}

impl Supervised {
    /// Starts a thread that runs `body`. Each replacement runs it, too.
    ///
    /// # Errors
    /// Fails with `Thread` if the system refuses another thread.
    pub fn start(
        name: &'static str,
        body: impl Fn() + Send + Sync + 'static,
        on_panic: impl Fn(String) + Send + Sync + 'static,
    ) -> Result<Supervised> {
        let (body, on_panic) = (Arc::new(body), Arc::new(on_panic));
        let mut supervised = Supervised { name, body, on_panic, thread: None, inside: None };
        supervised.restart()?;
        Ok(supervised)
    }

    fn restart(&mut self) -> Result<()> {
        let (body, on_panic) = (Arc::clone(&self.body), Arc::clone(&self.on_panic));
        let watch = Watch::new();
        let marks = Arc::clone(&watch);
        let run = move || {
            // An abandoned thread has nothing to report.
            let _ = marks.run(|| body());
        };
        let thread = spawn(self.name, run, move |text| on_panic(text))?;
        self.thread = Some((watch, thread));
        Ok(())
    }

    /// Replaces the thread if it has been in the same read for a quarter of a second, or for two seconds if
    /// it is running or runnable. The caller calls it from time to time. Returns true if the thread was
    /// replaced.
    ///
    /// # Errors
    /// Fails with `Thread` if the system refuses another thread. The next call retries.
    pub fn check(&mut self, now: Instant) -> Result<bool> {
        let Some((watch, _)) = &self.thread else { return self.restart().map(|()| true) };
        let inside = watch.inside();
        match (inside, self.inside) {
            (Some(step), Some((known, since))) if step == known => {
                let inside = now.saturating_duration_since(since);
                // On a busy machine, the thread may not have run yet.
                let is_stuck = inside >= RUNNING_TIMEOUT || inside >= TIMEOUT && !watch.is_running();
                if !is_stuck || !watch.abandon(step) {
                    return Ok(false);
                }
                (self.thread, self.inside) = (None, None);
                self.restart().map(|()| true)
            }
            _ => {
                self.inside = inside.map(|step| (step, now));
                Ok(false)
            }
        }
    }

    /// Returns the thread's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Waits for the thread to end. Returns false if it waits in a read and was abandoned.
    pub fn join(&mut self) -> bool {
        let Some((watch, thread)) = self.thread.take() else { return true };
        let mut observed = Observed::default();
        let mut ticked = Instant::now();
        while !thread.is_finished() {
            std::thread::sleep(JOIN_TICK);
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                if observed.is_stuck(&watch) {
                    return false;
                }
            }
        }
        // Its panic, if any, was passed to `on_panic`.
        let _ = thread.join();
        true
    }
}

impl std::fmt::Debug for Supervised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervised").field("name", &self.name).finish_non_exhaustive()
    }
}
