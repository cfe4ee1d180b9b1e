//! Stubs of the eBPF interface, for a library that was built without eBPF.

use super::{Clocks, Credit, Fault, Found, Wants};
use crate::model::{FlowKey, ProbeState, ProgramSet};
use std::collections::HashSet;
use std::convert::Infallible;
use std::io;

/// Has no values in this build.
#[derive(Debug)]
pub struct Sockets(Infallible);

/// Has no values in this build.
#[derive(Debug, Clone)]
pub struct Owners(Infallible);

/// Has no values in this build.
#[derive(Debug)]
pub struct Counters(Infallible);

impl Sockets {
    /// Reports that the library was built without eBPF.
    ///
    /// # Errors
    /// Always fails.
    pub fn load(_wants: Wants, _cgroups: bool, _ticks_per_second: u64) -> Result<Sockets, Fault> {
        let text = "the library was built without eBPF programs";
        Err(Fault { state: ProbeState::NotBuilt, text: text.into() })
    }

    /// The groups of eBPF programs that are active.
    pub fn programs(&self) -> ProgramSet {
        match self.0 {}
    }

    /// The reasons why other eBPF programs are not active.
    pub fn refused(&self) -> &[Fault] {
        match self.0 {}
    }

    /// Returns a reader of sockets' owners.
    pub fn owners(&self) -> Owners {
        match self.0 {}
    }

    /// Returns a reader of the bytes that are counted at sockets.
    ///
    /// # Errors
    /// Never fails.
    pub fn counters(&self, _flows: bool) -> Result<Counters, Fault> {
        match self.0 {}
    }
}

impl Counters {
    /// Restricts reports to traffic in some network namespaces.
    pub fn set_namespaces(&mut self, _namespaces: Option<HashSet<u64>>) {
        match self.0 {}
    }

    /// The number of sockets with a record.
    pub fn held(&self) -> u64 {
        match self.0 {}
    }

    /// Returns true if sockets changed hands before the last reading.
    pub fn has_moved(&self) -> bool {
        match self.0 {}
    }

    /// The bytes of connections that no process has used yet.
    pub fn pending(&self) -> u64 {
        match self.0 {}
    }

    /// The number of impossible figures.
    pub fn refused(&self) -> u64 {
        match self.0 {}
    }

    /// The number of ended flows that were not reported.
    pub fn flows_lost(&self) -> u64 {
        match self.0 {}
    }

    /// Reports the counted bytes.
    ///
    /// # Errors
    /// Never fails.
    pub fn read(&mut self, _clocks: Clocks, _take: impl FnMut(Credit<'_>)) -> io::Result<()> {
        match self.0 {}
    }
}

impl Owners {
    /// Releases the endpoints of sockets that have ended.
    ///
    /// # Errors
    /// Never fails.
    pub fn sweep(&self, _now_ns: u64, _looked_up_ns: u64) -> io::Result<()> {
        match self.0 {}
    }

    /// Returns the owner of a socket.
    pub fn find(&self, _key: &FlowKey, _wire: &FlowKey, _netns: u32, _first_ns: u64) -> Option<Found> {
        match self.0 {}
    }
}
