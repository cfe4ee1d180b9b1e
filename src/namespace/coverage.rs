//! The network namespaces that a session counts in at the moment.

use std::collections::HashSet;

/// The network namespaces that are counted in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Coverage {
    /// All namespaces, also if the namespace of a process is unknown.
    Every,
    /// The namespaces with these inodes.
    Only(HashSet<u64>),
}

impl Coverage {
    /// Returns true if the traffic of processes in this namespace is counted. The inode 0 stands for an
    /// unknown one.
    pub fn has(&self, inode: u64) -> bool {
        match self {
            Coverage::Every => true,
            Coverage::Only(inodes) => inodes.contains(&inode),
        }
    }
}

impl From<Option<HashSet<u64>>> for Coverage {
    fn from(inodes: Option<HashSet<u64>>) -> Coverage {
        inodes.map_or(Coverage::Every, Coverage::Only)
    }
}
