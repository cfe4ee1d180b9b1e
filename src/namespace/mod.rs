//! The network namespaces of the machine besides the session's own, and work inside them.
//!
//! A [`Registry`] finds them and assigns a small number to each. [`Known`] shows them to other threads.
//! [`enter`] runs work inside a namespace, on a thread of its own. No thread of the host, and none of the
//! library's long-lived threads, ever changes its namespace. A socket that such work opens belongs to the
//! namespace permanently and may be used on any thread.
//!
//! This module does not hold a namespace open. A caller that opens sockets in a namespace must close them
//! once [`Known`] no longer shows it, because the namespace and its devices exist as long as the sockets do.
//! [`PerNamespace`] does so.

mod choice;
mod coverage;
mod enter;
mod finder;
mod follow;
mod links;
mod mounts;
mod numbers;
mod per_namespace;
mod registry;
mod scan;

pub use choice::NamespaceChoice;
pub use coverage::Coverage;
pub use enter::{EnterError, enter, enter_initial};
pub use finder::NamespaceFinder;
pub use per_namespace::PerNamespace;
pub use registry::{Known, NamespaceEntry, Registry, RegistryStats};

/// Returns the inode of the calling thread's network namespace.
///
/// # Errors
/// Fails with the system's error number if `/proc` is unavailable.
pub fn current_inode() -> nix::Result<u64> {
    links::namespace_at(std::path::Path::new("/proc/thread-self/ns/net"))
}
