//! The memory that control groups allow this process: cgroups(7), and in the kernel's documentation
//! admin-guide/cgroup-v2.rst and admin-guide/cgroup-v1/memory.rst.

use crate::proc::{Mount, mounts, path};
use std::ffi::OsStr;
use std::fs::{read, read_to_string};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Version 1 reports a larger value if there is no limit.
const NO_LIMIT: u64 = 1 << 62;

/// A cgroup hierarchy that may limit memory.
#[derive(Clone, Copy)]
struct Hierarchy {
    /// The type of its file system, and the option that distinguishes it from others of that type.
    kind: &'static [u8],
    option: &'static [u8],
    /// The controller of its line in a `cgroup` file.
    controller: &'static [u8],
    /// The file in each group's directory that contains the limit.
    file: &'static str,
}

const HIERARCHIES: [Hierarchy; 2] = [
    Hierarchy { kind: b"cgroup2", option: b"", controller: b"", file: "memory.max" },
    Hierarchy { kind: b"cgroup", option: b"memory", controller: b"memory", file: "memory.limit_in_bytes" },
];

/// Returns the lowest limit of the groups of this process, in bytes; `None` if there is none, or none can be
/// read.
pub fn memory_limit() -> Option<u64> {
    let (groups, mounted) = (read("/proc/self/cgroup").ok()?, read("/proc/self/mountinfo").ok()?);
    let limits = HIERARCHIES.iter().filter_map(|hierarchy| {
        let group = group_of(&groups, hierarchy.controller)?;
        mounts(&mounted)
            .filter(|mount| hierarchy.is_at(mount))
            .filter_map(|mount| lowest(&mount, group, hierarchy.file))
            .min()
    });
    limits.min()
}

impl Hierarchy {
    fn is_at(&self, mount: &Mount<'_>) -> bool {
        let has_option = || mount.options.split(|&byte| byte == b',').any(|option| option == self.option);
        mount.kind == self.kind && (self.option.is_empty() || has_option())
    }
}

/// Returns the path of the group in the hierarchy of a controller, from the text of a `cgroup` file.
fn group_of<'t>(text: &'t [u8], controller: &[u8]) -> Option<&'t Path> {
    text.split(|&byte| byte == b'\n').find_map(|line| {
        let mut fields = line.splitn(3, |&byte| byte == b':').skip(1);
        let mut controllers = fields.next()?.split(|&byte| byte == b',');
        let group = fields.next()?;
        controllers.any(|one| one == controller).then(|| Path::new(OsStr::from_bytes(group)))
    })
}

/// Returns the lowest limit of a group and its ancestors, as far as the mount shows them.
fn lowest(mount: &Mount<'_>, group: &Path, file: &str) -> Option<u64> {
    let top = mount.point();
    // With a cgroup namespace of its own, or a mount of a part, the ancestors above are not shown.
    let root = path(mount.root);
    let below = group.strip_prefix(&root).unwrap_or(Path::new(""));
    let groups = below.ancestors().map(|group| top.join(group));
    groups.filter_map(|group: PathBuf| limit(&read_to_string(group.join(file)).ok()?)).min()
}

fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|limit| *limit < NO_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};

    #[test]
    fn the_lowest_limit_on_the_way_up_counts() {
        let folder = tempfile::tempdir().unwrap();
        let deepest = folder.path().join("a/b");
        create_dir_all(&deepest).unwrap();
        let set = |path: &str, text: &str| write(folder.path().join(path).join("memory.max"), text).unwrap();
        let found = |root: &str, group: &str| {
            let line = format!("1 2 0:3 {root} {} rw - cgroup2 none rw", folder.path().display());
            let mount = mounts(line.as_bytes()).next().unwrap();
            lowest(&mount, Path::new(group), "memory.max")
        };
        assert_eq!(found("/", "/a/b"), None);
        set("a/b", "max\n");
        assert_eq!(found("/", "/a/b"), None);
        set("a", "67108864\n");
        assert_eq!(found("/", "/a/b"), Some(64 << 20));
        set("a/b", "33554432\n");
        assert_eq!(
            (found("/", "/a/b"), found("/", "/a"), found("/", "/")),
            (Some(32 << 20), Some(64 << 20), None)
        );
        // A part of the hierarchy is mounted, as in a container.
        assert_eq!(found("/docker/x", "/docker/x/a"), Some(64 << 20));
        assert_eq!(found("/docker/x", "/"), None);
        set("", "9223372036854771712\n");
        assert_eq!(found("/docker/x", "/"), None);
        set("", "1048576\n");
        assert_eq!(found("/docker/x", "/"), Some(1 << 20));
    }

    #[test]
    fn hierarchies_are_told_apart() {
        let text = b"12:memory:/m\n3:cpu,cpuacct:/c\n1:name=systemd:/s\n0::/u:x\n";
        let of = |controller: &[u8]| group_of(text, controller).map(|path| path.to_str().unwrap());
        assert_eq!(
            (of(b"memory"), of(b""), of(b"cpuacct"), of(b"pids")),
            (Some("/m"), Some("/u:x"), Some("/c"), None)
        );
        let of = |line: &str| {
            let mount = mounts(line.as_bytes()).next().unwrap();
            HIERARCHIES.map(|hierarchy| hierarchy.is_at(&mount))
        };
        assert_eq!(of("1 2 0:3 / /x rw - cgroup2 none rw"), [true, false]);
        assert_eq!(of("1 2 0:3 / /x rw - cgroup none rw,memory"), [false, true]);
        assert_eq!(of("1 2 0:3 / /x rw - cgroup none rw,cpu"), [false, false]);
    }
}
