//! Threads inside the host process: with signals blocked, panics caught, names, and descriptors apart from
//! the host's.

mod context;
mod leave;
mod prompt;
mod table;
mod worker;

pub use context::{Context, on_host};
pub use prompt::be_prompt;
pub use table::PrivateTable;
pub use worker::Worker;

use crate::error::{Code, Error};
use crate::sync::Mutex;
use nix::sys::signal::{SigSet, SigmaskHow};
use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind, set_hook, take_hook};
use std::sync::Once;
use std::thread::{Builder, JoinHandle};

/// Runs `work` on a new thread that blocks every signal, so that the host's handlers run on the host's
/// threads.
///
/// A panic of `work` ends the thread and is passed to `on_panic` as text. It never reaches the host. The new
/// thread shares the descriptor table and the [`Context`] of the calling thread.
///
/// # Errors
/// Fails with `Thread` if the system refuses another thread.
pub fn spawn<W, P>(name: &str, work: W, on_panic: P) -> Result<JoinHandle<()>, Error>
where
    W: FnOnce() + Send + 'static,
    P: FnOnce(String) + Send + 'static,
{
    let context = Context::current();
    let body = move || {
        Context::enter(context);
        if let Err(text) = catch_quietly(work) {
            on_panic(text);
        }
    };
    with_signals_blocked(|| Builder::new().name(name.into()).spawn(body))
        .map_err(|error| Error::system(Code::Thread, format_args!("starting the thread {name}"), error))
}

/// Runs `other` on a thread of its own, which blocks every signal, and `own` on the calling thread, and waits
/// for both. If the system refuses another thread, they run one after the other. A panic of either continues
/// in the caller.
pub fn both<A: Send, B>(name: &str, other: impl FnOnce() -> A + Send, own: impl FnOnce() -> B) -> (A, B) {
    let work = Mutex::new(Some(other));
    let context = Context::current();
    let run = || work.lock().take().map(catch_quietly);
    let outcome = std::thread::scope(|scope| {
        let start = || {
            Builder::new().name(name.into()).spawn_scoped(scope, || {
                Context::enter(context.clone());
                run()
            })
        };
        let started = with_signals_blocked(start);
        let own = own();
        // The thread has only panics that were caught.
        let other = started.ok().and_then(|thread| thread.join().ok()).flatten();
        (other, own)
    });
    match outcome {
        (Some(Ok(other)), own) => (other, own),
        (Some(Err(text)), _) => resume_unwind(Box::new(text)),
        (None, own) => match run() {
            Some(Ok(other)) => (other, own),
            failed => resume_unwind(Box::new(failed.and_then(Result::err).unwrap_or_default())),
        },
    }
}

/// Runs `start` with all signals blocked in the calling thread. Threads that it starts inherit that mask.
pub fn with_signals_blocked<T>(start: impl FnOnce() -> T) -> T {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
    let started = start();
    if let Ok(before) = before {
        // Setting a mask that was in force a moment ago cannot fail.
        let _ = before.thread_set_mask();
    }
    started
}

/// Runs `body`. A panic in it becomes text, and is not printed to the host's standard error.
///
/// # Errors
/// Fails with the message of the panic.
pub fn catch_quietly<T>(body: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        // Panics of the host's own code, if it is Rust as well, go to the previous hook.
        let host = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_QUIET.try_with(Cell::get).unwrap_or(false) {
                host(panic);
            }
        }));
    });
    let before = IS_QUIET.try_with(|quiet| quiet.replace(true)).unwrap_or(false);
    let outcome = catch_unwind(AssertUnwindSafe(body));
    // The variable is unavailable only while the thread ends.
    let _ = IS_QUIET.try_with(|quiet| quiet.set(before));
    outcome.map_err(|payload| panic_text(payload.as_ref()))
}

thread_local! {
    /// True if the thread is inside [`catch_quietly`].
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Returns the message of a panic.
fn panic_text(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic without a message".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn the_new_thread_blocks_signals_and_the_starter_keeps_its_mask() {
        let before = SigSet::thread_get_mask().unwrap();
        let (report, reported) = channel();
        let work = move || report.send(SigSet::thread_get_mask().unwrap()).unwrap();
        spawn("capture-test", work, |_| ()).unwrap().join().unwrap();
        let inside = reported.recv().unwrap();
        assert!(inside.contains(nix::sys::signal::Signal::SIGTERM));
        assert!(inside.contains(nix::sys::signal::Signal::SIGCHLD));
        assert_eq!(SigSet::thread_get_mask().unwrap(), before);
    }

    #[test]
    fn both_run_and_a_panic_of_either_is_the_callers() {
        let caller = std::thread::current().id();
        let (other, own) =
            both("capture-test", || std::thread::current().id(), || std::thread::current().id());
        assert!(other != caller && own == caller);
        let fail = || {
            both("capture-test", || std::panic::panic_any("spilt".to_owned()), || ());
        };
        assert_eq!(catch_quietly(fail), Err("spilt".to_owned()));
    }

    #[test]
    fn a_panic_is_handed_over_as_text() {
        let (report, reported) = channel();
        let on_panic = move |text| report.send(text).unwrap();
        spawn("capture-test", || std::panic::panic_any("spilt".to_owned()), on_panic)
            .unwrap()
            .join()
            .unwrap();
        assert_eq!(reported.recv().unwrap(), "spilt");
    }
}
