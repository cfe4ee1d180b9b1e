//! The descriptor that a host puts into its own event loop: readable when an update has something to deliver.
//!
//! It is in the host's descriptor table, and the session's threads are not. So a thread in that table makes it readable, which
//! exists once the descriptor has been asked for.

use crate::error::{Code, Error, Result};
use crate::sync::{Condvar, Mutex};
use crate::thread::spawn;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Whether there is something to deliver, shared by all threads of a session.
#[derive(Debug)]
pub struct Readiness {
    state: Mutex<FdState>,
    changed: Condvar,
    interval: Option<Duration>,
}

#[derive(Debug)]
struct FdState {
    is_due: bool,
    /// When the interval is over.
    due: Option<Instant>,
    /// The descriptor is readable.
    is_shown: bool,
    is_closed: bool,
}

impl Readiness {
    /// Due on [`Readiness::notify`], and `interval` after each [`SessionFd::restart`].
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

    /// Shows on `event` when something is due, until closed.
    fn show(&self, event: &EventFd) {
        let mut state = self.state.lock();
        while !state.is_closed {
            let is_over = state.due.is_some_and(|due| Instant::now() >= due);
            if (state.is_due || is_over) && !state.is_shown {
                // The only failure is a counter that is full, and then it is readable already.
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

/// A session's descriptor. It belongs to the descriptor table of the thread that first asks for it.
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
    /// None yet.
    pub fn new(poll: Arc<Readiness>) -> SessionFd {
        let process = std::process::id();
        SessionFd { poll, shown: OnceLock::new(), making: Mutex::new(()), process }
    }

    /// The descriptor, made when it is first asked for.
    ///
    /// # Errors
    /// `SystemResource` when the system refuses a descriptor, `Thread` when it refuses a thread.
    pub fn get(&self) -> Result<BorrowedFd<'_>> {
        let _making = self.making.lock();
        if let Some(shown) = self.shown.get() {
            return Ok(shown.event.as_fd());
        }
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Error::system(Code::SystemResource, "making the session's descriptor", errno))?;
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
            // As in `show`.
            let _ = shown.event.write(1);
            state.is_shown = true;
        }
    }

    /// Makes the descriptor unreadable and starts the interval anew.
    pub fn restart(&self) {
        let Readiness { state, changed, interval } = &*self.poll;
        let mut state = state.lock();
        if let Some(shown) = self.shown.get() {
            // Nothing to read is what is wanted.
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
            // It does not panic.
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
