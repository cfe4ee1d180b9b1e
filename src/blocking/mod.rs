//! Reads of `/proc` that may never return, and threads that can be abandoned in them.
//!
//! Many files of `/proc/<pid>` are read under a lock that another process can hold for as long as it likes.
//! `cmdline` takes the process's memory lock, which a page fault on a dead file server holds. `stat`, `io`,
//! `fd` and `ns` wait for an exec that closes a file on one. `cgroup` takes a lock of the whole machine. A
//! listing takes the lock of its directory. Such a wait ends only when the other process's does. Before that,
//! no signal except SIGKILL ends it.
//!
//! Therefore every thread of a session that reads `/proc` marks its reads with [`guarded`], and another
//! thread watches the marks ([`Watch`]). A thread whose read does not return is abandoned. Another thread
//! takes over its work, and further reads of the same subject are refused. When the read does return, the
//! abandoned thread unwinds without touching anything that it shared, releases its resources and ends. The
//! process can be read again after a rest that grows each time.
//!
//! At most [`MAX_ABANDONED`] threads of this process are abandoned at a time, apart from those that are
//! reading when the limit is reached. From then on, every read of a process fails at once with `EAGAIN`,
//! until one of the threads returns. At most [`MAX_FOR_LOCKS`] of them wait for locks of memory and control
//! groups. Beyond that, only these reads fail.

mod blocked;
mod helper;
mod supervised;
mod watch;

pub use blocked::{MAX_ABANDONED, MAX_FOR_LOCKS, abandoned, sweep};
pub use helper::{Abandoned, Errand, Helper, bounded};
pub use supervised::Supervised;
pub use watch::{Hurry, ProcTree, ReadKind, Watch, guarded, progress};

#[cfg(test)]
mod tests;
