//! Devices of unusual types, and packets that pass several devices of one host: the bytes of the link count
//! once at each end.

use super::counting::{expect, me, on};
use super::nat::Way;
use super::{Watch, options, with};
use capture::internals::config::{Engine, Options};
use capture::internals::model::Unowned;
use capture_test_support::lab::{Host, Lab, run};
use capture_test_support::requirements::left_out;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Sets the type of a TUN device (include/uapi/linux/if_tun.h).
const TUNSETLINK: u64 = 0x4004_54cd;
/// Ethernet, PPP, HDLC, bare IP, tunnels of IPv4, IPv6, SIT, GRE, GRE over IPv6, and none
/// (include/uapi/linux/if_arp.h).
const TYPES: [u16; 10] = [1, 512, 513, 519, 768, 769, 776, 778, 823, 65_534];

const DATAGRAMS: usize = 20;
const PAYLOAD: usize = 600;
/// IPv4 and UDP.
const HEADERS: usize = 20 + 8;
const ETHERNET: u64 = 14;

/// Runs a test with each engine, and without eBPF programs.
fn with_each_engine(test: impl Fn(&Lab, Options) + Send + Sync) {
    let portable = Options { probes: false, ..options(Engine::Pcap) };
    for options in [options(Engine::Pcap), portable, options(Engine::Kernel)] {
        with(Lab::new, |lab| test(&lab, options));
    }
}

/// Opens a session on host A; returns `None` if the requested engine is unavailable.
fn watch(lab: &Lab, options: Options) -> Option<Watch> {
    let engine = options.engine;
    let watch = Watch::with(lab, Host::A, options);
    if watch.session.stats_reader().read().engine == engine {
        return Some(watch);
    }
    left_out("engine kernel is unavailable");
    None
}

/// Opens a TUN device of this type on the calling thread's host, with the address 10.`network`.0.1/24.
fn open_tun(lab: &Lab, hardware: u16, network: u8) -> File {
    let name = format!("tun{hardware}");
    let file = capture_test_support::lab::open_tun(&name, libc::IFF_TUN, |_| ());
    // SAFETY: the call takes the type as its argument.
    let typed = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETLINK, libc::c_ulong::from(hardware)) };
    assert_eq!(typed, 0, "{}", std::io::Error::last_os_error());
    let host = lab.name(Host::A);
    run(&format!("ip -n {host} addr add 10.{network}.0.1/24 dev {name}"));
    run(&format!("ip -n {host} link set {name} up"));
    file
}

/// Reads a device until the next IPv4 datagram, and sends it back. Returns its length.
fn answer(tun: &mut File) -> u64 {
    let mut packet = [0; 2048];
    loop {
        let length = tun.read(&mut packet).unwrap();
        let packet = &mut packet[..length];
        if packet[0] == 0x45 && packet[9] == 17 {
            // Swapping the addresses and the ports leaves both checksums as they are.
            let (source, destination) = packet[12..20].split_at_mut(4);
            source.swap_with_slice(destination);
            let (source, destination) = packet[20..24].split_at_mut(2);
            source.swap_with_slice(destination);
            assert_eq!(tun.write(packet).unwrap(), length);
            return length as u64;
        }
    }
}

#[test]
fn a_tun_device_has_no_link_header_whatever_its_type_root() {
    with_each_engine(|lab, options| {
        lab.enter(Host::A);
        let mut tuns: Vec<File> =
            TYPES.iter().zip(100..).map(|(&hardware, network)| open_tun(lab, hardware, network)).collect();
        let Some(mut watch) = watch(lab, options) else { return };
        let (mut truth, mut sockets) = (0, Vec::new());
        for (tun, network) in tuns.iter_mut().zip(100..) {
            let socket = UdpSocket::bind(format!("10.{network}.0.1:0")).unwrap();
            for _ in 0..DATAGRAMS {
                socket.send_to(&[7; PAYLOAD], format!("10.{network}.0.2:9")).unwrap();
                truth += answer(tun);
                assert_eq!(socket.recv(&mut [0; 2048]).unwrap(), PAYLOAD);
            }
            // Without eBPF programs, an owner is looked up while the socket exists.
            sockets.push(socket);
        }
        assert_eq!(truth, (TYPES.len() * DATAGRAMS * (PAYLOAD + HEADERS)) as u64);
        expect(&mut watch, vec![(me(), truth, truth)]);
    });
}

/// Returns the bytes that a device of host A has sent or received.
fn device_bytes(lab: &Lab, device: &str, counter: &str) -> u64 {
    let shown = run(&format!("ip -n {} -s -s -j link show {device}", lab.name(Host::A)));
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    shown[0]["stats64"][counter]["bytes"].as_u64().unwrap()
}

fn bound_to(device: &str, address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::BindToDevice, &device.into()).unwrap();
    socket
}

/// A cable between two devices of the host: both ends are on this host, and each device shows every packet.
#[test]
fn a_wire_between_own_devices_is_counted_once_root() {
    with_each_engine(|lab, options| {
        let host = lab.name(Host::A);
        on(lab, Host::A, || std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap());
        run(&format!("ip -n {host} link add own0 type veth peer name own1"));
        for (number, other) in [(0, 1), (1, 0)] {
            run(&format!("ip -n {host} link set own{number} address 02:00:00:00:01:0{number}"));
            run(&format!("ip -n {host} addr add 10.78.1.1{number}/24 dev own{number}"));
            run(&format!("ip -n {host} link set own{number} up"));
            let neighbour = format!("10.78.1.1{other} lladdr 02:00:00:00:01:0{other} dev own{number}");
            run(&format!("ip -n {host} neigh replace {neighbour} nud permanent"));
            lab.set(Host::A, &format!("net/ipv4/conf/own{number}/accept_local"), "1");
            lab.set(Host::A, &format!("net/ipv4/conf/own{number}/rp_filter"), "0");
        }
        lab.set(Host::A, "net/ipv4/conf/all/rp_filter", "0");
        let Some(mut watch) = watch(lab, options) else { return };
        let (sender, receiver) = (bound_to("own0", "10.78.1.10:7101"), bound_to("own1", "10.78.1.11:7102"));
        let before = [("own0", "tx"), ("own1", "rx")].map(|(device, way)| device_bytes(lab, device, way));
        for _ in 0..DATAGRAMS {
            sender.send_to(&[7; PAYLOAD], "10.78.1.11:7102").unwrap();
            assert_eq!(receiver.recv(&mut [0; 2048]).unwrap(), PAYLOAD);
        }
        let truth = (DATAGRAMS * (PAYLOAD + HEADERS)) as u64 + DATAGRAMS as u64 * ETHERNET;
        let after = [("own0", "tx"), ("own1", "rx")].map(|(device, way)| device_bytes(lab, device, way));
        assert_eq!([after[0] - before[0], after[1] - before[1]], [truth; 2], "the devices agree");
        expect(&mut watch, vec![(me(), truth, truth)]);
    });
}

/// Makes traffic between the hosts through a device that copies or redirects it (tc-mirred(8)) according to
/// one or two rules.
fn counted_once_in_spite_of(rules: &[&str]) {
    with_each_engine(|lab, options| {
        let host = lab.name(Host::A);
        on(lab, Host::A, || std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap());
        run(&format!("ip -n {host} link add copies type veth peer name far-copies"));
        run(&format!("ip -n {host} link add shaper type ifb"));
        for device in ["copies", "far-copies", "shaper"] {
            run(&format!("ip -n {host} link set {device} up"));
        }
        run(&format!("tc -n {host} qdisc add dev veth0 clsact"));
        for rule in rules {
            let (hook, action) = rule.split_once(' ').unwrap();
            let matches = "protocol ip pref 1 u32 match u32 0 0 action mirred egress";
            run(&format!("tc -n {host} filter add dev veth0 {hook} {matches} {action}"));
        }
        let engine = options.engine;
        let Some(mut watch) = watch(lab, options) else { return };
        let here = UdpSocket::bind("10.77.0.1:7103").unwrap();
        let there = on(lab, Host::B, || UdpSocket::bind("10.77.0.2:7104").unwrap());
        for _ in 0..DATAGRAMS {
            here.send_to(&[7; PAYLOAD], "10.77.0.2:7104").unwrap();
            assert_eq!(there.recv(&mut [0; 2048]).unwrap(), PAYLOAD);
            there.send_to(&[7; PAYLOAD], "10.77.0.1:7103").unwrap();
            assert_eq!(here.recv(&mut [0; 2048]).unwrap(), PAYLOAD);
        }
        let truth = (DATAGRAMS * (PAYLOAD + HEADERS)) as u64 + DATAGRAMS as u64 * ETHERNET;
        let stats = expect(&mut watch, vec![(me(), truth, truth)]);
        if engine == Engine::Pcap {
            let copies = stats.bytes.unowned[Unowned::NotLocal as usize];
            assert!(
                copies >= rules.len() as u64 * truth,
                "{copies}: copies are seen, and said to be none of ours"
            );
        }
    });
}

#[test]
fn what_an_ifb_shapes_is_counted_once_root() {
    counted_once_in_spite_of(&["ingress redirect dev shaper"]);
    counted_once_in_spite_of(&["egress redirect dev shaper"]);
}

#[test]
fn what_is_mirrored_is_counted_once_root() {
    counted_once_in_spite_of(&["ingress mirror dev copies"]);
    counted_once_in_spite_of(&["egress mirror dev copies"]);
    counted_once_in_spite_of(&["ingress mirror dev copies", "egress mirror dev copies"]);
}

/// A frame with another host's hardware address is not received, even if this host has the address in its
/// packet. A frame for a macvlan device, which another device shows, is received.
#[test]
fn frames_for_another_hardware_address_are_not_received_root() {
    with_each_engine(|lab, options| {
        let (a, b) = (lab.name(Host::A), lab.name(Host::B));
        on(lab, Host::A, || std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap());
        run(&format!(
            "ip -n {a} link add link veth0 own0 address 02:00:00:00:02:00 type macvlan mode bridge"
        ));
        run(&format!("ip -n {a} addr add 10.77.0.3/32 dev own0"));
        run(&format!("ip -n {a} link set own0 up"));
        let wire = run(&format!("ip -n {b} -o route get 10.77.0.1"));
        let wire = wire.split_whitespace().skip_while(|word| *word != "dev").nth(1).unwrap();
        for (address, hardware) in [("10.77.0.1", "02:00:00:00:02:99"), ("10.77.0.3", "02:00:00:00:02:00")] {
            run(&format!("ip -n {b} neigh replace {address} lladdr {hardware} dev {wire} nud permanent"));
        }
        let engine = options.engine;
        let Some(mut watch) = watch(lab, options) else { return };
        let passed_by = UdpSocket::bind("10.77.0.1:7105").unwrap();
        let reached = UdpSocket::bind("10.77.0.3:7106").unwrap();
        let sender = on(lab, Host::B, || UdpSocket::bind("10.77.0.2:7107").unwrap());
        for _ in 0..DATAGRAMS {
            sender.send_to(&[7; PAYLOAD], "10.77.0.1:7105").unwrap();
            sender.send_to(&[7; PAYLOAD], "10.77.0.3:7106").unwrap();
            assert_eq!(reached.recv(&mut [0; 2048]).unwrap(), PAYLOAD);
        }
        passed_by.set_nonblocking(true).unwrap();
        assert!(passed_by.recv(&mut [0; 2048]).is_err(), "the kernel drops what is another host's");
        let truth = (DATAGRAMS * (PAYLOAD + HEADERS)) as u64 + DATAGRAMS as u64 * ETHERNET;
        let stats = expect(&mut watch, vec![(me(), 0, truth)]);
        if engine == Engine::Pcap {
            let passed = stats.bytes.unowned[Unowned::NotLocal as usize];
            assert!(passed >= truth, "{passed}: seen, and said to be none of ours");
        }
    });
}

/// Opens a TCP connection of this process from host A that is bound to a device (SO_BINDTODEVICE).
fn bound_to_device(lab: &Lab, target: &str) -> TcpStream {
    on(lab, Host::A, || {
        use nix::sys::socket::{
            AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt,
        };
        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&socket, sockopt::BindToDevice, &"veth0".into()).unwrap();
        let target: std::net::SocketAddrV4 = target.parse().unwrap();
        connect(socket.as_raw_fd(), &SockaddrIn::from(target)).unwrap();
        TcpStream::from(socket)
    })
}

/// The owner of such a connection is found at its first packet or, if it existed before the session, from the
/// list of such connections.
#[test]
fn a_connection_that_is_bound_to_a_device_has_its_owner_root() {
    for way in Way::ALL {
        for is_there_before in [false, true] {
            with(super::nat::lab, |lab| {
                println!("{way:?}, there before the session: {is_there_before}");
                let listener = on(&lab, Host::B, || TcpListener::bind("10.77.0.2:7090").unwrap());
                let connect = || bound_to_device(&lab, "10.77.0.2:7090");
                let before = is_there_before.then(connect);
                lab.count_port(Host::A, "tcp", 7090);
                let mut watch = Watch::with(&lab, Host::A, way.options());
                let mut client = before.unwrap_or_else(connect);
                let mut server = listener.accept().unwrap().0;
                client.write_all(&[7; 100_000]).unwrap();
                server.read_exact(&mut [0; 100_000]).unwrap();
                let truth = lab.counted(Host::A).both();
                assert!(truth.0 > 100_000);
                watch.expect_all_within(Duration::from_secs(20), me(), truth);
            });
        }
    }
}
