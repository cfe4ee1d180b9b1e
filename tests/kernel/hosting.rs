//! The host program as the tests see it, and the objects that it creates in the kernel.

use crate::lab::die_with_this;
use capture::internals::model::ProgramSet;
use capture_test_support::programs::program_with_library;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The time after which a test gives up on an expected event. Two hundred rounds take a minute on a busy
/// machine.
pub const TIMEOUT: Duration = Duration::from_secs(300);

/// Returns the path of the host program, built like this test, at a place where every user may run it.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let built = || {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("probe_host");
        std::fs::copy(program_with_library("probe_host", cfg!(feature = "ebpf")), &path).unwrap();
        for path in [directory.path(), &path] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        (directory, path)
    };
    &PROGRAM.get_or_init(built).1
}

/// A running host. Dropping this ends it.
pub struct Host {
    child: Child,
    lines: Receiver<String>,
    /// Lines that the host printed until it was ready.
    pub said: Vec<String>,
}

impl Host {
    /// Starts a host in its own network namespace with loopback up. `shell` is an sh(1) script that runs
    /// first, as root; it runs the program as `"$@"`, directly or through other commands.
    pub fn start(shell: &str, arguments: &[&str]) -> Host {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "sh", "-e", "-c", &format!("ip link set lo up\n{shell}"), "sh"]);
        command.arg(program()).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = die_with_this(command).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Host { child, lines, said: Vec::new() }
    }

    /// Starts a host and waits until it is ready.
    pub fn ready(shell: &str, arguments: &[&str]) -> Host {
        let mut host = Host::start(shell, arguments);
        host.wait_for("ready");
        host
    }

    /// Waits for a line. Keeps the lines before it.
    pub fn wait_for(&mut self, wanted: &str) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let patience = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(patience) {
                Ok(line) if line == wanted => return,
                Ok(line) => self.said.push(line),
                Err(error) => panic!("no line {wanted:?}: {error}; {:#?}", self.said),
            }
        }
    }

    /// Returns the rest of each line that begins with this word.
    pub fn told<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a str> {
        self.said.iter().filter_map(move |line| line.strip_prefix(word)?.strip_prefix(' '))
    }

    /// Returns the state of the host's eBPF programs at sockets.
    pub fn state(&self) -> &str {
        self.told("state").next().unwrap()
    }

    /// Returns the parts of the eBPF programs at sockets that work.
    pub fn programs(&self) -> ProgramSet {
        ProgramSet(self.told("programs").next().unwrap().parse().unwrap())
    }

    /// Returns the bytes that the watched process had sent, if there is one.
    pub fn watched(&self) -> Option<u64> {
        self.told("watched").next().map(|bytes| bytes.parse().unwrap())
    }

    /// Returns true if the host has at most the two eBPF programs that sample processes and record their
    /// names. These require less; they exist if their state is Active.
    pub fn has_no_socket_probes(&self) -> bool {
        let samples = self.told("samples").next().unwrap() == "Active";
        let objects = self.objects();
        objects.count("prog") == 2 * usize::from(samples) && objects.is_empty() != samples
    }

    /// Returns the host's engine.
    pub fn engine(&self) -> &str {
        self.told("engine").next().unwrap()
    }

    /// Returns true if the host's own traffic was counted.
    pub fn counts(&self) -> bool {
        self.told("network").any(|bytes| bytes.parse::<u64>().is_ok_and(|bytes| bytes > 0))
    }

    /// Makes the host close a session.
    pub fn close(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"close\n").unwrap();
        self.wait_for("closed");
    }

    /// Returns the objects that the host holds now. The child must be the host program itself.
    pub fn objects(&self) -> Objects {
        let mut objects = Objects::default();
        self.descriptors(|kind, id| objects.add(kind, id));
        objects
    }

    /// Returns the number of instructions that the kernel has processed to verify each eBPF program of the
    /// host. The host holds most of them through links.
    pub fn verified(&self) -> Vec<u64> {
        let mut programs = BTreeSet::new();
        self.descriptors(|name, value| {
            if name == "prog_id" {
                programs.insert(value.parse::<u32>().unwrap());
            }
        });
        programs.into_iter().map(verified_of).collect()
    }

    /// Passes the lines about each of the host's descriptors to `told`, from all tables of its threads. A
    /// host that has ended has none.
    fn descriptors(&self, mut told: impl FnMut(&str, &str)) {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let tables = threads.into_iter().flatten().flatten().map(|thread| thread.path().join("fdinfo"));
        for entry in tables.filter_map(|table| std::fs::read_dir(table).ok()).flatten().flatten() {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            text.lines()
                .filter_map(|line| line.split_once(":\t"))
                .for_each(|(name, value)| told(name, value));
        }
    }

    /// Waits until the host has created an object. The host must not have ended by then.
    pub fn wait_for_objects(&self) {
        let deadline = Instant::now() + TIMEOUT;
        while self.objects().is_empty() {
            assert!(Instant::now() < deadline, "it makes none");
        }
    }

    /// Stops the host at whatever point it has reached, reads the objects that it holds, and kills it.
    pub fn kill_at_once(mut self) -> Objects {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap());
        kill(pid, Signal::SIGSTOP).unwrap();
        let status = format!("/proc/{pid}/stat");
        wait_until("it stands still", || {
            let text = std::fs::read_to_string(&status).unwrap();
            text.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 'Z']))
        });
        let held = self.objects();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        held
    }
}

/// Returns the number of instructions that the kernel has processed to verify an eBPF program (bpf(2),
/// proc_pid_fdinfo(5)).
fn verified_of(program: u32) -> u64 {
    const PROGRAM_BY_ID: libc::c_long = 13;
    let attributes = [program, 0, 0];
    // SAFETY: the command takes the id of the eBPF program, which is the first number, and flags.
    let opened =
        unsafe { libc::syscall(libc::SYS_bpf, PROGRAM_BY_ID, attributes.as_ptr(), size_of_val(&attributes)) };
    assert!(opened >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new, and nothing else owns it.
    let opened = unsafe { OwnedFd::from_raw_fd(opened as i32) };
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", opened.as_raw_fd())).unwrap();
    let count = text.lines().find_map(|line| line.strip_prefix("verified_insns:\t"));
    count.unwrap().parse().unwrap()
}

impl Drop for Host {
    fn drop(&mut self) {
        // Errors do not matter: the host may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Objects in the kernel: the words by which bpftool lists them, and their ids, which are not reused soon.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Objects(BTreeSet<(&'static str, u32)>);

impl Objects {
    /// Adds an object, as the information on its descriptor names it. Ignores other lines.
    pub fn add(&mut self, kind: &str, id: &str) {
        let kinds = [("prog_id", "prog"), ("map_id", "map"), ("link_id", "link"), ("btf_id", "btf")];
        if let Some((_, kind)) = kinds.iter().find(|(name, _)| *name == kind) {
            self.0.insert((*kind, id.parse().unwrap()));
        }
    }

    pub fn extend(&mut self, others: Objects) {
        self.0.extend(others.0);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns true if the two sets share an object.
    pub fn meets(&self, others: &Objects) -> bool {
        !self.0.is_disjoint(&others.0)
    }

    /// Returns the number of objects of a kind.
    pub fn count(&self, kind: &str) -> usize {
        self.0.iter().filter(|object| object.0 == kind).count()
    }

    /// Returns the objects that the kernel still has.
    pub fn left(&self) -> Objects {
        let mut left = BTreeSet::new();
        for kind in ["prog", "map", "link", "btf"] {
            // bpftool prints each on a line that begins with its id.
            let listing = listing(kind);
            let ids = listing.lines().filter_map(|line| line.split_once(':')?.0.parse().ok());
            left.extend(ids.map(|id| (kind, id)).filter(|object| self.0.contains(object)));
        }
        Objects(left)
    }

    /// Waits until none of the objects is left. The kernel frees them some time after their last user has
    /// released them.
    pub fn wait_for_end(&self) {
        wait_until(&format!("none of {self:?} is left"), || self.left().is_empty());
    }
}

/// Returns bpftool's listing of all objects of a kind. bpftool fails at an object that another process is
/// creating or releasing at that moment, and is then run again.
fn listing(kind: &str) -> String {
    let mut text = String::new();
    wait_until(&format!("bpftool lists every {kind}"), || {
        let output = Command::new("bpftool").args([kind, "list"]).output().unwrap();
        text = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success()
    });
    text
}

/// Waits until a condition holds.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {TIMEOUT:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
