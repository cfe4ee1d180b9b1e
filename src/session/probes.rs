//! The socket probes of a session: what they are loaded for, and what is said where they cannot be.

use super::lookup::KernelOwners;
use crate::config::{Engine, Options, Source};
use crate::kernel::{Counters, Fault, Sockets, Wants};
use crate::model::{ProbeState, ProgramSet, SampleSet};
use tracing::{info, warn};

/// The probes as far as they are at work.
pub struct Probes {
    /// What they can tell of what is asked for.
    what: SampleSet,
    /// Ends with this.
    sockets: Option<Sockets>,
    /// What has become of them.
    pub state: ProbeState,
}

impl Probes {
    /// None at work yet.
    pub fn new(what: SampleSet) -> Probes {
        Probes { what, sockets: None, state: ProbeState::Off }
    }

    /// Loads them to count bytes, if the options want that. `None` when packets are to be captured instead.
    pub fn for_counting(&mut self, options: &Options, ticks_per_second: u64) -> Option<Counters> {
        let wanted = match options.engine {
            Engine::Pcap => false,
            Engine::Kernel => true,
            Engine::Auto => options.needs_packets().is_none(),
        };
        if !wanted || options.source != Source::Live {
            return None;
        }
        if !options.probes {
            info!("packets are captured, since no programs may be loaded into the kernel");
            return None;
        }
        let loaded = self
            .load(Wants::Bytes, ticks_per_second)
            .and_then(|sockets| Ok((sockets.counters(options.flows)?, sockets)));
        self.keep(loaded)
            .inspect_err(|fault| {
                warn!("packets are captured, since the kernel cannot count for the session: {fault}")
            })
            .ok()
    }

    /// Loads them to tell owners, if the options allow it.
    pub fn for_owners(&mut self, options: &Options, ticks_per_second: u64) -> Option<KernelOwners> {
        // What could not be loaded to count cannot be loaded now.
        if !options.probes || self.state != ProbeState::Off {
            return None;
        }
        let loaded = self.load(Wants::Owners, ticks_per_second).map(|sockets| (sockets.owners(), sockets));
        self.keep(loaded)
            .inspect_err(|fault| {
                info!("sockets' users are searched for, since the kernel does not tell: {fault}")
            })
            .ok()
            .and_then(KernelOwners::new)
    }

    /// The parts of what the probes can tell that are at work.
    pub fn programs(&self) -> ProgramSet {
        self.sockets.as_ref().map(Sockets::programs).unwrap_or_default()
    }

    /// Whether they are at work.
    pub fn are_active(&self) -> bool {
        self.sockets.is_some()
    }

    fn load(&self, wants: Wants, ticks_per_second: u64) -> Result<Sockets, Fault> {
        Sockets::load(wants, self.what.has(SampleSet::CGROUP), ticks_per_second)
    }

    fn keep<T>(&mut self, loaded: Result<(T, Sockets), Fault>) -> Result<T, Fault> {
        let (reader, sockets) = loaded.inspect_err(|fault| self.state = fault.state)?;
        for fault in sockets.refused() {
            warn!("going on without a program of the socket probes: {fault}");
        }
        (self.sockets, self.state) = (Some(sockets), ProbeState::Active);
        Ok(reader)
    }
}
