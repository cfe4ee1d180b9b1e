//! Conversion of the kernel's units to natural ones.

use crate::process::ticks_to_ns;

/// Converts the kernel's units to natural ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Units {
    pub(super) ticks_per_second: u64,
    pub(super) boot_time_ns: u64,
    pub(super) memory_bytes: u64,
}

impl Units {
    /// Converts clock ticks to nanoseconds.
    pub fn ticks_to_ns(&self, ticks: u64) -> u64 {
        ticks_to_ns(ticks, self.ticks_per_second)
    }

    /// Returns the time of a number of clock ticks after boot, in nanoseconds since the Unix epoch.
    pub fn start_time_ns(&self, ticks: u64) -> u64 {
        self.boot_time_ns.saturating_add(self.ticks_to_ns(ticks))
    }

    /// Returns the share of the machine's memory that a number of bytes is, 0-100.
    pub fn memory_percent(&self, bytes: u64) -> f64 {
        if self.memory_bytes == 0 { 0.0 } else { bytes as f64 * 100.0 / self.memory_bytes as f64 }
    }
}
