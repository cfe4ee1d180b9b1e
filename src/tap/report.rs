//! Reports of a tap: the reason why it did not start, its counters, and lines for the log.

use crate::error::Error;
use std::fmt;
use tracing::{info, warn};

/// The reason why a live capture did not start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TapError {
    /// The thread lacks CAP_NET_RAW, or a filter of system calls refuses its sockets. A session can continue
    /// without network figures.
    NotPermitted(Error),
    /// Any other reason.
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

/// Counters of a tap since its start, over all devices including those now closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TapStats {
    /// Frames handed to the handler.
    pub received: u64,
    /// Tagged frames on a device whose VLAN device was captured too. They are counted on the VLAN device.
    pub left_to_vlans: u64,
    /// Frames that passed the filter and found no room in the kernel's ring (`ps_drop` of
    /// `pcap_stats(3PCAP)`).
    pub dropped_by_kernel: u64,
    /// Frames that the devices themselves lost for lack of room: their `rx_fifo_errors` and
    /// `rx_missed_errors`, as of the last refresh.
    pub dropped_by_device: u64,
    /// Bytes that devices carried before their capture began, or until they disappeared if they were never
    /// captured. It covers devices that appeared since the start and whose packets no other device shows.
    pub bytes_before_capture: u64,
    /// Devices that are open now.
    pub devices_open: u32,
    /// Devices that other threads are opening or closing now.
    pub devices_pending: u32,
    /// Openings of devices. A device that reappears is counted again.
    pub devices_opened: u64,
    /// Closings of devices, because they disappeared, failed, or another device now shows their packets.
    pub devices_closed: u64,
    /// Network namespaces that are captured in now, besides the session's own.
    pub namespaces: u32,
    /// Namespaces that should be captured in and are not, because there are more than
    /// [`crate::namespace::Registry`] accepts.
    pub namespaces_left_out: u32,
}

/// A line for the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Note {
    /// True if something that should be captured is not.
    pub is_fault: bool,
    /// The text of the line.
    pub text: String,
}

impl Note {
    /// Writes the note to the log: at WARN if it is a fault, else at INFO.
    pub fn log(&self) {
        let text = &self.text;
        match self.is_fault {
            true => warn!("{text}"),
            false => info!("{text}"),
        }
    }
}

/// Lines for the log, until the tap's caller takes them.
#[derive(Default)]
pub(super) struct Notes(Vec<Note>);

impl Notes {
    /// The maximum number of lines kept if the caller does not take them.
    const MOST: usize = 256;

    /// Adds a fault.
    pub(super) fn warn(&mut self, text: String) {
        self.add(Note { is_fault: true, text });
    }

    /// Adds a note about a normal event.
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
