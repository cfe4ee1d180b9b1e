//! The paths of processes' control groups as the eBPF programs record them: `probes/cgroup_paths.h` in Rust.

use super::batch::lookup;
use super::object::{LoadedObject, Loader};
use super::task::CgroupPaths;
use aya::Pod;
use aya::maps::{HashMap, Map, MapData};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

/// The path of a control group: the names of its directories from the last to the first, each terminated by
/// NUL.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct RawCgroupPath {
    length: u32,
    names: [u8; 1024],
}

impl Default for RawCgroupPath {
    fn default() -> RawCgroupPath {
        RawCgroupPath { length: 0, names: [0; 1024] }
    }
}

// SAFETY: it consists of integers without padding, so that every bit pattern is a value.
unsafe impl Pod for RawCgroupPath {}

const _: () = assert!(size_of::<RawCgroupPath>() == 1028);

/// The name of the map of paths.
const PATHS: &str = "cgroup_paths";

/// Shrinks the map of paths to one entry, because the kernel allocates the memory of all its entries at once.
pub(super) fn leave_out(loader: &mut Loader<'_>) {
    loader.set_capacity(PATHS, 1);
}

/// Reads the control groups that the eBPF programs have recorded.
#[derive(Debug)]
pub(super) struct Cgroups {
    paths: MapData,
    /// The directories from the topmost one down to the root of the cgroup namespace in which the object was
    /// loaded. They are kept here because the kernel keeps only paths that are in use.
    root: OnceLock<Vec<Vec<u8>>>,
}

impl Cgroups {
    /// Returns a reader of an object's paths, or `None` if the object has no map of paths or the map was
    /// taken before.
    pub(super) fn of(object: &mut LoadedObject) -> Option<Cgroups> {
        let map = object.take_map(PATHS)?;
        HashMap::<_, u64, RawCgroupPath>::try_from(&map).ok()?;
        let (Map::HashMap(paths) | Map::LruHashMap(paths)) = map else { return None };
        Some(Cgroups { paths, root: OnceLock::new() })
    }

    /// Returns the root of the namespace, and keeps it once the object has recorded it.
    pub(super) fn keep_root(&self) -> Option<&[Vec<u8>]> {
        if self.root.get().is_none() {
            // The key of the root is 0.
            let path: RawCgroupPath = lookup(self.paths.fd().as_fd(), &0u64)?;
            // If another thread was first, it has stored the same value.
            let _ = self.root.set(path.names().into_iter().map(<[u8]>::to_vec).collect());
        }
        self.root.get().map(Vec::as_slice)
    }
}

impl CgroupPaths for Cgroups {
    fn path(&self, number: u64) -> Option<Vec<u8>> {
        let path: RawCgroupPath =
            (number != 0).then(|| lookup(self.paths.fd().as_fd(), &number)).flatten()?;
        Some(seen_from(self.keep_root()?, &path.names()))
    }
}

/// Returns the inode of the calling thread's cgroup namespace, or `None` on kernels without such namespaces.
pub(super) fn namespace() -> Option<u64> {
    std::fs::metadata("/proc/thread-self/ns/cgroup").ok().map(|file| file.ino())
}

impl RawCgroupPath {
    /// Returns the names from the topmost directory down.
    fn names(&self) -> Vec<&[u8]> {
        let names = self.names.get(..self.length as usize).unwrap_or_default();
        let mut names: Vec<_> = names.split(|&byte| byte == 0).filter(|name| !name.is_empty()).collect();
        names.reverse();
        names
    }
}

/// Returns the path of a group as the kernel reports it in a cgroup namespace with this root
/// (cgroup_namespaces(7)).
fn seen_from(root: &[Vec<u8>], group: &[&[u8]]) -> Vec<u8> {
    let common = root.iter().zip(group).take_while(|(one, other)| one == *other).count();
    let up = root.iter().skip(common).map(|_| &b".."[..]);
    let path: Vec<u8> =
        up.chain(group.iter().skip(common).copied()).flat_map(|name| [&b"/"[..], name].concat()).collect();
    if path.is_empty() { b"/".to_vec() } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_put_in_order() {
        let mut path = RawCgroupPath { length: 0, names: [0xff; 1024] };
        assert!(path.names().is_empty(), "the topmost has no name");
        path.names[..8].copy_from_slice(b"two\0one\0");
        path.length = 8;
        assert_eq!(path.names(), [b"one", b"two"]);
    }

    #[test]
    fn paths_begin_at_the_root_of_the_namespace() {
        let seen = |root: &'static str, group: &'static str| {
            let names =
                |path: &'static str| path.split('/').filter(|name| !name.is_empty()).map(str::as_bytes);
            let root: Vec<_> = names(root).map(<[u8]>::to_vec).collect();
            String::from_utf8(seen_from(&root, &names(group).collect::<Vec<_>>())).unwrap()
        };
        assert_eq!(seen("/", "/"), "/");
        assert_eq!(seen("/", "/a/b"), "/a/b");
        assert_eq!(seen("/a/b", "/a/b"), "/");
        assert_eq!(seen("/a", "/a/b"), "/b");
        assert_eq!(seen("/a/b", "/"), "/../..");
        assert_eq!(seen("/a/b/c", "/a/x"), "/../../x");
    }
}
