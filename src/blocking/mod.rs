//! Reads of `/proc` that may never return, and threads that can be left behind in them.
//!
//! Many files of `/proc/<pid>` are read under a lock that another process can hold for as long as it likes: `cmdline`
//! takes the process's memory lock, which a page fault on a dead file server holds; `stat`, `io`, `fd` and `ns` wait for
//! an exec that closes a file on one; `cgroup` takes a lock of the whole machine; a listing takes that of its directory.
//! Such a wait ends with the other process's, and no signal but SIGKILL ends it before.
//!
//! Therefore every thread of a session that reads `/proc` marks its reads with [`guarded`], and has another thread that
//! watches the marks ([`Watch`]). A thread whose read does not return is abandoned: another one takes over its work, and
//! what it was reading is refused from then on. When the read does return, the abandoned thread unwinds
//! without touching anything that it shared, releases what it held and ends; the process can be read again after a rest
//! that grows each time.
//!
//! At most [`MAX_ABANDONED`] threads of this program are abandoned at a time, apart from those that are reading as the
//! number is reached. Then every read of a process fails at once with `EAGAIN`, until one of them returns. At most
//! [`MAX_FOR_LOCKS`] of them wait for locks of memory and control groups: beyond that these reads alone fail.

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
