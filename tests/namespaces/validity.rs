//! The processes whose bytes are reported as counted, by the namespaces that they are in.

use super::lab::*;
use super::talking::Talker;
use capture::internals::config::{Engine, Options};
use capture::internals::model::{ProcessRecord, Validity};
use capture::internals::namespace::NamespaceChoice;
use capture::internals::session::Session;
use capture::internals::tap::TapOptions;
use capture_test_support::requirements::left_out;
use std::io::Write;
use std::process::{Child, Command, Stdio};

/// Opens a session in the calling thread's namespace that reads all of `/proc` or uses the BPF
/// iterator over tasks.
fn session(engine: Engine, namespaces: NamespaceChoice, probes: bool) -> Session {
    let capture = TapOptions { namespaces, ..TapOptions::default() };
    Session::open(Options { engine, capture, probes, ..Options::default() }).unwrap()
}

/// Returns the record of a process as of the next update.
#[track_caller]
fn record(session: &mut Session, pid: i32) -> ProcessRecord {
    session.update().unwrap();
    session.processes().find(|record| record.sample.id.pid == pid).unwrap().clone()
}

#[track_caller]
fn is_counted(session: &mut Session, pid: i32) -> bool {
    record(session, pid).valid.has(Validity::NETWORK)
}

/// A shell that waits for a line, and then executes a command.
struct Waiting(Child);

impl Waiting {
    fn start(then: &str) -> Waiting {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("read line && exec {then}")]).stdin(Stdio::piped());
        Waiting(command.spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    fn go(&mut self) {
        self.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Checks the namespaces in which packets are captured, for each way of sampling.
fn own_and_others(probes: bool) {
    in_namespace(|| {
        let (container, other) = (Container::start(), Container::start());
        let mut stays = Waiting::start("cat");
        let mut leaves = Waiting::start(&format!("nsenter --net={} cat", container.path().display()));
        for namespaces in [NamespaceChoice::Usual, NamespaceChoice::Own] {
            let mut session = session(Engine::Pcap, namespaces, probes);
            let [own, inside] = [stays.pid(), container.pid()].map(|pid| record(&mut session, pid));
            assert!(own.valid.has(Validity::NETWORK) && own.traffic.is_empty());
            assert!(!inside.valid.has(Validity::NETWORK), "what it sends nobody sees");
            assert_eq!(inside.network_namespace, container.inode());
        }
        let mut session = session(Engine::Pcap, NamespaceChoice::Chosen(vec![container.path()]), probes);
        let mut counted = |pid| is_counted(&mut session, pid);
        let pids = [stays.pid(), leaves.pid(), container.pid(), other.pid()];
        assert_eq!(pids.map(&mut counted), [true, true, true, false]);
        assert!(!counted(1), "the test's own namespace is not the machine's");
        drop(session);
        let mut session = self::session(Engine::Pcap, NamespaceChoice::Own, probes);
        assert!(is_counted(&mut session, leaves.pid()));
        stays.go();
        leaves.go();
        let link_to = container.path();
        wait_until("it is in the container", || {
            link(&format!("/proc/{}/ns/net", leaves.pid())) == link(link_to.to_str().unwrap())
                && std::fs::read(format!("/proc/{}/comm", leaves.pid())).unwrap() == b"cat\n"
        });
        assert!(!is_counted(&mut session, leaves.pid()), "it is elsewhere now");
        assert!(is_counted(&mut session, stays.pid()));
    });
}

#[test]
fn bytes_of_other_namespaces_are_not_said_to_be_none_from_files_root() {
    own_and_others(false);
}

#[test]
fn bytes_of_other_namespaces_are_not_said_to_be_none_from_tasks_root() {
    own_and_others(true);
}

/// A process that enters a namespace without executing a program is found there after a while.
#[test]
fn a_process_that_changes_its_namespace_itself_root() {
    in_namespace(|| {
        let container = Container::start();
        let mut enters = Command::new("python3");
        let code = "import ctypes, os, sys\nsys.stdin.readline()\n\
                    ctypes.CDLL(None).setns(os.open(sys.argv[1], os.O_RDONLY), 0x40000000)\nsys.stdin.readline()";
        enters.args(["-c", code, container.path().to_str().unwrap()]).stdin(Stdio::piped());
        let mut enters = Waiting(enters.spawn().unwrap());
        let mut session = session(Engine::Pcap, NamespaceChoice::Own, false);
        assert!(is_counted(&mut session, enters.pid()));
        enters.go();
        let path = container.path();
        wait_until("it is in the container", || {
            link(&format!("/proc/{}/ns/net", enters.pid())) == link(path.to_str().unwrap())
        });
        let noticed = (0..16).any(|_| !is_counted(&mut session, enters.pid()));
        assert!(noticed, "within 16 updates");
    });
}

/// Engine `kernel` counts in all namespaces unless the options say otherwise.
#[test]
fn the_kernels_engine_counts_in_all_namespaces_root() {
    in_namespace(|| {
        let (container, other) = (Container::start(), Container::start());
        container.join("va", "10.9.0.2");
        run("ip addr add 10.9.0.1/24 dev va");
        let sessions = [
            (NamespaceChoice::Usual, [true, true, true]),
            (NamespaceChoice::All, [true, true, true]),
            (NamespaceChoice::Own, [true, false, false]),
            (NamespaceChoice::Chosen(vec![container.path()]), [true, true, false]),
        ];
        let there = Talker::serve(Some(&container), "10.9.0.2:7000");
        for (port, (namespaces, expected)) in (9000..).zip(sessions) {
            let mut session = session(Engine::Kernel, namespaces, true);
            if session.stats_reader().read().engine != Engine::Kernel {
                left_out("engine kernel is unavailable");
                return;
            }
            let [_, has_there, _] = expected;
            session.update().unwrap();
            let mut here = Talker::ask(None, "10.9.0.2:7000", 20, 1000, port);
            let pids = [here.pid(), there.pid(), other.pid()];
            assert_eq!(pids.map(|pid| is_counted(&mut session, pid)), expected, "before any byte");
            here.go();
            wait_until("all is counted at the ends that are", || {
                session.update().unwrap();
                let traffic = |pid| {
                    let mut records = session.processes();
                    records.find(|record| record.sample.id.pid == pid).unwrap().traffic
                };
                let [sent, arrived] = [here.pid(), there.pid()].map(traffic);
                let arrived = (arrived.receive_bytes, arrived.send_bytes);
                let truth = if has_there { (sent.send_bytes, sent.receive_bytes) } else { (0, 0) };
                sent.send_bytes >= 20_000 && arrived == truth
            });
            assert_eq!(pids.map(|pid| is_counted(&mut session, pid)), expected);
        }
    });
}
