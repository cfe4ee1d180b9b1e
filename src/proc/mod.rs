//! Primitives of `/proc`: its root, directories, links and lists of mounts, read by descriptor and guarded, and
//! the parsers of its text files.
//!
//! The rooms above pass a [`ProcRoot`] to the readers of a process or a namespace. The root of the tree, the
//! page size and the clock tick are inputs, so that these readers can be tested on fixtures.

mod directory;
mod link;
mod mountinfo;
pub(crate) mod parse;
mod root;

pub use directory::{Listing, open_directory};
pub use link::{network_namespace, network_namespace_at, socket_at};
pub(crate) use mountinfo::{Mount, mounts, path};
pub(crate) use root::read_record_at;
pub use root::{PidPath, ProcRoot, SystemFacts};
