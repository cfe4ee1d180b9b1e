//! In place of the probes where the library is built without them.

use super::{Clocks, Credit, Fault, Found, Wants};
use crate::model::{FlowKey, ProbeState, ProgramSet};
use std::collections::HashSet;
use std::convert::Infallible;
use std::io;

/// Never there.
#[derive(Debug)]
pub struct Sockets(Infallible);

/// Never there.
#[derive(Debug, Clone)]
pub struct Owners(Infallible);

/// Never there.
#[derive(Debug)]
pub struct Counters(Infallible);

impl Sockets {
    /// Says that the library was built without probes.
    ///
    /// # Errors
    /// Always.
    pub fn load(_wants: Wants, _cgroups: bool, _ticks_per_second: u64) -> Result<Sockets, Fault> {
        let text = "the library was built without the programs that the kernel would run";
        Err(Fault { state: ProbeState::NotBuilt, text: text.into() })
    }

    /// The parts that are at work.
    pub fn programs(&self) -> ProgramSet {
        match self.0 {}
    }

    /// Why others are not.
    pub fn refused(&self) -> &[Fault] {
        match self.0 {}
    }

    /// What is noted of sockets' users.
    pub fn owners(&self) -> Owners {
        match self.0 {}
    }

    /// What is counted at sockets.
    ///
    /// # Errors
    /// None.
    pub fn counters(&self, _flows: bool) -> Result<Counters, Fault> {
        match self.0 {}
    }
}

impl Counters {
    /// Hands out only what passes in some namespaces.
    pub fn set_namespaces(&mut self, _namespaces: Option<HashSet<u64>>) {
        match self.0 {}
    }

    /// Sockets with a record.
    pub fn held(&self) -> u64 {
        match self.0 {}
    }

    /// Whether sockets changed hands before the last reading.
    pub fn has_moved(&self) -> bool {
        match self.0 {}
    }

    /// Bytes of connections that no process has used yet.
    pub fn pending(&self) -> u64 {
        match self.0 {}
    }

    /// Figures that cannot be.
    pub fn refused(&self) -> u64 {
        match self.0 {}
    }

    /// Ended flows that were not handed out.
    pub fn flows_lost(&self) -> u64 {
        match self.0 {}
    }

    /// Hands out what has been counted.
    ///
    /// # Errors
    /// None.
    pub fn read(&mut self, _clocks: Clocks, _take: impl FnMut(Credit<'_>)) -> io::Result<()> {
        match self.0 {}
    }
}

impl Owners {
    /// Releases what is noted of sockets that have ended.
    ///
    /// # Errors
    /// None.
    pub fn sweep(&self, _now_ns: u64, _asked_ns: u64) -> io::Result<()> {
        match self.0 {}
    }

    /// The user of a socket.
    pub fn find(&self, _key: &FlowKey, _netns: u32, _first_ns: u64) -> Option<Found> {
        match self.0 {}
    }
}
