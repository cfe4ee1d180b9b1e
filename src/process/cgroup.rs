//! The control group of a process, read from `/proc/<pid>/cgroup`.

use super::parse;
use super::reading::{CoreFigures, ProcessDirectory};
use crate::blocking::ReadKind;
use crate::model::SampleSet;
use crate::proc::ProcRoot;

/// What the kernel writes behind the path of a group that was removed while a process that had ended was left in it.
const REMOVED: &[u8] = b" (deleted)";

/// The name of the hierarchy of version 1 that systemd keeps its own groups in.
const SYSTEMD: &[u8] = b"name=systemd";

/// Whether processes of a tree are told by their groups in the unified hierarchy (version 2). They are not where that is
/// mounted nowhere, so that nobody can have made groups in it, and systemd has a hierarchy of version 1.
fn has_unified_groups(root: &ProcRoot) -> bool {
    let mut buffer = Vec::new();
    let has_systemds =
        root.read(c"self/cgroup", &mut buffer).is_ok_and(|text| parse::cgroup(text, SYSTEMD).is_some());
    !has_systemds
        || root.read(c"self/mountinfo", &mut buffer).is_ok_and(|text| {
            const TYPE: &[u8] = b" - cgroup2 ";
            text.windows(TYPE.len()).any(|part| part == TYPE)
        })
}

/// What of this programs in the kernel can tell of a tree's processes. Of control groups they know the unified ones.
pub fn told_by_kernel(what: SampleSet, root: &ProcRoot) -> SampleSet {
    if what.has(SampleSet::CGROUP) && !has_unified_groups(root) {
        return SampleSet(what.0 & !SampleSet::CGROUP.0);
    }
    what
}

/// Where a process is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CgroupPath<'b> {
    /// The path of its group.
    pub path: &'b [u8],
    /// Whether that is a group of the unified hierarchy.
    pub is_unified: bool,
}

/// Reads the groups of processes of one tree.
#[derive(Debug, Default)]
pub struct CgroupReader {
    /// Whether the unified hierarchy is the one to tell; found out when it is needed.
    prefers_unified: Option<bool>,
    buffer: Vec<u8>,
}

impl CgroupReader {
    /// The group of the process that `core` was read of. `None` when none is told; of a process that is ending a
    /// hierarchy of version 1 tells none.
    ///
    /// # Errors
    /// The system's error number.
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
            // No process that goes on is in a group that was removed: there it would be part of the name.
            let path = path.strip_suffix(REMOVED).filter(|_| is_ending).unwrap_or(path);
            return Ok(Some(CgroupPath { path, is_unified: true }));
        }
        let path = parse::cgroup(text, SYSTEMD).filter(|_| !is_ending);
        Ok(path.map(|path| CgroupPath { path, is_unified: false }))
    }
}
