//! Changes beside the traffic: devices, addresses and network namespaces that appear and disappear, and
//! signals to the host.

use capture_test_support::lab::{Host, Lab, enter};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The kinds of changes, and the time between two changes of a kind.
const KINDS: [(&str, Duration); 5] = [
    ("devices", Duration::from_millis(150)),
    ("addresses", Duration::from_millis(70)),
    ("namespaces", Duration::from_millis(900)),
    ("signals", Duration::from_millis(5)),
    ("pauses of the host", Duration::from_secs(7)),
];

/// The time for which the host is stopped. Packets that arrive meanwhile fit into its rings.
const PAUSE: Duration = Duration::from_millis(100);

/// All changes, until they are ended.
pub struct Churn {
    is_over: Arc<AtomicBool>,
    done: Arc<[AtomicU64; KINDS.len()]>,
    threads: Vec<JoinHandle<()>>,
}

impl Churn {
    /// Starts the changes, with devices and addresses on one of the hosts, and with signals to a process.
    pub fn start(lab: &Lab, pid: i32) -> Churn {
        let mut churn = Churn { is_over: Arc::default(), done: Arc::default(), threads: Vec::new() };
        let (a, own) = (lab.name(Host::A).to_owned(), std::process::id());
        let on = a.clone();
        churn.each(0, move |number| renewed_device(&on, number));
        churn.each(1, move |number| passing_address(&a, number));
        churn.each(2, move |number| passing_namespace(&format!("capture-{own}-soak-{number}")));
        let pid = Pid::from_raw(pid);
        churn.each(3, move |_| kill(pid, Signal::SIGUSR1).expect("the host lives"));
        churn.each(4, move |_| {
            kill(pid, Signal::SIGSTOP).expect("the host lives");
            std::thread::sleep(PAUSE);
            kill(pid, Signal::SIGCONT).expect("the host lives");
        });
        churn
    }

    /// Repeats a change of one kind on its own thread.
    fn each(&mut self, kind: usize, work: impl Fn(u64) + Send + 'static) {
        let (is_over, done) = (Arc::clone(&self.is_over), Arc::clone(&self.done));
        self.threads.push(std::thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                work(done[kind].fetch_add(1, Ordering::Relaxed));
                std::thread::sleep(KINDS[kind].1);
            }
        }));
    }

    /// Returns the number of changes of each kind.
    pub fn summary(&self) -> String {
        let each = KINDS.iter().zip(self.done.iter());
        let words = each.map(|((name, _), done)| format!("{} {name}", done.load(Ordering::Relaxed)));
        words.collect::<Vec<_>>().join(", ")
    }

    /// Ends the changes. Returns the number of each kind.
    pub fn end(mut self) -> String {
        self.is_over.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().expect("nothing of it fails"));
        self.summary()
    }
}

/// Runs ip(8).
fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).stdin(Stdio::null()).status();
    assert!(status.expect("ip runs").success(), "ip {arguments}");
}

/// Creates a pair of devices, renames one, and removes them.
fn renewed_device(namespace: &str, number: u64) {
    let (name, other) = (format!("soak{number}"), format!("other{number}"));
    ip(&format!("-n {namespace} link add {name} type veth peer name {other}"));
    ip(&format!("-n {namespace} link set {other} up"));
    ip(&format!("-n {namespace} link set {name} up"));
    ip(&format!("-n {namespace} link set {name} down"));
    ip(&format!("-n {namespace} link set {name} name renamed{number} up"));
    ip(&format!("-n {namespace} link del {other}"));
}

/// Adds an address and removes it.
fn passing_address(namespace: &str, number: u64) {
    let address = format!("10.78.{}.{}/32", number / 250 % 250, number % 250 + 1);
    ip(&format!("-n {namespace} addr add {address} dev lo"));
    ip(&format!("-n {namespace} addr del {address} dev lo"));
}

/// Creates a network namespace, makes a connection in it, and removes it.
fn passing_namespace(name: &str) {
    ip(&format!("netns add {name}"));
    ip(&format!("-n {name} link set lo up"));
    enter(name, || {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let mut client = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
        let (mut server, _) = listener.accept().expect("a connection waits");
        client.write_all(&[1; 1000]).expect("the other end lives");
        server.read_exact(&mut [0; 1000]).expect("so much was sent");
    });
    ip(&format!("netns del {name}"));
}
