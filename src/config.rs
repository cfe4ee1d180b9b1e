//! The options of a session, with their defaults and ranges.

use crate::error::{Code, Error, Result};
use crate::log::LogOptions;
use crate::model::{Address, SampleSet, Selection};
use crate::tap::TapOptions;
use std::path::PathBuf;
use std::time::Duration;

/// The source of packets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// Live capture.
    Live,
    /// A savefile, replayed as fast as it can be read.
    Savefile(PathBuf),
    /// No packets. Processes are sampled, and their network figures are marked unavailable.
    None,
}

/// The engine that counts bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Engine {
    /// Packets are captured, and the owner of each flow is looked up.
    #[default]
    Pcap,
    /// The kernel counts at each socket, and no packet is captured.
    Kernel,
    /// As [`Engine::Kernel`] if that is possible and no packets, filter, devices or savefile were requested,
    /// else as [`Engine::Pcap`].
    Auto,
}

/// The options of a session. `Options::default()` monitors everything on the running machine.
#[derive(Clone, Debug)]
pub struct Options {
    /// The source of packets.
    pub source: Source,
    /// The engine that counts bytes.
    pub engine: Engine,
    /// True if eBPF programs may be loaded: for owners, for [`Engine::Kernel`] and for samples.
    pub probes: bool,
    /// The options of packet capture. For a savefile, only the filter applies.
    pub capture: TapOptions,
    /// True if owners are looked up for the flows of a savefile, among the processes and sockets that exist now.
    /// Otherwise its bytes have no owner ([`crate::model::Unowned::NoSocket`]): the ports of its flows may be
    /// used by other processes by now.
    pub replay_owners: bool,
    /// Additional addresses that count as this host's, besides those of its devices. Savefiles of other hosts
    /// need them.
    pub local_addresses: Vec<Address>,
    /// The groups of figures that are read for every process.
    pub sample: SampleSet,
    /// The processes that are delivered.
    pub selection: Selection,
    /// The limit of flows held at once, 1 to 16,777,216. A flow takes about 200 bytes, which are used as
    /// flows appear, and 850 more if flows are recorded and delivered. Defaults to 1,000,000 or, in a control
    /// group with a memory limit, to as many as take a quarter of it.
    pub flow_limit: Option<usize>,
    /// True if flows are recorded, delivered one by one and counted for each process.
    pub flows: bool,
    /// The limit of ended flow records held for delivery, 1 to 16,777,216, of some 250 bytes each. Beyond it,
    /// a new record replaces the oldest. Defaults to 65,536 or, in a control group with a memory limit, to as
    /// many as take a sixteenth of it.
    pub ended_flow_limit: Option<usize>,
    /// The limit of packet bytes held for delivery between two updates. If it is 0, no packets are held.
    pub packet_bytes: usize,
    /// True if an update in which processes have ended waits until their last packets have been counted, for
    /// at most the capture's read timeout plus 100 ms. If their packets have not been counted by then, or if
    /// this is false, a later update removes them.
    pub wait_for_ended: bool,
    /// The time since the last update after which the session's descriptor becomes readable.
    pub interval: Option<Duration>,
    /// The options of the log.
    pub log: LogOptions,
    /// The `/proc` tree from which processes and sockets are read.
    pub proc_root: PathBuf,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            source: Source::Live,
            engine: Engine::default(),
            probes: true,
            capture: TapOptions::default(),
            replay_owners: false,
            local_addresses: Vec::new(),
            sample: SampleSet::USUAL,
            selection: Selection::default(),
            flow_limit: None,
            flows: false,
            ended_flow_limit: None,
            packet_bytes: 0,
            wait_for_ended: false,
            interval: None,
            log: LogOptions::default(),
            proc_root: PathBuf::from("/proc"),
        }
    }
}

impl Options {
    /// Checks every range.
    ///
    /// # Errors
    /// Fails with `InvalidArgument` if an option is out of its range or needs packets that the engine does
    /// not capture. The text names the option; for a range, it also gives the value and the range.
    pub fn check(&self) -> Result<()> {
        if self.engine == Engine::Kernel
            && let Some(option) = self.needs_packets()
        {
            let text = format!(
                "engine kernel captures no packets, which {option} requires; set engine to pcap or auto"
            );
            return Err(Error::new(Code::InvalidArgument, text));
        }
        self.capture.check()?;
        for (name, limit) in [("flow_limit", self.flow_limit), ("ended_flow_limit", self.ended_flow_limit)] {
            limit.map_or(Ok(()), |limit| in_range(name, limit as u128, 1, 1 << 24))?;
        }
        in_range("packet_bytes", self.packet_bytes as u128, 0, 1 << 30)?;
        if let Some(interval) = self.interval {
            in_range("interval_ms", interval.as_millis(), 1, 86_400_000)?;
        }
        Ok(())
    }
}

impl Options {
    /// Returns the option that was set and has no meaning without captured packets, if there is one.
    pub fn needs_packets(&self) -> Option<&'static str> {
        match self {
            Options { source: Source::Savefile(_), .. } => Some("savefile"),
            Options { packet_bytes: 1.., .. } => Some("packet_bytes"),
            Options { capture, .. } if capture.filter.is_some() => Some("filter"),
            Options { capture, .. } if !capture.devices.is_empty() => Some("devices"),
            _ => None,
        }
    }
}

fn in_range(name: &str, value: u128, least: u128, most: u128) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::new(Code::InvalidArgument, format!("{name} is {value}; it must be {least} to {most}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_in_range() {
        Options::default().check().unwrap();
    }

    #[test]
    fn each_range_is_checked_and_named() {
        let no_snaplen = TapOptions { snaplen: 0, ..TapOptions::default() };
        let bad = [
            ("snaplen", Options { capture: no_snaplen, ..Options::default() }),
            ("flow_limit", Options { flow_limit: Some(0), ..Options::default() }),
            ("ended_flow_limit", Options { ended_flow_limit: Some(0), ..Options::default() }),
            ("packet_bytes", Options { packet_bytes: (1 << 30) + 1, ..Options::default() }),
            ("interval", Options { interval: Some(Duration::ZERO), ..Options::default() }),
        ];
        for (name, options) in bad {
            let error = options.check().unwrap_err();
            assert_eq!(error.code, Code::InvalidArgument);
            assert!(error.text.starts_with(name), "{error}");
        }
    }
}
