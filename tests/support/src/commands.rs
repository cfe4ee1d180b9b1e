//! Commands that tests run to their end.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

/// Runs a command, given as words, to its end, asserts that it succeeded, and returns its output.
pub fn run(command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    finish(Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()))
}

/// Runs a command to its end, asserts that it succeeded, and returns its output.
pub fn finish(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text_of(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns all output of a command.
pub fn text_of(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Applies nftables rules in the calling thread's network namespace.
pub fn nft(rules: &str) {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success(), "nft");
}

/// Makes the process that the command starts die with the thread that starts it, and unblocks
/// all signals in it.
pub fn die_with_this(mut command: Command) -> Command {
    let parent = std::process::id();
    // SAFETY: only system calls are made between fork and exec.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            nix::sys::signal::SigSet::empty().thread_set_mask()?;
            match std::os::unix::process::parent_id() == parent {
                true => Ok(()),
                false => Err(std::io::Error::other("the parent has ended")),
            }
        })
    };
    command
}
