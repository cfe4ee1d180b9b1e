//! Working inside another network namespace, on a thread that lives for that only.

use super::links;
use super::registry::NamespaceEntry;
use crate::blocking::{Abandoned, bounded};
use crate::capability::{self, Capability};
use crate::error::{Code, Error};
use crate::thread::{catch_quietly, with_signals_blocked};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread::Builder;

/// Why work was not done inside a namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EnterError {
    /// What led there leads nowhere now, or to another namespace: its process has ended, its mount has gone. The
    /// registry may know another way at its next refresh.
    Gone,
    /// The system refused it: `SystemResource`, naming the capability where one is missing, or `Thread`.
    Refused(Error),
}

impl fmt::Display for EnterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EnterError::Gone => f.write_str("the network namespace is gone"),
            EnterError::Refused(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for EnterError {}

/// Runs `work` inside the namespace of `entry` and returns what it returns. Costs some 50 µs besides.
///
/// It runs on a thread of its own that blocks all signals; the calling thread waits for it and stays where it is. A
/// panic of `work` goes on in the caller. That the way leads to another namespace by now, because its process number
/// is another process's, is noticed by the inode before anything is entered.
///
/// # Errors
/// [`EnterError`]; entering takes CAP_SYS_ADMIN and CAP_SYS_PTRACE (setns(2), namespaces(7)).
pub fn enter<T: Send>(entry: &NamespaceEntry, work: impl FnOnce() -> T + Send) -> Result<T, EnterError> {
    enter_path(&entry.path, Some(entry.inode), work)
}

/// The same for the initial namespace, the only one in which the proc connector speaks (drivers/connector/cn_proc.c).
///
/// It is that of the kernel's threads, and of process 1, which not everybody may look at. Where neither is the
/// machine's own, as inside a container, it is the namespace of the container's process 1.
///
/// # Errors
/// As [`enter`].
pub fn enter_initial<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, EnterError> {
    // kthreadd, the parent of all of the kernel's threads: kernel/kthread.c, init/main.c.
    let read = || links::guarded_path(Path::new("/proc/2/stat"), |path| Ok(std::fs::read(path)));
    let stat = bounded("capture-enter", read).ok().and_then(|read| read.ok()?.ok()).unwrap_or_default();
    let rest = stat.strip_prefix(b"2 (kthreadd) ").and_then(|rest| rest.get(1..));
    let is_kernel = rest.is_some_and(|rest| rest.starts_with(b" 0 "));
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

/// Opens the namespace at `path`, if that is the one with this inode.
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

/// Moves the calling thread to the namespace that was opened by `path`.
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
