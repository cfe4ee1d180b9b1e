//! A thread that works by itself, and is replaced when it waits in a read that does not return.

use super::helper::Observed;
use super::watch::Watch;
use crate::error::Result;
use crate::thread::spawn;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The shortest time between two looks at a thread.
const TICK: Duration = Duration::from_millis(10);
/// A thread is left behind when two checks that far apart have found it in the same read.
const TIMEOUT: Duration = Duration::from_millis(250);
/// The same where it runs, or would if it were given a processor.
const RUNNING_TIMEOUT: Duration = Duration::from_secs(2);
/// The time between two looks for the end of a thread.
const JOIN_TICK: Duration = Duration::from_millis(1);

/// A thread and what replaces it.
pub struct Supervised {
    name: &'static str,
    body: Arc<dyn Fn() + Send + Sync>,
    on_panic: Arc<dyn Fn(String) + Send + Sync>,
    thread: Option<(Arc<Watch>, JoinHandle<()>)>,
    /// The read that the last check has found the thread in, and since when.
    inside: Option<(u64, Instant)>,
}

impl Supervised {
    /// Starts a thread that runs `body`; so does each that replaces it.
    ///
    /// # Errors
    /// `Thread` when the system refuses another thread.
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
            // One that was left behind has nothing to tell.
            let _ = marks.run(|| body());
        };
        let thread = spawn(self.name, run, move |text| on_panic(text))?;
        self.thread = Some((watch, thread));
        Ok(())
    }

    /// Replaces the thread if it has been in the same read for a quarter of a second. To be called now and then. Returns
    /// whether the thread was replaced.
    ///
    /// # Errors
    /// `Thread` when the system refuses another thread; the next call tries again.
    pub fn check(&mut self, now: Instant) -> Result<bool> {
        let Some((watch, _)) = &self.thread else { return self.restart().map(|()| true) };
        let inside = watch.inside();
        match (inside, self.inside) {
            (Some(step), Some((known, since))) if step == known => {
                let inside = now.saturating_duration_since(since);
                // On a busy machine it may not have come to run.
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

    /// The thread's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Waits for the thread to end. Returns `false` when it waits in a read and was left behind.
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
        // Its panic, if there was one, has been handed over.
        let _ = thread.join();
        true
    }
}

impl std::fmt::Debug for Supervised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervised").field("name", &self.name).finish_non_exhaustive()
    }
}
