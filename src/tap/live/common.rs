//! What the namespaces of a live capture share, and what is counted of all their devices together.

use super::opener::OpenerPool;
use crate::tap::options::TapOptions;
use crate::tap::poller::Poller;
use crate::tap::report::{Notes, TapStats};

/// What all namespaces share.
pub(in crate::tap) struct Common<'a> {
    pub options: &'a TapOptions,
    pub poller: &'a Poller,
    pub notes: &'a mut Notes,
    pub books: &'a mut DeviceTotals,
    pub opener: &'a mut OpenerPool,
}

/// What is kept of all devices together.
#[derive(Default)]
pub(in crate::tap) struct DeviceTotals {
    /// What was counted on devices that are closed, and all that is not counted by device.
    pub counted: TapStats,
    /// Bytes of the rings that are open, and of those that are being opened.
    pub rings: u64,
    /// Openings begun so far.
    pub openings: u64,
}
