//! The control group of a process, read from `/proc/<pid>/cgroup`.

use super::reading::{CoreFigures, ProcessDirectory};
use crate::blocking::ReadKind;
use crate::model::SampleSet;
use crate::proc::parse;
use crate::proc::{ProcRoot, mounts};

/// The suffix that the kernel appends to the path of a group that was removed while an ended process was left
/// in it.
const REMOVED: &[u8] = b" (deleted)";

/// The name of the hierarchy of version 1 in which systemd keeps its own groups.
const SYSTEMD: &[u8] = b"name=systemd";

/// Returns true if the processes of a tree are to be reported by their groups in the unified hierarchy
/// (version 2). Returns false if that hierarchy is mounted nowhere, so that it cannot have any groups, and
/// systemd has a hierarchy of version 1.
fn has_unified_groups(root: &ProcRoot) -> bool {
    let mut buffer = Vec::new();
    let has_systemds =
        root.read(c"self/cgroup", &mut buffer).is_ok_and(|text| parse::cgroup(text, SYSTEMD).is_some());
    !has_systemds
        || root
            .read(c"self/mountinfo", &mut buffer)
            .is_ok_and(|text| mounts(text).any(|mount| mount.kind == b"cgroup2"))
}

/// Removes from `what` the groups of figures that eBPF programs cannot report of a tree's processes. They
/// know only the control groups of the unified hierarchy.
pub fn told_by_kernel(what: SampleSet, root: &ProcRoot) -> SampleSet {
    if what.has(SampleSet::CGROUP) && !has_unified_groups(root) {
        return SampleSet(what.0 & !SampleSet::CGROUP.0);
    }
    what
}

/// Returns true if the kernel states the control group of the calling process in one of the hierarchies that are
/// reported, so that it states those of others, too.
pub fn has_groups(root: &ProcRoot) -> bool {
    let is_unified = has_unified_groups(root);
    let mut buffer = Vec::new();
    let own = root.read(c"self/cgroup", &mut buffer);
    own.is_ok_and(|text| {
        is_unified && parse::cgroup(text, b"").is_some() || parse::cgroup(text, SYSTEMD).is_some()
    })
}

/// The control group of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CgroupPath<'b> {
    /// The path of its group.
    pub path: &'b [u8],
    /// Set if it is a group of the unified hierarchy.
    pub is_unified: bool,
}

/// Reads the groups of processes of one tree.
#[derive(Debug, Default)]
pub struct CgroupReader {
    /// Set if the unified hierarchy is the one to report; determined on first use.
    prefers_unified: Option<bool>,
    buffer: Vec<u8>,
}

impl CgroupReader {
    /// Reads the group of the process that `core` was read from. Returns `None` if no group is stated; a
    /// hierarchy of version 1 does not state that of an ending process.
    ///
    /// # Errors
    /// Fails with the system's error number.
    pub fn read(
        &mut self,
        root: &ProcRoot,
        directory: &ProcessDirectory,
        core: &CoreFigures<'_>,
    ) -> nix::Result<Option<CgroupPath<'_>>> {
        let prefers_unified = *self.prefers_unified.get_or_insert_with(|| has_unified_groups(root));
        let text = directory.record_up_to(ReadKind::Groups, c"cgroup", &mut self.buffer, usize::MAX)?;
        let is_ending = core.stat.is_ending();
        let unified = prefers_unified.then(|| parse::cgroup(text, b"")).flatten();
        if let Some(path) = unified {
            // A live process is never in a removed group: in its path the suffix would be part of the name.
            let path = path.strip_suffix(REMOVED).filter(|_| is_ending).unwrap_or(path);
            return Ok(Some(CgroupPath { path, is_unified: true }));
        }
        let path = parse::cgroup(text, SYSTEMD).filter(|_| !is_ending);
        Ok(path.map(|path| CgroupPath { path, is_unified: false }))
    }
}
