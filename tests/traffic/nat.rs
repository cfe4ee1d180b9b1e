//! Translated addresses: published ports, redirected ports, virtual addresses, masquerading, and the
//! kernel's answers. The process that holds the socket is credited with the bytes; bytes of other hosts
//! have no owner here.

use super::{Watch, options, with};
use capture::internals::config::{Engine, Options};
use capture::internals::model::{Traffic, Unowned};
use capture::internals::namespace::NamespaceChoice;
use capture::internals::tap::TapOptions;
use capture_test_support::lab::{Host, Lab, Maker, die_with_this, enter, nft, path_of, run};
use capture_test_support::programs::traffic_maker;
use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The time limit, far longer than finding an owner takes.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Payload of each flow.
const BYTES: u64 = 1_000_000;
const RATE: u64 = 4_000_000;

/// The ways to find owners: with eBPF programs, without them, or with engine `kernel`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    Owners,
    Portable,
    Kernel,
}

impl Way {
    pub const ALL: [Way; 3] = [Way::Owners, Way::Portable, Way::Kernel];

    pub fn options(self) -> Options {
        let engine = if self == Way::Kernel { Engine::Kernel } else { Engine::Pcap };
        Options { probes: self != Way::Portable, ..options(engine) }
    }
}

/// A container of host A: a namespace whose traffic is routed through the host. Dropping this removes it.
pub struct Container {
    pub name: String,
}

impl Container {
    /// Makes 10.78.0.2 behind 10.78.0.1, an address of host A.
    pub fn of(lab: &Lab) -> Container {
        let (host, container) = (lab.name(Host::A), Container { name: format!("{}-c", lab.name(Host::A)) });
        let name = &container.name;
        run(&format!("ip netns add {name}"));
        run(&format!("ip -n {host} link add inner type veth peer name eth0 netns {name}"));
        for (namespace, device, address) in [(host, "inner", "10.78.0.1/24"), (name, "eth0", "10.78.0.2/24")]
        {
            run(&format!("ip -n {namespace} addr add {address} dev {device}"));
            run(&format!("ip -n {namespace} link set {device} up"));
            without_offloads(namespace, device);
        }
        run(&format!("ip -n {name} link set lo up"));
        run(&format!("ip -n {name} route add default via 10.78.0.1"));
        lab.set(Host::A, "net/ipv4/ip_forward", "1");
        container
    }

    fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    fn maker(&self, mode: &str, address: &str, numbers: &[(&str, u64)]) -> Maker {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(traffic_maker());
        command.args([mode, address]).args(numbers.iter().map(|(name, number)| format!("{name}={number}")));
        let mut maker = Maker::start_of(&mut die_with_this(command));
        assert_eq!(maker.line(), "ready", "{mode}");
        maker
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // A namespace that was never made cannot be deleted; there is no caller to report the error to.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
    }
}

fn without_offloads(namespace: &str, device: &str) {
    run(&format!("ip netns exec {namespace} ethtool -K {device} tso off gso off gro off"));
    // TCP still makes packets of several segments, which would be cut after the counters.
    run(&format!("ip -n {namespace} link set {device} gso_max_segs 1"));
}

/// Makes a lab in which a packet of the counters is a packet on the wire.
pub fn lab() -> Lab {
    let lab = Lab::new();
    [Host::A, Host::B].iter().for_each(|host| without_offloads(lab.name(*host), "veth0"));
    lab
}

/// Counts from now on the bytes that programs in a namespace send to an address and receive from it.
pub fn count(namespace: &str, peer: &str) {
    let all = "meta l4proto { tcp, udp }";
    count_as("counted", namespace, &format!("{all} ip daddr {peer}"), &format!("{all} ip saddr {peer}"));
}

/// Counts in a table of this name the bytes that programs in a namespace send and receive in packets that
/// match.
fn count_as(table: &str, namespace: &str, sent: &str, received: &str) {
    nft(
        namespace,
        &format!(
            "table inet {table} {{
               counter sent {{}}
               counter received {{}}
               chain output {{ type filter hook output priority 0; {sent} counter name sent; }}
               chain input {{ type filter hook input priority 0; {received} counter name received; }}
             }}"
        ),
    );
}

/// Returns the bytes sent and received since [`count`], with a link header for each packet, once they
/// no longer change.
pub fn counted(namespace: &str) -> (u64, u64) {
    counted_as("counted", namespace)
}

fn counted_as(table: &str, namespace: &str) -> (u64, u64) {
    let read = |name: &str| {
        let text = run(&format!("ip netns exec {namespace} nft list counter inet {table} {name}"));
        let words: Vec<&str> = text.split_whitespace().collect();
        let after = |name| {
            let at = words.iter().position(|&word| word == name).unwrap();
            words[at + 1].parse::<u64>().unwrap()
        };
        after("bytes") + 14 * after("packets")
    };
    let mut before = None;
    loop {
        let now = (read("sent"), read("received"));
        if before == Some(now) {
            return now;
        }
        before = Some(now);
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Returns sockets of this process on a host that it never reads from, on one port of all addresses.
fn idle(lab: &Lab, port: u16) -> (TcpListener, UdpSocket) {
    enter(lab.name(Host::A), || {
        (TcpListener::bind(("0.0.0.0", port)).unwrap(), UdpSocket::bind(("0.0.0.0", port)).unwrap())
    })
}

pub fn unowned(watch: &Watch, reason: Unowned) -> u64 {
    watch.session.stats_reader().read().bytes.unowned[reason as usize]
}

/// Moves the bytes from a source to a sink, and returns both once they have finished.
fn moved(mut source: Maker, mut sink: Maker) -> [Maker; 2] {
    source.start();
    assert_eq!(source.finish().payload, BYTES);
    sink.finish();
    [source, sink]
}

/// Runs a test with each way and protocol.
fn each(test: impl Fn(&Lab, Way, &'static str) + Sync) {
    for way in Way::ALL {
        for protocol in ["tcp", "udp"] {
            with(lab, |lab| {
                println!("{way:?}, {protocol}:");
                test(&lab, way, protocol);
            });
        }
    }
}

const NUMBERS: [(&str, u64); 2] = [("bytes", BYTES), ("rate", RATE)];

#[test]
fn a_published_port_is_the_servers_in_the_container_and_not_an_idle_listeners_root() {
    each(|lab, way, protocol| {
        let container = Container::of(lab);
        nft(
            lab.name(Host::A),
            "table ip published {
               chain before {
                 type nat hook prerouting priority -100;
                 meta l4proto { tcp, udp } th dport 8080 dnat to 10.78.0.2:80
               }
             }",
        );
        count(&container.name, "10.77.0.2");
        let _idle = idle(lab, 8080);
        for with_container in [true, false] {
            let choice = NamespaceChoice::Chosen(vec![container.path()]);
            let namespaces = if with_container { choice } else { NamespaceChoice::Own };
            let capture = TapOptions { namespaces, ..TapOptions::default() };
            let mut watch = Watch::with(lab, Host::A, Options { capture, ..way.options() });
            let before = counted(&container.name);
            let sink = container.maker(&format!("{protocol}-sink"), "0.0.0.0:80", &NUMBERS);
            let source = lab.maker(Host::B, &format!("{protocol}-source"), "10.77.0.1:8080", &NUMBERS);
            let [_source, sink] = moved(source, sink);
            let now = counted(&container.name);
            let truth = (now.0 - before.0, now.1 - before.1);
            assert!(truth.1 > BYTES);
            if with_container {
                watch.expect_all_within(TIMEOUT, sink.pid(), truth);
            } else {
                expect_nothing(&mut watch, way, truth.0 + truth.1);
            }
        }
    });
}

/// Updates until `passed` bytes have been captured, if packets are captured; asserts that no process is
/// credited with any.
#[track_caller]
fn expect_nothing(watch: &mut Watch, way: Way, passed: u64) {
    let is_done = |watch: &Watch| way == Way::Kernel || unowned(watch, Unowned::NotLocal) >= 2 * passed;
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        watch.update();
        if is_done(watch) && unowned(watch, Unowned::Pending) == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(watch.traffic(), [].into());
    assert!(is_done(watch), "{passed}: {:?}", watch.session.stats_reader().read().bytes);
}

/// Masquerading keeps the port if possible, so that the flow of the container looks like one of a
/// process of the host.
#[test]
fn a_masqueraded_connection_is_not_that_of_a_process_that_has_called_the_same_server_root() {
    each(|lab, way, protocol| {
        let container = Container::of(lab);
        nft(
            lab.name(Host::A),
            "table ip hidden {
               chain after {
                 type nat hook postrouting priority 100;
                 ip saddr 10.78.0.0/24 masquerade
               }
             }",
        );
        count(lab.name(Host::A), "10.77.0.2");
        count(&container.name, "10.77.0.2");
        let mut watch = Watch::with(lab, Host::A, way.options());
        let (source, sink) = (format!("{protocol}-source"), format!("{protocol}-sink"));
        let server = || lab.maker(Host::B, &sink, "10.77.0.2:443", &NUMBERS);
        let listening = server();
        let [host, _] = moved(lab.maker(Host::A, &source, "10.77.0.2:443", &NUMBERS), listening);
        let truth = counted(lab.name(Host::A));
        watch.wait_for_traffic(|traffic| traffic.contains_key(&host.pid()));
        let listening = server();
        let _other = moved(container.maker(&source, "10.77.0.2:443", &NUMBERS), listening);
        let (sent, received) = counted(&container.name);
        assert!(sent > BYTES);
        watch.expect_all_within(TIMEOUT, host.pid(), truth);
        if way != Way::Kernel {
            // Captured on both devices that it passes.
            let passed = 2 * (sent + received);
            let found = unowned(&watch, Unowned::NotLocal);
            assert!(found.abs_diff(passed) <= passed / 1000, "{found} of {passed}");
        }
        assert_eq!(counted(lab.name(Host::A)), truth);
    });
}

#[test]
fn a_process_has_the_bytes_of_its_socket_whatever_the_wire_says_root() {
    // The client's host, the address that it connects to, the server's host and the server's address.
    let called = |port| format!("10.77.0.2:{port}");
    let flows: [(Host, String, Host, &str); 5] = [
        (Host::B, "10.77.0.1:80".into(), Host::A, "0.0.0.0:8080"),
        (Host::B, "10.77.0.1:81".into(), Host::A, "0.0.0.0:8081"),
        (Host::A, "10.9.9.9:80".into(), Host::B, "10.77.0.2:8000"),
        (Host::A, called(8001), Host::B, "10.77.0.2:8001"),
        (Host::A, called(8002), Host::B, "10.77.0.2:8002"),
    ];
    each(|lab, way, protocol| {
        let host = lab.name(Host::A);
        run(&format!("ip -n {host} addr add 10.77.0.11/24 dev veth0"));
        run(&format!("ip -n {host} route add 10.9.9.0/24 via 10.77.0.2"));
        run(&format!(
            "ip -n {} neigh add 10.77.0.11 lladdr 02:00:00:00:00:01 dev veth0 nud permanent",
            lab.name(Host::B)
        ));
        nft(
            host,
            "table ip own {
               chain before {
                 type nat hook prerouting priority -100;
                 meta l4proto { tcp, udp } th dport 80 redirect to :8080
                 meta l4proto { tcp, udp } th dport 81 redirect to :8081
               }
               chain out {
                 type nat hook output priority -100;
                 ip daddr 10.9.9.9 meta l4proto { tcp, udp } th dport 80 dnat to 10.77.0.2:8000
               }
               chain after {
                 type nat hook postrouting priority 100;
                 meta l4proto { tcp, udp } th dport 8001 snat to 10.77.0.11
                 meta l4proto { tcp, udp } th dport 8002 masquerade to :50000-50100
               }
             }",
        );
        count(host, "10.77.0.2");
        let _idle = idle(lab, 81);
        for (client_host, target, server_host, bound) in &flows {
            println!("  {target}");
            let mut watch = Watch::with(lab, Host::A, way.options());
            let before = counted(host);
            let sink = lab.maker(*server_host, &format!("{protocol}-sink"), bound, &NUMBERS);
            let source = lab.maker(*client_host, &format!("{protocol}-source"), target, &NUMBERS);
            let [source, sink] = moved(source, sink);
            let now = counted(host);
            let pid = if *client_host == Host::A { source.pid() } else { sink.pid() };
            watch.expect_all_within(TIMEOUT, pid, (now.0 - before.0, now.1 - before.1));
        }
    });
}

/// A virtual address that no device has leads to a server on the same host.
#[test]
fn a_server_behind_a_virtual_address_has_what_it_sends_to_its_own_host_root() {
    each(|lab, way, protocol| {
        let host = lab.name(Host::A);
        run(&format!("ip -n {host} route add 10.9.9.0/24 via 10.77.0.2"));
        nft(
            host,
            "table ip own {
               chain out {
                 type nat hook output priority -100;
                 ip daddr 10.9.9.9 meta l4proto { tcp, udp } th dport 443 dnat to 10.77.0.1:6443
               }
             }",
        );
        // Before the translation of the source, and after that of the destination.
        let own = |end| format!("meta l4proto {{ tcp, udp }} th {end} 6443");
        count_as("server", host, &own("sport"), &own("dport"));
        let mut watch = Watch::with(lab, Host::A, way.options());
        let sink = lab.maker(Host::A, &format!("{protocol}-sink"), "10.77.0.1:6443", &NUMBERS);
        let source = lab.maker(Host::A, &format!("{protocol}-source"), "10.9.9.9:443", &NUMBERS);
        let [source, sink] = moved(source, sink);
        let (sent, received) = counted_as("server", host);
        println!("  server sent {sent}, received {received}");
        assert!(received > BYTES && (sent > 0 || protocol == "udp"));
        let is_right =
            |traffic: &Traffic, truth: (u64, u64)| (traffic.send_bytes, traffic.receive_bytes) == truth;
        watch.wait_for_traffic(|traffic| {
            traffic.get(&sink.pid()).is_some_and(|found| is_right(found, (sent, received)))
                && traffic.get(&source.pid()).is_some_and(|found| is_right(found, (received, sent)))
        });
    });
}

/// A server answers a client of its own host whose address is translated before it arrives.
#[test]
fn answers_to_a_client_with_a_translated_address_are_the_servers_root() {
    for way in Way::ALL {
        with(lab, |lab| {
            let host = lab.name(Host::A);
            run(&format!("ip -n {host} addr add 10.77.0.11/24 dev veth0"));
            nft(
                host,
                "table ip own {
                   chain after {
                     type nat hook postrouting priority 100;
                     oifname lo tcp dport 8000 snat to 10.77.0.11
                   }
                 }",
            );
            count_as("server", host, "tcp sport 8000", "tcp dport 8000");
            let mut watch = Watch::with(&lab, Host::A, way.options());
            let requests = [("request", 100), ("response", 100)];
            let mut server = lab.maker(Host::A, "tcp-server", "10.77.0.1:8000", &requests);
            let rate = [("rate", 40), ("milliseconds", 1000), ("request", 100), ("response", 100)];
            let mut clients = lab.maker(Host::A, "tcp-clients", "10.77.0.1:8000", &rate);
            clients.start();
            assert_eq!(clients.finish().failed, 0);
            server.start();
            server.finish();
            let (sent, received) = counted_as("server", host);
            println!("{way:?}: server sent {sent}, received {received}");
            // Engine `kernel` does not recognise the answers to SYNs, whose destination is translated.
            let answers = if way == Way::Kernel { 40 * 74 } else { 0 };
            watch.wait_for_traffic(|traffic| {
                let found = traffic.get(&server.pid()).copied().unwrap_or_default();
                (found.send_bytes, found.receive_bytes) == (sent - answers, received)
            });
            watch.update();
            assert!(unowned(&watch, Unowned::NoHolder) >= answers);
        });
    }
}

/// Translation gives a process's port to the packets of another process, and packets of the former another
/// port.
#[test]
fn a_process_whose_port_was_taken_by_translation_has_its_own_bytes_root() {
    each(|lab, way, protocol| taken_port(lab, way, protocol, Opened::Before));
    each(|lab, way, protocol| {
        if protocol == "tcp" {
            taken_port(lab, way, protocol, Opened::After);
        }
    });
}

/// The moment at which the session is opened, relative to the connections.
#[derive(PartialEq, Debug)]
enum Opened {
    Before,
    After,
}

fn taken_port(lab: &Lab, way: Way, protocol: &str, opened: Opened) {
    let (host, server) = (lab.name(Host::A), "10.77.0.2:9000");
    nft(
        host,
        "table ip moved {
           chain after {
             type nat hook postrouting priority 100;
             meta l4proto { tcp, udp } th sport 5000 snat to 10.77.0.1:6000
           }
         }",
    );
    let processes = [("first", 5000, BYTES / 2), ("second", 6000, BYTES)];
    for (table, port, _) in processes {
        let own = |end| format!("meta l4proto {{ tcp, udp }} th {end} {port}");
        count_as(table, host, &own("sport"), &own("dport"));
    }
    let open = || Watch::with(lab, Host::A, way.options());
    let watch = (opened == Opened::Before).then(open);
    let reader = read_two(lab.name(Host::B), protocol, server);
    let mut sources = processes.map(|(_, port, bytes)| {
        let numbers = [("bytes", bytes), ("rate", RATE), ("from", port)];
        lab.maker(Host::A, &format!("{protocol}-source"), server, &numbers)
    });
    // A session that is opened now has not seen the handshakes.
    let before = processes.map(|(table, ..)| if watch.is_some() { (0, 0) } else { counted_as(table, host) });
    let mut watch = watch.unwrap_or_else(open);
    for source in &mut sources {
        source.start();
        // A datagram socket's flow is tracked from its first packet on.
        std::thread::sleep(Duration::from_millis(50));
    }
    sources.iter_mut().for_each(|source| assert!(source.finish().payload > 0));
    reader.join().unwrap();
    let truth = [0, 1].map(|at| {
        let now = counted_as(processes[at].0, host);
        (sources[at].pid(), (now.0 - before[at].0, now.1 - before[at].1))
    });
    println!("  opened {opened:?}: {truth:?}");
    let is_near = |found: u64, truth: u64| found.abs_diff(truth) as f64 <= truth as f64 * 0.001;
    watch.wait_for_traffic(|traffic| {
        traffic.len() == 2
            && truth.iter().all(|(pid, (sent, received))| {
                let found = traffic.get(pid).copied().unwrap_or_default();
                *sent > BYTES / 2
                    && is_near(found.send_bytes, *sent)
                    && is_near(found.receive_bytes, *received)
            })
    });
}

/// Reads all that two clients send to an address.
fn read_two(namespace: &str, protocol: &str, address: &str) -> JoinHandle<()> {
    if protocol == "tcp" {
        let listener = enter(namespace, || TcpListener::bind(address).unwrap());
        return std::thread::spawn(move || {
            let mut clients = [0, 1].map(|_| listener.accept().unwrap().0);
            clients
                .iter_mut()
                .for_each(|client| assert!(std::io::copy(client, &mut std::io::sink()).unwrap() > 0));
        });
    }
    let socket = enter(namespace, || UdpSocket::bind(address).unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    std::thread::spawn(move || while socket.recv(&mut [0; 1500]).is_ok() {})
}

/// A raw socket receives a copy of each echo request, and the kernel answers the request.
#[test]
fn the_kernels_echo_replies_are_not_a_raw_sockets_root() {
    for way in Way::ALL {
        with(lab, |lab| {
            let _raw = enter(lab.name(Host::A), || {
                [(libc::AF_INET, libc::IPPROTO_ICMP), (libc::AF_INET6, libc::IPPROTO_ICMPV6)].map(
                    |(family, protocol)| {
                        use std::os::fd::{FromRawFd as _, OwnedFd};
                        // SAFETY: the call takes no pointers.
                        let raw =
                            unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
                        assert!(raw >= 0);
                        // SAFETY: the call has just returned the descriptor, and nothing else owns it.
                        unsafe { OwnedFd::from_raw_fd(raw) }
                    },
                )
            });
            let mut watch = Watch::with(&lab, Host::A, way.options());
            let before = unowned(&watch, Unowned::NoPorts);
            for (address, headers) in [("10.77.0.1", 14 + 20 + 8), ("fd77::1", 14 + 40 + 8)] {
                let host = lab.name(Host::B);
                let words = format!("ip netns exec {host} ping -q -c 100 -i 0.002 -s 1000 {address}");
                assert!(run(&words).contains("100 received"));
                // Engine `kernel` sees only the replies.
                let truth = 100 * (1_000 + headers) * if way == Way::Kernel { 1 } else { 2 };
                let deadline = Instant::now() + TIMEOUT;
                while Instant::now() < deadline {
                    watch.update();
                    if unowned(&watch, Unowned::NoPorts) - before >= truth {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
                let found = unowned(&watch, Unowned::NoPorts) - before;
                // More may be found: other packets that match a raw socket are not credited to it, either.
                assert!(found >= truth, "{way:?}, {address}: {found} of {truth}");
            }
            assert!(watch.traffic().values().all(|traffic: &Traffic| traffic.send_bytes == 0));
        });
    }
}
