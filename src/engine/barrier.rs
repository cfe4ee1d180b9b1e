//! How the update learns that everything captured up to now has been counted, and how threads wake the capture.

use crate::tap::Waker;
use parking_lot::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// The capture's side of the arrangement between the threads.
#[derive(Default)]
pub struct Activity {
    waker: Mutex<Option<Waker>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The latest moment somebody asked about.
    asked: Option<Instant>,
    /// Everything captured before this moment has been counted, as far as an owner could be found.
    complete: Option<Instant>,
    ended: bool,
}

impl Activity {
    /// Notes how the capture thread is woken.
    pub fn set_waker(&self, waker: Waker) {
        *self.waker.lock() = Some(waker);
    }

    /// Wakes the capture thread from its wait for packets.
    pub fn wake(&self) {
        if let Some(waker) = &*self.waker.lock() {
            waker.wake();
        }
    }

    /// Asks for everything captured before `moment` to be counted, and waits for it, but not beyond `patience`.
    /// Returns whether it was done.
    pub fn complete_through(&self, moment: Instant, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.state.lock();
        state.asked = state.asked.max(Some(moment));
        drop(state);
        self.wake();
        let mut state = self.state.lock();
        while !state.ended && state.complete < Some(moment) {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.ended || state.complete >= Some(moment)
    }

    /// The moment that somebody waits for, if it has not been reached.
    pub fn asked(&self) -> Option<Instant> {
        let state = self.state.lock();
        state.asked.filter(|&asked| state.complete < Some(asked))
    }

    /// Everything captured before `moment` has been counted.
    pub fn completed(&self, moment: Instant) {
        let mut state = self.state.lock();
        state.complete = state.complete.max(Some(moment));
        drop(state);
        self.changed.notify_all();
    }

    /// The capture has ended: nothing more will be counted.
    pub fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_all();
    }

    /// Whether the capture has ended.
    pub fn has_ended(&self) -> bool {
        self.state.lock().ended
    }
}
