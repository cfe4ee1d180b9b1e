//! Programs in the kernel (BPF): who uses which socket, what goes through it, and samples of all processes at once.
//!
//! Everything here is optional. Each object is loaded by itself; where one cannot be, [`Fault`] says why, and the
//! session goes on with what it can read otherwise. Programs, maps and links live exactly as long as the
//! descriptors that hold them: nothing is pinned, so that the end of the process, however it comes, ends them too.

#[cfg(feature = "ebpf")]
mod load;
#[cfg(feature = "ebpf")]
mod records;
#[cfg(feature = "ebpf")]
mod sockets;
mod task;
#[cfg(feature = "ebpf")]
mod tasks;

#[cfg(feature = "ebpf")]
pub use sockets::Sockets;
#[cfg(feature = "ebpf")]
use tasks::Tasks;

pub use task::{Figures, RawProcess, Task, TaskSource, UNCOUNTED};

use crate::model::{ProbeState, SampleSet};
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

/// Who tells the figures of all processes at once, of the groups in `what`: the program in the kernel, if it can be
/// loaded.
///
/// # Errors
/// Why it cannot.
pub fn load_tasks(what: SampleSet) -> Result<Box<dyn TaskSource>, Fault> {
    #[cfg(feature = "ebpf")]
    return Ok(Box::new(Tasks::load(what)?));
    #[cfg(not(feature = "ebpf"))]
    {
        let text = format!("the library was built without the programs that would tell {what:?}");
        Err(Fault { state: ProbeState::NotBuilt, text })
    }
}
