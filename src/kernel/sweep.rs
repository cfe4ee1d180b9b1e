//! Takes out of the kernel the endpoints of sockets that have ended.

use super::batch::{Batch, delete};
use super::records::{Owned, Tuple};
use aya::maps::MapData;
use std::io;
use std::os::fd::AsFd;

/// How long the endpoints of a socket that has ended still lead to it: for packets that come late, and for questions about
/// packets that were captured before.
const KEPT_NS: u64 = 10_000_000_000;

/// Time between two sweeps. At 2,000 connections a second some 60,000 endpoints are held.
const INTERVAL_NS: u64 = 5_000_000_000;

/// Sweeps the endpoints now and then.
pub(super) struct Sweep {
    endpoints: Batch<Tuple, Owned>,
    last_ns: u64,
}

impl Sweep {
    pub(super) fn new() -> Sweep {
        Sweep { endpoints: Batch::new(), last_ns: 0 }
    }

    /// Sweeps if it is time to, `now_ns` after boot.
    ///
    /// # Errors
    /// What bpf(2) returns.
    pub(super) fn run(&mut self, tuples: &MapData, now_ns: u64) -> io::Result<()> {
        if now_ns.saturating_sub(self.last_ns) < INTERVAL_NS {
            return Ok(());
        }
        self.last_ns = now_ns;
        let mut ended = Vec::new();
        self.endpoints.read(tuples.fd().as_fd(), |tuple, owned| {
            if owned.ended_ns != 0 && owned.ended_ns.saturating_add(KEPT_NS) < now_ns {
                ended.push(*tuple);
            }
        })?;
        delete(tuples.fd().as_fd(), &ended);
        Ok(())
    }
}
