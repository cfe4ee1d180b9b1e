//! The identity of a process: its name, owner, command line and control group.

use super::cgroup::{CgroupPath, CgroupReader};
use super::reading::{CoreFigures, ProcessDirectory};
use super::stand_in::StandIns;
use super::users::UserNames;
use crate::blocking::ReadKind;
use crate::model::{Identity, NAME_BYTES, ProcId, SampleSet};
use crate::proc::ProcRoot;
use std::path::Path;
use std::time::Instant;

/// The maximum number of bytes of a command line, which is the maximum that the kernel allows a single
/// argument (`MAX_ARG_STRLEN`, execve(2)). Longer ones are cut, so that a process cannot inflate the
/// library's memory.
pub const COMMAND_LINE_LIMIT: usize = 128 * 1024;

/// Reads identities, and caches the names of users and groups.
#[derive(Debug)]
pub struct IdentityReader {
    names: UserNames,
    cgroups: CgroupReader,
    stand_ins: StandIns,
    buffer: Vec<u8>,
}

impl Default for IdentityReader {
    fn default() -> IdentityReader {
        let names = UserNames::new(Path::new("/etc"), Instant::now());
        IdentityReader {
            names,
            cgroups: CgroupReader::default(),
            stand_ins: StandIns::default(),
            buffer: Vec::new(),
        }
    }
}

impl IdentityReader {
    /// Reads the identity of the process that has this pid now; command line and control group only if `what`
    /// requests them. Returns `None` if there is no such process or its `stat` cannot be read.
    pub fn read(&mut self, root: &ProcRoot, pid: i32, what: SampleSet) -> Option<(ProcId, Identity)> {
        self.refresh_names();
        let directory = ProcessDirectory::open(root, pid).ok()?;
        let mut stat = Vec::new();
        let mut core = directory.core(&mut stat).ok()?;
        let live = self.stand_ins.find(&directory, &mut core.stat);
        let common = live.as_ref().unwrap_or(&directory);
        let mut identity = self.describe(&Identity::default(), &core);
        if what.has(SampleSet::COMMAND_LINE) && core.stat.has_memory() {
            identity.command_line = self.command_line(common).unwrap_or_default().to_vec();
        }
        // The program distinguishes names that the kernel has cut.
        if identity.name.len() == NAME_BYTES
            && let Ok(program) = common.program(&mut self.buffer)
        {
            identity.program = program.to_vec();
        }
        if what.has(SampleSet::CGROUP)
            && let Ok(Some(place)) = self.cgroup(root, common, &core)
        {
            identity.cgroup = place.path.to_vec();
        }
        Some((core.id(), identity))
    }

    /// Adds the names of user and group to an identity that has their ids.
    pub fn name(&mut self, identity: Identity) -> Identity {
        self.refresh_names();
        let (user, group) = (self.names.user(identity.uid).to_vec(), self.names.group(identity.gid).to_vec());
        Identity { user, group, ..identity }
    }

    /// Checks the user and group databases for changes.
    pub(super) fn refresh_names(&mut self) {
        self.names.refresh(Instant::now());
    }

    /// A number that changes if names of users and groups may have changed.
    pub(super) fn generation(&self) -> u32 {
        self.names.generation()
    }

    /// Returns `known` with the name and owner that were just read. An owner that could not be read is left
    /// as it is.
    pub(super) fn describe(&mut self, known: &Identity, core: &CoreFigures<'_>) -> Identity {
        let mut identity = Identity { name: core.stat.name.to_vec(), ..known.clone() };
        if let Some((uid, gid)) = core.owner {
            identity.uid = uid;
            identity.gid = gid;
            identity.user = self.names.user(uid).to_vec();
            identity.group = self.names.group(gid).to_vec();
        }
        identity
    }

    /// Reads the control group; see [`CgroupReader::read`].
    pub(super) fn cgroup(
        &mut self,
        root: &ProcRoot,
        directory: &ProcessDirectory,
        core: &CoreFigures<'_>,
    ) -> nix::Result<Option<CgroupPath<'_>>> {
        self.cgroups.read(root, directory, core)
    }

    /// Reads the command line: every argument is terminated by NUL, at most [`COMMAND_LINE_LIMIT`] bytes in
    /// total.
    pub(super) fn command_line(&mut self, directory: &ProcessDirectory) -> nix::Result<&[u8]> {
        directory.record_up_to(ReadKind::Memory, c"cmdline", &mut self.buffer, COMMAND_LINE_LIMIT)?;
        self.buffer.truncate(COMMAND_LINE_LIMIT);
        if self.buffer.last().is_some_and(|&byte| byte != 0) {
            // Cut here, or by the kernel if the process overwrote its arguments.
            self.buffer.truncate(COMMAND_LINE_LIMIT - 1);
            self.buffer.push(0);
        }
        Ok(&self.buffer)
    }
}
