//! The host program as the tests see it, and the objects in the kernel that it made.

use crate::lab::{built_example, die_with_this};
use capture::model::ProgramSet;
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

/// When a test gives up on what should long have happened; two hundred rounds on a busy machine take a minute.
pub const TIMEOUT: Duration = Duration::from_secs(300);

/// The program where every user may run it, built like this one.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let built = || {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("probe_host");
        std::fs::copy(built_example("probe_host"), &path).unwrap();
        for path in [directory.path(), &path] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        (directory, path)
    };
    &PROGRAM.get_or_init(built).1
}

/// A host, ended with this.
pub struct Host {
    child: Child,
    lines: Receiver<String>,
    /// What it said until it was ready.
    pub said: Vec<String>,
}

impl Host {
    /// Starts one in a network namespace of its own with loopback up. `shell` is what is done before, as root and in
    /// sh(1); it runs the program by `"$@"`, if need be by other programs that come to run it.
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

    /// One that is ready, in which everything went as it should.
    pub fn ready(shell: &str, arguments: &[&str]) -> Host {
        let mut host = Host::start(shell, arguments);
        host.wait_for("ready");
        host
    }

    /// Waits for a line and keeps those before it.
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

    /// What it said after this word, of each line that begins with it.
    pub fn told<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a str> {
        self.said.iter().filter_map(move |line| line.strip_prefix(word)?.strip_prefix(' '))
    }

    /// The state of its socket probes.
    pub fn state(&self) -> &str {
        self.told("state").next().unwrap()
    }

    /// The parts of what the socket probes can tell that are at work.
    pub fn programs(&self) -> ProgramSet {
        ProgramSet(self.told("programs").next().unwrap().parse().unwrap())
    }

    /// What another process had sent, if it was to be watched.
    pub fn watched(&self) -> Option<u64> {
        self.told("watched").next().map(|bytes| bytes.parse().unwrap())
    }

    /// Whether it holds nothing but the two programs that sample processes and record their names, which take less, if these
    /// are at work.
    pub fn has_no_socket_probes(&self) -> bool {
        let samples = self.told("samples").next().unwrap() == "Active";
        let objects = self.objects();
        objects.count("prog") == 2 * usize::from(samples) && objects.is_empty() != samples
    }

    /// What counts for it.
    pub fn engine(&self) -> &str {
        self.told("engine").next().unwrap()
    }

    /// Whether its own traffic was counted.
    pub fn counts(&self) -> bool {
        self.told("network").any(|bytes| bytes.parse::<u64>().is_ok_and(|bytes| bytes > 0))
    }

    /// Lets it close its session.
    pub fn close(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"close\n").unwrap();
        self.wait_for("closed");
    }

    /// The objects that it holds now; the program must be the child itself.
    pub fn objects(&self) -> Objects {
        let mut objects = Objects::default();
        self.descriptors(|kind, id| objects.add(kind, id));
        objects
    }

    /// How many instructions the kernel has gone through to verify each program that it holds, most by their links.
    pub fn verified(&self) -> Vec<u64> {
        let mut programs = BTreeSet::new();
        self.descriptors(|name, value| {
            if name == "prog_id" {
                programs.insert(value.parse::<u32>().unwrap());
            }
        });
        programs.into_iter().map(verified_of).collect()
    }

    /// Hands over what is told of each of its descriptors, of several tables that its threads have. When it has ended it
    /// holds none.
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

    /// Waits until it has made an object. It has not ended by then.
    pub fn wait_for_objects(&self) {
        let deadline = Instant::now() + TIMEOUT;
        while self.objects().is_empty() {
            assert!(Instant::now() < deadline, "it makes none");
        }
    }

    /// Stops it wherever it is just now, looks at what it holds, and kills it.
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

/// How many instructions the kernel has gone through to verify a program (bpf(2), proc_pid_fdinfo(5)).
fn verified_of(program: u32) -> u64 {
    const PROGRAM_BY_ID: libc::c_long = 13;
    let attributes = [program, 0, 0];
    // SAFETY: the command takes the number of the program, which is the first of these, and flags.
    let opened =
        unsafe { libc::syscall(libc::SYS_bpf, PROGRAM_BY_ID, attributes.as_ptr(), size_of_val(&attributes)) };
    assert!(opened >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new and nobody else's.
    let opened = unsafe { OwnedFd::from_raw_fd(opened as i32) };
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", opened.as_raw_fd())).unwrap();
    let count = text.lines().find_map(|line| line.strip_prefix("verified_insns:\t"));
    count.unwrap().parse().unwrap()
}

impl Drop for Host {
    fn drop(&mut self) {
        // Where it has ended already there is nobody to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Objects in the kernel: the words that bpftool lists them by, and their numbers, which are never given again soon.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Objects(BTreeSet<(&'static str, u32)>);

impl Objects {
    /// Adds one, as the information on its descriptor names it; what is no such object is passed over.
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

    /// Whether some are among the others.
    pub fn meets(&self, others: &Objects) -> bool {
        !self.0.is_disjoint(&others.0)
    }

    /// How many there are of a kind.
    pub fn count(&self, kind: &str) -> usize {
        self.0.iter().filter(|object| object.0 == kind).count()
    }

    /// Those that the kernel still has.
    pub fn left(&self) -> Objects {
        let mut left = BTreeSet::new();
        for kind in ["prog", "map", "link", "btf"] {
            // Each is told on a line that begins with its number.
            let listing = listing(kind);
            let ids = listing.lines().filter_map(|line| line.split_once(':')?.0.parse().ok());
            left.extend(ids.map(|id| (kind, id)).filter(|object| self.0.contains(object)));
        }
        Objects(left)
    }

    /// Waits until none of them is left: the kernel frees them some time after their last user.
    pub fn wait_for_end(&self) {
        wait_until(&format!("none of {self:?} is left"), || self.left().is_empty());
    }
}

/// What bpftool tells of all objects of a kind. It gives up at one that another program is just making or giving back,
/// and is asked again then.
fn listing(kind: &str) -> String {
    let mut text = String::new();
    wait_until(&format!("bpftool lists every {kind}"), || {
        let output = Command::new("bpftool").args([kind, "list"]).output().unwrap();
        text = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success()
    });
    text
}

/// Waits for something to become true.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {TIMEOUT:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
