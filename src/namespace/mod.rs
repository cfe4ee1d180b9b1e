//! The network namespaces of the machine besides the session's own: which there are, and how to work inside one.
//!
//! A [`Registry`] finds them and gives each a small number, and [`Known`] shows what it has found to other threads.
//! [`enter`] runs a piece of work inside a namespace, on a thread of its own: no thread of the host, and none of the
//! library's lasting ones, ever changes its namespace. A socket that such work opens belongs to the namespace for
//! good and may be used on any thread.
//!
//! Nothing here holds a namespace open. Whoever opens sockets in one must close them once [`Known`] does not show it
//! any more, for it and its devices live as long as they do.

mod choice;
mod coverage;
mod enter;
mod finder;
mod follow;
mod links;
mod mounts;
mod numbers;
mod registry;
mod scan;

pub use choice::NamespaceChoice;
pub use coverage::Coverage;
pub use enter::{EnterError, enter, enter_initial};
pub use finder::NamespaceFinder;
pub use follow::{Changes, Follower};
pub use registry::{Known, NamespaceEntry, Registry, RegistryStats};

/// The inode of the calling thread's network namespace.
///
/// # Errors
/// The system's error number, where `/proc` is not there.
pub fn current_inode() -> nix::Result<u64> {
    links::namespace_at(std::path::Path::new("/proc/thread-self/ns/net"))
}
