//! The descriptor table that a thread works in, and its connection to the host's table.

use super::worker::{WorkerJob, run_on};
use crate::sync::Mutex;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::mpsc::Sender;

/// The state of a thread with a private descriptor table. [`super::spawn`] and [`super::both`] pass it on.
#[derive(Debug)]
pub struct Context {
    table: u64,
    /// Reaches a thread that works in the host's table, as long as that thread exists.
    host: Mutex<Option<Sender<WorkerJob>>>,
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Context>>> = const { RefCell::new(None) };
}

impl Context {
    pub(super) fn new(table: u64, host: Sender<WorkerJob>) -> Context {
        Context { table, host: Mutex::new(Some(host)) }
    }

    /// Returns the calling thread's context. `None` in the host's table.
    pub fn current() -> Option<Arc<Context>> {
        CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
    }

    /// Makes this the context of the calling thread.
    pub(super) fn enter(context: Option<Arc<Context>>) {
        // This fails only while the thread ends.
        let _ = CURRENT.try_with(|current| *current.borrow_mut() = context);
    }

    /// Returns the number of the calling thread's descriptor table; 0 is the host's. A descriptor is valid in
    /// one table only.
    pub fn table() -> u64 {
        Context::current().map_or(0, |context| context.table)
    }

    /// Closes the connection to the host's table.
    pub(super) fn end_host(&self) {
        *self.host.lock() = None;
    }
}

/// Runs `work` in the host's descriptor table, and waits for it. It is meant for functions of the C library
/// that keep descriptors in static variables, such as lookups of names, because the host calls them, too.
/// Returns `None` if the session has been closed.
pub fn on_host<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    match Context::current() {
        None => Some(work()),
        Some(context) => {
            let host = context.host.lock().clone();
            run_on(&host?, work)
        }
    }
}
