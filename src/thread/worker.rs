//! A thread that runs errands for other threads, one after the other.

use super::{catch_quietly, spawn};
use crate::error::Error;
use std::panic::resume_unwind;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::thread::JoinHandle;

/// Work for a [`Worker`].
pub type WorkerJob = Box<dyn FnOnce() + Send>;

/// A thread that waits for errands. Dropping it waits until the thread has ended. In a forked child, where
/// the thread does not exist, dropping it does nothing.
#[derive(Debug)]
pub struct Worker {
    errands: Option<Sender<WorkerJob>>,
    thread: Option<JoinHandle<()>>,
    process: u32,
}

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// Fails with `Thread` if the system refuses another thread.
    pub fn start(name: &str) -> Result<Worker, Error> {
        let (errands, queue) = channel::<WorkerJob>();
        let work = move || queue.into_iter().for_each(|errand| errand());
        let thread = spawn(name, work, |_| ())?;
        Ok(Worker { errands: Some(errands), thread: Some(thread), process: std::process::id() })
    }

    /// Runs an errand on the thread and waits for it. A panic of the errand continues in the caller.
    ///
    /// Returns `None` in a forked child.
    pub fn run<T: Send + 'static>(&self, errand: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let errands = self.errands.as_ref().filter(|_| self.process == std::process::id())?;
        let (report, reported) = sync_channel(1);
        let errand = move || {
            // This cannot fail, because the caller waits for it.
            let _ = report.send(catch_quietly(errand));
        };
        errands.send(Box::new(errand)).ok()?;
        match reported.recv().ok()? {
            Ok(value) => Some(value),
            Err(text) => resume_unwind(Box::new(text)),
        }
    }

    /// Returns another sender of errands. The thread ends once all senders are dropped.
    pub(super) fn sender(&self) -> Option<Sender<WorkerJob>> {
        self.errands.clone()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let (errands, thread) = (self.errands.take(), self.thread.take());
        if self.process == std::process::id() {
            drop(errands);
            // Its panics have been caught.
            let _ = thread.map(JoinHandle::join);
        } else {
            // The queue may have been in use at the fork.
            std::mem::forget((errands, thread));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errands_run_on_one_thread_in_order() {
        let worker = Worker::start("capture-test").unwrap();
        let id = || std::thread::current().id();
        let ids = [worker.run(id), worker.run(id)];
        assert!(ids[0].is_some() && ids[0] == ids[1] && ids[0] != Some(id()));
    }

    #[test]
    fn a_panic_of_an_errand_is_the_callers_and_the_thread_goes_on() {
        let worker = Worker::start("capture-test").unwrap();
        let panics = || worker.run(|| std::panic::panic_any("spilt".to_owned()));
        assert_eq!(catch_quietly(panics), Err("spilt".to_owned()));
        assert_eq!(worker.run(|| 7), Some(7));
    }
}
