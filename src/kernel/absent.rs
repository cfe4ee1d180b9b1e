//! In place of the probes where the library is built without them.

use super::{Fault, Found};
use crate::model::{FlowKey, ProbeState};
use std::convert::Infallible;

/// Never there.
#[derive(Debug)]
pub struct Sockets(Infallible);

/// Never there.
#[derive(Debug)]
pub struct Owners(Infallible);

impl Sockets {
    /// Says that the library was built without probes.
    ///
    /// # Errors
    /// Always.
    pub fn load(_ticks_per_second: u64) -> Result<Sockets, Fault> {
        let text = "the library was built without the programs that the kernel would run";
        Err(Fault { state: ProbeState::NotBuilt, text: text.into() })
    }

    /// What is noted of sockets' users.
    ///
    /// # Errors
    /// None.
    pub fn owners(&mut self) -> Result<Owners, Fault> {
        match self.0 {}
    }
}

impl Owners {
    /// The user of a socket.
    pub fn find(&self, _key: &FlowKey, _netns: u32, _first_ns: u64) -> Option<Found> {
        match self.0 {}
    }
}
