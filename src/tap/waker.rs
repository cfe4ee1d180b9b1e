//! Ending a tap's wait from another thread.

use crate::error::{Code, Error, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

/// The number that the waker's event has in the waiting set; devices have numbers of interfaces.
const WAKER: u64 = u64::MAX;

/// Wakes a tap from its wait. Clones wake the same tap.
#[derive(Clone)]
pub struct Waker {
    event: Arc<EventFd>,
}

impl Waker {
    /// Ends the wait that is going on, or the next one.
    pub fn wake(&self) {
        // The only failure is a counter that is full, and then the wait ends anyhow.
        let _ = self.event.write(1);
    }
}

/// The set of descriptors that a tap waits for, its waker among them.
pub(super) struct WaitSet {
    epoll: Epoll,
    waker: Waker,
}

impl WaitSet {
    pub(super) fn new() -> Result<WaitSet> {
        let made = || -> nix::Result<WaitSet> {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
            epoll.add(&event, EpollEvent::new(EpollFlags::EPOLLIN, WAKER))?;
            Ok(WaitSet { epoll, waker: Waker { event: Arc::new(event) } })
        };
        made().map_err(|errno| {
            Error::system(Code::SystemResource, "making the set of devices to wait for", errno)
        })
    }

    /// Adds a device's descriptor. Closing the descriptor takes it out.
    pub(super) fn add(&self, descriptor: impl AsFd) -> nix::Result<()> {
        self.epoll.add(descriptor, EpollEvent::new(EpollFlags::EPOLLIN, 0))
    }

    /// Waits for any of them, for the waker, or for `most`.
    pub(super) fn wait(&self, most: Duration) -> Result<()> {
        let milliseconds = u16::try_from(most.as_millis()).unwrap_or(u16::MAX);
        let mut events = [EpollEvent::empty(); 8];
        match self.epoll.wait(&mut events, EpollTimeout::from(milliseconds)) {
            Ok(count) => {
                if events.iter().take(count).any(|event| event.data() == WAKER) {
                    // Resets the event; if somebody else has, nothing is to be done.
                    let _ = self.waker.event.read();
                }
                Ok(())
            }
            Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(Error::system(Code::SystemResource, "waiting for frames", errno)),
        }
    }

    pub(super) fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_wake_before_the_wait_ends_it_and_is_used_up() {
        let set = WaitSet::new().unwrap();
        let waker = set.waker();
        waker.wake();
        waker.clone().wake();
        let start = Instant::now();
        set.wait(Duration::from_secs(60)).unwrap();
        assert!(start.elapsed() < Duration::from_secs(30));
        set.wait(Duration::from_millis(20)).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(20));
        drop(set);
        waker.wake();
    }
}
