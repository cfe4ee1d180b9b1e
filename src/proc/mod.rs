//! Primitives of `/proc`: its root, directories, links and lists of mounts, read by descriptor and guarded.
//!
//! The rooms above hand a [`ProcRoot`] on to what reads a process or a namespace; the root of the tree, the size of pages and
//! the tick of the clock are inputs, so that these can be tested on trees made for a test.

mod directory;
mod link;
mod mountinfo;
mod root;

pub use directory::{Listing, open_directory};
pub use link::{network_namespace, network_namespace_at};
pub(crate) use mountinfo::{Mount, mounts, path};
pub(crate) use root::read_record_at;
pub use root::{PidPath, ProcRoot, SystemFacts};
