//! tcpdump on the same traffic, as a measure of what capturing alone costs.

use super::cpu;
use super::lab::{Host, Lab};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Stdio};

/// What it took.
#[derive(Clone, Copy, Debug)]
pub struct Captured {
    /// CPU time as a share of a core, percent.
    pub cpu: f64,
    pub packets: u64,
    pub lost: u64,
}

/// A running tcpdump that throws away what it captures.
pub struct Tcpdump {
    child: Child,
    messages: BufReader<ChildStderr>,
    before: f64,
}

impl Tcpdump {
    /// Starts it, and waits until it listens.
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
        let before = cpu::seconds(child.id() as i32);
        Tcpdump { child, messages, before }
    }

    /// Ends it. CPU seconds become a share by the factor.
    pub fn finish(mut self, share: f64) -> Captured {
        let pid = self.child.id() as i32;
        let cpu = (cpu::seconds(pid) - self.before) * share;
        kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
        let mut text = String::new();
        self.messages.read_to_string(&mut text).unwrap();
        let count = |what: &str| -> u64 {
            let line = text.lines().find(|line| line.contains(what));
            line.and_then(|line| line.split(' ').next()?.parse().ok()).unwrap_or(0)
        };
        Captured { cpu, packets: count("packets captured"), lost: count("dropped by kernel") }
    }
}

impl Drop for Tcpdump {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
