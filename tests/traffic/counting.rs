//! Packets that are easily counted twice, for the wrong process or not at all: fragments, tunnels, the
//! kernel's answers, forwarded packets, and those of a reused pid.

use super::{V4, V6, Watch, with_lab};
use capture::internals::model::{Traffic, Unowned};
use capture::internals::session::Stats;
use capture_test_support::lab::{Host, Lab, Maker, run};
use capture_test_support::programs::traffic_maker;
use capture_test_support::requirements::{has_file, has_tools};
use std::io::Write;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The time limit, far longer than the lookup of a socket.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Lengths of headers.
const ETHERNET: u64 = 14;
const IPV4: u64 = 20;
const UDP: u64 = 8;

/// Returns the pid of this process, which has sockets on both hosts.
pub fn me() -> i32 {
    std::process::id() as i32
}

/// Runs `work` on a host.
pub fn on<T: Send>(lab: &Lab, host: Host, work: impl FnOnce() -> T + Send) -> T {
    let there = || {
        lab.enter(host);
        work()
    };
    std::thread::scope(|scope| scope.spawn(there).join().unwrap())
}

pub fn socket(lab: &Lab, host: Host, local: &str) -> UdpSocket {
    on(lab, host, || UdpSocket::bind(local).unwrap())
}

/// Disables IPv6 on both hosts: the kernel sends packets of its own over IPv6.
fn without_ipv6(lab: &Lab) {
    for host in [Host::A, Host::B] {
        on(lab, host, || std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap());
    }
}

/// Returns the traffic in bytes, as `(pid, sent, received)`.
fn bytes(watch: &Watch) -> Vec<(i32, u64, u64)> {
    let each = |(pid, traffic): (i32, Traffic)| (pid, traffic.send_bytes, traffic.receive_bytes);
    let mut bytes: Vec<_> = watch.traffic().into_iter().map(each).collect();
    bytes.sort_unstable();
    bytes
}

/// Updates until the lookup of every flow is complete and the processes have exactly these bytes.
#[track_caller]
pub fn expect(watch: &mut Watch, mut expected: Vec<(i32, u64, u64)>) -> Stats {
    expected.sort_unstable();
    let deadline = Instant::now() + TIMEOUT;
    loop {
        std::thread::sleep(Duration::from_millis(100));
        watch.update();
        let stats = watch.session.stats_reader().read();
        if bytes(watch) == expected && stats.bytes.unowned[Unowned::Pending as usize] == 0 {
            return stats;
        }
        assert!(Instant::now() < deadline, "{:?}, truth {expected:?}; {stats:?}", bytes(watch));
    }
}

/// Counts the frames of datagrams that arrive at host B; fragments count as they are on the link.
fn count_frames(lab: &Lab) {
    let rules = "table netdev capture {
        counter frames {}
        chain ingress {
            type filter hook ingress device veth0 priority 0
            ip protocol udp counter name frames
            ip6 nexthdr { 17, 44 } counter name frames
        }
    }";
    let mut command = Command::new("ip");
    command.args(["netns", "exec", lab.name(Host::B), "nft", "-f", "-"]).stdin(Stdio::piped());
    let mut nft = command.spawn().unwrap();
    nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success(), "nft");
}

/// Returns the number of these frames and their bytes on the link.
fn frames(lab: &Lab) -> (u64, u64) {
    let text = run(&format!("ip netns exec {} nft list counters", lab.name(Host::B)));
    let words: Vec<&str> = text.split_whitespace().collect();
    let after =
        |name| words[words.iter().position(|&word| word == name).unwrap() + 1].parse::<u64>().unwrap();
    let packets = after("packets");
    (packets, after("bytes") + ETHERNET * packets)
}

/// All fragments of datagrams that are longer than a frame are credited to the socket's process.
fn fragments(watched: Host, address: &str, any: &str) {
    const DATAGRAMS: usize = 100;
    const LENGTH: usize = 20_000;
    with_lab(|lab| {
        count_frames(&lab);
        let target: SocketAddr = SocketAddr::new(address.parse().unwrap(), 7031);
        let (sender, receiver) =
            (socket(&lab, Host::A, any), socket(&lab, Host::B, &SocketAddr::to_string(&target)));
        sender.connect(target).unwrap();
        receiver.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut watch = Watch::on(&lab, watched);
        let mut room = [0; LENGTH];
        for _ in 0..DATAGRAMS {
            sender.send(&[7; LENGTH]).unwrap();
            assert_eq!(receiver.recv(&mut room).unwrap(), LENGTH);
        }
        // A process that this one starts holds its sockets, too, for a moment.
        watch.wait_for_traffic(|traffic| !traffic.is_empty());
        let (packets, truth) = frames(&lab);
        assert!(packets as usize >= DATAGRAMS * (LENGTH / 1500 + 1), "{packets} frames are no fragments");
        let expected = if watched == Host::A { (me(), truth, 0) } else { (me(), 0, truth) };
        let stats = expect(&mut watch, vec![expected]);
        assert_eq!(stats.bytes.unowned[Unowned::Fragment as usize], 0);
    });
}

#[test]
fn fragments_are_their_senders_root() {
    fragments(Host::A, V4, "10.77.0.1:0");
}

#[test]
fn fragments_are_their_receivers_over_ipv6_root() {
    fragments(Host::B, V6, "[fd77::1]:0");
}

/// Echo replies, resets and errors are sent by the kernel itself: they are reported as unowned, to the byte.
#[test]
fn what_the_kernel_answers_is_nobodys_root() {
    with_lab(|lab| {
        without_ipv6(&lab);
        lab.count(Host::B, "ip saddr 10.77.0.1", "ip saddr 10.77.0.2");
        let mut watch = Watch::on(&lab, Host::B);
        run(&format!("ip netns exec {} ping -q -c 5 -i 0.2 -s 1000 {V4}", lab.name(Host::A)));
        let refused = on(&lab, Host::A, || TcpStream::connect((V4, 7032)));
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        socket(&lab, Host::A, "10.77.0.1:0").send_to(&[7; 500], (V4, 7032)).unwrap();
        let counted = lab.counted(Host::B);
        let (sent, received) = counted.both();
        // Five replies, a reset, and an error.
        assert!(sent > 5 * 1000 + 40 + 500 && received > 5 * 1000 + 40 + 500, "{counted:?}");
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let stats = expect(&mut watch, vec![]);
            let unowned: u64 = stats.bytes.unowned.iter().sum();
            assert!(unowned <= sent + received, "{stats:?}");
            if unowned == sent + received && stats.flows_waiting == 0 {
                assert_eq!(stats.bytes.owned, [0; 3]);
                return;
            }
            assert!(Instant::now() < deadline, "truth {counted:?}; {stats:?}");
        }
    });
}

/// A router does not own what it forwards, whatever passes through it twice.
#[test]
fn what_is_forwarded_is_told_as_that_root() {
    const DATAGRAMS: u64 = 50;
    const LENGTH: u64 = 500;
    with_lab(|lab| {
        without_ipv6(&lab);
        on(&lab, Host::B, || {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            for name in ["all", "veth0"] {
                std::fs::write(format!("/proc/sys/net/ipv4/conf/{name}/send_redirects"), "0").unwrap();
            }
        });
        run(&format!("ip -n {} route add 10.88.0.0/24 via {V4}", lab.name(Host::A)));
        run(&format!("ip -n {} route add 10.88.0.0/24 via 10.77.0.1", lab.name(Host::B)));
        let mut watch = Watch::on(&lab, Host::B);
        let sender = socket(&lab, Host::A, "10.77.0.1:0");
        for _ in 0..DATAGRAMS {
            sender.send_to(&[7; LENGTH as usize], "10.88.0.1:7033").unwrap();
        }
        // Each datagram arrives at the router and leaves it.
        let truth = 2 * DATAGRAMS * (LENGTH + UDP + IPV4 + ETHERNET);
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let stats = expect(&mut watch, vec![]);
            let unowned = stats.bytes.unowned;
            assert_eq!(unowned.iter().sum::<u64>(), unowned[Unowned::NotLocal as usize], "{stats:?}");
            if unowned[Unowned::NotLocal as usize] == truth {
                return;
            }
            assert!(Instant::now() < deadline, "truth {truth}; {stats:?}");
        }
    });
}

/// A tunnel in user space: reads packets from a TUN device and sends them in datagrams.
const TUNNEL: &str = r#"
import fcntl, os, socket, struct, sys
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454ca, 0x0001, 0x1000
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", b"tun0", IFF_TUN | IFF_NO_PI))
outer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
outer.connect(("10.77.0.2", 7035))
print("ready", flush=True)
while True:
    outer.send(os.read(tun, 1 << 16))
"#;

/// The packets sent through a tunnel are credited to the sender, and the tunnel's own datagrams to the
/// tunnel; each once.
#[test]
fn a_tunnel_and_what_passes_it_are_told_apart_root() {
    const DATAGRAMS: u64 = 100;
    const LENGTH: u64 = 500;
    if !has_file("/dev/net/tun") || !has_tools(&["python3"]) {
        return;
    }
    with_lab(|lab| {
        without_ipv6(&lab);
        let mut tunnel = Maker::start_of(lab.command(Host::A, "python3").args(["-c", TUNNEL]));
        assert_eq!(tunnel.line(), "ready");
        run(&format!("ip -n {} addr add 10.99.0.1/24 dev tun0", lab.name(Host::A)));
        run(&format!("ip -n {} link set tun0 up", lab.name(Host::A)));
        let _outer = socket(&lab, Host::B, &format!("{V4}:7035"));
        let mut watch = Watch::on(&lab, Host::A);
        let sender = socket(&lab, Host::A, "10.99.0.1:0");
        for _ in 0..DATAGRAMS {
            sender.send_to(&[7; LENGTH as usize], "10.99.0.2:7034").unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
        // A TUN device has no link header.
        let inner = LENGTH + UDP + IPV4;
        let outer = inner + UDP + IPV4 + ETHERNET;
        let expected = vec![(me(), DATAGRAMS * inner, 0), (tunnel.pid(), DATAGRAMS * outer, 0)];
        expect(&mut watch, expected);
    });
}

/// The kernel's own tunnel: a packet sent through it is credited to the sender once, and the outer
/// packet has no owner.
#[test]
fn a_tunnel_of_the_kernel_does_not_count_twice_root() {
    const DATAGRAMS: u64 = 100;
    const LENGTH: u64 = 500;
    with_lab(|lab| {
        without_ipv6(&lab);
        for (host, number, other) in [(Host::A, 1, 2), (Host::B, 2, 1)] {
            let name = lab.name(host);
            let ends = format!("local 10.77.0.{number} remote 10.77.0.{other}");
            run(&format!("ip -n {name} link add vx0 type vxlan id 7 dstport 4789 dev veth0 {ends}"));
            run(&format!("ip -n {name} link set vx0 address 02:00:00:00:01:0{number}"));
            run(&format!("ip -n {name} addr add 10.66.0.{number}/24 dev vx0"));
            run(&format!("ip -n {name} link set vx0 up"));
            let neighbour = format!("10.66.0.{other} lladdr 02:00:00:00:01:0{other} dev vx0");
            run(&format!("ip -n {name} neigh add {neighbour} nud permanent"));
        }
        let receiver = socket(&lab, Host::B, "10.66.0.2:7036");
        receiver.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut watch = Watch::on(&lab, Host::A);
        let sender = socket(&lab, Host::A, "10.66.0.1:0");
        for _ in 0..DATAGRAMS {
            sender.send_to(&[7; LENGTH as usize], "10.66.0.2:7036").unwrap();
            assert_eq!(receiver.recv(&mut [0; LENGTH as usize]).unwrap() as u64, LENGTH);
        }
        let inner = LENGTH + UDP + IPV4 + ETHERNET;
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let stats = expect(&mut watch, vec![(me(), DATAGRAMS * inner, 0)]);
            // The outer packet has another header of 8 bytes between its own headers and the inner frame.
            let outer = DATAGRAMS * (inner + 8 + UDP + IPV4 + ETHERNET);
            if stats.bytes.unowned.iter().sum::<u64>() == outer {
                return;
            }
            assert!(Instant::now() < deadline, "outside {outer}; {stats:?}");
        }
    });
}

/// Starts a program as a process with this pid, by clone3(2), and waits for it.
const AS_PID: &str = r#"
import ctypes, os, struct, sys
SYS_CLONE3, SIGCHLD = 435, 17
number = ctypes.c_int(int(sys.argv[1]))
orders = struct.pack("11Q", 0, 0, 0, 0, SIGCHLD, 0, 0, 0, ctypes.addressof(number), 1, 0)
pid = ctypes.CDLL(None, use_errno=True).syscall(SYS_CLONE3, orders, len(orders))
if pid == 0:
    os.execv(sys.argv[2], sys.argv[2:])
if pid < 0:
    sys.exit(os.strerror(ctypes.get_errno()))
os.waitpid(pid, 0)
"#;

/// Between two updates a process ends and another one gets its pid: each is credited with its own bytes.
#[test]
fn a_pid_that_is_used_again_is_another_process_root() {
    if !has_tools(&["python3"]) {
        return;
    }
    with_lab(|lab| {
        let mut watch = Watch::on(&lab, Host::A);
        watch.update();
        let moved = |number: u16, pid: Option<i32>, bytes: u64| {
            let (port, target) = (7040 + number, format!("{V4}:{}", 7040 + number));
            lab.count_port(Host::A, "tcp", port);
            let mut sink = lab.maker(Host::B, "tcp-sink", &target, &[]);
            let numbers = [("bytes", bytes), ("rate", 10_000_000)];
            let mut source = match pid {
                None => lab.maker(Host::A, "tcp-source", &target, &numbers),
                Some(pid) => {
                    let mut command = lab.command(Host::A, "python3");
                    command.args(["-c", AS_PID, &pid.to_string()]).arg(traffic_maker());
                    command.args(["tcp-source", &target, &format!("bytes={bytes}"), "rate=10000000"]);
                    let mut source = Maker::start_of(&mut command);
                    assert_eq!(source.line(), "ready");
                    source
                }
            };
            source.start();
            let pid = source.finish().processes[0].pid;
            sink.finish();
            source.end();
            let truth = lab.counted(Host::A).both();
            (pid, truth)
        };
        let (pid, first) = moved(0, None, 1_000_000);
        let (_, second) = moved(1, Some(pid), 3_000_000);
        let mut found = Vec::new();
        let deadline = Instant::now() + TIMEOUT;
        while found.len() < 2 {
            assert!(Instant::now() < deadline, "{found:?}");
            watch.session.update().unwrap();
            let removed = watch.session.take_removed();
            found.extend(removed.into_iter().filter(|record| !record.traffic.is_empty()));
            std::thread::sleep(Duration::from_millis(50));
        }
        found.sort_unstable_by_key(|record| record.sample.id.start_ticks);
        let figures: Vec<_> = found
            .iter()
            .map(|record| (record.sample.id.pid, (record.traffic.send_bytes, record.traffic.receive_bytes)))
            .collect();
        assert_eq!(figures, [(pid, first), (pid, second)]);
    });
}
