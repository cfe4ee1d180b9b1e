//! The files to be read of a process besides its core, the results, and the part of them that its entry
//! keeps.

use super::cgroup::CgroupPath;
use super::reading::CoreFigures;
use super::table::{CommandLine, Tracked};
use crate::model::{Identity, Validity};
use std::sync::Arc;

/// The files to be read of a process besides its core.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReadPlan {
    /// All figures.
    pub figures: bool,
    /// Only the number of its descriptors.
    pub descriptors: bool,
    /// Only its proportional share of memory.
    pub proportional: bool,
    /// Its command line.
    pub command_line: bool,
    /// Its control group.
    pub cgroup: bool,
    /// Its network namespace.
    pub network: bool,
    /// The file name of its program.
    pub program: bool,
    /// Set if its program is another one than that of the known command line.
    pub is_new_image: bool,
    /// The number of its control group, if a walk has reported it.
    pub group_number: u64,
}

impl ReadPlan {
    /// Returns true if there is a file to be read.
    pub fn reads_files(&self) -> bool {
        self.figures
            || self.descriptors
            || self.proportional
            || self.command_line
            || self.cgroup
            || self.network
            || self.program
    }
}

/// The results of the reads.
#[derive(Clone, Copy, Default)]
pub struct Files<'r> {
    /// The command line, if it was to be read; the inner value is `None` if it could not be.
    pub command_line: Option<Option<&'r [u8]>>,
    /// The control group, likewise.
    pub cgroup: Option<Option<CgroupPath<'r>>>,
    /// The network namespace, if it was to be read and could be.
    pub network: Option<u64>,
    /// The file name of the program, likewise.
    pub program: Option<&'r [u8]>,
}

/// Records the parts of the identity that seldom change, as they were read.
pub fn take_identity(core: &CoreFigures<'_>, files: &Files<'_>, plan: ReadPlan, tracked: &mut Tracked) {
    if let Some(read) = files.command_line {
        take_command_line(read, plan.is_new_image, tracked);
    }
    match files.cgroup {
        None => {}
        Some(Some(CgroupPath { path, is_unified: true })) => {
            tracked.set_cgroup(Some(path), plan.group_number)
        }
        Some(Some(CgroupPath { path, is_unified: false })) => tracked.set_cgroup(Some(path), 0),
        // An ending process keeps the group that it had.
        Some(None) if core.stat.is_ending() => {}
        Some(None) => tracked.set_cgroup(None, 0),
    }
    if let Some(inode) = files.network {
        set_network(tracked, inode);
    }
    if plan.program {
        let program = files.program.unwrap_or_default().to_vec();
        tracked.record.identity = Arc::new(Identity { program, ..Identity::clone(&tracked.record.identity) });
    }
}

/// Records the command line; `None` means that it could not be read.
pub fn take_command_line(read: Option<&[u8]>, is_new_image: bool, tracked: &mut Tracked) {
    let known = &tracked.record.identity.command_line;
    let text = match read {
        // The same image without arguments has just lost its memory, because it is about to end.
        Some(b"") if !is_new_image => Some(known.as_slice()),
        other => other,
    };
    tracked.command_line = match text {
        None => CommandLine::Unknown,
        Some(b"") => CommandLine::Empty,
        Some(_) => CommandLine::Known,
    };
    let text = text.unwrap_or_default();
    if text != known {
        let identity = Identity { command_line: text.to_vec(), ..Identity::clone(&tracked.record.identity) };
        tracked.record.identity = Arc::new(identity);
    }
}

/// Records the network namespace, if it is known.
pub fn set_network(tracked: &mut Tracked, inode: u64) {
    if inode != 0 {
        tracked.record.network_namespace = inode;
    }
}

/// Returns the validity bits of the parts of the identity that are not always read.
pub fn identity_validity(tracked: &Tracked) -> Validity {
    let mut valid = Validity::default();
    if tracked.command_line != CommandLine::Unknown {
        valid |= Validity::COMMAND_LINE;
    }
    if tracked.has_cgroup {
        valid |= Validity::CGROUP;
    }
    valid
}
