//! Threads that open and close devices while the capture thread reads the others.
//!
//! Both operations wait until the kernel knows that a socket's old state is no longer in use: 8 to 20 ms for
//! the opening of a ring and some 25 ms for its closing (`synchronize_net` in net/packet/af_packet.c). In
//! that time the rings of other devices could overflow. Threads that wait at the same time share such a wait,
//! so that a few threads achieve more than one.

use super::device::{Device, DeviceOpening, Unopened};
use crate::error::{Code, Error};
use crate::sync::{Condvar, Mutex};
use crate::tap::options::TapOptions;
use crate::tap::poller::Waker;
use crate::thread::{catch_quietly, spawn};
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

/// The maximum number of threads. Each ends if there is nothing left to do.
const THREADS: usize = 4;

/// The number of devices waiting to be closed from which on no more are opened: these devices keep their
/// descriptors and rings until then.
const BEHIND: usize = 64;

/// The result of one opening.
pub(in crate::tap) struct Opened {
    pub ticket: u64,
    /// The size in bytes of the ring that was requested.
    pub ring: u32,
    pub outcome: Result<Device, Unopened>,
}

/// The pending work, and the results.
#[derive(Default)]
struct Work {
    openings: VecDeque<DeviceOpening>,
    closings: Vec<Device>,
    opened: Vec<Opened>,
    /// Openings and closings that a thread is working on.
    under_way: usize,
    threads: usize,
}

struct OpenerQueue {
    options: TapOptions,
    /// Ends the wait of the tap when a device has been opened.
    waker: Waker,
    work: Mutex<Work>,
    /// Notified whenever an opening or closing has finished.
    done: Condvar,
}

enum Job {
    Open(Box<DeviceOpening>),
    Close(Box<Device>),
}

/// The threads that open and close devices. Dropping the pool discards the pending openings, closes the
/// pending devices and joins the threads.
pub(in crate::tap) struct OpenerPool {
    queue: Arc<OpenerQueue>,
    threads: Vec<JoinHandle<()>>,
}

impl OpenerPool {
    /// Creates a pool without work or threads. It opens devices with these options, and triggers `waker` for
    /// each.
    pub(in crate::tap) fn new(options: TapOptions, waker: Waker) -> OpenerPool {
        let queue = OpenerQueue { options, waker, work: Mutex::default(), done: Condvar::default() };
        OpenerPool { queue: Arc::new(queue), threads: Vec::new() }
    }

    /// Queues a device to be opened, before others if `urgent`.
    pub(in crate::tap) fn open(&mut self, opening: DeviceOpening, urgent: bool) {
        let mut work = self.queue.work.lock();
        match urgent {
            true => work.openings.push_front(opening),
            false => work.openings.push_back(opening),
        }
        drop(work);
        self.start();
    }

    /// Queues a device to be closed, after all pending openings.
    pub(in crate::tap) fn close(&mut self, device: Device) {
        self.queue.work.lock().closings.push(device);
        self.start();
    }

    /// Returns true if so many devices wait to be closed that no more should be opened.
    pub(in crate::tap) fn is_behind(&self) -> bool {
        self.queue.work.lock().closings.len() >= BEHIND
    }

    /// Takes the results of the openings that finished or failed since the last call.
    pub(in crate::tap) fn take_opened(&self) -> Vec<Opened> {
        std::mem::take(&mut self.queue.work.lock().opened)
    }

    /// Returns the number of devices that are being opened or closed, or wait for it, and of results not yet
    /// taken.
    pub(in crate::tap) fn pending(&self) -> usize {
        self.queue.work.lock().pending()
    }

    /// Waits until there is a result of an opening that was not yet taken, or no work is left.
    pub(in crate::tap) fn wait(&self) {
        let mut work = self.queue.work.lock();
        while work.opened.is_empty() && work.pending() > 0 {
            work = self.queue.done.wait(work);
        }
    }

    /// Starts another thread unless the maximum is reached.
    fn start(&mut self) {
        let mut work = self.queue.work.lock();
        if work.threads == THREADS {
            return;
        }
        work.threads += 1;
        drop(work);
        self.threads.retain(|thread| !thread.is_finished());
        let queue = Arc::clone(&self.queue);
        // A panic of a job is caught where its device is known.
        match spawn("capture-devices", move || queue.run(), |_| ()) {
            Ok(thread) => self.threads.push(thread),
            // If no thread can be started, the caller's thread does the work.
            Err(_) => self.queue.run(),
        }
    }
}

impl Drop for OpenerPool {
    fn drop(&mut self) {
        self.queue.work.lock().openings.clear();
        for thread in self.threads.drain(..) {
            // Its panics have been caught.
            let _ = thread.join();
        }
    }
}

impl Work {
    fn pending(&self) -> usize {
        self.openings.len() + self.closings.len() + self.under_way + self.opened.len()
    }
}

impl OpenerQueue {
    /// Processes jobs until none is left.
    fn run(&self) {
        while let Some(job) = self.next() {
            let opened = match job {
                Job::Open(opening) => Some(self.open(&opening)),
                Job::Close(device) => {
                    let _ = catch_quietly(|| drop(device));
                    None
                }
            };
            let is_opened = opened.is_some();
            let mut work = self.work.lock();
            work.opened.extend(opened);
            work.under_way -= 1;
            drop(work);
            self.done.notify_all();
            if is_opened {
                self.waker.wake();
            }
        }
    }

    /// Returns the next job. `None` ends the thread, which is then no longer counted.
    fn next(&self) -> Option<Job> {
        let mut work = self.work.lock();
        let opening = work.openings.pop_front().map(|opening| Job::Open(Box::new(opening)));
        let job = opening.or_else(|| work.closings.pop().map(|device| Job::Close(Box::new(device))));
        match job {
            Some(_) => work.under_way += 1,
            None => work.threads -= 1,
        }
        job
    }

    fn open(&self, opening: &DeviceOpening) -> Opened {
        let outcome = catch_quietly(|| Device::open(opening, &self.options));
        let outcome =
            outcome.unwrap_or_else(|text| Err(Unopened::Failed(Error::new(Code::OpenDevice, text))));
        Opened { ticket: opening.ticket, ring: opening.ring, outcome }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{FrameKind, Interface, InterfaceKind};
    use crate::tap::poller::Poller;
    use std::collections::BTreeSet;
    use std::time::Duration;

    /// Returns the opening of a device whose frames are not decoded. It fails with any privilege.
    fn nowhere(ticket: u64) -> DeviceOpening {
        let interface = Interface {
            index: u32::MAX,
            name: "wpan0".into(),
            up: true,
            loopback: false,
            frames: FrameKind::Others(804),
            address: None,
            tells_passage: true,
            master: None,
            lower: None,
            kind: InterfaceKind::Plain,
            mtu: None,
            lost_by_device: 0,
            carried: 0,
        };
        DeviceOpening { ticket, entry: None, interface, ring: TapOptions::MIN_BUFFER }
    }

    #[test]
    fn every_opening_is_answered_and_rings_the_tap() {
        let mut poller = Poller::new().unwrap();
        let mut opener = OpenerPool::new(TapOptions::default(), poller.waker());
        opener.wait();
        for ticket in 0..50 {
            opener.open(nowhere(ticket), ticket % 2 == 0);
            assert!(opener.queue.work.lock().threads <= THREADS);
        }
        let mut tickets = BTreeSet::new();
        while opener.pending() > 0 {
            poller.wait(Duration::from_secs(600), |_| panic!("no device is open")).unwrap();
            opener.wait();
            for opened in opener.take_opened() {
                let Err(Unopened::Failed(error)) = opened.outcome else { panic!("opened") };
                assert!(error.text.contains("wpan0"), "{error}");
                assert_eq!(opened.ring, TapOptions::MIN_BUFFER);
                assert!(tickets.insert(opened.ticket), "once");
            }
        }
        assert_eq!(tickets, (0..50).collect());
        opener.wait();
        // A thread ends with its work, and another is started for new work.
        opener.open(nowhere(50), false);
        opener.wait();
        assert_eq!(opener.take_opened().len(), 1);
    }

    #[test]
    fn dropping_it_waits_for_nothing_that_has_not_begun() {
        let poller = Poller::new().unwrap();
        let mut opener = OpenerPool::new(TapOptions::default(), poller.waker());
        (0..1000).for_each(|ticket| opener.open(nowhere(ticket), false));
        let queue = Arc::clone(&opener.queue);
        drop(opener);
        let work = queue.work.lock();
        assert_eq!((work.openings.len(), work.under_way, work.threads), (0, 0, 0));
        drop(work);
        assert_eq!(Arc::strong_count(&queue), 1, "no thread is left");
    }
}
