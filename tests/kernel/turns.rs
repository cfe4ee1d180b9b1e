//! Processes that use the same endpoints or the same socket by turns: each is credited with its own bytes,
//! whatever their sizes.

use crate::lab::{Host, Lab, Maker};
use crate::watching::{
    B, B6, UDP_HEADERS, Watch, count_all, options, truth, user, with_lab, without_offloads,
};
use capture::internals::config::Engine;

/// Headers of a TCP packet over IPv4 with time stamps, including the link header.
const TCP_HEADERS: u64 = 66;

fn python(lab: &Lab, host: Host, program: &str, arguments: &[&str]) -> Maker {
    let mut command = lab.command(host, "python3");
    Maker::start_of(command.args(["-c", program]).args(arguments))
}

/// Returns the numbers in a program's next line.
fn numbers(program: &mut Maker) -> Vec<u64> {
    let line = program.line();
    line.split(' ').map(|word| word.parse().unwrap_or_else(|_| panic!("it said {line:?}"))).collect()
}

/// A Python server that ends each connection when its client has sent everything; with `first`, it does so
/// before the client.
const SERVER: &str = r#"
import socket, sys
listener = socket.create_server(("10.77.0.2", 7900), backlog=50)
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    if sys.argv[1] == "first":
        connection.sendall(b"x" * 5000)
    else:
        while connection.recv(65536):
            pass
        connection.sendall(b"x" * 5000)
    connection.close()
"#;

/// A Python program whose processes connect one after another from one port, and print their pids and the
/// bytes that they have sent. The time between them is shorter than a batch of captured packets.
const CLIENTS: &str = r#"
import os, socket, sys, time
sys.stdin.readline()
for number in range(1, 16):
    child = os.fork()
    if child == 0:
        while True:
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                client.bind(("10.77.0.1", 6100))
                client.connect(("10.77.0.2", 7900))
                break
            except OSError:
                client.close()
                time.sleep(0.01)
        if sys.argv[1] != "first":
            client.sendall(b"x" * 1000 * number)
            client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            pass
        if sys.argv[1] == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        os._exit(0)
    os.waitpid(child, 0)
    print(child, 0 if sys.argv[1] == "first" else 1000 * number, flush=True)
print("0 0", flush=True)
"#;

/// Regression: engine pcap looked up only the last of these connections: 92 % of the bytes had no owner.
#[test]
fn connections_from_one_port_are_each_processs_root() {
    with_lab(|lab| {
        without_offloads(lab);
        count_all(lab);
        for (engine, end) in [
            (Engine::Pcap, "last"),
            (Engine::Pcap, "first"),
            (Engine::Pcap, "reset"),
            (Engine::Kernel, "last"),
        ] {
            let mut watch = Watch::new(lab, options(engine));
            let before = truth(lab);
            let mut server = python(lab, Host::B, SERVER, &[end]);
            assert_eq!(server.line(), "ready");
            let mut clients = python(lab, Host::A, CLIENTS, &[end]);
            clients.start();
            let mut all = Vec::new();
            loop {
                let said = numbers(&mut clients);
                if said[0] == 0 {
                    break;
                }
                all.push((said[0] as i32, said[1]));
            }
            let after = truth(lab);
            let expected = (after.0 - before.0, after.1 - before.1);
            watch.until(&format!("{engine:?} {end}: all is the clients'"), |watch| watch.sums() == expected);
            for (pid, sent) in all {
                let found = watch.traffic(pid);
                // A SYN has 8 bytes more. A SYN that arrives too early is answered and sent again.
                let headers = found.send_bytes.saturating_sub(sent);
                let limit = found.send_packets * (TCP_HEADERS + 8);
                assert!(found.send_bytes > sent && headers <= limit, "{engine:?} {end} {sent}: {found:?}");
                assert!(found.receive_bytes > 5_000 && found.receive_bytes < 10_000, "{end}: {found:?}");
            }
        }
    });
}

/// A Python program in which parent and child request answers of different sizes by turns on a shared socket,
/// and each reads its own. It prints their pids and the sizes.
const BY_TURNS: &str = r#"
import os, socket, sys
kind = socket.SOCK_STREAM if sys.argv[1] == "tcp" else socket.SOCK_DGRAM
shared = socket.socket(socket.AF_INET, kind)
shared.connect(("10.77.0.2", 7910))
sys.stdin.readline()
to_child, to_parent = os.pipe(), os.pipe()
def turn(size):
    shared.send(b"%d\n" % size)
    while size:
        size -= len(shared.recv(size))
child = os.fork()
if child == 0:
    for _ in range(50):
        os.read(to_child[0], 1)
        turn(490)
        os.write(to_parent[1], b"x")
    os.read(to_child[0], 1)
    os._exit(0)
for _ in range(50):
    turn(20)
    os.write(to_child[1], b"x")
    os.read(to_parent[0], 1)
print(os.getpid(), child, flush=True)
sys.stdin.readline()
os.write(to_child[1], b"x")
os.wait()
"#;

/// Regression: received bytes were divided by the average size, which was 7.7 times too much for one of the
/// processes. On a stream, one process had less than the headers of its packets take.
#[test]
fn what_two_read_by_turns_is_each_ones_by_its_size_root() {
    with_lab(|lab| {
        without_offloads(lab);
        count_all(lab);
        let _peer = user(lab, Host::B, "drain", &format!("{B}:7910"), &[("segment", 1448)]);
        let mut watch = Watch::new(lab, options(Engine::Kernel));
        for (kind, headers, slack) in [("udp", UDP_HEADERS, 0), ("tcp", TCP_HEADERS, 10)] {
            let mut both = python(lab, Host::A, BY_TURNS, &[kind]);
            both.start();
            let pids = numbers(&mut both);
            for (pid, size) in pids.iter().zip([20, 490]) {
                let (sent, received) = (50 * (3 + u64::from(size > 99) + headers), 50 * (size + headers));
                watch.until(&format!("{kind}, {size} bytes each"), |watch| {
                    let found = watch.traffic(*pid as i32);
                    // A stream also has its handshake and acknowledgements.
                    let near = |found: u64, expected: u64| {
                        found >= expected - expected * slack / 100
                            && found <= expected + 50 * headers * slack.min(1) * 2
                    };
                    near(found.send_bytes, sent) && near(found.receive_bytes, received)
                });
            }
            both.end();
        }
    });
}

/// A Python program in which a listener passes its connections to a worker that accepts and splices. Neither
/// makes any other call on them. It prints both pids.
const SPLICING: &str = r#"
import os, socket, sys
listener = socket.create_server(("10.77.0.1", 7920))
worker = os.fork()
if worker == 0:
    connection, _ = listener.accept()
    into, out_of = os.pipe()
    null = os.open("/dev/null", os.O_WRONLY)
    while True:
        count = os.splice(connection.fileno(), out_of, 65536)
        if not count:
            break
        os.splice(into, null, count)
    os._exit(0)
print(os.getpid(), worker, flush=True)
sys.stdin.readline()
os.wait()
"#;

/// A Python program that sends for four seconds.
const SENDING: &str = r#"
import socket, time
connection = socket.create_connection(("10.77.0.1", 7920))
for _ in range(200):
    connection.sendall(b"x" * 1000)
    time.sleep(0.02)
connection.close()
"#;

/// Regression: the process that had created the listener was credited, or no process as long as the
/// connection lasted.
#[test]
fn a_connection_that_is_only_spliced_from_is_its_holders_root() {
    with_lab(|lab| {
        without_offloads(lab);
        count_all(lab);
        for engine in [Engine::Kernel, Engine::Pcap] {
            let mut watch = Watch::new(lab, options(engine));
            let before = truth(lab);
            let mut both = python(lab, Host::A, SPLICING, &[]);
            let pids = numbers(&mut both);
            let _sender = python(lab, Host::B, SENDING, &[]);
            let worker = pids[1] as i32;
            watch.until(&format!("{engine:?}: most is the worker's"), |watch| {
                watch.traffic(worker).receive_bytes > 200_000
            });
            both.start();
            watch.until(&format!("{engine:?}: all is counted"), |watch| {
                let after = truth(lab);
                let end = watch.traffic(worker).send_packets * TCP_HEADERS;
                watch.sums() == (after.0 - before.0, after.1 - before.1) && end > 0
            });
            assert!(watch.traffic(pids[0] as i32).is_empty(), "{engine:?}");
        }
    });
}

/// A Python client whose packets have a destination options header between the IPv6 and TCP headers
/// (IPV6_DSTOPTS, RFC 3542): 8 bytes of padding. It prints its pid.
const WITH_OPTIONS: &str = r#"
import os, socket, sys
client = socket.socket(socket.AF_INET6)
client.setsockopt(socket.IPPROTO_IPV6, 59, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
sys.stdin.readline()
client.connect(("fd77::2", 7930))
client.sendall(b"3000\n" + b" " * 20000)
left = 3000
while left:
    left -= len(client.recv(left))
print(os.getpid(), flush=True)
sys.stdin.readline()
"#;

#[test]
fn headers_before_the_message_hide_no_endpoints_root() {
    with_lab(|lab| {
        without_offloads(lab);
        lab.count(Host::A, "ip6 daddr fd77::2 meta l4proto tcp", "ip6 saddr fd77::2 meta l4proto tcp");
        let _peer = user(lab, Host::B, "drain", &format!("[{B6}]:7930"), &[("segment", 1448)]);
        for engine in [Engine::Kernel, Engine::Pcap] {
            let mut watch = Watch::new(lab, options(engine));
            let before = truth(lab);
            let mut client = python(lab, Host::A, WITH_OPTIONS, &[]);
            client.start();
            let pid = numbers(&mut client)[0] as i32;
            watch.until(&format!("{engine:?}: all is the client's"), |watch| {
                let (found, after) = (watch.traffic(pid), truth(lab));
                (found.send_bytes, found.receive_bytes) == (after.0 - before.0, after.1 - before.1)
                    && found.send_bytes > 20_000
            });
            client.end();
        }
    });
}

/// A Python program that sends ten UDP datagrams through a packet socket for which the device adds the link
/// header (packet(7), SOCK_DGRAM), bypassing the queues if the argument is 1. It also sends one through the
/// UDP socket that has their endpoints, and prints its pid.
const PACKETS: &str = r#"
import os, socket, struct, sys
SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("10.77.0.1", 6200))
datagrams.connect(("10.77.0.2", 7000))
packets = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
packets.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, int(sys.argv[1]))
ends = socket.inet_aton("10.77.0.1") + socket.inet_aton("10.77.0.2")
packet = struct.pack("!BBHHHBBH", 0x45, 0, 300, 0, 0, 64, 17, 0) + ends
packet += struct.pack("!HHHH", 6200, 7000, 280, 0) + b"x" * 272
sys.stdin.readline()
for _ in range(10):
    packets.sendto(packet, ("veth0", 0x0800, 0, 0, b"\2\0\0\0\0\2"))
datagrams.send(b"x" * 58)
print(os.getpid(), flush=True)
sys.stdin.readline()
"#;

#[test]
fn a_packet_sockets_datagrams_have_a_link_header_root() {
    with_lab(|lab| {
        let sent_by_device = || {
            let name = lab.name(Host::A);
            let shown = crate::lab::run(&format!("ip -n {name} -s -j link show veth0"));
            let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
            shown[0]["stats64"]["tx"]["bytes"].as_u64().unwrap()
        };
        for (engine, past_queues, expected) in [
            (Engine::Kernel, "0", 10 * 314 + 100),
            (Engine::Kernel, "1", 10 * 314 + 100),
            (Engine::Pcap, "0", 10 * 314 + 100),
            // The kernel does not show such packets to captures.
            (Engine::Pcap, "1", 100),
        ] {
            let mut watch = Watch::new(lab, options(engine));
            let mut sender = python(lab, Host::A, PACKETS, &[past_queues]);
            let before = sent_by_device();
            sender.start();
            let pid = numbers(&mut sender)[0] as i32;
            let sent = sent_by_device() - before;
            // The kernel may have sent packets of its neighbour protocols meanwhile.
            assert!((10 * 314 + 100..20 * 314).contains(&sent), "{sent}");
            watch.until(&format!("{engine:?} {past_queues}: {expected} bytes are the sender's"), |watch| {
                watch.traffic(pid).send_bytes == expected
            });
            sender.end();
        }
    });
}

/// A Python server that is told to stop listening. It prints the TCP payload and the number of connections,
/// and the payload and the number of datagrams.
const RELOADED: &str = r#"
import os, select, socket, sys
def bound(kind):
    opened = socket.socket(socket.AF_INET, kind)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    opened.bind(("10.77.0.1", 7920))
    return opened
listener, datagrams = bound(socket.SOCK_STREAM), bound(socket.SOCK_DGRAM)
listener.listen(50)
print(os.getpid(), flush=True)
stream_bytes = connections = datagram_bytes = count = 0
while True:
    ready, _, _ = select.select([sys.stdin, listener, datagrams], [], [])
    if listener in ready:
        connection, _ = listener.accept()
        connections += 1
        while part := connection.recv(65536):
            stream_bytes += len(part)
        connection.close()
    elif datagrams in ready:
        datagram_bytes += len(datagrams.recv(65536))
        count += 1
    else:
        sys.stdin.readline()
        break
listener.close()
datagrams.close()
print(stream_bytes, connections, datagram_bytes, count, flush=True)
sys.stdin.readline()
"#;

/// A Python client that, for each line, makes ten connections and sends some datagrams through a socket that
/// stays the same.
const CALLER: &str = r#"
import socket, sys
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("10.77.0.2", 6200))
datagrams.connect(("10.77.0.1", 7920))
for _ in sys.stdin:
    for _ in range(10):
        with socket.create_connection(("10.77.0.1", 7920)) as connection:
            connection.sendall(b"x" * 3000)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
    for _ in range(int(sys.argv[1])):
        datagrams.send(b"x" * 500)
    print("0", flush=True)
"#;

/// While a server is reloaded, two processes have sockets at one port. Each is credited with its own bytes,
/// and the end of the older process's socket takes nothing from the younger process.
#[test]
fn a_server_that_is_reloaded_has_what_each_of_its_processes_got_root() {
    with_lab(|lab| {
        without_offloads(lab);
        count_all(lab);
        // With captured packets, datagrams between the same endpoints stay the first process's until the
        // recheck.
        for (engine, datagrams) in [(Engine::Pcap, "0"), (Engine::Kernel, "50")] {
            let mut watch = Watch::new(lab, options(engine));
            let before = truth(lab);
            let mut caller = python(lab, Host::B, CALLER, &[datagrams]);
            let mut call = || {
                caller.start();
                numbers(&mut caller);
            };
            let mut old = python(lab, Host::A, RELOADED, &[]);
            let mut pids = numbers(&mut old);
            call();
            let mut new = python(lab, Host::A, RELOADED, &[]);
            pids.extend(numbers(&mut new));
            call();
            old.start();
            let mut got = vec![numbers(&mut old)];
            call();
            call();
            new.start();
            got.push(numbers(&mut new));
            let after = truth(lab);
            let expected = (after.0 - before.0, after.1 - before.1);
            watch.until(&format!("{engine:?}: all is the servers'"), |watch| watch.sums() == expected);
            for (pid, got) in pids.into_iter().zip(got) {
                let [stream, connections, datagrams, count] = got[..] else { panic!("{got:?}") };
                let least = stream + datagrams + count * UDP_HEADERS;
                // Handshake, payload, acknowledgement and end of a connection.
                let most = least + connections * 12 * (TCP_HEADERS + 8);
                let found = watch.traffic(pid as i32).receive_bytes;
                assert!((least..most).contains(&found), "{engine:?}: {found}, {got:?}");
            }
            old.start();
            new.start();
        }
    });
}

/// A Python server, one of several at a UDP port. It reads only once datagrams are there, and prints the
/// number that it has received.
const WORKER: &str = r#"
import os, socket, sys, time
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
datagrams.bind(("10.77.0.1", 7930))
print(os.getpid(), flush=True)
sys.stdin.readline()
time.sleep(0.5)
datagrams.settimeout(1)
count = 0
try:
    while True:
        datagrams.recv(65536)
        count += 1
except TimeoutError:
    print(count, flush=True)
sys.stdin.readline()
"#;

/// A Python program in which many clients send to the servers.
const CLIENTS_OF_WORKERS: &str = r#"
import socket, sys, time
sys.stdin.readline()
clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(40)]
for _ in range(10):
    for client in clients:
        client.sendto(b"x" * 500, ("10.77.0.1", 7930))
    time.sleep(0.1)
print("0", flush=True)
"#;

/// Regression: a client whose first datagram arrived before its server's first read had no owner, because the
/// socket at the port was looked up by the port alone.
#[test]
fn datagrams_to_one_of_several_sockets_at_a_port_are_its_process_root() {
    with_lab(|lab| {
        count_all(lab);
        let mut watch = Watch::new(lab, options(Engine::Pcap));
        let mut workers: Vec<Maker> = (0..4).map(|_| python(lab, Host::A, WORKER, &[])).collect();
        let pids: Vec<u64> = workers.iter_mut().flat_map(numbers).collect();
        let mut clients = python(lab, Host::B, CLIENTS_OF_WORKERS, &[]);
        workers.iter_mut().chain([&mut clients]).for_each(Maker::start);
        numbers(&mut clients);
        let counts: Vec<u64> = workers.iter_mut().flat_map(numbers).collect();
        assert_eq!(counts.iter().sum::<u64>(), 400, "{counts:?}");
        watch.until(&format!("each of {pids:?} has {counts:?}"), |watch| {
            pids.iter()
                .zip(&counts)
                .all(|(&pid, count)| watch.traffic(pid as i32).receive_bytes == count * (500 + UDP_HEADERS))
        });
        workers.iter_mut().for_each(Maker::end);
    });
}
