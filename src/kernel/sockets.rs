//! The socket eBPF programs of a session. They are loaded unless another session has loaded them.

use super::cgroups::namespace;
use super::load::{check_numbers, fault};
use super::shared::{PerProcess, Shared};
use super::socket_set::SocketSet;
use super::{Clocks, Counters, Fault, Owners, Wants};
use crate::model::ProgramSet;
use crate::thread::Context;
use std::sync::Arc;

/// The descriptor table of the eBPF programs, their purpose, whether they report paths of control groups, and
/// the cgroup namespace in which these paths begin.
type ProbeKey = (u64, Wants, bool, Option<u64>);

/// The eBPF programs of all sessions.
static SETS: PerProcess<Shared<ProbeKey, SocketSet>> = PerProcess::new();

/// The active socket eBPF programs of a session. They are detached when the last session drops them.
pub struct Sockets {
    set: Arc<SocketSet>,
    ticks_per_second: u64,
}

impl Sockets {
    /// Loads and attaches the eBPF programs, unless another session of the process has done so. With
    /// `cgroups`, they also report the control groups of sockets' users.
    ///
    /// # Errors
    /// Fails with the reason why they cannot work here.
    pub fn load(wants: Wants, cgroups: bool, ticks_per_second: u64) -> Result<Sockets, Fault> {
        check_numbers()?;
        let key = (Context::table(), wants, cgroups, cgroups.then(namespace).flatten());
        let set = SETS.get().get(key, || SocketSet::load(wants, cgroups))?;
        Ok(Sockets { set, ticks_per_second })
    }

    /// The groups of eBPF programs that are active.
    pub fn programs(&self) -> ProgramSet {
        self.set.programs
    }

    /// The reasons why other eBPF programs are not active.
    pub fn refused(&self) -> &[Fault] {
        &self.set.refused
    }

    /// Returns a reader of sockets' owners.
    pub fn owners(&self) -> Owners {
        Owners::new(Arc::clone(&self.set), self.ticks_per_second)
    }

    /// Returns a reader of the bytes that are counted at sockets from now on. With `flows`, it also reports
    /// every flow and the calls of the processes.
    ///
    /// # Errors
    /// Fails if the eBPF programs were not loaded to count, or with the error of bpf(2).
    pub fn counters(&self, flows: bool) -> Result<Counters, Fault> {
        Counters::new(Arc::clone(&self.set), flows, self.ticks_per_second, Clocks::now())
            .map_err(|error| fault("reading the initial counters", &error))
    }
}
