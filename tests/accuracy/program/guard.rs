//! Sees to it that the program ends in time and leaves nothing behind, also when it is interrupted.
//!
//! Its children end with it, since they have asked the kernel for that. The namespaces carry its process id in their
//! names.

use nix::sys::signal::{SigSet, Signal};
use std::process::{Command, Stdio};

/// What the program ends with when it has taken too long.
const TOO_LONG: i32 = 3;

/// Starts the watch. Called before there are other threads, so that the signals go to no other.
pub fn start() {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGALRM] {
        signals.add(signal);
    }
    signals.thread_block().unwrap();
    std::thread::spawn(move || {
        let signal = signals.wait().unwrap();
        remove_namespaces();
        let status = match signal {
            Signal::SIGALRM => {
                eprintln!("accuracy: this takes too long");
                TOO_LONG
            }
            _ => 128 + signal as i32,
        };
        std::process::exit(status);
    });
}

/// From now on so many seconds are allowed; what was allowed before is forgotten.
pub fn allow(seconds: u64) {
    // SAFETY: the call takes no pointers.
    unsafe { libc::alarm(seconds as u32) };
}

fn remove_namespaces() {
    let own = format!("capture-{}-", std::process::id());
    let Ok(namespaces) = std::fs::read_dir("/run/netns") else { return };
    for name in namespaces.flatten().map(|entry| entry.file_name()) {
        if name.to_string_lossy().starts_with(&own) {
            // There is nobody to tell when it fails.
            let mut command = Command::new("ip");
            let _ = command.args(["netns", "del"]).arg(name).stderr(Stdio::null()).status();
        }
    }
}
