//! Takes out of the kernel the endpoints of sockets that have ended.

use super::Wants;
use super::batch::{Batch, delete};
use super::records::{Owned, Tuple};
use aya::maps::MapData;
use std::io;
use std::os::fd::AsFd;

/// How long the endpoints of a socket that has ended still lead to it for questions about packets that were captured before.
/// At 2,000 connections a second, both ends here, some 60,000 endpoints are held.
const QUESTIONS_NS: u64 = 10_000_000_000;

/// The same for packets that come late, where nobody asks.
const LATE_PACKETS_NS: u64 = 4_000_000_000;

/// Sweeps the endpoints now and then.
pub(super) struct Sweep {
    endpoints: Batch<Tuple, Owned>,
    kept_ns: u64,
    last_ns: u64,
}

impl Sweep {
    pub(super) fn new(wants: Wants) -> Sweep {
        let kept_ns = match wants {
            Wants::Owners => QUESTIONS_NS,
            Wants::Bytes => LATE_PACKETS_NS,
        };
        Sweep { endpoints: Batch::new(), kept_ns, last_ns: 0 }
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
        let (mut ended, kept_ns) = (Vec::new(), self.kept_ns);
        self.endpoints.read(tuples.fd().as_fd(), |tuple, owned| {
            if owned.ended_ns != 0 && owned.ended_ns.saturating_add(kept_ns) < now_ns {
                ended.push(*tuple);
            }
        })?;
        delete(tuples.fd().as_fd(), &ended);
        Ok(())
    }
}
