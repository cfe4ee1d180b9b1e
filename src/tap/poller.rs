//! Waits for several descriptors at once, which another thread can end.

use crate::error::{Code, Error, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

/// A handle that ends a wait of its tap from any thread. It does nothing once that tap has been dropped.
#[derive(Clone, Debug)]
pub struct Waker(Arc<EventFd>);

impl Waker {
    /// Ends the current wait, or else the next one.
    pub fn wake(&self) {
        // It fails only with EAGAIN, if 2^64 - 2 wakes are unread: then the wait ends anyway.
        let _ = self.0.write(1);
    }
}

/// The token of the waker. The tokens of devices are smaller.
const WAKER: u64 = u64::MAX;

/// The number of events taken from the kernel at once. Further ready descriptors are reported by the next
/// wait.
const EVENTS: usize = 64;

/// The set of descriptors to wait for.
pub(super) struct Poller {
    epoll: Epoll,
    rung: Arc<EventFd>,
    events: [EpollEvent; EVENTS],
}

impl Poller {
    /// Creates a set that contains only its waker.
    ///
    /// # Errors
    /// Fails with `SystemResource` if the process or the system has no descriptor left.
    pub(super) fn new() -> Result<Poller> {
        let refused = |errno| Error::system(Code::SystemResource, "creating an epoll set", errno);
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(refused)?;
        let rung = Arc::new(EventFd::from_flags(flags).map_err(refused)?);
        epoll.add(&*rung, EpollEvent::new(EpollFlags::EPOLLIN, WAKER)).map_err(refused)?;
        Ok(Poller { epoll, rung, events: [EpollEvent::empty(); EVENTS] })
    }

    pub(super) fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.rung))
    }

    /// Adds `descriptor` to the set, under the number `token`.
    pub(super) fn add(&self, descriptor: BorrowedFd<'_>, token: u64) -> nix::Result<()> {
        self.epoll.add(descriptor, EpollEvent::new(EpollFlags::EPOLLIN, token))
    }

    /// Removes a descriptor; the caller must do so before closing it. Closing alone would not end the waiting
    /// if the host has forked and the child holds the socket open (epoll(7), questions and answers, 6).
    pub(super) fn remove(&self, descriptor: BorrowedFd<'_>) {
        // It fails only if the descriptor was never added, and then there is nothing to undo.
        let _ = self.epoll.delete(descriptor);
    }

    /// Waits until a descriptor is ready, the waker was triggered or `max` has passed, and gives `ready` the
    /// token of each ready descriptor. A signal ends the wait early.
    ///
    /// # Errors
    /// Fails with `SystemResource` if the system refuses to wait.
    pub(super) fn wait(&mut self, max: Duration, mut ready: impl FnMut(u64)) -> Result<()> {
        // Rounded up, so that a wait of less than a millisecond does not become a busy loop.
        let milliseconds = i32::try_from(max.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
        let timeout = EpollTimeout::try_from(milliseconds).unwrap_or(EpollTimeout::MAX);
        let count = match self.epoll.wait(&mut self.events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(Error::system(Code::SystemResource, "waiting for frames", errno)),
        };
        for event in self.events.iter().take(count) {
            match event.data() {
                WAKER => {
                    // The read resets the wakes. A wake of another thread in between is harmless.
                    let _ = self.rung.read();
                }
                token => ready(token),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn a_wake_before_or_during_the_wait_ends_it_once() {
        let mut poller = Poller::new().unwrap();
        let waker = poller.waker();
        waker.wake();
        waker.wake();
        poller.wait(LONG, |_| panic!("no device is ready")).unwrap();
        let other = std::thread::spawn(move || waker.wake());
        poller.wait(LONG, |_| panic!("no device is ready")).unwrap();
        other.join().unwrap();
        let mut events = 0;
        poller.wait(Duration::ZERO, |_| events += 1).unwrap();
        assert_eq!(events, 0);
        assert_eq!(poller.rung.read(), Err(Errno::EAGAIN), "the wait has taken the wakes back");
    }

    #[test]
    fn a_waker_outlives_its_bell() {
        let waker = Poller::new().unwrap().waker();
        waker.clone().wake();
        waker.wake();
    }

    #[test]
    fn ready_descriptors_are_named_until_removed() {
        let mut poller = Poller::new().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        poller.add(reader.as_fd(), 7).unwrap();
        std::io::Write::write_all(&mut &writer, b"x").unwrap();
        let mut seen = Vec::new();
        poller.wait(LONG, |token| seen.push(token)).unwrap();
        poller.wait(LONG, |token| seen.push(token)).unwrap();
        assert_eq!(seen, [7, 7]);
        poller.remove(reader.as_fd());
        poller.wait(Duration::ZERO, |token| seen.push(token)).unwrap();
        assert_eq!(seen, [7, 7]);
    }
}
