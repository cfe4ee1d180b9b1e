//! The descriptor that a host puts into its own event loop: it is readable if an update has something to
//! deliver.
//!
//! The descriptor is in the host's descriptor table, which the session's threads do not use. So a thread in
//! that table makes it readable; this thread exists once the descriptor has been requested.

use crate::error::{Code, Error, Result};
use crate::sync::{Condvar, Mutex};
use crate::thread::spawn;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The readiness of a session to deliver something, shared by all its threads.
#[derive(Debug)]
pub struct Readiness {
    state: Mutex<FdState>,
    changed: Condvar,
    interval: Option<Duration>,
}

#[derive(Debug)]
struct FdState {
    is_due: bool,
    /// Time at which the interval is over.
    due: Option<Instant>,
    /// Set if the descriptor is readable.
    is_shown: bool,
    is_closed: bool,
}

impl Readiness {
    /// Returns a readiness that becomes due on [`Readiness::notify`], and `interval` after each
    /// [`SessionFd::restart`].
    pub fn new(interval: Option<Duration>) -> Readiness {
        let due = interval.and_then(|interval| Instant::now().checked_add(interval));
        let state = FdState { is_due: false, due, is_shown: false, is_closed: false };
        Readiness { state: Mutex::new(state), changed: Condvar::default(), interval }
    }

    /// Makes the descriptor readable.
    pub fn notify(&self) {
        self.state.lock().is_due = true;
        self.changed.notify_all();
    }

    /// Signals `event` whenever something is due, until closed.
    fn show(&self, event: &EventFd) {
        let mut state = self.state.lock();
        while !state.is_closed {
            let is_over = state.due.is_some_and(|due| Instant::now() >= due);
            if (state.is_due || is_over) && !state.is_shown {
                // The only failure is a full counter, and then the descriptor is readable already.
                let _ = event.write(1);
                state.is_shown = true;
            }
            state = match state.due.filter(|_| !state.is_shown) {
                Some(due) => self.changed.wait_until(state, due),
                None => self.changed.wait(state),
            };
        }
    }
}

/// A session's descriptor. It belongs to the descriptor table of the thread that first requests it.
#[derive(Debug)]
pub struct SessionFd {
    poll: Arc<Readiness>,
    shown: OnceLock<EventThread>,
    making: Mutex<()>,
    process: u32,
}

/// The descriptor, and the thread that makes it readable.
#[derive(Debug)]
struct EventThread {
    event: Arc<EventFd>,
    thread: JoinHandle<()>,
}

impl SessionFd {
    /// Returns a handle whose descriptor does not exist yet.
    pub fn new(poll: Arc<Readiness>) -> SessionFd {
        let process = std::process::id();
        SessionFd { poll, shown: OnceLock::new(), making: Mutex::new(()), process }
    }

    /// Returns the descriptor; the first call creates it.
    ///
    /// # Errors
    /// Fails with `SystemResource` if the system refuses a descriptor, with `Thread` if it refuses a thread.
    pub fn get(&self) -> Result<BorrowedFd<'_>> {
        let _making = self.making.lock();
        if let Some(shown) = self.shown.get() {
            return Ok(shown.event.as_fd());
        }
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(|errno| {
            Error::system(Code::SystemResource, "creating the session's descriptor", errno)
        })?;
        let event = Arc::new(event);
        let (poll, shown) = (Arc::clone(&self.poll), Arc::clone(&event));
        let thread = spawn("capture-poll", move || poll.show(&shown), |_| ())?;
        Ok(self.shown.get_or_init(|| EventThread { event, thread }).event.as_fd())
    }

    /// Makes the descriptor readable before this returns. For threads in the host's descriptor table.
    pub fn notify(&self) {
        let mut state = self.poll.state.lock();
        state.is_due = true;
        if let Some(shown) = self.shown.get().filter(|_| !state.is_shown) {
            // The same failure as in `show`.
            let _ = shown.event.write(1);
            state.is_shown = true;
        }
    }

    /// Makes the descriptor unreadable and restarts the interval.
    pub fn restart(&self) {
        let Readiness { state, changed, interval } = &*self.poll;
        let mut state = state.lock();
        if let Some(shown) = self.shown.get() {
            // It fails if there is nothing to read, which is the wanted state.
            let _ = shown.event.read();
        }
        (state.is_due, state.is_shown) = (false, false);
        state.due = interval.and_then(|interval| Instant::now().checked_add(interval));
        drop(state);
        changed.notify_all();
    }
}

impl Drop for SessionFd {
    fn drop(&mut self) {
        let Some(EventThread { event, thread }) = self.shown.take() else { return };
        if self.process == std::process::id() {
            self.poll.state.lock().is_closed = true;
            self.poll.changed.notify_all();
            // The thread does not panic.
            let _ = thread.join();
        } else {
            // The thread exists in the parent only, but the child has a copy of the descriptor.
            drop(event);
            std::mem::forget(thread);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn is_readable(descriptor: &SessionFd, within: u16) -> bool {
        let mut fds = [PollFd::new(descriptor.get().unwrap(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(within)).unwrap() == 1
    }

    #[test]
    fn readable_from_a_notice_to_the_next_restart() {
        let shared = Arc::new(Readiness::new(None));
        let descriptor = SessionFd::new(Arc::clone(&shared));
        assert!(!is_readable(&descriptor, 0));
        shared.notify();
        shared.notify();
        assert!(is_readable(&descriptor, 10_000) && is_readable(&descriptor, 0));
        descriptor.restart();
        assert!(!is_readable(&descriptor, 0));
        shared.notify();
        assert!(is_readable(&descriptor, 10_000));
    }

    #[test]
    fn a_notice_before_the_descriptor_is_asked_for_is_kept() {
        let shared = Arc::new(Readiness::new(None));
        shared.notify();
        assert!(is_readable(&SessionFd::new(shared), 10_000));
    }

    #[test]
    fn readable_when_the_interval_is_over() {
        let interval = |duration| SessionFd::new(Arc::new(Readiness::new(Some(duration))));
        let descriptor = interval(Duration::from_millis(20));
        assert!(is_readable(&descriptor, 10_000));
        descriptor.restart();
        assert!(is_readable(&descriptor, 10_000));
        assert!(!is_readable(&interval(Duration::from_secs(3600)), 0));
    }
}
