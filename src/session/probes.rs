//! The eBPF programs at sockets of a session: the purpose that they are loaded for, and the log lines if they
//! cannot be.

use super::lookup::KernelOwners;
use crate::config::{Engine, Options, Source};
use crate::kernel::{Counters, Fault, Sockets, Wants};
use crate::model::{ProbeState, ProgramSet, SampleSet};
use tracing::{info, warn};

/// The eBPF programs at sockets, if they are loaded.
pub struct Probes {
    /// The requested data that eBPF programs can read.
    what: SampleSet,
    /// The loaded eBPF programs, which are released with this value.
    sockets: Option<Sockets>,
    /// The state of the eBPF programs.
    pub state: ProbeState,
}

impl Probes {
    /// Returns a value without loaded eBPF programs.
    pub fn new(what: SampleSet) -> Probes {
        Probes { what, sockets: None, state: ProbeState::Off }
    }

    /// Loads the eBPF programs that count bytes, if the options want them. Returns `None` if packets are to
    /// be captured instead.
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
            info!(
                "engine kernel is unavailable because eBPF programs are disabled; falling back to engine pcap"
            );
            return None;
        }
        let loaded = self
            .load(Wants::Bytes, ticks_per_second)
            .and_then(|sockets| Ok((sockets.counters(options.flows)?, sockets)));
        self.keep(loaded)
            .inspect_err(|fault| warn!("engine kernel is unavailable; falling back to engine pcap: {fault}"))
            .ok()
    }

    /// Loads the eBPF programs that record owners, if the options allow it.
    pub fn for_owners(&mut self, options: &Options, ticks_per_second: u64) -> Option<KernelOwners> {
        // If loading them for counting has failed, it would fail now.
        if !options.probes || self.state != ProbeState::Off {
            return None;
        }
        let loaded = self.load(Wants::Owners, ticks_per_second).map(|sockets| (sockets.owners(), sockets));
        self.keep(loaded)
            .inspect_err(|fault| {
                info!("owners from eBPF programs are unavailable; falling back to sockets and descriptors: {fault}")
            })
            .ok()
            .and_then(KernelOwners::new)
    }

    /// Returns the active parts of the eBPF programs.
    pub fn programs(&self) -> ProgramSet {
        self.sockets.as_ref().map(Sockets::programs).unwrap_or_default()
    }

    /// Returns true if the eBPF programs are active.
    pub fn are_active(&self) -> bool {
        self.sockets.is_some()
    }

    fn load(&self, wants: Wants, ticks_per_second: u64) -> Result<Sockets, Fault> {
        Sockets::load(wants, self.what.has(SampleSet::CGROUP), ticks_per_second)
    }

    fn keep<T>(&mut self, loaded: Result<(T, Sockets), Fault>) -> Result<T, Fault> {
        let (reader, sockets) = loaded.inspect_err(|fault| self.state = fault.state)?;
        for fault in sockets.refused() {
            warn!("an eBPF program for sockets is unavailable: {fault}");
        }
        (self.sockets, self.state) = (Some(sockets), ProbeState::Active);
        Ok(reader)
    }
}
