//! What a session is opened with: every option, its default and its range.

use crate::error::{Code, Error, Result};
use crate::log::LogOptions;
use crate::model::{Address, SampleSet, Selection};
use crate::tap::TapOptions;
use std::path::PathBuf;
use std::time::Duration;

/// Where packets come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// Live capture.
    Live,
    /// A savefile, replayed as fast as it can be read.
    Savefile(PathBuf),
    /// No packets: processes are sampled, and their network figures marked unavailable.
    None,
}

/// How bytes are counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Engine {
    /// Packets are captured and each flow's owner is looked for.
    #[default]
    Pcap,
    /// The kernel counts at each socket; no packet is captured.
    Kernel,
    /// As [`Engine::Kernel`] where that is possible and nobody asked for packets, a filter, devices or a savefile, else
    /// as [`Engine::Pcap`].
    Auto,
}

/// The options of a session. `Options::default()` monitors everything on the running machine.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where packets come from.
    pub source: Source,
    /// How bytes are counted.
    pub engine: Engine,
    /// Whether programs may be loaded into the kernel: for owners, for [`Engine::Kernel`] and for samples.
    pub probes: bool,
    /// How packets are captured; of a savefile's only the filter counts.
    pub capture: TapOptions,
    /// Addresses taken as this host's, besides those of its devices; needed for savefiles of other hosts.
    pub local_addresses: Vec<Address>,
    /// Which groups of figures are read for every process.
    pub sample: SampleSet,
    /// Which processes are delivered.
    pub selection: Selection,
    /// Most flows held at once, 1 to 16,777,216; about 200 bytes each, used as flows appear, and 850 more where they are
    /// recorded and delivered. Defaults to 1,000,000, or in a control group whose memory is limited to as many as take a
    /// quarter of it.
    pub flow_limit: Option<usize>,
    /// Whether flows are recorded, to be delivered one by one and counted for each process.
    pub flows: bool,
    /// Most records of ended flows held for delivery, 1 to 16,777,216, some 250 bytes each; what comes on top takes the
    /// place of the oldest. Defaults to 65,536, or in a control group whose memory is limited to as many as take a
    /// sixteenth of it.
    pub ended_flow_limit: Option<usize>,
    /// Most bytes of packets held for delivery between two updates; 0 keeps none.
    pub packet_bytes: usize,
    /// An update in which processes have ended waits until their last packets have been counted, no longer than the
    /// capture's read timeout and 100 ms; else they are removed by a later one.
    pub wait_for_ended: bool,
    /// The session's descriptor becomes readable when this much time has passed since the last update.
    pub interval: Option<Duration>,
    /// Where the log goes.
    pub log: LogOptions,
    /// The `/proc` tree that processes and sockets are read from.
    pub proc_root: PathBuf,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            source: Source::Live,
            engine: Engine::default(),
            probes: true,
            capture: TapOptions::default(),
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
    /// `InvalidArgument`, naming the option, its value and its range.
    pub fn check(&self) -> Result<()> {
        if self.engine == Engine::Kernel
            && let Some(option) = self.needs_packets()
        {
            let text = format!("the kernel's engine captures no packets, which {option} is for");
            return Err(Error::new(Code::InvalidArgument, text));
        }
        self.capture.check()?;
        for (name, limit) in [("flow_limit", self.flow_limit), ("ended_flow_limit", self.ended_flow_limit)] {
            limit.map_or(Ok(()), |limit| in_range(name, limit as u128, 1, 1 << 24))?;
        }
        in_range("packet_bytes", self.packet_bytes as u128, 0, 1 << 30)?;
        if let Some(interval) = self.interval {
            in_range("interval in milliseconds", interval.as_millis(), 1, 86_400_000)?;
        }
        Ok(())
    }
}

impl Options {
    /// The option that was set and means nothing without captured packets.
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
