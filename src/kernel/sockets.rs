//! The socket probes of a session: loading them, unless another session has, and what is read from them.

use super::cgroups::namespace;
use super::load::{check_numbers, fault};
use super::shared::{PerProcess, Shared};
use super::socket_set::SocketSet;
use super::{Clocks, Counters, Fault, Owners, Wants};
use crate::model::ProgramSet;
use crate::thread::Context;
use std::sync::Arc;

/// The descriptor table that the probes are in, what they are loaded for, whether they tell the paths of control groups, and
/// the cgroup namespace in which these begin then.
type ProbeKey = (u64, Wants, bool, Option<u64>);

/// The probes of all sessions.
static SETS: PerProcess<Shared<ProbeKey, SocketSet>> = PerProcess::new();

/// The socket probes at work for a session. When the last of all sessions is dropped they are detached.
pub struct Sockets {
    set: Arc<SocketSet>,
    ticks_per_second: u64,
}

impl Sockets {
    /// Loads and attaches the probes, unless another session of the process has them; with `cgroups` they tell the control
    /// groups of sockets' users as well.
    ///
    /// # Errors
    /// Why they cannot work here.
    pub fn load(wants: Wants, cgroups: bool, ticks_per_second: u64) -> Result<Sockets, Fault> {
        check_numbers()?;
        let key = (Context::table(), wants, cgroups, cgroups.then(namespace).flatten());
        let set = SETS.get().get(key, || SocketSet::load(wants, cgroups))?;
        Ok(Sockets { set, ticks_per_second })
    }

    /// The parts of what can be known that are at work.
    pub fn programs(&self) -> ProgramSet {
        self.set.programs
    }

    /// Why others are not.
    pub fn refused(&self) -> &[Fault] {
        &self.set.refused
    }

    /// What is noted of sockets' users.
    pub fn owners(&self) -> Owners {
        Owners::new(Arc::clone(&self.set), self.ticks_per_second)
    }

    /// What is counted at sockets from now on; with `flows` also every flow, and what the processes do.
    ///
    /// # Errors
    /// The probes were not loaded to count, or what bpf(2) returns.
    pub fn counters(&self, flows: bool) -> Result<Counters, Fault> {
        Counters::new(Arc::clone(&self.set), flows, self.ticks_per_second, Clocks::now())
            .map_err(|error| fault("what was counted before", &error))
    }
}
