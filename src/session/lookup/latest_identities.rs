//! The latest identities of processes that have executed a program or changed their name since the last
//! sample. A process that ends before the next sample has its last name and command line here.

use super::identity_cache::IdentityCache;
use crate::bounded::{BoundedMap, Eviction};
use crate::model::{Identity, ProcId, ProcessRecord, Validity};
use crate::netlink::{Happening, ProcessEvent, ProcessEvents};
use crate::sync::Mutex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tracing::warn;

/// Limit of the identities that are kept until the next update.
const LIMIT: usize = 4096;

/// Longest wait for an event, in milliseconds.
const IDLE_WAIT: u16 = 1000;

/// The identities, recorded by the thread that receives process events and used by the update.
pub struct LatestIdentities {
    known: Mutex<BoundedMap<ProcId, (Instant, Arc<Identity>)>>,
}

impl Default for LatestIdentities {
    fn default() -> LatestIdentities {
        LatestIdentities { known: Mutex::new(BoundedMap::new(LIMIT, Eviction::Newest)) }
    }
}

impl LatestIdentities {
    /// Records the current identity of a process.
    pub fn record(&self, process: ProcId, identity: Arc<Identity>) {
        self.known.lock().insert(process, (Instant::now(), identity));
    }

    /// Updates the record of an ended process with its last identity, if that was recorded at `since` or
    /// later.
    pub fn update(&self, record: &mut ProcessRecord, since: Instant) {
        let known = self.known.lock();
        let Some((_, latest)) = known.get(&record.sample.id).filter(|(at, _)| *at >= since) else { return };
        let mut identity = Identity::clone(latest);
        if identity.cgroup.is_empty() {
            identity.cgroup.clone_from(&record.identity.cgroup);
        }
        if !identity.command_line.is_empty() {
            record.valid |= Validity::COMMAND_LINE;
        }
        record.identity = Arc::new(identity);
    }

    /// Releases the identities recorded before the given time: samples have them.
    pub fn release(&self, before: Instant) {
        self.known.lock().retain(|_, (at, _)| *at >= before);
    }
}

/// Returns true if an event changes the identity of its process.
pub fn changes_identity(event: &ProcessEvent) -> bool {
    matches!(event.happening, Happening::Exec | Happening::Renamed)
}

/// Records identities until `stopping` is set and the bell is signalled. For a session without another thread
/// that receives process events.
pub fn follow_identities(
    mut events: ProcessEvents,
    mut identity_cache: IdentityCache,
    latest: &LatestIdentities,
    stopping: &AtomicBool,
    bell: BorrowedFd<'_>,
) {
    let mut changed = Vec::new();
    while !stopping.load(Ordering::Acquire) {
        let mut watched =
            [PollFd::new(bell, PollFlags::POLLIN), PollFd::new(events.as_fd(), PollFlags::POLLIN)];
        // poll fails only if it is interrupted, and the loop is right then, too.
        let _ = poll(&mut watched, PollTimeout::from(IDLE_WAIT));
        let read = events.read(|event| changed.extend(Some(event.pid).filter(|_| changes_identity(&event))));
        if let Err(errno) = read {
            warn!("process events stopped; names and command lines may be out of date: {errno}");
            return;
        }
        for pid in changed.drain(..) {
            if let Some((process, identity)) = identity_cache.prefetch(pid, Instant::now()) {
                latest.record(process, identity);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ProcessSample, Traffic};

    fn record(pid: i32) -> ProcessRecord {
        let identity = Identity { name: b"old".to_vec(), cgroup: b"/group".to_vec(), ..Identity::default() };
        ProcessRecord {
            sample: ProcessSample::unknown(ProcId { pid, start_ticks: 1 }),
            identity: Arc::new(identity),
            cpu_percent: 0.0,
            traffic: Traffic::default(),
            uncertain_bytes: 0,
            network_namespace: 0,
            connections: None,
            valid: Validity::CPU,
        }
    }

    #[test]
    fn an_ended_process_has_what_was_recorded_since() {
        let latest = LatestIdentities::default();
        let began = Instant::now();
        let new =
            Identity { name: b"new".to_vec(), command_line: b"new\0-x\0".to_vec(), ..Identity::default() };
        latest.record(record(7).sample.id, Arc::new(new));
        let mut ended = record(7);
        latest.update(&mut ended, began);
        assert_eq!((&ended.identity.name[..], &ended.identity.cgroup[..]), (&b"new"[..], &b"/group"[..]));
        assert_eq!(ended.valid, Validity::CPU | Validity::COMMAND_LINE);
        let (mut other, mut late) = (record(8), record(7));
        latest.update(&mut other, began);
        latest.update(&mut late, Instant::now());
        assert_eq!((&other.identity.name[..], &late.identity.name[..]), (&b"old"[..], &b"old"[..]));
        latest.release(Instant::now());
        latest.update(&mut late, began);
        assert_eq!(late.identity.name, b"old");
    }

    #[test]
    fn they_are_bounded() {
        let latest = LatestIdentities::default();
        (0..2 * LIMIT as i32).for_each(|pid| latest.record(record(pid).sample.id, Arc::default()));
        let known = latest.known.lock();
        assert_eq!((known.len(), known.evicted()), (LIMIT, LIMIT as u64));
    }
}
