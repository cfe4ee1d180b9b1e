//! Floods of unanswered flows, and packets that arrive long after a flow has ended.

use crate::watch::Watch;
use crate::with_lab;
use capture::internals::config::{Engine, Options};
use capture::internals::model::{Traffic, Unowned};
use capture_test_support::lab::{Host, Lab, Maker, enter, run};
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};

/// The size of a flood, in flows and in flows per second.
const FLOWS: u64 = 60_000;
const RATE: u64 = 10_000;

/// The number of sockets that a process opens.
const SOCKETS: u64 = 30_000;

/// A connection during the flood.
const BYTES: u64 = 1_000_000;
const BYTES_A_SECOND: u64 = 200_000;

/// Bytes on the wire: Ethernet, IPv4, UDP, and the payload of a storm's datagrams.
const DATAGRAM: u64 = 14 + 20 + 8 + 18;

/// The limit of unanswered flows, as many as 16 MiB hold.
const MAX_UNANSWERED: u64 = 100_000;

/// Runs a test with engine `pcap` with and without eBPF programs, and with engine `kernel`.
fn with_ways(test: impl Fn(&Lab, Options) + Sync) {
    with_lab(|lab, engine| test(lab, Options { engine, ..Options::default() }));
    with_lab(|lab, engine| {
        if engine == Engine::Pcap {
            test(lab, Options { engine, probes: false, ..Options::default() });
        }
    });
}

/// Makes each host send packets as they are counted, without segmentation by its device.
fn without_offloads(lab: &Lab) {
    for host in [Host::A, Host::B] {
        run(&format!("ip -n {} link set veth0 gso_max_segs 1", lab.name(host)));
    }
}

fn traffic(watch: &Watch, pid: i32) -> Traffic {
    let record = watch.session.processes().find(|record| record.sample.id.pid == pid);
    record.or(watch.removed.get(&pid)).map_or(Traffic::default(), |record| record.traffic)
}

/// Prints figures if they have changed, to explain a failure.
fn show(shown: &mut String, figures: String) {
    if *shown != figures {
        eprintln!("{figures}");
        *shown = figures;
    }
}

fn finish(makers: &mut [&mut Maker]) {
    makers.iter_mut().for_each(|maker| maker.start());
    for maker in makers {
        assert_eq!(maker.finish().failed, 0);
    }
}

#[test]
fn datagrams_of_made_up_sources_are_their_receivers_or_nobodys_root() {
    with_ways(|lab, options| {
        let engine = options.engine;
        without_offloads(lab);
        lab.count(Host::B, "udp dport 7301", "tcp dport 7303");
        let mut watch = Watch::with(lab, Host::B, options);
        let open = lab.maker(Host::B, "flood-sink", "10.77.0.2:7301", &[]);
        let sink = lab.maker(Host::B, "tcp-sink", "10.77.0.2:7303", &[]);
        let [mut to_open, mut to_closed] = ["10.77.0.2:7301", "10.77.0.2:7302"]
            .map(|address| lab.maker(Host::A, "frame-storm", address, &[("count", FLOWS), ("rate", RATE)]));
        let numbers = [("bytes", BYTES), ("rate", BYTES_A_SECOND)];
        let mut source = lab.maker(Host::A, "tcp-source", "10.77.0.2:7303", &numbers);
        finish(&mut [&mut to_open, &mut to_closed, &mut source]);
        let counted = lab.counted(Host::B);
        assert_eq!(counted.in_to, FLOWS * DATAGRAM);
        let mut shown = String::new();
        watch.until("the bytes of both receivers, and those of nobody", |watch| {
            let stats = watch.session.stats_reader().read();
            assert!(stats.flows <= MAX_UNANSWERED, "{} flows", stats.flows);
            let received = [open.pid(), sink.pid()].map(|pid| traffic(watch, pid).receive_bytes);
            assert!(received[0] <= counted.in_to && received[1] <= counted.in_from, "{received:?}");
            show(&mut shown, format!("{received:?} of {counted:?}; {:?}", stats.bytes));
            // Engine `kernel` does not see packets that have no socket.
            let is_nobodys = stats.bytes.unowned[Unowned::NoSocket as usize] == FLOWS * DATAGRAM;
            let is_settled = engine == Engine::Kernel || is_nobodys;
            (received == [counted.in_to, counted.in_from] && is_settled).then_some(())
        });
    });
}

#[test]
fn a_process_that_opens_sockets_all_the_time_hides_no_other_root() {
    for mode in ["datagram-storm", "attempt-storm"] {
        with_ways(|lab, options| {
            let has_programs = options.probes && cfg!(feature = "ebpf");
            without_offloads(lab);
            lab.count_port(Host::A, "tcp", 7303);
            let mut watch = Watch::with(lab, Host::A, options);
            let _sink = lab.maker(Host::B, "tcp-sink", "10.77.0.2:7303", &[]);
            let numbers = [("count", SOCKETS), ("rate", RATE)];
            let mut storm = lab.maker(Host::A, mode, "10.77.0.2:7304", &numbers);
            let numbers = [("bytes", BYTES), ("rate", BYTES_A_SECOND)];
            let mut source = lab.maker(Host::A, "tcp-source", "10.77.0.2:7303", &numbers);
            finish(&mut [&mut storm, &mut source]);
            let (sent, received) = lab.counted(Host::A).both();
            let mut shown = String::new();
            watch.until("the bytes of the connection, and those of the storm", |watch| {
                let stats = watch.session.stats_reader().read();
                assert!(stats.flows <= MAX_UNANSWERED, "{} flows", stats.flows);
                let of_source = traffic(watch, source.pid());
                assert!(of_source.send_bytes <= sent && of_source.receive_bytes <= received, "{of_source:?}");
                let of_storm = traffic(watch, storm.pid());
                show(
                    &mut shown,
                    format!("{of_source:?} of {sent}, {received}; {of_storm:?}; {:?}", stats.bytes),
                );
                // Without eBPF programs, the process is credited only with the sockets that were seen while
                // they existed, or that resemble these.
                let is_whole = match mode {
                    "datagram-storm" if has_programs => of_storm.send_bytes == SOCKETS * DATAGRAM,
                    _ => of_storm.send_packets <= SOCKETS,
                };
                let is_right = (of_source.send_bytes, of_source.receive_bytes) == (sent, received);
                (is_right && is_whole).then_some(())
            });
        });
    }
}

/// Repeats the end of a connection that its endpoint no longer knows: `REPEAT PORT PORT`.
const REPEAT: &str = r#"
import socket, struct, sys
source, target = map(int, sys.argv[1:])
ends = socket.inet_aton("10.77.0.2") + socket.inet_aton("10.77.0.1")
def checked(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total >> 16) + (total & 0xffff)
    return ~total & 0xffff
FIN_ACK = 0x11
def segment(checksum):
    return struct.pack("!HHIIBBHHH", source, target, 1, 1, 5 << 4, FIN_ACK, 1024, checksum, 0)
checksum = checked(ends + struct.pack("!HH", socket.IPPROTO_TCP, 20) + segment(0))
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
raw.sendto(segment(checksum), ("10.77.0.1", 0))
"#;

#[test]
fn late_packets_of_a_connection_are_its_owners_and_no_flow_of_their_own_root() {
    with_ways(|lab, options| {
        // Engine `kernel` has no flow table from which flows could expire.
        if options.engine == Engine::Pcap {
            late_packets(lab, Options { flows: true, ..options });
        }
    });
}

fn late_packets(lab: &Lab, options: Options) {
    const PORT: u16 = 7305;
    let mut watch = Watch::with(lab, Host::A, options);
    let target = SocketAddr::from(([10, 77, 0, 1], PORT));
    lab.count_port(Host::A, "tcp", PORT);
    let listener = TcpListener::bind(target).unwrap();
    let mut client = enter(lab.name(Host::B), || TcpStream::connect(target).unwrap());
    let (server, far) = listener.accept().unwrap();
    // The end that closes first keeps the connection in TIME_WAIT, and answers packets of it.
    drop(server);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    drop(client);
    let stats = watch.session.stats_reader();
    watch.last(target, far);
    let expired = stats.read().flows_expired;
    watch.until("the end of the flow", |_| (stats.read().flows_expired > expired).then_some(()));
    let before = lab.counted(Host::A).both();
    let ports = [far.port(), PORT].map(|port| port.to_string());
    let sent = lab.command(Host::B, "python3").args(["-c", REPEAT]).args(ports).status().unwrap();
    assert!(sent.success());
    let after = lab.counted(Host::A).both();
    assert!(after.0 > before.0 && after.1 > before.1, "it is not answered");
    watch.until("the bytes of all packets", |watch| {
        let own = traffic(watch, std::process::id() as i32);
        ((own.send_bytes, own.receive_bytes) == after).then_some(())
    });
    let expired = stats.read().flows_expired;
    watch.until("the end of the rest", |_| (stats.read().flows_expired > expired).then_some(()));
    assert_eq!(watch.ended.len(), 1, "{:?}", watch.ended);
    assert_eq!(stats.read().bytes.unowned[Unowned::NoSocket as usize], 0);
}
