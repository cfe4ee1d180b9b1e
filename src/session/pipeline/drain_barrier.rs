//! Reports to the update the time up to which everything captured has been counted, and wakes the capture
//! thread.

use crate::sync::{Condvar, Mutex};
use crate::tap::Waker;
use std::time::{Duration, Instant};

/// The synchronization between updates and the capture thread.
#[derive(Default)]
pub struct DrainBarrier {
    waker: Mutex<Option<Waker>>,
    state: Mutex<BarrierState>,
    changed: Condvar,
}

#[derive(Default)]
struct BarrierState {
    /// The latest time that an update has requested.
    asked: Option<Instant>,
    /// Everything captured before this time has been counted, as far as an owner could be found.
    complete: Option<Instant>,
    ended: bool,
}

impl DrainBarrier {
    /// Sets the waker of the capture thread.
    pub fn set_waker(&self, waker: Waker) {
        *self.waker.lock() = Some(waker);
    }

    /// Removes the waker of the capture thread, and with it the descriptor.
    pub fn clear_waker(&self) {
        *self.waker.lock() = None;
    }

    /// Wakes the capture thread from its wait for packets.
    pub fn wake(&self) {
        if let Some(waker) = &*self.waker.lock() {
            waker.wake();
        }
    }

    /// Requests that everything captured before `moment` be counted, and does not wait for it.
    pub fn request(&self, moment: Instant) {
        let mut state = self.state.lock();
        if state.asked >= Some(moment) {
            return;
        }
        state.asked = Some(moment);
        drop(state);
        self.wake();
    }

    /// Returns the time before which everything captured has been counted; `now` if the capture has ended.
    pub fn complete(&self, now: Instant) -> Option<Instant> {
        let state = self.state.lock();
        if state.ended { Some(now) } else { state.complete }
    }

    /// Requests that everything captured before `moment` be counted, and waits for it at most `patience`.
    /// Returns true if it was done.
    pub fn complete_through(&self, moment: Instant, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        self.request(moment);
        let mut state = self.state.lock();
        while !state.ended && state.complete < Some(moment) && Instant::now() < deadline {
            state = self.changed.wait_until(state, deadline);
        }
        state.ended || state.complete >= Some(moment)
    }

    /// Returns the latest requested time, if it has not been reached.
    pub fn asked(&self) -> Option<Instant> {
        let state = self.state.lock();
        state.asked.filter(|&asked| state.complete < Some(asked))
    }

    /// Reports that everything captured before `moment` has been counted.
    pub fn completed(&self, moment: Instant) {
        let mut state = self.state.lock();
        state.complete = state.complete.max(Some(moment));
        drop(state);
        self.changed.notify_all();
    }

    /// Reports that the capture has ended: nothing more will be counted.
    pub fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_all();
    }

    /// Returns true if the capture has ended.
    pub fn has_ended(&self) -> bool {
        self.state.lock().ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    /// Never reached: the actions of the tests end the waits.
    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn whoever_waits_is_released_when_his_moment_is_reached() {
        let barrier = Arc::new(DrainBarrier::default());
        let start = Instant::now();
        let [early, late] = [1, 2].map(|seconds| start + Duration::from_secs(seconds));
        let wait = |moment| {
            let barrier = Arc::clone(&barrier);
            thread::spawn(move || barrier.complete_through(moment, LONG))
        };
        let waiting = [wait(early), wait(late)];
        while barrier.asked() != Some(late) {
            thread::yield_now();
        }
        barrier.completed(start);
        barrier.completed(early);
        assert_eq!(barrier.asked(), Some(late));
        let [first, second] = waiting;
        assert!(first.join().unwrap());
        assert!(!second.is_finished(), "a moment before his own does not release him");
        barrier.completed(late);
        assert!(second.join().unwrap());
        assert_eq!(barrier.asked(), None);
    }

    #[test]
    fn a_request_does_not_wait() {
        let barrier = DrainBarrier::default();
        let moment = Instant::now();
        let later = moment + LONG;
        assert_eq!(barrier.complete(later), None);
        barrier.request(moment);
        assert_eq!((barrier.asked(), barrier.complete(later)), (Some(moment), None));
        barrier.request(moment - Duration::from_nanos(1));
        assert_eq!(barrier.asked(), Some(moment));
        barrier.completed(moment);
        assert_eq!((barrier.asked(), barrier.complete(later)), (None, Some(moment)));
        barrier.end();
        assert_eq!(barrier.complete(later), Some(later));
    }

    #[test]
    fn patience_ends() {
        let barrier = DrainBarrier::default();
        let moment = Instant::now();
        assert!(!barrier.complete_through(moment, Duration::ZERO));
        assert_eq!(barrier.asked(), Some(moment), "it is still wanted");
        barrier.completed(moment);
        assert!(barrier.complete_through(moment, Duration::ZERO));
        let later = moment + Duration::from_nanos(1);
        assert!(!barrier.complete_through(later, Duration::ZERO));
        assert!(barrier.complete_through(moment, Duration::ZERO));
        assert_eq!(barrier.asked(), Some(later), "an earlier question does not take back a later one");
        barrier.completed(later);
        barrier.completed(moment);
        assert!(barrier.complete_through(later, Duration::ZERO), "what was reached is never taken back");
        assert_eq!(barrier.asked(), None);
    }

    #[test]
    fn the_end_releases_everybody_for_ever() {
        let barrier = Arc::new(DrainBarrier::default());
        let moment = Instant::now() + LONG;
        let waiting = {
            let barrier = Arc::clone(&barrier);
            thread::spawn(move || barrier.complete_through(moment, LONG))
        };
        while barrier.asked().is_none() {
            thread::yield_now();
        }
        assert!(!barrier.has_ended());
        barrier.end();
        assert!(waiting.join().unwrap() && barrier.has_ended());
        assert!(barrier.complete_through(moment + LONG, Duration::ZERO));
        barrier.wake();
    }
}
