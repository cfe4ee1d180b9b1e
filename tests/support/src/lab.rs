//! Two network namespaces connected by veth or by a wire on which packets are counted, and traffic
//! makers inside them.

use crate::commands;
pub use crate::commands::{die_with_this, run};
use crate::namespaces::{inside, join};
use crate::programs::traffic_maker;
pub use crate::wire::{Offloads, Wire};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Length of the link header on veth and loopback.
const ETHERNET_HEADER: u64 = 14;

/// Runs `work` in a network namespace that `ip netns` has named, on a thread of its own.
pub fn enter<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    inside(&path_of(namespace), work)
}

/// Returns the path of a network namespace that `ip netns` has named.
pub fn path_of(namespace: &str) -> PathBuf {
    Path::new("/run/netns").join(namespace)
}

/// Applies nftables rules in a network namespace that `ip netns` has named.
pub fn nft(namespace: &str, rules: &str) {
    enter(namespace, || commands::nft(rules));
}

/// One of the two hosts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Host {
    A,
    B,
}

/// The namespaces, which are removed when this is dropped.
pub struct Lab {
    names: [String; 2],
    wire: Option<Wire>,
}

/// Opens a device of the calling thread's network namespace that is backed by a file: TUN or TAP by `kind`
/// (`IFF_TUN`, `IFF_TAP`). `prepare` is applied to the file before.
pub fn open_tun(name: &str, kind: i32, prepare: impl FnOnce(&File)) -> File {
    let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    prepare(&file);
    let mut request = [0_u8; size_of::<libc::ifreq>()];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = (kind | libc::IFF_NO_PI) as u16;
    request[libc::IFNAMSIZ..libc::IFNAMSIZ + 2].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the request is a struct ifreq with the name of the device and its flags, and lives
    // during the call.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    file
}

impl Lab {
    /// Makes the namespaces: 10.77.0.1 and fd77::1 are host A, 10.77.0.2 and fd77::2 host B.
    pub fn new() -> Lab {
        let lab = Lab::unconnected();
        let [a, b] = &lab.names;
        run(&format!("ip -n {a} link add veth0 type veth peer name veth0 netns {b}"));
        lab.connected()
    }

    /// Makes the same hosts with a wire between them, on which packets are counted as a cable carries them.
    pub fn on_wire(offloads: Offloads) -> Lab {
        let mut lab = Lab::unconnected();
        let [a, b] = &lab.names;
        let wire = Wire::new(format!("{a}-b"));
        wire.plug(a, "veth0", 0, offloads);
        wire.plug(b, "veth0", 1, offloads);
        lab.wire = Some(wire);
        lab.connected()
    }

    fn unconnected() -> Lab {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let lab = Lab { names: [format!("capture-{id}-a"), format!("capture-{id}-b")], wire: None };
        lab.names.iter().for_each(|name| drop(run(&format!("ip netns add {name}"))));
        lab
    }

    fn connected(self) -> Lab {
        let [a, b] = &self.names;
        for (name, number, other) in [(a, 1, 2), (b, 2, 1)] {
            run(&format!("ip -n {name} link set veth0 address 02:00:00:00:00:0{number}"));
            run(&format!("ip -n {name} addr add 10.77.0.{number}/24 dev veth0"));
            run(&format!("ip -n {name} addr add fd77::{number}/64 dev veth0 nodad"));
            run(&format!("ip -n {name} link set lo up"));
            run(&format!("ip -n {name} link set veth0 up"));
            // Neighbours are static: during neighbour discovery, the counters would see packets that never
            // reach the link.
            for address in ["10.77.0.", "fd77::"] {
                let neighbour = format!("{address}{other} lladdr 02:00:00:00:00:0{other} dev veth0");
                run(&format!("ip -n {name} neigh add {neighbour} nud permanent"));
            }
        }
        self
    }

    /// Returns the namespace of a host, as `ip netns` knows it.
    pub fn name(&self, host: Host) -> &str {
        &self.names[host as usize]
    }

    /// Moves the calling thread, and the processes that it will start, to a host.
    pub fn enter(&self, host: Host) {
        join(&path_of(self.name(host)));
    }

    /// Allows a host to open more connections at once than the usual 28,000.
    pub fn allow_many_connections(&self, host: Host) {
        self.set(host, "net/ipv4/ip_local_port_range", "10000 65535");
    }

    /// Changes a setting of a host's namespace (proc_sys_net(5)).
    pub fn set(&self, host: Host, setting: &str, value: &str) {
        enter(self.name(host), || std::fs::write(format!("/proc/sys/{setting}"), value).unwrap());
    }

    /// Counts packets from now on: those to the server and those from it, by two nftables matches. Counts on
    /// the wire if there is one, otherwise in the host's output and input hooks.
    pub fn count(&self, host: Host, to_server: &str, from_server: &str) {
        match &self.wire {
            Some(wire) => wire.count(to_server, from_server),
            None => self.count_at(host, to_server, from_server),
        }
    }

    fn count_at(&self, host: Host, to_server: &str, from_server: &str) {
        let rules = format!(
            "table inet capture {{
               counter out_to {{}}
               counter out_from {{}}
               counter in_to {{}}
               counter in_from {{}}
               chain output {{
                 type filter hook output priority 0;
                 {to_server} counter name out_to
                 {from_server} counter name out_from
               }}
               chain input {{
                 type filter hook input priority 0;
                 {to_server} counter name in_to
                 {from_server} counter name in_from
               }}
             }}"
        );
        nft(self.name(host), &rules);
    }

    /// Counts the packets of a port, see [`Lab::count`].
    pub fn count_port(&self, host: Host, protocol: &str, port: u16) {
        self.count(host, &format!("{protocol} dport {port}"), &format!("{protocol} sport {port}"));
    }

    /// Returns the bytes that have passed a host's device, once their number no longer changes.
    pub fn counted(&self, host: Host) -> Counted {
        self.tallies(host).map(|tally| tally.bytes + ETHERNET_HEADER * tally.packets)
    }

    /// Returns the number of packets with these bytes.
    pub fn counted_packets(&self, host: Host) -> Counted {
        self.tallies(host).map(|tally| tally.packets)
    }

    fn tallies(&self, host: Host) -> Counted<Tally> {
        let mut before = None;
        loop {
            let now = self.counters(host);
            if before == Some(now) {
                return now;
            }
            before = Some(now);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn counters(&self, host: Host) -> Counted<Tally> {
        let (own, other) = (host as usize, 1 - host as usize);
        let (namespace, [out_to, out_from], [in_to, in_from]) = match &self.wire {
            // Packets that a host sends arrive at the other end of the wire.
            Some(wire) => (wire.name(), Wire::counters(other), Wire::counters(own)),
            None => {
                let names = |way: &str| ["to", "from"].map(|which| format!("{way}_{which}"));
                (self.name(host), names("out"), names("in"))
            }
        };
        let text = run(&format!("ip netns exec {namespace} nft list counters"));
        let words: Vec<&str> = text.split_whitespace().collect();
        let read = |counter: &str| {
            let at = words.iter().position(|&word| word == counter).unwrap();
            let after = |name| {
                let name_at = words[at..].iter().position(|&word| word == name).unwrap();
                words[at + name_at + 1].parse::<u64>().unwrap()
            };
            Tally { bytes: after("bytes"), packets: after("packets") }
        };
        Counted {
            out_to: read(&out_to),
            out_from: read(&out_from),
            in_to: read(&in_to),
            in_from: read(&in_from),
        }
    }

    /// Returns a command that will run on a host, see [`die_with_this`].
    pub fn command(&self, host: Host, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.name(host)]).arg(program);
        die_with_this(command)
    }

    /// Starts a traffic maker on a host and waits until it is ready.
    pub fn maker(&self, host: Host, mode: &str, address: &str, numbers: &[(&str, u64)]) -> Maker {
        let mut command = self.command(host, traffic_maker());
        command.args([mode, address]).args(numbers.iter().map(|(name, number)| format!("{name}={number}")));
        let mut maker = Maker::start_of(&mut command);
        assert_eq!(maker.line(), "ready", "{mode}");
        maker
    }
}

/// One counter of nftables; its bytes begin with the IP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Tally {
    bytes: u64,
    packets: u64,
}

/// The kernel's counts: bytes with a link header for each packet, or packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counted<T = u64> {
    /// To the server, leaving the host.
    pub out_to: T,
    /// From the server, leaving the host.
    pub out_from: T,
    /// To the server, arriving at the host.
    pub in_to: T,
    /// From the server, arriving at the host.
    pub in_from: T,
}

impl<T> Counted<T> {
    fn map<U>(self, each: impl Fn(T) -> U) -> Counted<U> {
        let Counted { out_to, out_from, in_to, in_from } = self;
        Counted { out_to: each(out_to), out_from: each(out_from), in_to: each(in_to), in_from: each(in_from) }
    }
}

impl Counted {
    /// Returns the bytes that the host sent and received.
    pub fn both(self) -> (u64, u64) {
        (self.out_to + self.out_from, self.in_to + self.in_from)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in self.names.iter().map(String::as_str).chain(self.wire.as_ref().map(Wire::name)) {
            // A namespace that was never made cannot be deleted; there is no caller to report the error to.
            let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
        }
    }
}

/// The final report of a traffic maker.
pub struct Report {
    /// Payload bytes, sent and received, of all processes.
    pub payload: u64,
    /// The duration of the traffic.
    pub took: Duration,
    /// Connections, or processes with one connection each, that did not end well.
    pub failed: u64,
    /// The bytes that each process moved.
    pub processes: Vec<Moved>,
}

/// The connections and bytes of one process.
pub struct Moved {
    pub pid: i32,
    pub connections: u64,
    /// Payload bytes.
    pub sent: u64,
    /// Payload bytes.
    pub received: u64,
}

/// A process on a host that is controlled by lines of text, primarily a traffic maker.
pub struct Maker {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Maker {
    pub fn start_of(command: &mut Command) -> Maker {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Maker { input: child.stdin.take(), child, output }
    }

    /// Returns the next line of its output, which is empty at the end.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Returns its process id: `ip netns exec` becomes the program that it starts.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Starts a source, or ends a server's work.
    pub fn start(&mut self) {
        self.input.as_mut().unwrap().write_all(b"go\n").unwrap();
    }

    /// Waits until the process has moved everything.
    pub fn finish(&mut self) -> Report {
        let mut processes = Vec::new();
        loop {
            let line = self.line();
            let mut words = line.split(' ');
            let kind = words.next().unwrap();
            let numbers: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
            match (kind, numbers.as_slice()) {
                ("process", &[pid, connections, sent, received]) => {
                    processes.push(Moved { pid: pid as i32, connections, sent, received });
                }
                ("done", &[payload, took, failed]) => {
                    return Report { payload, took: Duration::from_millis(took), failed, processes };
                }
                _ => panic!("it said {line:?}"),
            }
        }
    }

    /// Lets the process end, and waits for it.
    pub fn end(&mut self) {
        drop(self.input.take());
        self.child.wait().unwrap();
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        drop(self.input.take());
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
