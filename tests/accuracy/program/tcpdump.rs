//! tcpdump on the same kind of traffic, as a measure of the cost of capturing alone.

use super::watcher::Sighting;
use capture_test_support::lab::{Host, Lab};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Stdio};
use std::time::Duration;

/// The time until tcpdump has everything that the kernel has gathered: after a second, its read timeout.
pub const SETTLING: Duration = Duration::from_millis(1200);

/// A running tcpdump that discards the captured packets.
pub struct Tcpdump {
    child: Child,
    messages: BufReader<ChildStderr>,
}

impl Tcpdump {
    /// Starts tcpdump, and waits until it listens.
    pub fn start(lab: &Lab, host: Host) -> Tcpdump {
        let mut command = lab.command(host, "tcpdump");
        command.args(["-n", "-i", "veth0", "-s", "128", "-w", "/dev/null", "-Z", "root"]);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut messages = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            assert!(messages.read_line(&mut line).unwrap() > 0, "tcpdump has started");
        }
        Tcpdump { child, messages }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Ends tcpdump, and returns its counts.
    pub fn finish(mut self) -> Sighting {
        kill(Pid::from_raw(self.pid()), Signal::SIGINT).unwrap();
        let mut text = String::new();
        self.messages.read_to_string(&mut text).unwrap();
        let count = |what: &str| -> u64 {
            let line = text.lines().find(|line| line.contains(what));
            line.and_then(|line| line.split(' ').next()?.parse().ok()).unwrap_or(0)
        };
        let (packets, lost) = (count("packets captured"), Some(count("dropped by kernel")));
        Sighting { packets, lost, ..Sighting::default() }
    }
}

impl Drop for Tcpdump {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
