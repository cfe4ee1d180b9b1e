//! Opening and closing devices beside the reading of the others.
//!
//! Both wait for the kernel to see that nobody uses a socket's old state any more: 8 to 20 ms for the opening of a ring
//! and some 25 ms for its closing (`synchronize_net` in net/packet/af_packet.c), in which the rings of other devices
//! could overflow. Such waits are shared by those that wait at the same time, so that a few threads do more than one.

use super::device::{Device, DeviceOpening, Unopened};
use crate::error::{Code, Error};
use crate::sync::{Condvar, Mutex};
use crate::tap::options::TapOptions;
use crate::tap::poller::Waker;
use crate::thread::{catch_quietly, spawn};
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Most threads at once. Each ends when there is nothing left to do.
const THREADS: usize = 4;

/// Devices that may be waiting to be closed before no more are opened: they keep their descriptors and rings so long.
const BEHIND: usize = 64;

/// How one opening has ended.
pub(in crate::tap) struct Opened {
    pub ticket: u64,
    /// Bytes that its ring was to have.
    pub ring: u32,
    pub outcome: Result<Device, Unopened>,
}

/// What is to be done, and what was.
#[derive(Default)]
struct Work {
    openings: VecDeque<DeviceOpening>,
    closings: Vec<Device>,
    opened: Vec<Opened>,
    /// Openings and closings that a thread is at.
    under_way: usize,
    threads: usize,
}

struct OpenerQueue {
    options: TapOptions,
    /// Ends the wait of the tap when a device has been opened.
    waker: Waker,
    work: Mutex<Work>,
    /// Told whenever something is done.
    done: Condvar,
}

enum Job {
    Open(Box<DeviceOpening>),
    Close(Box<Device>),
}

/// The threads that open and close. Dropping it closes what is to be closed and joins them.
pub(in crate::tap) struct OpenerPool {
    queue: Arc<OpenerQueue>,
    threads: Vec<JoinHandle<()>>,
}

impl OpenerPool {
    /// Nothing to do yet, and no thread. Devices are opened with these options, and `waker` is rung for each.
    pub(in crate::tap) fn new(options: TapOptions, waker: Waker) -> OpenerPool {
        let queue = OpenerQueue { options, waker, work: Mutex::default(), done: Condvar::default() };
        OpenerPool { queue: Arc::new(queue), threads: Vec::new() }
    }

    /// Has a device opened, before others if that is `urgent`.
    pub(in crate::tap) fn open(&mut self, opening: DeviceOpening, urgent: bool) {
        let mut work = self.queue.work.lock();
        match urgent {
            true => work.openings.push_front(opening),
            false => work.openings.push_back(opening),
        }
        drop(work);
        self.start();
    }

    /// Has a device closed, once all that is to be opened is.
    pub(in crate::tap) fn close(&mut self, device: Device) {
        self.queue.work.lock().closings.push(device);
        self.start();
    }

    /// Whether so many devices wait to be closed that no more should be opened.
    pub(in crate::tap) fn is_behind(&self) -> bool {
        self.queue.work.lock().closings.len() >= BEHIND
    }

    /// What has been opened since this was last called, or was refused.
    pub(in crate::tap) fn take_opened(&self) -> Vec<Opened> {
        std::mem::take(&mut self.queue.work.lock().opened)
    }

    /// Devices that are being opened or closed, or wait for it.
    pub(in crate::tap) fn pending(&self) -> usize {
        self.queue.work.lock().pending()
    }

    /// Waits until something is opened, or refused, that was not yet taken, or nothing is left to be done.
    pub(in crate::tap) fn wait(&self) {
        let mut work = self.queue.work.lock();
        while work.opened.is_empty() && work.pending() > 0 {
            work = self.queue.done.wait(work);
        }
    }

    /// Has one more thread at work, if that is one too few.
    fn start(&mut self) {
        let mut work = self.queue.work.lock();
        if work.threads == THREADS {
            return;
        }
        work.threads += 1;
        drop(work);
        self.threads.retain(|thread| !thread.is_finished());
        let queue = Arc::clone(&self.queue);
        // A panic of a job is caught where it is known whose it is.
        match spawn("capture-devices", move || queue.run(), |_| ()) {
            Ok(thread) => self.threads.push(thread),
            // Where no thread can be had it is done here.
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
    /// Does what there is to do.
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

    /// The next thing to do. `None` ends the thread, which is then not counted any more.
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

    /// A device whose frames are not decoded: its opening fails with any privilege.
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
        // A thread ends with its work, and another is had when there is more.
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
