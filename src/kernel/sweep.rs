//! Deletes the endpoints of ended sockets from the kernel.

use super::Wants;
use super::batch::{Batch, delete, lookup};
use super::records::{EndpointOwner, Tuple};
use aya::maps::MapData;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// The time for which the endpoints of an ended socket are kept for lookups of packets that were captured
/// before. At 2,000 connections a second with both ends on this machine, some 60,000 endpoints are held.
const LOOKUP_RETENTION_NS: u64 = 10_000_000_000;

/// The same time for late packets, if there are no lookups.
const LATE_PACKET_RETENTION_NS: u64 = 4_000_000_000;

/// The number of endpoints that are deleted at a time, a moment after they have been rechecked.
const CHUNK: usize = 64;

/// The maximum delay of a session's lookups for which endpoints are kept.
const MAX_LOOKUP_DELAY_NS: u64 = 60_000_000_000;

/// The capture time, in nanoseconds since boot, up to which one session has finished its lookups. Its later
/// lookups are of packets captured later.
#[derive(Debug)]
pub(super) struct LookupProgress(AtomicU64);

impl LookupProgress {
    pub(super) fn until(&self, time_ns: u64) {
        self.0.store(time_ns, Ordering::Relaxed);
    }
}

/// Deletes the endpoints at intervals.
pub(super) struct Sweep {
    endpoints: Batch<Tuple, EndpointOwner>,
    kept_ns: u64,
    last_ns: u64,
    /// The sessions that look up owners. The endpoints that one of them may still look up are kept.
    lookups: Vec<Weak<LookupProgress>>,
}

impl Sweep {
    pub(super) fn new(wants: Wants) -> Sweep {
        let kept_ns = match wants {
            Wants::Owners => LOOKUP_RETENTION_NS,
            Wants::Bytes => LATE_PACKET_RETENTION_NS,
        };
        Sweep { endpoints: Batch::new(), kept_ns, last_ns: 0, lookups: Vec::new() }
    }

    /// Registers a session, and keeps the endpoints until it has looked them up, too.
    pub(super) fn register(&mut self, now_ns: u64) -> Arc<LookupProgress> {
        let progress = Arc::new(LookupProgress(AtomicU64::new(now_ns)));
        self.lookups.push(Arc::downgrade(&progress));
        progress
    }

    /// Returns the capture time up to which all sessions have finished their lookups.
    fn looked_up_ns(&mut self, now_ns: u64) -> u64 {
        self.lookups.retain(|progress| progress.strong_count() > 0);
        let progress =
            self.lookups.iter().filter_map(Weak::upgrade).map(|progress| progress.0.load(Ordering::Relaxed));
        progress.min().unwrap_or(now_ns).clamp(now_ns.saturating_sub(MAX_LOOKUP_DELAY_NS), now_ns)
    }

    /// Deletes endpoints if it is time. `now_ns` is in nanoseconds since boot.
    ///
    /// # Errors
    /// Fails with the error of bpf(2).
    pub(super) fn run(&mut self, endpoint_owners: &MapData, now_ns: u64) -> io::Result<()> {
        if now_ns.saturating_sub(self.last_ns) < self.kept_ns / 2 {
            return Ok(());
        }
        self.last_ns = now_ns;
        let (mut ended, kept_ns, looked_up_ns) = (Vec::new(), self.kept_ns, self.looked_up_ns(now_ns));
        let is_over = |entry: &EndpointOwner| {
            entry.ended_ns != 0 && entry.ended_ns.saturating_add(kept_ns) < looked_up_ns
        };
        self.endpoints.read(endpoint_owners.fd().as_fd(), |tuple, entry| {
            if is_over(entry) {
                ended.push(*tuple);
            }
        })?;
        for few in ended.chunks(CHUNK) {
            // The endpoints may belong to another socket by now.
            let still = few
                .iter()
                .filter(|tuple| lookup(endpoint_owners.fd().as_fd(), *tuple).as_ref().is_some_and(is_over));
            delete(endpoint_owners.fd().as_fd(), &still.copied().collect::<Vec<Tuple>>());
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
        assert_eq!(sweep.looked_up_ns(500 * SECOND), 500 * SECOND);
        let slow = sweep.register(500 * SECOND);
        let quick = sweep.register(500 * SECOND);
        quick.until(520 * SECOND);
        assert_eq!(sweep.looked_up_ns(520 * SECOND), 500 * SECOND);
        slow.until(515 * SECOND);
        assert_eq!(sweep.looked_up_ns(521 * SECOND), 515 * SECOND);
        quick.until(600 * SECOND);
        assert_eq!(sweep.looked_up_ns(600 * SECOND), 540 * SECOND);
        drop(slow);
        assert_eq!(sweep.looked_up_ns(600 * SECOND), 600 * SECOND);
    }
}
