//! Minimal containers: a process in a network namespace of its own, with devices and counters in it.

use capture::internals::decode::decode;
use capture::internals::model::{Frame, LocalAddresses, Namespace};
use capture::internals::namespace::NamespaceChoice;
use capture::internals::tap::{FrameHandler, Tap, TapOptions};
pub use capture_test_support::commands::run;
use capture_test_support::namespaces::{in_new_namespace, inside};
use capture_test_support::requirements::has_root_and;
use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The time after which a test stops waiting for an event.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// Lets one test run at a time: tests find each other's namespaces, and count this process's descriptors.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs a test on a thread in a new network namespace, with loopback up.
pub fn in_namespace(test: impl FnOnce() + Send) {
    if !has_root_and(&["ip", "nft", "unshare", "nsenter"]) {
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    in_new_namespace(test);
}

/// Returns the namespace of the calling thread as the kernel names it.
pub fn own_namespace() -> String {
    link("/proc/thread-self/ns/net")
}

/// Returns the target of a symbolic link.
pub fn link(path: &str) -> String {
    std::fs::read_link(path).unwrap().to_str().unwrap().to_owned()
}

/// Waits until `done` returns true.
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Returns true if the calling thread's namespace has a device of this name.
pub fn has_device(name: &str) -> bool {
    let output = Command::new("ip").args(["link", "show", name]).stderr(Stdio::null()).output().unwrap();
    output.status.success()
}

/// A process in a network namespace of its own, with loopback up.
pub struct Container {
    child: Child,
}

impl Container {
    pub fn start() -> Container {
        let child = Command::new("unshare").args(["--net", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
        let container = Container { child };
        let own = own_namespace();
        let text = container.path().to_str().unwrap().to_owned();
        wait_until("in a namespace of its own", || link(&text) != own);
        container.run("ip link set lo up");
        container
    }

    /// Returns the link that leads to its namespace.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.pid()))
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Returns the inode of its namespace.
    pub fn inode(&self) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata(self.path()).unwrap().ino()
    }

    pub fn run(&self, command: &str) -> String {
        run(&format!("nsenter --net={} {command}", self.path().display()))
    }

    /// Connects the container to the calling thread's namespace: `device` here, `eth0` with `address` inside.
    pub fn join(&self, device: &str, address: &str) {
        run(&format!("ip link add {device} type veth peer name eth0 netns {}", self.pid()));
        run(&format!("ip link set {device} up"));
        self.run(&format!("ip addr add {address}/24 dev eth0"));
        self.run("ip link set eth0 up");
    }

    /// Adds a neighbour that needs no ARP, so that everything sent to it leaves through `eth0`.
    pub fn add_neighbour(&self, address: &str) {
        self.run(&format!("ip neigh replace {address} lladdr 02:00:00:00:00:99 dev eth0 nud permanent"));
    }

    /// Runs `work` inside, on another thread.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(&self.path(), work)
    }

    pub fn end(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A `/proc` that shows only the processes that a test wants to be found: other processes on this machine
/// start and end with namespaces of their own.
pub struct View {
    directory: tempfile::TempDir,
}

impl View {
    /// Makes a view of all of `/proc` except processes and mounts.
    pub fn new() -> View {
        let directory = tempfile::tempdir().unwrap();
        let link = |from: PathBuf, name: &str| {
            std::os::unix::fs::symlink(from.join(name), directory.path().join(name)).unwrap();
        };
        let names = |path: &str| {
            let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name());
            entries.map(|name| name.into_string().unwrap()).collect::<Vec<_>>()
        };
        for name in
            names("/proc").iter().filter(|name| name.parse::<i32>().is_err() && *name != "thread-self")
        {
            link("/proc".into(), name);
        }
        std::fs::create_dir(directory.path().join("thread-self")).unwrap();
        for name in names("/proc/thread-self").iter().filter(|name| *name != "mountinfo") {
            let name = format!("thread-self/{name}");
            link("/proc".into(), &name);
        }
        View { directory }
    }

    pub fn show(&self, pid: i32) {
        let real = PathBuf::from(format!("/proc/{pid}"));
        std::os::unix::fs::symlink(real, self.path().join(pid.to_string())).unwrap();
    }

    /// Starts a container and shows its process.
    pub fn start_container(&self) -> Container {
        let container = Container::start();
        self.show(container.pid());
        container
    }

    /// Returns the path of the view.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Sends `count` datagrams of `length` bytes from a port to an address; both may be refused or lost later.
pub fn send(from: &str, to: &str, count: usize, length: usize) {
    let socket = UdpSocket::bind(from).unwrap();
    let data = vec![7; length];
    for _ in 0..count {
        // The call reports the refusal of an earlier datagram; this one is then sent again.
        while socket.send_to(&data, to).is_err() {}
    }
}

/// Returns options for UDP only, so that packets that the kernel sends by itself are not counted.
pub fn options(namespaces: NamespaceChoice) -> TapOptions {
    let (timeout, filter) = (Duration::from_millis(10), Some("udp".to_owned()));
    TapOptions { timeout, filter, buffer_bytes: 2 << 20, namespaces, ..TapOptions::default() }
}

/// Returns the choice of the given containers.
pub fn chosen(containers: &[&Container]) -> NamespaceChoice {
    NamespaceChoice::Chosen(containers.iter().map(|container| container.path()).collect())
}

/// The bytes and frames seen in one namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    pub sent: u64,
    pub received: u64,
    pub not_local: u64,
    pub frames: u64,
}

/// Sums by namespace of the frames that a tap delivers, counted where their endpoints are.
#[derive(Default)]
pub struct Accounts {
    pub by_namespace: BTreeMap<Namespace, Seen>,
    local: BTreeMap<Namespace, Arc<LocalAddresses>>,
}

impl Accounts {
    /// Reads until no more frames arrive.
    pub fn read(&mut self, tap: &mut Tap) {
        self.set_addresses(tap.local_addresses());
        let mut idle = 0;
        while idle < 5 {
            tap.wait(Duration::from_millis(50)).unwrap();
            let progress = tap.read(256, self).unwrap();
            idle = if progress.frames == 0 { idle + 1 } else { 0 };
        }
    }

    /// Returns what was seen in a namespace.
    pub fn of(&self, namespace: Namespace) -> Seen {
        self.by_namespace.get(&namespace).copied().unwrap_or_default()
    }
}

impl FrameHandler for Accounts {
    fn frame(&mut self, frame: Frame<'_>) {
        let (local, bytes) = (&self.local[&frame.namespace], u64::from(frame.wire_len));
        let packet = decode(frame.link, frame.data).unwrap();
        let (from, to) =
            (local.contains(&packet.source.address), local.contains(&packet.destination.address));
        let seen = self.by_namespace.entry(frame.namespace).or_default();
        seen.frames += 1;
        seen.sent += if from { bytes } else { 0 };
        seen.received += if to { bytes } else { 0 };
        seen.not_local += if from || to { 0 } else { bytes };
    }

    fn set_addresses(&mut self, addresses: &[(Namespace, Arc<LocalAddresses>)]) {
        self.local = addresses.iter().cloned().collect();
    }
}

/// Returns the number that a tap has given to a container's namespace.
pub fn number(tap: &Tap, container: &Container) -> Option<Namespace> {
    let inode = container.inode();
    tap.known_namespaces().snapshot().iter().find(|entry| entry.inode == inode).map(|entry| entry.namespace)
}
