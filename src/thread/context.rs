//! The descriptor table that a thread works in, and its connection to the host's table.

use super::catch_quietly;
use super::worker::WorkerJob;
use crate::sync::Mutex;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, sync_channel};

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

/// Runs `work` in the host's descriptor table, where one after the other is run. It is meant for functions of the
/// C library that keep descriptors in static variables, such as lookups of names, because the host calls them,
/// too. Returns the receiver of its result, which is closed without one if the session has been closed. A caller
/// that is in the host's table runs it itself.
pub fn on_host<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (result, receiver) = sync_channel(1);
    let job = move || {
        if let Ok(value) = catch_quietly(work) {
            // The caller may have stopped waiting.
            let _ = result.send(value);
        }
    };
    match Context::current() {
        None => job(),
        Some(context) => {
            // Without the thread, the receiver is closed.
            let _ = context.host.lock().as_ref().map(|host| host.send(Box::new(job)));
        }
    }
    receiver
}
