//! Network namespaces: new ones for the thread of a test, and those of others.

use crate::commands::run;
use crate::requirements::left_out;
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::path::Path;

/// Puts the calling thread, and the processes that it starts, into a new network namespace, with loopback up.
///
/// # Errors
/// Fails with the error of unshare(2).
pub fn enter_new() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    run("ip link set lo up");
    Ok(())
}

/// Runs a test on a thread of its own in a new network namespace, which disappears with the thread; reports it
/// if that is not permitted.
pub fn in_new_namespace(test: impl FnOnce() + Send) {
    on_own_thread(|| match enter_new() {
        Ok(()) => test(),
        Err(errno) => left_out(&format!("a network namespace cannot be made: {errno}")),
    });
}

/// Runs `work` on a thread of its own, which may change its network namespace, and passes its panic on.
pub fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let outcome = std::thread::scope(|scope| scope.spawn(work).join());
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Moves the calling thread, and the processes that it will start, to the network namespace of a path.
pub fn join(path: &Path) {
    let namespace = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
}

/// Runs `work` in the network namespace of a path, on a thread of its own.
pub fn inside<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> T {
    on_own_thread(|| {
        join(path);
        work()
    })
}
