//! Tests of the early lookup, with sockets of the test's own process in a network namespace of its own.

use super::*;
use crate::model::{Address, Endpoint, Namespace, Protocol};
use crate::process::proc_id;
use capture_test_support::namespaces::in_new_namespace;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;

/// The lookups name no device.
const NO_DEVICE: u32 = 0;

/// Longer than the delay of any attempt.
const LATER: Duration = Duration::from_millis(30);

struct LookupFixture {
    look: EarlyLookup,
    early: Arc<EarlyOwnerCache>,
    own: ProcId,
}

/// Runs a test on a thread that is alone in its network namespace, if that is permitted.
fn alone(test: impl FnOnce(LookupFixture) + Send) {
    in_new_namespace(|| {
        let root = Arc::new(ProcRoot::open(Path::new("/proc")).unwrap());
        let own = proc_id(&root, std::process::id() as i32, &mut Vec::new()).unwrap();
        let early = Arc::new(EarlyOwnerCache::default());
        let mut look = EarlyLookup::new(Arc::clone(&root), Arc::clone(&early), Arc::default());
        look.ask_kernel(InetDiag::open().unwrap(), Translations::open(root, true));
        test(LookupFixture { look, early, own });
    });
}

impl LookupFixture {
    /// Adds the test's own process to the list of all processes, as one among others.
    fn tell_of_this_process(&mut self) {
        self.look.search.likely.set_crowd(vec![(1, 0), (self.own.pid, nix::unistd::geteuid().as_raw())]);
    }

    /// Reports the first packet of a flow, always the same one.
    fn packet(&mut self, key: FlowKey, side: Side, now: Instant) {
        self.opening(key, side, 1, now);
    }

    /// Reports the first packet of a connection, with this sequence number.
    fn opening(&mut self, key: FlowKey, side: Side, sequence: u32, now: Instant) {
        let (sequence, time) = (Some(sequence), Timestamp::now());
        self.look.packet(Opening { key, side, device: NO_DEVICE, sequence, time }, now);
    }

    /// Runs the lookup until no flow waits any more, and returns the owners found.
    fn found(&mut self) -> Vec<(FlowKey, Owner)> {
        let mut found = Vec::new();
        let mut now = Instant::now();
        while self.look.look(now, |key, owner| found.push((*key, *owner))).is_some() {
            now += LATER;
        }
        found
    }

    fn exactly_this_process(&self) -> Owner {
        Owner { process: self.own, quality: Quality::Exact }
    }
}

fn key(protocol: Protocol, local: SocketAddr, remote: SocketAddr) -> FlowKey {
    let end = |end: SocketAddr| Endpoint::new(Address::from(end.ip()), end.port());
    FlowKey { local: end(local), remote: end(remote), protocol, namespace: Namespace::HOME }
}

/// Opens a connection, and returns it with the flow of the end that opened it.
fn connect(listener: &TcpListener) -> (TcpStream, FlowKey) {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let ends = (client.local_addr().unwrap(), client.peer_addr().unwrap());
    (client, key(Protocol::TCP, ends.0, ends.1))
}

fn other_end(key: &FlowKey) -> FlowKey {
    FlowKey { local: key.remote, remote: key.local, ..*key }
}

#[test]
fn both_ends_of_a_connection_are_found_while_it_lives_root() {
    alone(|mut lab| {
        lab.tell_of_this_process();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (_client, flow) = connect(&listener);
        let (_server, _) = listener.accept().unwrap();
        let now = Instant::now();
        lab.packet(flow, Side::Opener, now);
        lab.packet(other_end(&flow), Side::Called, now);
        lab.packet(flow, Side::Opener, now);
        let owner = lab.exactly_this_process();
        assert_eq!(lab.found(), [(flow, owner), (other_end(&flow), owner)]);
        assert_eq!(
            lab.early.get(&flow, Timestamp::now(), false).unwrap().owner,
            owner,
            "it is kept past the close"
        );
        assert_eq!(
            (lab.look.stats().packets, lab.look.stats().found),
            (2, 2),
            "a repeated packet is looked at once"
        );
    });
}

#[test]
fn connections_that_follow_one_another_are_told_apart_root() {
    alone(|mut lab| {
        lab.tell_of_this_process();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (client, flow) = connect(&listener);
        let (owner, now) = (lab.exactly_this_process(), Instant::now());
        lab.opening(flow, Side::Opener, 1, now);
        std::thread::sleep(Duration::from_millis(1));
        lab.opening(flow, Side::Opener, 2, now);
        lab.opening(flow, Side::Opener, 2, now);
        assert_eq!(lab.found(), [(flow, owner)], "the socket is the second one's");
        let times: Vec<Timestamp> = lab.look.seen.iter().map(|(opening, _)| opening.time).collect();
        let found: Vec<bool> = times.iter().map(|&time| lab.early.get(&flow, time, true).is_some()).collect();
        assert_eq!((lab.look.stats().too_late, found), (1, vec![false, true]));
        drop((client, listener.accept().unwrap()));
        lab.opening(flow, Side::Opener, 3, now);
        assert_eq!(lab.found(), []);
        let [_, second, third] =
            lab.look.seen.iter().map(|(opening, _)| opening.time).collect::<Vec<_>>()[..]
        else {
            panic!("three are looked for")
        };
        assert_eq!(lab.early.get(&flow, second, true).unwrap().owner, owner, "it is kept");
        assert_eq!(lab.early.get(&flow, third, true), None, "and is no other one's");
    });
}

#[test]
fn an_accepted_socket_is_waited_for_root() {
    alone(|mut lab| {
        lab.tell_of_this_process();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (_client, flow) = connect(&listener);
        let start = Instant::now();
        lab.packet(other_end(&flow), Side::Called, start);
        let nothing = |_: &FlowKey, _: &Owner| panic!("it is nobody's yet");
        let again = lab.look.look(start + CALLED[0], nothing).unwrap();
        let (_server, _) = listener.accept().unwrap();
        let mut found = 0;
        assert_eq!(lab.look.look(again, |_, owner| found = owner.process.pid), None);
        assert_eq!(found, lab.own.pid);
    });
}

#[test]
fn what_is_over_is_too_late_root() {
    alone(|mut lab| {
        lab.tell_of_this_process();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (client, flow) = connect(&listener);
        drop((client, listener.accept().unwrap()));
        lab.packet(flow, Side::Opener, Instant::now());
        lab.packet(other_end(&flow), Side::Called, Instant::now());
        assert_eq!(lab.found(), []);
        assert_eq!(lab.look.stats().too_late, 2);
        assert_eq!(lab.early.get(&flow, Timestamp(0), false), None);
    });
}

#[test]
fn the_sender_of_a_datagram_is_found_root() {
    alone(|mut lab| {
        lab.tell_of_this_process();
        let [socket, peer] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let flow = key(Protocol::UDP, socket.local_addr().unwrap(), peer.local_addr().unwrap());
        lab.packet(flow, Side::Opener, Instant::now());
        assert_eq!(lab.found(), [(flow, Owner { process: lab.own, quality: Quality::Guessed })]);
        socket.connect(peer.local_addr().unwrap()).unwrap();
        lab.packet(flow, Side::Opener, Instant::now() + REPEATED);
        assert_eq!(lab.found(), [(flow, lab.exactly_this_process())]);
    });
}

/// A new descriptor among hundreds, whatever low number it has, is found after some connections, and from
/// then on soon: other tests of this process may take the number in the meantime.
#[test]
fn a_process_of_many_descriptors_is_learned_bit_by_bit_root() {
    alone(|mut lab| {
        lab.tell_of_this_process();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut files: Vec<_> = (0..900).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let mut tries = || {
            let mut tries = 0;
            loop {
                tries += 1;
                let (_client, flow) = connect(&listener);
                lab.packet(flow, Side::Opener, Instant::now());
                if lab.found() == [(flow, lab.exactly_this_process())] {
                    return tries;
                }
                assert!(tries < 40);
            }
        };
        assert!(tries() < 5, "the last number is likely");
        files.remove(300);
        tries();
        assert!(tries() < 5);
    });
}

#[test]
fn a_socket_that_a_child_inherited_is_shared_root() {
    alone(|mut lab| {
        lab.tell_of_this_process();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (client, flow) = connect(&listener);
        nix::fcntl::fcntl(&client, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id() as i32;
        let event = |happening| ProcessEvent { pid, happening, at_ns: 0 };
        lab.look.process_event(&event(Happening::Fork { parent: lab.own.pid }), Instant::now());
        lab.packet(flow, Side::Opener, Instant::now());
        let found = lab.found();
        let held = std::fs::read_link(format!("/proc/{pid}/fd/{}", client.as_raw_fd()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(held.unwrap().to_string_lossy().starts_with("socket:"), "the child has inherited it");
        assert_eq!((found[0].1.process.pid, found[0].1.quality), (pid, Quality::Shared));
        lab.look.process_event(&event(Happening::Exit), Instant::now());
        lab.packet(flow, Side::Opener, Instant::now() + REPEATED);
        assert_eq!(lab.found(), [(flow, lab.exactly_this_process())]);
    });
}

#[test]
fn what_waits_is_bounded_root() {
    alone(|mut lab| {
        for port in 0..MAX_WAITING + 10 {
            let end = |port| SocketAddr::from(([127, 0, 0, 1], port));
            let flow = key(Protocol::TCP, end(port as u16), end(1));
            lab.packet(flow, Side::Called, Instant::now());
        }
        assert_eq!(lab.look.stats().crowded_out, 10);
        assert_eq!(lab.found(), []);
        assert_eq!(lab.look.stats().too_late, MAX_WAITING as u64);
    });
}
