//! A running example: its output as it arrives, and its end.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// The time limit, far longer than anything here takes.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A started program, which ends with its test.
pub struct Agent {
    child: Child,
    lines: Receiver<String>,
    /// All lines seen.
    pub seen: Vec<String>,
}

impl Agent {
    pub fn start(command: &mut Command) -> Agent {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let output = child.stdout.take().unwrap();
        // This thread ends when the program closes its output.
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
        Agent { child, lines, seen: Vec::new() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line that `wanted` accepts, and returns it.
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + TIMEOUT;
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.seen.push(line.clone());
            if wanted(&line) {
                return line;
            }
        }
        let seen = self.seen.join("\n");
        panic!("{what} did not come; this came:\n{seen}\n{}", self.end(Some(Signal::SIGKILL)).1);
    }

    /// Sends a signal if one is given, and waits for the program to end. Returns its status and what it wrote
    /// to standard error.
    pub fn end(&mut self, signal: Option<Signal>) -> (ExitStatus, String) {
        if let Some(signal) = signal {
            kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
        }
        let deadline = Instant::now() + TIMEOUT;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        };
        self.seen.extend(self.lines.iter());
        let mut complaint = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut complaint).unwrap();
        (status, complaint)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
