//! Which network namespaces a session counts in at the moment.

use std::collections::HashSet;

/// The network namespaces that are counted in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Coverage {
    /// Every one, also where it is not known which one a process is in.
    Every,
    /// Those with these inodes.
    Only(HashSet<u64>),
}

impl Coverage {
    /// Whether what a process in this namespace sends and receives is counted. 0 stands for one that is not known.
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
