//! A process that is stuck until it is released, made by the program `stuck_process`.

use capture_test_support::programs::program;
use capture_test_support::requirements::{has_file, is_root};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

/// A read that takes longer is blocked.
const SOON: Duration = Duration::from_millis(300);

pub struct Victim {
    maker: Child,
    said: BufReader<ChildStdout>,
    pid: i32,
}

impl Victim {
    /// Makes a stuck process; returns `None` if that is not possible.
    pub fn new(kind: &str) -> Option<Victim> {
        Victim::known(kind, |_| ())
    }

    /// Does the same, and runs `before` before the process gets stuck.
    pub fn known(kind: &str, before: impl FnOnce(&Victim)) -> Option<Victim> {
        if !is_root() || !matches!(kind, "listing" | "tree") && !has_file("/dev/fuse") {
            return None;
        }
        let mut maker = Command::new(program("stuck_process"))
            .arg(kind)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(maker.stdout.take().unwrap());
        let mut victim = Victim { maker, said, pid: 0 };
        victim.pid = victim.heard();
        before(&victim);
        victim.order();
        assert_eq!(victim.heard(), victim.pid);
        Some(victim)
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Returns the path to the `/proc` of its PID namespace, if it has one of its own.
    pub fn tree(&self) -> PathBuf {
        let unshare = self.maker.id();
        let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).unwrap();
        PathBuf::from(format!("/proc/{}/root/proc", children.trim()))
    }

    /// Lets the process continue.
    pub fn release(&mut self) {
        self.order();
        assert_eq!(self.heard(), self.pid);
    }

    fn order(&mut self) {
        self.maker.stdin.as_mut().unwrap().write_all(b".").unwrap();
    }

    fn heard(&mut self) -> i32 {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim().parse().expect("the process was made")
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // The maker ends its process when its input ends.
        drop(self.maker.stdin.take());
        let _ = self.maker.wait();
    }
}

/// Returns true if reading a file or listing a directory of the process returns. Otherwise a thread remains
/// that ends with the process.
pub fn returns(pid: i32, name: &str) -> bool {
    let path = format!("/proc/{pid}/{name}");
    let (report, reported) = channel();
    std::thread::spawn(move || {
        let _ = std::fs::read(&path);
        let listed = std::fs::read_dir(&path).map(|entries| entries.count());
        let _ = report.send(listed.is_ok());
    });
    reported.recv_timeout(SOON).is_ok()
}
