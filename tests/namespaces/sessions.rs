//! In sessions over several namespaces, every process gets its own bytes, and each end of a
//! packet counts once.

use super::lab::*;
use super::talking::Talker;
use capture::internals::config::Options;
use capture::internals::model::{ProbeState, Traffic, Unowned, Validity};
use capture::internals::namespace::NamespaceChoice;
use capture::internals::session::Session;
use capture::internals::tap::TapOptions;
use capture_test_support::counters::*;
use std::collections::HashMap;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A session that finds the processes of a view, and the namespaces they are in.
struct Watch {
    session: Session,
}

impl Watch {
    /// Opens a session in the calling thread's namespace, and waits until it captures on `devices` devices.
    fn open(view: &View, namespaces: NamespaceChoice, devices: u64) -> Watch {
        Watch::with_timeout(view, namespaces, devices, Duration::from_millis(10))
    }

    /// Does the same as [`Watch::open`] with packets that wait for `timeout` until they are read.
    fn with_timeout(view: &View, namespaces: NamespaceChoice, devices: u64, timeout: Duration) -> Watch {
        let filter = Some("tcp or udp".to_owned());
        let capture = TapOptions { filter, timeout, buffer_bytes: 8 << 20, ..options(namespaces) };
        let options = Options { capture, proc_root: view.path().into(), ..Options::default() };
        let session = Session::open(options).unwrap();
        wait_until("all devices are captured on", || session.stats_reader().read().devices == devices);
        Watch { session }
    }

    /// Returns the traffic of each process that has any, once `frame_bytes` bytes are captured and all of
    /// them are credited to processes.
    #[track_caller]
    fn settled(&mut self, frame_bytes: u64) -> HashMap<i32, Traffic> {
        wait_until("all bytes are at processes", || {
            self.session.update().unwrap();
            self.session.health().unwrap();
            let stats = self.session.stats_reader().read();
            assert_eq!(stats.lost_in_kernel, 0);
            stats.frame_bytes >= frame_bytes && stats.bytes.unowned == [0; Unowned::COUNT]
        });
        let records = self.session.processes().filter(|record| !record.traffic.is_empty());
        records.map(|record| (record.sample.id.pid, record.traffic)).collect()
    }
}

/// Returns the bytes sent and received.
fn both(traffic: &HashMap<i32, Traffic>, pid: i32) -> (u64, u64) {
    let traffic = traffic.get(&pid).copied().unwrap_or_default();
    (traffic.send_bytes, traffic.receive_bytes)
}

fn sum(pairs: &[(u64, u64)]) -> u64 {
    pairs.iter().map(|(sent, received)| sent + received).sum()
}

/// Returns a container that is connected to the calling thread's namespace, which is 10.9.0.1; the
/// container is 10.9.0.2.
fn joined(view: &View) -> Container {
    let container = view.start_container();
    container.join("va", "10.9.0.2");
    run("ip addr add 10.9.0.1/24 dev va");
    // Neighbours are static: during neighbour discovery, the counters would see packets that never
    // reach the link.
    let device =
        |text: String| text.split_whitespace().skip_while(|w| *w != "link/ether").nth(1).unwrap().to_owned();
    let here = device(run("ip -o link show va"));
    let there = device(container.run("ip -o link show eth0"));
    run(&format!("ip neigh replace 10.9.0.2 lladdr {there} dev va nud permanent"));
    container.run(&format!("ip neigh replace 10.9.0.1 lladdr {here} dev eth0 nud permanent"));
    container
}

/// Returns four processes that communicate across the border, both ways: the client here, the server there,
/// the client there, the server here.
fn across(view: &View, container: &Container) -> [Talker; 4] {
    let there = Talker::serve(Some(container), "10.9.0.2:7000");
    let here = Talker::serve(None, "10.9.0.1:7001");
    let asks_there = Talker::ask(None, "10.9.0.2:7000", 200, 1000, 5000);
    let asks_here = Talker::ask(Some(container), "10.9.0.1:7001", 150, 700, 5001);
    let all = [asks_there, there, asks_here, here];
    all.iter().for_each(|talker| view.show(talker.pid()));
    all
}

#[test]
fn a_container_and_its_host_each_get_their_own_bytes_once_root() {
    in_namespace(|| {
        let view = View::new();
        let container = joined(&view);
        let [mut asks_there, there, mut asks_here, here] = across(&view, &container);
        // Both namespaces have loopback and one end of the veth pair, so that every packet is captured twice.
        let mut watch = Watch::open(&view, NamespaceChoice::All, 4);
        let ports = [7000, 7001];
        count_ports(&ports);
        container.inside(|| count_ports(&ports));
        asks_there.go();
        asks_here.go();
        // One of the two processes on each side has flows with port 7000, and the other has flows
        // with port 7001.
        let [here_7000, here_7001] = ports.map(settled_port);
        let [there_7000, there_7001] = container.inside(|| ports.map(settled_port));
        assert!(here_7000.0 > 200 * 2000 && here_7001.1 > 150 * 1400, "{here_7000:?} {here_7001:?}");
        assert_eq!(
            (here_7000, here_7001),
            (swapped(there_7000), swapped(there_7001)),
            "nothing lost between"
        );
        let truth = [here_7000, there_7000, there_7001, here_7001];
        let traffic = watch.settled(sum(&truth));
        let pids = [asks_there.pid(), there.pid(), asks_here.pid(), here.pid()];
        assert_eq!(pids.map(|pid| both(&traffic, pid)), truth);
        assert_eq!(traffic.len(), 4, "nobody else has any: {traffic:?}");
        let stats = watch.session.stats_reader().read();
        assert_eq!(stats.bytes.owned.iter().sum::<u64>(), sum(&truth), "each end of each packet once");
    });
}

/// A session that captures only in its own namespace does not count endpoints in other namespaces.
#[test]
fn without_namespaces_the_own_ends_count_and_no_others_root() {
    in_namespace(|| {
        let view = View::new();
        let container = joined(&view);
        let [mut asks_there, _there, mut asks_here, here] = across(&view, &container);
        let mut watch = Watch::open(&view, NamespaceChoice::Usual, 2);
        let ports = [7000, 7001];
        count_ports(&ports);
        asks_there.go();
        asks_here.go();
        let truth = ports.map(settled_port);
        let traffic = watch.settled(sum(&truth));
        assert_eq!([asks_there.pid(), here.pid()].map(|pid| both(&traffic, pid)), truth);
        assert_eq!(traffic.len(), 2, "those inside the container have no end here: {traffic:?}");
    });
}

/// A process may be in one namespace and hold a socket of another, such as one that a service manager passes
/// to a container.
#[test]
fn a_socket_of_here_that_a_container_holds_is_the_containers_root() {
    in_namespace(|| {
        let view = View::new();
        let container = joined(&view);
        let mut watch = Watch::open(&view, NamespaceChoice::Usual, 2);
        let socket = std::net::UdpSocket::bind("10.9.0.1:5000").unwrap();
        socket.connect("10.9.0.2:7000").unwrap();
        count_ports(&[7000]);
        let mut holder = Command::new("nsenter")
            .arg(format!("--net={}", container.path().display()))
            .arg("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::from(OwnedFd::from(socket)))
            .spawn()
            .unwrap();
        let pid = holder.id() as i32;
        view.show(pid);
        // Without a listener, the peer's ICMP error would make the kernel refuse one datagram.
        let _open = container.inside(|| std::net::UdpSocket::bind("10.9.0.2:7000").unwrap());
        let input = holder.stdin.as_mut().unwrap();
        input.write_all(&[7; 700]).unwrap();
        wait_until("it is sent", || counted_port(7000).0 > 0);
        assert_eq!(link(&format!("/proc/{pid}/ns/net")), link(container.path().to_str().unwrap()));
        let truth = settled_port(7000);
        let traffic = watch.settled(sum(&[truth]));
        let record = watch.session.processes().find(|record| record.sample.id.pid == pid).unwrap();
        assert!(record.valid.has(Validity::NETWORK), "some of its bytes are counted, though not where it is");
        drop(holder.stdin.take());
        holder.wait().unwrap();
        assert_eq!((both(&traffic, pid), traffic.len()), (truth, 1), "{traffic:?}");
    });
}

#[test]
fn processes_with_the_same_addresses_and_ports_stay_apart_root() {
    in_namespace(|| {
        let view = View::new();
        let containers = [view.start_container(), view.start_container()];
        for (container, device) in containers.iter().zip(["va", "vb"]) {
            container.join(device, "10.9.0.2");
        }
        let servers = containers.each_ref().map(|one| Talker::serve(Some(one), "127.0.0.1:7000"));
        // The same addresses and, for UDP, the same ports at both ends.
        let mut clients = [(&containers[0], 200, 900), (&containers[1], 300, 400)]
            .map(|(one, count, length)| Talker::ask(Some(one), "127.0.0.1:7000", count, length, 5000));
        servers.iter().chain(&clients).for_each(|talker| view.show(talker.pid()));
        // Loopback and the other ends of the pairs here; loopback and eth0 in each.
        let mut watch = Watch::open(&view, NamespaceChoice::All, 7);
        containers.iter().for_each(|one| one.inside(|| count_ports(&[7000])));
        std::thread::scope(|scope| clients.iter_mut().for_each(|client| drop(scope.spawn(|| client.go()))));
        let truth = containers.each_ref().map(|one| one.inside(|| settled_port(7000)));
        assert_ne!(truth[0], truth[1]);
        // On loopback, a packet has both endpoints in the same namespace: it is sent and received,
        // and captured once.
        let traffic = watch.settled(truth[0].0 + truth[1].0);
        for ((server, client), (sent, received)) in servers.iter().zip(&clients).zip(truth) {
            assert_eq!(sent, received);
            let (of_server, of_client) = (both(&traffic, server.pid()), both(&traffic, client.pid()));
            assert_eq!(of_server, swapped(of_client));
            assert_eq!(of_server.0 + of_client.0, sent);
        }
        assert_eq!(traffic.len(), 4, "{traffic:?}");
        let stats = watch.session.stats_reader().read();
        assert_eq!(stats.bytes.owned.iter().sum::<u64>(), sum(&truth));
    });
}

/// Regression: most processes that make short connections and end, with their namespace gone before their
/// packets are read, were credited only with a part of their bytes or with none. The kernel's records still
/// name such a process.
#[test]
fn the_last_connections_of_a_removed_namespace_are_its_process_root() {
    const CONTAINERS: u64 = 6;
    const PORT: u16 = 7200;
    if !cfg!(feature = "ebpf") {
        return;
    }
    in_namespace(|| {
        run("ip link add br0 address 02:00:00:00:00:01 type bridge");
        run("ip addr add 10.9.0.1/24 dev br0");
        run("ip link set br0 up");
        let view = View::new();
        let server = Talker::serve(None, &format!("10.9.0.1:{PORT}"));
        view.show(server.pid());
        let containers: Vec<Container> = (0..CONTAINERS)
            .map(|number| {
                let container = view.start_container();
                container.join(&format!("v{number}"), &format!("10.9.0.{}", 10 + number));
                run(&format!("ip link set v{number} master br0"));
                container.inside(|| count_ports(&[PORT]));
                container
            })
            .collect();
        // The packets wait in the rings for longer than a container takes to disappear. Ports of a bridge are
        // not captured on.
        let timeout = Duration::from_millis(2_500);
        let mut watch = Watch::with_timeout(&view, NamespaceChoice::All, 2 + 2 * CONTAINERS, timeout);
        let probes = watch.session.stats_reader().read().socket_probes;
        assert_eq!(probes, ProbeState::Active);
        let mut truth = HashMap::new();
        for container in containers {
            let mut client = Talker::ask_and_end(&container, &format!("10.9.0.1:{PORT}"), 20, 700);
            let pid = client.pid();
            view.show(pid);
            client.go();
            drop(client);
            truth.insert(pid, container.inside(|| counted_port(PORT)));
            container.end();
        }
        let mut traffic: HashMap<i32, Traffic> = HashMap::new();
        wait_until("all have been removed", || {
            watch.session.update().unwrap();
            let removed = watch.session.take_removed();
            traffic.extend(removed.iter().map(|record| (record.sample.id.pid, record.traffic)));
            truth.keys().all(|pid| traffic.contains_key(pid))
        });
        let told: HashMap<i32, (u64, u64)> = truth.keys().map(|&pid| (pid, both(&traffic, pid))).collect();
        assert!(truth.values().all(|&(sent, received)| sent > 20 * 700 && received > 20 * 1300), "{truth:?}");
        assert_eq!(told, truth, "{:?}", watch.session.stats_reader().read());
    });
}
