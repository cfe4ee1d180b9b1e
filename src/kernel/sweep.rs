//! Takes out of the kernel the endpoints of sockets that have ended.

use super::Wants;
use super::batch::{Batch, delete, lookup};
use super::records::{EndpointOwner, Tuple};
use aya::maps::MapData;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// How long the endpoints of a socket that has ended still lead to it for questions about packets that were captured before.
/// At 2,000 connections a second, both ends here, some 60,000 endpoints are held.
const QUESTIONS_NS: u64 = 10_000_000_000;

/// The same for packets that come late, where nobody asks.
const LATE_PACKETS_NS: u64 = 4_000_000_000;

/// How many endpoints are deleted at a time, a moment after they have been looked at once more.
const CHUNK: usize = 64;

/// How far who asks may be behind until the endpoints are released all the same.
const LONGEST_NS: u64 = 60_000_000_000;

/// Up to when, in nanoseconds since boot, one session's questions have been asked: those that still come are about packets
/// captured later.
#[derive(Debug)]
pub(super) struct Asked(AtomicU64);

impl Asked {
    pub(super) fn until(&self, time_ns: u64) {
        self.0.store(time_ns, Ordering::Relaxed);
    }
}

/// Sweeps the endpoints now and then.
pub(super) struct Sweep {
    endpoints: Batch<Tuple, EndpointOwner>,
    kept_ns: u64,
    last_ns: u64,
    /// Those who ask: what one of them has still to ask about stays.
    askers: Vec<Weak<Asked>>,
}

impl Sweep {
    pub(super) fn new(wants: Wants) -> Sweep {
        let kept_ns = match wants {
            Wants::Owners => QUESTIONS_NS,
            Wants::Bytes => LATE_PACKETS_NS,
        };
        Sweep { endpoints: Batch::new(), kept_ns, last_ns: 0, askers: Vec::new() }
    }

    /// Has the endpoints stay until this one has asked about them, too.
    pub(super) fn await_asker(&mut self, now_ns: u64) -> Arc<Asked> {
        let asked = Arc::new(Asked(AtomicU64::new(now_ns)));
        self.askers.push(Arc::downgrade(&asked));
        asked
    }

    /// Up to when all have asked.
    fn asked_ns(&mut self, now_ns: u64) -> u64 {
        self.askers.retain(|asker| asker.strong_count() > 0);
        let asked = self.askers.iter().filter_map(Weak::upgrade).map(|asked| asked.0.load(Ordering::Relaxed));
        asked.min().unwrap_or(now_ns).clamp(now_ns.saturating_sub(LONGEST_NS), now_ns)
    }

    /// Sweeps if it is time to, `now_ns` after boot.
    ///
    /// # Errors
    /// What bpf(2) returns.
    pub(super) fn run(&mut self, tuples: &MapData, now_ns: u64) -> io::Result<()> {
        if now_ns.saturating_sub(self.last_ns) < self.kept_ns / 2 {
            return Ok(());
        }
        self.last_ns = now_ns;
        let (mut ended, kept_ns, asked_ns) = (Vec::new(), self.kept_ns, self.asked_ns(now_ns));
        let is_over =
            |owned: &EndpointOwner| owned.ended_ns != 0 && owned.ended_ns.saturating_add(kept_ns) < asked_ns;
        self.endpoints.read(tuples.fd().as_fd(), |tuple, owned| {
            if is_over(owned) {
                ended.push(*tuple);
            }
        })?;
        for few in ended.chunks(CHUNK) {
            // The endpoints may be another socket's by now.
            let still =
                few.iter().filter(|tuple| lookup(tuples.fd().as_fd(), *tuple).as_ref().is_some_and(is_over));
            delete(tuples.fd().as_fd(), &still.copied().collect::<Vec<Tuple>>());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_session_has_still_to_ask_about_stays_for_a_minute() {
        const SECOND: u64 = 1_000_000_000;
        let mut sweep = Sweep::new(Wants::Owners);
        assert_eq!(sweep.asked_ns(500 * SECOND), 500 * SECOND);
        let slow = sweep.await_asker(500 * SECOND);
        let quick = sweep.await_asker(500 * SECOND);
        quick.until(520 * SECOND);
        assert_eq!(sweep.asked_ns(520 * SECOND), 500 * SECOND);
        slow.until(515 * SECOND);
        assert_eq!(sweep.asked_ns(521 * SECOND), 515 * SECOND);
        quick.until(600 * SECOND);
        assert_eq!(sweep.asked_ns(600 * SECOND), 540 * SECOND);
        drop(slow);
        assert_eq!(sweep.asked_ns(600 * SECOND), 600 * SECOND);
    }
}
