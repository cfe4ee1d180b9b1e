//! Where frames come from: live devices and savefiles, read through libpcap.
//!
//! A [`Tap`] belongs to one thread, which waits, reads, and about once a second lets the tap look for devices that
//! have come, gone or changed. No frame is handed over twice: see [`plan`] for devices, and [`Device`] for VLANs.

mod addresses;
mod device;
mod interfaces;
mod live;
mod loss;
mod options;
mod plan;
mod savefile;
mod waker;

pub use options::TapOptions;
pub use waker::Waker;

use crate::error::Result;
use crate::model::{Frame, LocalAddresses};
use live::LiveTap;
use savefile::SavefileTap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What came of a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// The limit was reached: there may be more to read at once.
    pub more: bool,
    /// A savefile has been read to its end. A live capture never ends.
    pub ended: bool,
}

/// What a tap has lost, since it was opened. Live devices are asked about once a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TapStats {
    /// Frames dropped because a capture buffer was full.
    pub dropped_by_kernel: u64,
    /// Frames dropped by devices and their drivers.
    pub dropped_by_device: u64,
    /// Devices open now.
    pub devices_open: u32,
}

/// A source of frames.
pub struct Tap {
    source: Source,
}

enum Source {
    Live(Box<LiveTap>),
    Savefile(Box<SavefileTap>),
}

impl Tap {
    /// Captures live in the network namespace of the calling thread.
    ///
    /// # Errors
    /// `InvalidArgument` for options out of bounds, `NotPermitted` without CAP_NET_RAW, `NoDevice` when a named
    /// device does not exist, `CompileFilter` and `SetFilter`, `OpenDevice` when no device could be opened.
    pub fn live(options: TapOptions) -> Result<Tap> {
        Ok(Tap { source: Source::Live(Box::new(LiveTap::open(options)?)) })
    }

    /// Replays a savefile, pcap or pcapng, as fast as it is read.
    ///
    /// # Errors
    /// `Savefile` when it cannot be opened, is no savefile, or has a link type that cannot be decoded;
    /// `CompileFilter`.
    pub fn savefile(path: &Path, filter: Option<&str>) -> Result<Tap> {
        Ok(Tap { source: Source::Savefile(Box::new(SavefileTap::open(path, filter)?)) })
    }

    /// Whether frames arrive as they are captured.
    pub fn is_live(&self) -> bool {
        matches!(self.source, Source::Live(_))
    }

    /// Waits until there is something to read, the waker was used, or `most` has passed. A savefile that has ended
    /// only waits to be woken.
    ///
    /// # Errors
    /// `SystemResource` when waiting fails.
    pub fn wait(&mut self, most: Duration) -> Result<()> {
        match &mut self.source {
            Source::Live(live) => live.wait(most),
            Source::Savefile(savefile) => savefile.wait(most),
        }
    }

    /// Hands over what can be read without waiting, at most `limit` frames of each device.
    ///
    /// # Errors
    /// `Savefile` when a savefile is damaged, after the frames before the damage. The failure of a live device
    /// closes that device only.
    pub fn read(&mut self, limit: usize, mut handler: impl FnMut(&Frame<'_>)) -> Result<Progress> {
        match &mut self.source {
            Source::Live(live) => Ok(live.read(limit, &mut handler)),
            Source::Savefile(savefile) => savefile.read(limit, &mut handler),
        }
    }

    /// Looks for devices and addresses that have come, gone or changed.
    pub fn refresh(&mut self) {
        if let Source::Live(live) = &mut self.source {
            live.refresh();
        }
    }

    /// The addresses of this machine's devices; another pointer when they have changed. None for a savefile, which
    /// may be of another machine.
    pub fn local_addresses(&self) -> &Arc<LocalAddresses> {
        match &self.source {
            Source::Live(live) => live.local_addresses(),
            Source::Savefile(savefile) => savefile.local_addresses(),
        }
    }

    /// What was lost so far.
    pub fn stats(&self) -> TapStats {
        match &self.source {
            Source::Live(live) => live.stats(),
            Source::Savefile(_) => TapStats::default(),
        }
    }

    /// Wakes whoever waits; harmless after the tap is gone.
    pub fn waker(&self) -> Waker {
        match &self.source {
            Source::Live(live) => live.waker(),
            Source::Savefile(savefile) => savefile.waker(),
        }
    }

    /// What has happened to devices since this was last called, for the log.
    pub fn take_notes(&mut self) -> Vec<String> {
        match &mut self.source {
            Source::Live(live) => live.take_notes(),
            Source::Savefile(_) => Vec::new(),
        }
    }
}
