//! A thread that reads for another one, which can abandon it and continue with a new one.

use super::watch::{Hurry, Watch, is_watched};
use crate::error::Error;
use crate::sync::{Condvar, Mutex};
use crate::thread::spawn;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The interval of the checks. A read that has not returned for [`MAX_TICKS`] is stuck. The waiting thread
/// counts the ticks, so that a machine with too little CPU time for either thread delays both.
const TICK: Duration = Duration::from_millis(10);
const MAX_TICKS: u32 = 25;
/// The same limit for a thread that is running or runnable.
const MAX_RUNNING_TICKS: u32 = 8 * MAX_TICKS;

/// The reason that there is no result.
#[derive(Debug)]
pub enum Abandoned {
    /// The thread waits in a read and was abandoned, together with its state.
    Reading,
    /// The system refused another thread.
    NoThread(Error),
}

/// Work for a [`Helper`], boxed for each call.
pub type Errand<S> = Box<dyn FnOnce(&mut S) + Send>;

/// A thread with a state `S` of its own, which works on jobs of type `J`.
pub struct Helper<S, J> {
    name: &'static str,
    make: Box<dyn Fn() -> S + Send>,
    work: fn(&mut S, &mut J),
    worker: Option<HelperThread<J>>,
}

struct HelperThread<J> {
    watch: Arc<Watch>,
    slot: Arc<JobSlot<J>>,
    thread: JoinHandle<()>,
    /// The process that the thread belongs to.
    process: u32,
}

struct JobSlot<J> {
    state: Mutex<JobState<J>>,
    changed: Condvar,
}

struct JobState<J> {
    job: Option<J>,
    done: Option<J>,
    is_closed: bool,
    panic: Option<String>,
}

impl<S, J> std::fmt::Debug for Helper<S, J> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Helper").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<S: Send + 'static, J: Send + 'static> Helper<S, J> {
    /// Returns a helper whose thread starts with the first job, with the state that `make` returns.
    pub fn new(
        name: &'static str,
        make: impl Fn() -> S + Send + 'static,
        work: fn(&mut S, &mut J),
    ) -> Helper<S, J> {
        Helper { name, make: Box::new(make), work, worker: None }
    }

    /// Runs `job` on the helper's thread and waits for it, unless a read in it does not return. Allocates
    /// nothing once the thread exists. A panic of the work continues in the caller.
    ///
    /// # Errors
    /// Fails with [`Abandoned`]. The thread's state and `job` are dropped when its read returns.
    pub fn run(&mut self, hurry: Hurry, job: J) -> Result<J, Abandoned> {
        let worker = match self.worker.take() {
            Some(worker) => worker,
            None => HelperThread::start(self.name, (self.make)(), self.work).map_err(Abandoned::NoThread)?,
        };
        worker.watch.hurry(hurry);
        worker.hand_over(job);
        let done = worker.wait()?;
        self.worker = Some(worker);
        Ok(done)
    }
}

impl<S: Send + 'static> Helper<S, Errand<S>> {
    /// Returns a helper for errands.
    pub fn of_errands(name: &'static str, make: impl Fn() -> S + Send + 'static) -> Helper<S, Errand<S>> {
        let work = |state: &mut S, errand: &mut Errand<S>| {
            let done: Errand<S> = Box::new(|_| ());
            std::mem::replace(errand, done)(state);
        };
        Helper::new(name, make, work)
    }

    /// Runs one errand and returns its result.
    ///
    /// # Errors
    /// As [`Helper::run`].
    pub fn call<R: Send + 'static>(
        &mut self,
        errand: impl FnOnce(&mut S) -> R + Send + 'static,
    ) -> Result<R, Abandoned> {
        let result = Arc::new(Mutex::new(None));
        let place = Arc::clone(&result);
        let errand = move |state: &mut S| {
            let value = errand(state);
            *place.lock() = Some(value);
        };
        drop(self.run(Hurry::None, Box::new(errand))?);
        let value = result.lock().take();
        value.ok_or(Abandoned::Reading)
    }
}

/// Runs an errand with guarded reads. It runs on the calling thread if that thread can be abandoned, else on
/// a thread of its own. It is meant for rare work: a thread costs some 50 µs.
///
/// # Errors
/// Fails with [`Abandoned`].
pub fn bounded<R: Send + 'static>(
    name: &'static str,
    errand: impl FnOnce() -> R + Send + 'static,
) -> Result<R, Abandoned> {
    if is_watched() {
        return Ok(errand());
    }
    Helper::of_errands(name, || ()).call(|()| errand())
}

impl<J: Send + 'static> HelperThread<J> {
    fn start<S: Send + 'static>(
        name: &'static str,
        mut own: S,
        work: fn(&mut S, &mut J),
    ) -> Result<HelperThread<J>, Error> {
        let watch = Watch::new();
        let state = JobState { job: None, done: None, is_closed: false, panic: None };
        let slot = Arc::new(JobSlot { state: Mutex::new(state), changed: Condvar::default() });
        let (marks, jobs) = (Arc::clone(&watch), Arc::clone(&slot));
        let failed = Arc::clone(&slot);
        let body = move || {
            // An abandoned thread has nothing to report.
            let _ = marks.run(|| {
                while let Some(mut job) = jobs.next() {
                    work(&mut own, &mut job);
                    jobs.state.lock().done = Some(job);
                    jobs.changed.notify_all();
                }
            });
        };
        let on_panic = move |text| {
            failed.state.lock().panic = Some(text);
            failed.changed.notify_all();
        };
        let thread = spawn(name, body, on_panic)?;
        Ok(HelperThread { watch, slot, thread, process: std::process::id() })
    }

    fn hand_over(&self, job: J) {
        self.slot.state.lock().job = Some(job);
        self.slot.changed.notify_all();
    }

    /// Waits until the work is done, or abandons the thread.
    fn wait(&self) -> Result<J, Abandoned> {
        let mut observed = Observed::default();
        let mut state = self.slot.state.lock();
        loop {
            if let Some(job) = state.done.take() {
                return Ok(job);
            }
            if let Some(text) = state.panic.take() {
                resume_unwind(Box::new(text));
            }
            let tick = Instant::now() + TICK;
            state = self.slot.changed.wait_until(state, tick);
            if Instant::now() >= tick && observed.is_stuck(&self.watch) {
                return Err(Abandoned::Reading);
            }
        }
    }
}

impl<J> JobSlot<J> {
    /// Waits for the next job. Returns `None` if there will be none.
    fn next(&self) -> Option<J> {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.job.take() {
                return Some(job);
            }
            if state.is_closed {
                return None;
            }
            state = self.changed.wait(state);
        }
    }
}

impl<S, J> Drop for Helper<S, J> {
    fn drop(&mut self) {
        let Some(worker) = self.worker.take() else { return };
        // In a forked child, the thread does not exist, and its lock may have been held at the fork.
        if worker.process != std::process::id() {
            std::mem::forget(worker);
            return;
        }
        worker.slot.state.lock().is_closed = true;
        worker.slot.changed.notify_all();
        // The thread has no work, so it ends at once. Its panics were caught.
        let _ = worker.thread.join();
    }
}

/// The result of a watching thread's last check of another thread.
#[derive(Debug, Default)]
pub(super) struct Observed {
    step: Option<u64>,
    ticks: u32,
}

impl Observed {
    /// Checks the thread, once a tick. Returns true if it was in the same read for too long and is abandoned.
    pub(super) fn is_stuck(&mut self, watch: &Watch) -> bool {
        let now = watch.inside();
        if now.is_none() || now != self.step {
            (self.step, self.ticks) = (now, 0);
            return false;
        }
        self.ticks += 1;
        // On a busy machine, the thread may not have run yet.
        let is_stuck =
            self.ticks >= MAX_RUNNING_TICKS || self.ticks.is_multiple_of(MAX_TICKS) && !watch.is_running();
        is_stuck && now.is_some_and(|step| watch.abandon(step))
    }
}
