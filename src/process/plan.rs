//! What is to be read of a process besides its core, what was, and what of that its entry keeps.

use super::cgroup::CgroupPath;
use super::reading::CoreFigures;
use super::table::{CommandLine, Tracked};
use crate::model::{Identity, Validity};
use std::sync::Arc;

/// What is to be read of a process besides its core.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReadPlan {
    /// All figures.
    pub figures: bool,
    /// The number of its descriptors alone.
    pub descriptors: bool,
    /// Its proportional share of memory alone.
    pub proportional: bool,
    /// Its command line.
    pub command_line: bool,
    /// Its control group.
    pub cgroup: bool,
    /// Its network namespace.
    pub network: bool,
    /// The name of its program's file.
    pub program: bool,
    /// Whether it runs another program than the one that the command line is known of.
    pub is_new_image: bool,
    /// The number of its control group, where a walk has told it.
    pub group_number: u64,
}

impl ReadPlan {
    /// Whether there is anything to be read.
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

/// What was read of it.
#[derive(Clone, Copy, Default)]
pub struct Files<'r> {
    /// The command line, if it was to be read; then `None` if it could not be.
    pub command_line: Option<Option<&'r [u8]>>,
    /// The control group, likewise.
    pub cgroup: Option<Option<CgroupPath<'r>>>,
    /// The network namespace, if it was to be and could be read.
    pub network: Option<u64>,
    /// The name of the program's file, likewise.
    pub program: Option<&'r [u8]>,
}

/// Takes in what was read of what seldom changes.
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
        // It keeps the one that it had.
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

/// Takes in the command line; `None` when it could not be read.
pub fn take_command_line(read: Option<&[u8]>, is_new_image: bool, tracked: &mut Tracked) {
    let known = &tracked.record.identity.command_line;
    let text = match read {
        // The same image without arguments has just lost its memory, for it is about to end.
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

/// Takes in the network namespace, if it is known.
pub fn set_network(tracked: &mut Tracked, inode: u64) {
    if inode != 0 {
        tracked.record.network_namespace = inode;
    }
}

/// The bits of what the identity has beside what is always read.
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
