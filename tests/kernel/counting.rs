//! The engine `kernel` in cases that the accuracy scenarios do not cover: sockets used in turn, devices
//! without a link header.

use crate::lab::{Host, Lab};
use crate::may_run;
use capture::internals::config::{Engine, Options};
use capture::internals::model::{ProcessRecord, Quality};
use capture::internals::namespace::NamespaceChoice;
use capture::internals::session::Session;
use capture::internals::tap::TapOptions;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(20);

/// Runs a test with a session on host A, in a thread that may change its network namespace.
fn with_session(test: impl FnOnce(&Lab, Session) + Send) {
    if !may_run() || !cfg!(feature = "ebpf") {
        return;
    }
    let body = || {
        let lab = Lab::new();
        lab.enter(Host::A);
        // The traffic of the other host's ends does not belong to these tests.
        let capture = TapOptions { namespaces: NamespaceChoice::Own, ..TapOptions::default() };
        let options = Options { engine: Engine::Kernel, flows: true, capture, ..Options::default() };
        let session = Session::open(options).unwrap();
        assert_eq!(session.stats_reader().read().engine, Engine::Kernel);
        test(&lab, session);
    };
    std::thread::scope(|scope| scope.spawn(body).join().unwrap());
}

/// Updates until a process's record meets the condition.
fn until(session: &mut Session, pid: i32, wanted: impl Fn(&ProcessRecord) -> bool) -> ProcessRecord {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        session.update().unwrap();
        let record = session.processes().find(|record| record.sample.id.pid == pid).cloned();
        match record {
            Some(record) if wanted(&record) => return record,
            record => assert!(Instant::now() < deadline, "{record:?}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A Python program in which parent and child send by turns on one UDP socket. It prints both pids when
/// everything is sent.
const IN_TURN: &str = r#"
import os, socket, sys
socket_ = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
socket_.connect(("10.77.0.2", 7000))
to_child, to_parent = os.pipe(), os.pipe()
child = os.fork()
mine, theirs, size = (to_child, to_parent, 300) if child == 0 else (to_parent, to_child, 100)
for turn in range(20):
    if child == 0:
        os.read(mine[0], 1)
    for _ in range(5):
        socket_.send(b"x" * size)
    os.write(theirs[1], b"x")
    if child:
        os.read(mine[0], 1)
if child:
    print(os.getpid(), child, flush=True)
    sys.stdin.readline()
    os.kill(child, 9)
    os.wait()
else:
    import signal
    signal.pause()
"#;

/// Binds the other end of what is sent to 10.77.0.2:7000. No process reads from it.
fn bound_on_b(lab: &Lab) -> UdpSocket {
    let bind = || {
        lab.enter(Host::B);
        UdpSocket::bind("10.77.0.2:7000").unwrap()
    };
    std::thread::scope(|scope| scope.spawn(bind).join().unwrap())
}

#[test]
fn a_socket_used_in_turn_is_shared_out_root() {
    with_session(|lab, mut session| {
        let _sink = bound_on_b(lab);
        let mut program = Command::new("python3")
            .args(["-c", IN_TURN])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(program.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let pids: Vec<i32> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
        // 100 datagrams each, with headers of UDP, IP and Ethernet.
        for (pid, size) in pids.into_iter().zip([100, 300]) {
            let record = until(&mut session, pid, |record| record.traffic.send_packets >= 100);
            assert_eq!((record.traffic.send_packets, record.traffic.send_bytes), (100, 100 * (size + 42)));
            assert_eq!(record.uncertain_bytes, record.traffic.send_bytes, "such bytes are told apart");
        }
        let stats = session.stats_reader();
        let owned = || stats.read().bytes.owned[Quality::Shared as usize];
        assert_eq!(owned(), 100 * (142 + 342));
        // Nothing is reported twice, however long the socket is unused.
        for _ in 0..100 {
            session.update().unwrap();
        }
        assert_eq!(owned(), 100 * (142 + 342));
        program.stdin.take().unwrap().write_all(b"\n").unwrap();
        assert!(program.wait().unwrap().success());
    });
}

/// Returns the packets that a device of this thread's network namespace has sent, proc_pid_net(5).
fn sent_by_device(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.split_whitespace().nth(9).unwrap().parse().unwrap()
}

/// Packets that several threads send through one socket at the same time are counted while the session reads
/// the counters.
#[test]
fn a_busy_socket_that_is_read_meanwhile_is_counted_to_the_last_packet_root() {
    const THREADS: u64 = 3;
    const EACH: u64 = 100_000;
    with_session(|lab, mut session| {
        let _sink = bound_on_b(lab);
        let socket = UdpSocket::bind("10.77.0.1:0").unwrap();
        socket.connect("10.77.0.2:7000").unwrap();
        let pid = std::process::id() as i32;
        let before = sent_by_device("veth0");
        std::thread::scope(|scope| {
            let senders: Vec<_> = (0..THREADS)
                .map(|_| scope.spawn(|| (0..EACH).for_each(|_| drop(socket.send(&[0; 58])))))
                .collect();
            while senders.iter().any(|sender| !sender.is_finished()) {
                session.update().unwrap();
            }
        });
        let record = until(&mut session, pid, |record| record.traffic.send_packets >= THREADS * EACH);
        let counted = (record.traffic.send_packets, record.traffic.send_bytes);
        assert_eq!(counted, (THREADS * EACH, THREADS * EACH * 100));
        // The device has sent them all, and perhaps also packets of the kernel's neighbour protocols.
        assert!((0..100).contains(&(sent_by_device("veth0") - before - THREADS * EACH)));
        assert_eq!(record.connections.unwrap().sends, THREADS * EACH);
        // The end of the socket adds nothing.
        drop(socket);
        session.update().unwrap();
        let record = until(&mut session, pid, |_| true);
        assert_eq!((record.traffic.send_packets, record.traffic.send_bytes), counted);
    });
}

/// The kernel then refuses the storage through which the reader would find a busy socket's counters.
/// Regression: all but 64 of the packets were not counted at all.
#[test]
fn a_busy_socket_without_memory_for_options_is_counted_to_the_last_packet_root() {
    const EACH: u64 = 5_000;
    with_session(|lab, mut session| {
        let _sink = bound_on_b(lab);
        crate::lab::run(&format!("ip netns exec {} sysctl -q net.core.optmem_max=0", lab.name(Host::A)));
        let socket = UdpSocket::bind("10.77.0.1:0").unwrap();
        socket.connect("10.77.0.2:7000").unwrap();
        let before = sent_by_device("veth0");
        (0..EACH).for_each(|_| drop(socket.send(&[0; 58])));
        let sent = sent_by_device("veth0") - before;
        assert!((EACH..EACH + 100).contains(&sent), "{sent}");
        let pid = std::process::id() as i32;
        let record = until(&mut session, pid, |record| record.traffic.send_packets >= EACH);
        assert_eq!((record.traffic.send_packets, record.traffic.send_bytes), (EACH, EACH * 100));
        assert_eq!(record.connections.unwrap().sends, EACH);
    });
}

/// Returns the segments that a connection has sent and their payload in bytes, as `struct tcp_info` in
/// include/uapi/linux/tcp.h reports them.
fn sent_by_connection(stream: &TcpStream) -> (u64, u64) {
    const SEGMENTS: usize = 136;
    const BYTES: usize = 200;
    let mut info = [0_u8; 256];
    let mut length = info.len() as libc::socklen_t;
    // SAFETY: the buffer has the stated length and outlives the call.
    let asked = unsafe {
        let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
        libc::getsockopt(stream.as_raw_fd(), level, name, info.as_mut_ptr().cast(), &raw mut length)
    };
    assert!(asked == 0 && length as usize >= BYTES + 8);
    let segments = u32::from_ne_bytes(info[SEGMENTS..SEGMENTS + 4].try_into().unwrap());
    (segments.into(), u64::from_ne_bytes(info[BYTES..BYTES + 8].try_into().unwrap()))
}

/// A busy socket has separate counters until they are read, with room for 16 million packets. A socket that
/// is not read for longer loses none.
#[test]
fn a_busy_socket_that_is_not_read_for_long_is_counted_to_the_last_packet_root() {
    const PACKETS: u64 = 18_000_000;
    /// Headers of Ethernet, IPv4 and TCP with the time stamps.
    const HEADERS: u64 = 14 + 20 + 32;
    /// The smallest segment that TCP agrees to, without the time stamps.
    const PAYLOAD: u64 = 88 - 12;
    /// The options of a connection's first two segments beyond the time stamps.
    const OPTIONS: u64 = 2 * 8;
    with_session(|lab, mut session| {
        crate::lab::run(&format!("ip -n {} link set lo up", lab.name(Host::A)));
        // Without SACK, the headers of all acknowledgements have the same length.
        crate::lab::run(&format!("ip netns exec {} sysctl -q net.ipv4.tcp_sack=0", lab.name(Host::A)));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        nix::sys::socket::setsockopt(&listener, nix::sys::socket::sockopt::TcpMaxSeg, &88).unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        session.update().unwrap();
        let reading = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            while receiver.read(&mut buffer).unwrap() > 0 {}
            receiver
        });
        let chunk = vec![0; 1 << 20];
        let mut left = PACKETS * PAYLOAD;
        while left > 0 {
            let part = left.min(chunk.len() as u64) as usize;
            sender.write_all(&chunk[..part]).unwrap();
            left -= part as u64;
        }
        sender.shutdown(std::net::Shutdown::Write).unwrap();
        let receiver = reading.join().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        let ends = [sent_by_connection(&sender), sent_by_connection(&receiver)];
        // The first answer was sent before the receiver existed.
        let (packets, payload) = (ends[0].0 + ends[1].0 + 1, ends[0].1 + ends[1].1);
        assert!(ends[0].0 > PACKETS && payload >= PACKETS * PAYLOAD, "{ends:?}");
        let record =
            until(&mut session, std::process::id() as i32, |record| record.traffic.send_packets >= packets);
        let traffic = record.traffic;
        assert_eq!((traffic.send_packets, traffic.receive_packets), (packets, packets));
        let bytes = payload + packets * HEADERS + OPTIONS;
        assert_eq!((traffic.send_bytes, traffic.receive_bytes), (bytes, bytes));
    });
}

/// Returns a socket's cookie, the number by which the kernel knows it, socket(7).
fn cookie_of(socket: &UdpSocket) -> u64 {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the number has the stated length and outlives the call.
    let asked = unsafe {
        let to = (&raw mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_COOKIE, to, &raw mut length)
    };
    assert_eq!(asked, 0);
    cookie
}

/// Of sockets whose cookies end in the same bits, only one can have separate counters. All sockets are
/// credited with what they sent, even if another socket has taken the counters of one that was idle for long.
#[test]
fn sockets_that_share_a_place_are_all_counted_root() {
    /// Places of the array of counters.
    const PLACES: u64 = 1024;
    /// The time after which an idle socket's place can be taken by another.
    const REST: Duration = Duration::from_secs(11);
    const EACH: u64 = 500;
    with_session(|lab, mut session| {
        let _sink = bound_on_b(lab);
        let open = || {
            let socket = UdpSocket::bind("10.77.0.1:0").unwrap();
            socket.connect("10.77.0.2:7000").unwrap();
            socket
        };
        let first = open();
        let place = cookie_of(&first) % PLACES;
        let alike =
            || std::iter::repeat_with(open).find(|socket| cookie_of(socket) % PLACES == place).unwrap();
        let sockets = [first, alike(), alike()];
        let before = sent_by_device("veth0");
        let mut sent = 0;
        for (turn, users) in
            [[0, 0, 0], [1, 1, 1], [1, 2, 1], [0, 1, 2], [2, 2, 2], [0, 2, 0]].iter().enumerate()
        {
            if turn > 0 && turn % 2 == 0 {
                std::thread::sleep(REST);
            }
            for _ in 0..EACH {
                for &user in users {
                    sockets[user].send(&[0; 58]).unwrap();
                    sent += 1;
                }
            }
            session.update().unwrap();
        }
        let record =
            until(&mut session, std::process::id() as i32, |record| record.traffic.send_packets >= sent);
        assert_eq!((record.traffic.send_packets, record.traffic.send_bytes), (sent, sent * 100));
        assert!((0..100).contains(&(sent_by_device("veth0") - before - sent)));
        assert_eq!(record.connections.unwrap().sends, sent);
    });
}

/// Opens a TUN device with the address 10.99.0.1/24.
fn open_tun(lab: &Lab) -> File {
    let file = crate::lab::open_tun("bare", libc::IFF_TUN, |_| ());
    let name = lab.name(Host::A);
    crate::lab::run(&format!("ip -n {name} addr add 10.99.0.1/24 dev bare"));
    crate::lab::run(&format!("ip -n {name} link set bare up"));
    file
}

#[test]
fn a_device_without_a_link_header_adds_none_root() {
    with_session(|lab, mut session| {
        let _device = open_tun(lab);
        // The session notices the device within a second.
        std::thread::sleep(Duration::from_millis(1_100));
        session.update().unwrap();
        let socket = UdpSocket::bind("10.99.0.1:0").unwrap();
        let pid = std::process::id() as i32;
        for _ in 0..10 {
            socket.send_to(&[0; 72], "10.99.0.2:7000").unwrap();
        }
        let record = until(&mut session, pid, |record| record.traffic.send_packets >= 10);
        assert_eq!((record.traffic.send_packets, record.traffic.send_bytes), (10, 10 * 100));
    });
}

/// Puts a bridge on host A's wire and moves host A's address to it.
fn bridge_the_wire(lab: &Lab) {
    let name = lab.name(Host::A);
    for command in [
        "link add bridge0 type bridge",
        "addr del 10.77.0.1/24 dev veth0",
        "link set veth0 master bridge0",
        "link set bridge0 up",
        "addr add 10.77.0.1/24 dev bridge0",
    ] {
        crate::lab::run(&format!("ip -n {name} {command}"));
    }
}

/// Packets that the kernel sends for a connection after its process has closed it pass several devices here.
/// They are counted once.
#[test]
fn acknowledgements_without_a_socket_are_counted_at_one_device_root() {
    const CONNECTIONS: u64 = 50;
    with_session(|lab, mut session| {
        bridge_the_wire(lab);
        let listener = TcpListener::bind("10.77.0.1:7300").unwrap();
        lab.count_port(Host::A, "tcp", 7300);
        for _ in 0..CONNECTIONS {
            let connect = || TcpStream::connect("10.77.0.1:7300").unwrap();
            let mut far = crate::lab::enter(lab.name(Host::B), connect);
            let (server, _) = listener.accept().unwrap();
            drop(server);
            assert_eq!(far.read(&mut [0]).unwrap(), 0);
            // The server's FIN gets an acknowledgement of its own only if the other end does not close at
            // once.
            std::thread::sleep(Duration::from_millis(50));
        }
        let (sent, received) = lab.counted(Host::A).both();
        let record =
            until(&mut session, std::process::id() as i32, |record| record.traffic.send_bytes >= sent);
        std::thread::sleep(Duration::from_millis(200));
        session.update().unwrap();
        assert_eq!((record.traffic.send_bytes, record.traffic.receive_bytes), (sent, received));
    });
}
