//! Makes a process whose reads in `/proc` do not return until it is ordered to let them.
//!
//! `stuck_process KIND` prints the process's pid, makes it stuck when a byte arrives, prints the pid again
//! once it is stuck, lets it continue with the next byte, and ends with the next one or at the end of its
//! input. The kinds:
//!
//! - `memory`: a page fault on a file server that does not answer holds the lock of the process's memory, and
//!   another thread waits for it;
//! - `exec`: an exec waits for that server to close a file;
//! - `listing`: one thread lists the process's descriptors into a page that is not delivered, and another
//!   thread is about to change the directory;
//! - `tree`: the same with all of `/proc`, which should be that of a PID namespace of its own.

// This program is part of the tests and fails loudly.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fuse;
mod victim;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["victim", "memory", file] => victim::fault(file),
        ["victim", "exec", file] => victim::exec(file),
        ["victim", "listing"] => victim::list("/proc/self/fd"),
        ["victim", "tree"] => victim::list("/proc"),
        [kind @ ("listing" | "tree")] => listing(kind),
        [kind @ ("memory" | "exec")] => served(kind),
        other => panic!("what is {other:?}?"),
    }
}

/// Runs a victim that waits for a file server.
fn served(kind: &str) {
    let directory = std::env::temp_dir().join(format!("capture-stuck-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let server = fuse::Server::start(&directory, kind);
    let file = directory.join("file");
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["victim", kind])
        .arg(&file)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    announce(victim.id());
    wait_for_order();
    victim.stdin.as_mut().unwrap().write_all(b".").unwrap();
    server.wait_until_held();
    // The other thread requests the lock a moment later.
    std::thread::sleep(victim::PAUSE * 2);
    announce(victim.id());
    wait_for_order();
    server.release();
    announce(victim.id());
    wait_for_order();
    let _ = victim.kill();
    let _ = victim.wait();
    server.unmount();
    let _ = std::fs::remove_dir(&directory);
}

/// Runs a victim that withholds the page that it waits for.
fn listing(kind: &str) {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["victim", kind])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, mut said) = (victim.stdin.take().unwrap(), BufReader::new(victim.stdout.take().unwrap()));
    announce(victim.id());
    for _ in 0..2 {
        wait_for_order();
        input.write_all(b".").unwrap();
        said.read_line(&mut String::new()).unwrap();
        std::thread::sleep(victim::PAUSE * 2);
        announce(victim.id());
    }
    wait_for_order();
    let _ = victim.kill();
    let _ = victim.wait();
}

fn announce(pid: u32) {
    println!("{pid}");
    std::io::stdout().flush().unwrap();
}

/// Waits for one byte, or for the end of the process that gives the orders.
fn wait_for_order() {
    let _ = std::io::stdin().read(&mut [0]);
}
