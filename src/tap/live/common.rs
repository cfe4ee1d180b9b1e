//! State that the namespaces of a live capture share, and totals over all their devices.

use super::opener::OpenerPool;
use crate::tap::options::TapOptions;
use crate::tap::poller::Poller;
use crate::tap::report::{Notes, TapStats};

/// The state that all namespaces share.
pub(in crate::tap) struct Common<'a> {
    pub options: &'a TapOptions,
    pub poller: &'a Poller,
    pub notes: &'a mut Notes,
    pub books: &'a mut DeviceTotals,
    pub opener: &'a mut OpenerPool,
}

/// Totals over all devices.
#[derive(Default)]
pub(in crate::tap) struct DeviceTotals {
    /// The counts of closed devices, and all counts that are not kept by device.
    pub counted: TapStats,
    /// Bytes of the rings that are open or being opened.
    pub rings: u64,
    /// Openings begun so far.
    pub openings: u64,
}
