//! What a tap says of itself: why it did not start, its counters, lines for the log.

use crate::error::Error;
use std::fmt;
use tracing::{info, warn};

/// Why a live capture did not start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TapError {
    /// The thread lacks CAP_NET_RAW. A session can go on without network figures.
    NotPermitted(Error),
    /// Anything else.
    Failed(Error),
}

impl From<Error> for TapError {
    fn from(error: Error) -> TapError {
        TapError::Failed(error)
    }
}

impl From<TapError> for Error {
    fn from(error: TapError) -> Error {
        match error {
            TapError::NotPermitted(error) | TapError::Failed(error) => error,
        }
    }
}

impl fmt::Display for TapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TapError::NotPermitted(error) | TapError::Failed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for TapError {}

/// Counters of a tap since its start, over all devices, those now closed included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TapStats {
    /// Frames handed to the handler.
    pub received: u64,
    /// Tagged frames seen on a device whose VLAN device was captured too, and left to that one.
    pub left_to_vlans: u64,
    /// Frames that passed the filter and found no room in the kernel's ring (`ps_drop` of `pcap_stats(3PCAP)`).
    pub dropped_by_kernel: u64,
    /// Frames that the devices themselves lost for want of room: their `rx_fifo_errors` and `rx_missed_errors`, as
    /// of the last refresh.
    pub dropped_by_device: u64,
    /// Bytes that devices had carried before they were captured on, or by their end if they never were: of those that have
    /// come since the start, as far as others do not stand for them.
    pub bytes_before_capture: u64,
    /// Devices that are open now.
    pub devices_open: u32,
    /// Devices that are being opened or closed now, by other threads.
    pub devices_pending: u32,
    /// Openings of devices; one that came back is counted again.
    pub devices_opened: u64,
    /// Closings of devices, because they vanished, failed, or another device came to stand for them.
    pub devices_closed: u64,
    /// Network namespaces that are captured in now, besides the session's own.
    pub namespaces: u32,
    /// Namespaces that should be captured in and are not, because there are more than
    /// [`crate::namespace::Registry`] takes up.
    pub namespaces_left_out: u32,
}

/// A line for the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Note {
    /// Whether it is about something that was to be captured and is not.
    pub is_fault: bool,
    /// The line.
    pub text: String,
}

impl Note {
    /// Writes it to the log: at WARN if it is a fault, else at INFO.
    pub fn log(&self) {
        let text = &self.text;
        match self.is_fault {
            true => warn!("{text}"),
            false => info!("{text}"),
        }
    }
}

/// Lines for the log, until the owner takes them.
#[derive(Default)]
pub(super) struct Notes(Vec<Note>);

impl Notes {
    /// More than this are not kept, should the owner not take them.
    const MOST: usize = 256;

    /// Adds a fault.
    pub(super) fn warn(&mut self, text: String) {
        self.add(Note { is_fault: true, text });
    }

    /// Adds something that is as it should be.
    pub(super) fn inform(&mut self, text: String) {
        self.add(Note { is_fault: false, text });
    }

    fn add(&mut self, note: Note) {
        if self.0.len() < Self::MOST {
            self.0.push(note);
        }
    }

    pub(super) fn take(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.0)
    }
}
