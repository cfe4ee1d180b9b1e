//! Bytes that the socket eBPF programs have counted for each process since the last reading.

use super::drain::Drain;
use super::socket_set::SocketSet;
use super::subscriber::DrainScope;
use super::{Clocks, Credit};
use crate::sync::Mutex;
use std::collections::HashSet;
use std::io;
use std::sync::Arc;

/// Reads the counts for one session, from its opening on. Other sessions' readings do not affect them.
pub struct Counters {
    set: Arc<SocketSet>,
    subscription: u64,
    /// The network namespaces that are counted in, or `None` for all.
    namespaces: Option<HashSet<u64>>,
    ticks_per_second: u64,
    held: u64,
    has_moved: bool,
    pending: u64,
    refused: u64,
    flows_lost: u64,
}

impl Counters {
    pub(super) fn new(
        set: Arc<SocketSet>,
        flows: bool,
        ticks_per_second: u64,
        clocks: Clocks,
    ) -> io::Result<Counters> {
        let subscription = drain(&set)?.lock().subscribe(&set.maps, flows, clocks)?;
        Ok(Counters {
            set,
            subscription,
            namespaces: None,
            ticks_per_second,
            held: 0,
            has_moved: false,
            pending: 0,
            refused: 0,
            flows_lost: 0,
        })
    }

    /// Restricts reports to traffic in the network namespaces with these inodes, or lifts the restriction.
    pub fn set_namespaces(&mut self, namespaces: Option<HashSet<u64>>) {
        self.namespaces = namespaces;
    }

    /// The number of sockets with a record, as of the last reading.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Returns true if sockets changed hands before or during the last reading. Bytes that were on their way
    /// from one account to another are in the next reading.
    pub fn has_moved(&self) -> bool {
        self.has_moved
    }

    /// The bytes of connections that no process has used yet, and received bytes that no process has read, as
    /// of the last reading.
    pub fn pending(&self) -> u64 {
        self.pending
    }

    /// The number of impossible figures that were left out since the eBPF programs were loaded.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The number of ended flows that were not reported because the session read too late.
    pub fn flows_lost(&self) -> u64 {
        self.flows_lost
    }

    /// Reports the counts since the last reading, and releases the sockets that have ended.
    ///
    /// # Errors
    /// Fails with the error of bpf(2). The next reading reports the rest.
    pub fn read(&mut self, clocks: Clocks, mut take: impl FnMut(Credit<'_>)) -> io::Result<()> {
        let SocketSet { maps, cgroups, sweep, .. } = &*self.set;
        let mut drain = drain(&self.set)?.lock();
        let view = DrainScope {
            namespaces: self.namespaces.as_ref(),
            cgroups: cgroups.as_ref(),
            ticks_per_second: self.ticks_per_second,
            take: &mut take,
        };
        let result = drain.read(maps, self.subscription, clocks, view);
        (self.held, self.has_moved, self.refused) = (drain.held(), drain.has_moved(), drain.refused());
        (self.pending, self.flows_lost) = drain.waiting(self.subscription);
        drop(drain);
        result?;
        sweep.lock().run(&maps.endpoint_owners, clocks.now_ns)
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        // In a forked child, the lock may be held for ever by a thread that exists only in the parent.
        if self.set.process == std::process::id()
            && let Ok(drain) = drain(&self.set)
        {
            drain.lock().unsubscribe(self.subscription);
        }
    }
}

fn drain(set: &SocketSet) -> io::Result<&Mutex<Drain>> {
    set.drain.as_ref().ok_or_else(|| io::Error::other("the eBPF programs were not loaded for counting"))
}
