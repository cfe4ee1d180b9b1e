//! Programs in the kernel (BPF): who uses which socket, what goes through it, and samples of all processes at once.
//!
//! Everything here is optional. Each object is loaded by itself; where one cannot be, [`Fault`] says why, and the
//! session goes on with what it can read otherwise. Programs, maps and links live exactly as long as the
//! descriptors that hold them: nothing is pinned, so that the end of the process, however it comes, ends them too.

#[cfg(feature = "ebpf")]
mod load;
#[cfg(feature = "ebpf")]
mod permission;
#[cfg(feature = "ebpf")]
mod records;
#[cfg(feature = "ebpf")]
mod sockets;

#[cfg(feature = "ebpf")]
pub use sockets::Sockets;

use crate::model::ProbeState;
use std::fmt;

/// Why probes are not at work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// In a word.
    pub state: ProbeState,
    /// In full, for the log.
    pub text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Fault {}
