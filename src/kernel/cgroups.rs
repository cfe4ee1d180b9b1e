//! The paths of the control groups that users of sockets are in, as the socket probes have noted them.

use super::records::Path;
use aya::maps::{HashMap, MapData};

/// Reads what the probes have noted of control groups.
pub(super) struct Cgroups {
    paths: HashMap<MapData, u64, Path>,
    /// Where the cgroup namespace of this process begins, from the topmost directory down.
    root: Vec<Vec<u8>>,
}

impl Cgroups {
    /// A reader for the cgroup namespace in which the probes were loaded. `None` when it was not noted where that begins.
    pub(super) fn new(paths: HashMap<MapData, u64, Path>) -> Option<Cgroups> {
        let root = paths.get(&0, 0).ok()?;
        let root = root.names().into_iter().map(<[u8]>::to_vec).collect();
        Some(Cgroups { paths, root })
    }

    /// The path of the group with this number; `None` when that is not known.
    pub(super) fn path(&self, number: u64) -> Option<Vec<u8>> {
        let path = self.paths.get(&number, 0).ok()?;
        Some(seen_from(&self.root, &path.names()))
    }
}

impl Path {
    /// The names from the topmost directory down.
    fn names(&self) -> Vec<&[u8]> {
        let names = self.names.get(..self.length as usize).unwrap_or_default();
        let mut names: Vec<_> = names.split(|&byte| byte == 0).filter(|name| !name.is_empty()).collect();
        names.reverse();
        names
    }
}

/// The path of a group as the kernel tells it in a cgroup namespace that begins at `root` (cgroup_namespaces(7)).
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
        let mut path = Path { length: 0, names: [0xff; 1024] };
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
