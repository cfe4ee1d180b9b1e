//! Work inside another network namespace, on a thread that exists only for that.

use super::links;
use super::registry::NamespaceEntry;
use crate::blocking::{Abandoned, bounded};
use crate::capability::{self, Capability};
use crate::error::{Code, Error};
use crate::proc::parse;
use crate::thread::{catch_quietly, with_signals_blocked};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread::Builder;

/// The reason that work was not done inside a namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EnterError {
    /// The path no longer leads to this namespace: its process has ended, or its mount has disappeared. The
    /// registry may know another path after its next refresh.
    Gone,
    /// The system refused it: `Thread` if no thread could be started, else `SystemResource`, with the missing
    /// capability in the text if one is missing.
    Refused(Error),
}

impl fmt::Display for EnterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EnterError::Gone => f.write_str("the network namespace has disappeared"),
            EnterError::Refused(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for EnterError {}

/// Runs `work` inside the namespace of `entry` and returns its result. The overhead is some 50 µs.
///
/// `work` runs on a thread of its own that blocks all signals. The calling thread waits for it and does not
/// change its namespace. A panic of `work` continues in the caller. If the path leads to another namespace by
/// now, because its process number has been reused, the inode reveals this before anything is entered.
///
/// # Errors
/// Fails with [`EnterError`]. Entering requires CAP_SYS_ADMIN and CAP_SYS_PTRACE (setns(2), namespaces(7)).
pub fn enter<T: Send>(entry: &NamespaceEntry, work: impl FnOnce() -> T + Send) -> Result<T, EnterError> {
    enter_path(&entry.path, Some(entry.inode), work)
}

/// Runs `work` inside the initial namespace, the only one in which the proc connector works
/// (drivers/connector/cn_proc.c).
///
/// The kernel's threads are in this namespace, and so is process 1, which not every process may inspect. If
/// neither is the machine's own, as inside a container, it is the namespace of the container's process 1.
///
/// # Errors
/// As [`enter`].
pub fn enter_initial<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, EnterError> {
    // kthreadd is the parent of all of the kernel's threads: kernel/kthread.c, init/main.c.
    let read = || links::guarded_path(Path::new("/proc/2/stat"), |path| Ok(std::fs::read(path)));
    let stat = bounded("capture-enter", read).ok().and_then(|read| read.ok()?.ok()).unwrap_or_default();
    let is_kernel =
        parse::stat(&stat).is_some_and(|stat| (stat.pid, stat.name, stat.parent) == (2, &b"kthreadd"[..], 0));
    let path = if is_kernel { "/proc/2/ns/net" } else { "/proc/1/ns/net" };
    enter_path(Path::new(path), None, work)
}

fn enter_path<T: Send>(
    path: &Path,
    inode: Option<u64>,
    work: impl FnOnce() -> T + Send,
) -> Result<T, EnterError> {
    let file = open_way(path, inode)?;
    let body = || catch_quietly(|| move_to(path, &file).map(|()| work()));
    let outcome = std::thread::scope(|scope| {
        let builder = Builder::new().name("capture-enter".into());
        let thread = with_signals_blocked(|| builder.spawn_scoped(scope, body)).map_err(|error| {
            let tried = format_args!("starting a thread to enter {}", path.display());
            EnterError::Refused(Error::system(Code::Thread, tried, error))
        })?;
        Ok(thread.join())
    })?;
    match outcome {
        Ok(Ok(result)) => result,
        Ok(Err(text)) => std::panic::resume_unwind(Box::new(text)),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Opens the namespace at `path`, if it has this inode.
fn open_way(path: &Path, inode: Option<u64>) -> Result<OwnedFd, EnterError> {
    let way = path.to_owned();
    let opened = bounded("capture-enter", move || links::open_namespace(&way));
    let (file, found) = opened
        .unwrap_or_else(|abandoned| match abandoned {
            Abandoned::Reading => Err(Errno::EAGAIN),
            Abandoned::NoThread(_) => Err(Errno::ENOMEM),
        })
        .map_err(|errno| match errno {
            Errno::ENOENT | Errno::ESRCH | Errno::EINVAL => EnterError::Gone,
            errno => refused(path, errno, capability::SYS_PTRACE),
        })?;
    if inode.is_some_and(|inode| inode != found) {
        return Err(EnterError::Gone);
    }
    Ok(file)
}

/// Moves the calling thread to the namespace that was opened at `path`.
fn move_to(path: &Path, file: &OwnedFd) -> Result<(), EnterError> {
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|errno| refused(path, errno, capability::SYS_ADMIN))
}

fn refused(path: &Path, errno: Errno, needed: Capability) -> EnterError {
    let help = match errno {
        Errno::EPERM | Errno::EACCES => format!("; {}", capability::advice(&[needed])),
        _ => String::new(),
    };
    let text = format!("entering the network namespace {}: {errno}{help}", path.display());
    EnterError::Refused(Error::new(Code::SystemResource, text))
}
