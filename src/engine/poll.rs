//! The descriptor that a host puts into its own event loop: readable when an update has something to deliver.

use crate::error::{Code, Error, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// An epoll instance, which is itself pollable, over a timer and an event.
pub struct Poll {
    epoll: Epoll,
    event: EventFd,
    timer: TimerFd,
    interval: Option<Duration>,
}

impl Poll {
    /// A descriptor that becomes readable on [`Poll::notify`] and `interval` after each [`Poll::restart`].
    ///
    /// # Errors
    /// `SystemResource` when the system refuses a descriptor.
    pub fn new(interval: Option<Duration>) -> Result<Poll> {
        let made = || -> nix::Result<Poll> {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
            let timer =
                TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
            epoll.add(&event, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
            epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
            Ok(Poll { epoll, event, timer, interval })
        };
        let poll = made()
            .map_err(|errno| Error::system(Code::SystemResource, "making the session's descriptor", errno))?;
        poll.restart();
        Ok(poll)
    }

    /// Makes the descriptor readable.
    pub fn notify(&self) {
        // The only failure is a counter that is full, and then it is readable already.
        let _ = self.event.write(1);
    }

    /// Makes the descriptor unreadable and starts the interval anew.
    pub fn restart(&self) {
        // Nothing to read is what is wanted.
        let _ = self.event.read();
        if let Some(interval) = self.interval {
            let expiration = Expiration::OneShot(TimeSpec::from_duration(interval));
            // Setting the time anew also takes back an expiry that was not read.
            let set: std::result::Result<(), Errno> = self.timer.set(expiration, TimerSetTimeFlags::empty());
            debug_assert_eq!(set, Ok(()));
        }
    }

    /// The descriptor.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn is_readable(polled: &Poll, within: u16) -> bool {
        let mut fds = [PollFd::new(polled.descriptor(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(within)).unwrap() == 1
    }

    #[test]
    fn readable_from_a_notice_to_the_next_restart() {
        let polled = Poll::new(None).unwrap();
        assert!(!is_readable(&polled, 0));
        polled.notify();
        polled.notify();
        assert!(is_readable(&polled, 0) && is_readable(&polled, 0));
        polled.restart();
        assert!(!is_readable(&polled, 0));
    }

    #[test]
    fn readable_when_the_interval_is_over() {
        let polled = Poll::new(Some(Duration::from_millis(20))).unwrap();
        assert!(is_readable(&polled, 10_000));
        polled.restart();
        assert!(is_readable(&polled, 10_000));
        let far = Poll::new(Some(Duration::from_secs(3600))).unwrap();
        assert!(!is_readable(&far, 0));
    }
}
