//! Several sessions of one process: they share one set of eBPF programs, and each session counts from its own
//! opening on.

use crate::hosting::{Host as Program, Objects};
use crate::lab::{Host, Lab};
use crate::{at_best, may_run};
use capture::internals::config::{Engine, Options};
use capture::internals::model::{FlowPhase, Unowned};
use capture::internals::namespace::NamespaceChoice;
use capture::internals::session::Session;
use capture::internals::tap::TapOptions;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(20);
const PORT: u16 = 7000;
/// The message sizes of the short connections: each message fits into a packet.
const SIZES: [(&str, u64); 2] = [("request", 500), ("response", 1000)];
const RUN: &str = "exec \"$@\"";

#[test]
fn sessions_have_one_set_of_programs_as_root() {
    if !may_run() {
        return;
    }
    for engine in ["pcap", "kernel"] {
        let engine = format!("engine={engine}");
        let alone = Program::ready(RUN, &[&engine]).objects();
        let mut host = Program::ready(RUN, &[&engine, "sessions=3"]);
        assert_eq!(host.state(), at_best());
        let together = host.objects();
        for kind in ["prog", "map", "btf"] {
            assert_eq!(together.count(kind), alone.count(kind), "{kind}: {together:?}");
        }
        // Each remaining session counts as before. The eBPF programs exist as long as one of the sessions.
        for left in [2, 1] {
            let said = host.said.len();
            host.close();
            assert_eq!(host.objects().count("prog"), alone.count("prog"), "{left} are left");
            let counted: Vec<_> =
                host.said[said..].iter().filter(|line| line.starts_with("network ")).collect();
            assert_eq!(counted.len(), left, "{:#?}", host.said);
            assert!(counted.iter().all(|line| *line != "network 0" && *line != "network none"));
        }
        host.close();
        assert_eq!(host.objects(), Objects::default());
        together.wait_for_end();
    }
}

#[test]
fn a_forked_child_has_programs_of_its_own_as_root() {
    if !may_run() || at_best() != "Active" {
        return;
    }
    for engine in ["pcap", "kernel"] {
        let mut host = Program::ready(RUN, &[&format!("engine={engine}"), "forks=yes"]);
        let own = host.objects();
        let mut of_child = Objects::default();
        for line in host.told("child") {
            let words: Vec<&str> = line.split(' ').collect();
            words.chunks_exact(2).for_each(|pair| of_child.add(pair[0], pair[1]));
        }
        assert_eq!(of_child.count("prog"), own.count("prog"), "{:#?}", host.said);
        assert!(!of_child.meets(&own), "it has inherited none");
        // The child's own traffic was counted in its session, and the parent's in the parent's.
        let counted: Vec<u64> = host.told("network").map(|bytes| bytes.parse().unwrap()).collect();
        assert!(counted.len() == 2 && counted.iter().all(|&bytes| bytes > 0), "{counted:?}");
        assert_eq!(own.left(), own, "the end of the child has taken nothing from the parent");
        host.close();
        of_child.wait_for_end();
    }
}

/// Opens a session of host A with the engine `kernel`.
fn open() -> Session {
    // The traffic of the other host's ends does not belong to this test.
    let capture = TapOptions { namespaces: NamespaceChoice::Own, ..TapOptions::default() };
    let options = Options { engine: Engine::Kernel, flows: true, capture, ..Options::default() };
    let session = Session::open(options).unwrap();
    assert_eq!(session.stats_reader().read().engine, Engine::Kernel);
    session
}

/// A session with the ended flows that it has reported so far.
struct View {
    session: Session,
    ended: usize,
    /// Bytes of all flows that have ended.
    ended_bytes: u64,
}

impl View {
    fn new(session: Session) -> View {
        View { session, ended: 0, ended_bytes: 0 }
    }

    fn update(&mut self) {
        self.session.update().unwrap();
        for flow in self.session.take_ended_flows() {
            self.ended += 1;
            self.ended_bytes += flow.traffic.bytes();
        }
    }

    /// Returns the bytes that have an owner, or wait to be read by it.
    fn owned(&self) -> u64 {
        let bytes = self.session.stats_reader().read().bytes;
        bytes.owned.iter().sum::<u64>() + bytes.unowned[Unowned::Pending as usize]
    }

    /// Updates until this many bytes have an owner and this many flows have ended, and the bytes of all flows
    /// add up.
    #[track_caller]
    fn expect(&mut self, bytes: u64, ended: usize) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            self.update();
            let living: u64 = self
                .session
                .flows()
                .filter(|flow| flow.phase != FlowPhase::Ended)
                .map(|flow| flow.traffic.bytes())
                .sum();
            let found = (self.owned(), living + self.ended_bytes, self.ended);
            if found == (bytes, bytes, ended) {
                return;
            }
            assert!(Instant::now() < deadline, "{found:?} of {bytes} bytes and {ended} ended flows");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Returns the bytes that host A has sent and received.
fn truth(lab: &Lab) -> u64 {
    let (sent, received) = lab.counted(Host::A).both();
    sent + received
}

/// Makes this many short connections from A to B.
fn connections(lab: &Lab, count: u64) {
    let mut maker = lab.maker(
        Host::A,
        "tcp-clients",
        &format!("10.77.0.2:{PORT}"),
        &[[("rate", count), ("milliseconds", 1000), ("client-closes", 1)].as_slice(), &SIZES].concat(),
    );
    maker.start();
    let report = maker.finish();
    assert_eq!((report.failed, report.processes[0].connections), (0, count));
    maker.end();
}

#[test]
fn each_session_counts_from_its_own_opening_on_root() {
    if !may_run() || at_best() != "Active" {
        return;
    }
    let body = || {
        let lab = Lab::new();
        let ports = format!("{{ {PORT}, {} }}", PORT + 1);
        lab.count(Host::A, &format!("tcp dport {ports}"), &format!("tcp sport {ports}"));
        let _server = lab.maker(Host::B, "tcp-server", &format!("10.77.0.2:{PORT}"), &SIZES);
        lab.enter(Host::A);
        let mut first = View::new(open());

        // A long connection, on which bytes wait to be read as the second session is opened.
        let (mut near, mut far) = joined(&lab);
        send(&mut far, 8);
        send(&mut near, 5);
        receive(&mut far, 5);
        receive(&mut near, 1);
        connections(&lab, 40);
        first.update();
        let before = truth(&lab);
        let mut second = View::new(open());

        connections(&lab, 30);
        receive(&mut near, 7);
        send(&mut near, 7);
        receive(&mut far, 7);
        // One session reads more often than the other.
        for _ in 0..5 {
            second.update();
            std::thread::sleep(Duration::from_millis(300));
        }
        connections(&lab, 20);
        let now = truth(&lab);
        first.expect(now, 90);
        second.expect(now - before, 50);

        drop(first);
        connections(&lab, 10);
        send(&mut far, 6);
        receive(&mut near, 6);
        second.expect(truth(&lab) - before, 60);
    };
    std::thread::scope(|scope| scope.spawn(body).join().unwrap());
}

/// Sends messages of 1,000 bytes, each in its own packet. The counters of nftables count a packet that is
/// segmented later, or was merged before, as one.
fn send(socket: &mut TcpStream, messages: u32) {
    (0..messages).for_each(|_| socket.write_all(&[0; 1_000]).unwrap());
}

fn receive(socket: &mut TcpStream, messages: u32) {
    (0..messages).for_each(|_| socket.read_exact(&mut [0; 1_000]).unwrap());
}

/// Returns both ends of a connection from A to B.
fn joined(lab: &Lab) -> (TcpStream, TcpStream) {
    let listen = || {
        lab.enter(Host::B);
        TcpListener::bind(("10.77.0.2", PORT + 1)).unwrap()
    };
    let listener = std::thread::scope(|scope| scope.spawn(listen).join().unwrap());
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let far = listener.accept().unwrap().0;
    for end in [&near, &far] {
        end.set_nodelay(true).unwrap();
    }
    (near, far)
}
