//! Two network namespaces joined by veth, with nftables counters in each, and traffic makers inside them.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Length of the link header on veth and loopback.
const ETHERNET_HEADER: u64 = 14;

/// Runs a command and returns what it printed.
pub fn run(command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command}: {error}"));
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// One of the two hosts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Host {
    A,
    B,
}

/// The namespaces; they vanish with it.
pub struct Lab {
    names: [String; 2],
}

impl Lab {
    /// Makes the namespaces: 10.77.0.1 and fd77::1 are host A, 10.77.0.2 and fd77::2 host B.
    pub fn new() -> Lab {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let lab = Lab { names: [format!("capture-{id}-a"), format!("capture-{id}-b")] };
        let [a, b] = &lab.names;
        run(&format!("ip netns add {a}"));
        run(&format!("ip netns add {b}"));
        run(&format!("ip -n {a} link add veth0 type veth peer name veth0 netns {b}"));
        for (name, number, other) in [(a, 1, 2), (b, 2, 1)] {
            run(&format!("ip -n {name} link set veth0 address 02:00:00:00:00:0{number}"));
            run(&format!("ip -n {name} addr add 10.77.0.{number}/24 dev veth0"));
            run(&format!("ip -n {name} addr add fd77::{number}/64 dev veth0 nodad"));
            run(&format!("ip -n {name} link set lo up"));
            run(&format!("ip -n {name} link set veth0 up"));
            // Neighbours are given: while one is looked for, the counters see packets that never reach the link.
            for address in ["10.77.0.", "fd77::"] {
                let neighbour = format!("{address}{other} lladdr 02:00:00:00:00:0{other} dev veth0");
                run(&format!("ip -n {name} neigh add {neighbour} nud permanent"));
            }
        }
        lab
    }

    fn name(&self, host: Host) -> &str {
        &self.names[host as usize]
    }

    /// Takes the calling thread, and what it will start, to a host.
    pub fn enter(&self, host: Host) {
        let namespace = File::open(format!("/run/netns/{}", self.name(host))).unwrap();
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// Counts the packets of a port from here on, at a host: those it sends, and those it receives.
    pub fn count(&self, host: Host, protocol: &str, port: u16) {
        let rules = format!(
            "table inet capture {{
               counter sent {{}}
               counter received {{}}
               chain output {{
                 type filter hook output priority 0;
                 {protocol} sport {port} counter name sent
                 {protocol} dport {port} counter name sent
               }}
               chain input {{
                 type filter hook input priority 0;
                 {protocol} sport {port} counter name received
                 {protocol} dport {port} counter name received
               }}
             }}"
        );
        let mut nft = Command::new("ip")
            .args(["netns", "exec", self.name(host), "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
        assert!(nft.wait().unwrap().success(), "nft");
    }

    /// Bytes that the kernel counted as sent and received by a host, with a link header for each packet, once they
    /// stand still.
    pub fn counted(&self, host: Host) -> (u64, u64) {
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

    fn counters(&self, host: Host) -> (u64, u64) {
        let read = |counter: &str| {
            let command =
                format!("ip netns exec {} nft list counter inet capture {counter}", self.name(host));
            let text = run(&command);
            let words: Vec<&str> = text.split_whitespace().collect();
            let after =
                |word| words[words.iter().position(|&w| w == word).unwrap() + 1].parse::<u64>().unwrap();
            after("bytes") + ETHERNET_HEADER * after("packets")
        };
        (read("sent"), read("received"))
    }

    /// Starts a traffic maker on a host and waits until it is ready.
    pub fn maker(&self, host: Host, mode: &str, address: &str, bytes: u64, rate: u64) -> Maker {
        let mut child = Command::new("ip")
            .args(["netns", "exec", self.name(host)])
            .arg(traffic_maker())
            .args([mode, address, &bytes.to_string(), &rate.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut maker = Maker { input: child.stdin.take(), child, output };
        assert_eq!(maker.line(), "ready");
        maker
    }
}

/// The program that makes traffic. Cargo builds it with all tests, but not with a single one.
fn traffic_maker() -> &'static Path {
    static MAKER: OnceLock<PathBuf> = OnceLock::new();
    MAKER.get_or_init(|| {
        let build = ["build", "--quiet", "--locked", "--example", "traffic_maker"];
        assert!(Command::new(env!("CARGO")).args(build).status().unwrap().success(), "cargo build");
        let executable = std::env::current_exe().unwrap();
        executable.parent().unwrap().parent().unwrap().join("examples/traffic_maker")
    })
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.names {
            // A namespace that was never made cannot be deleted; there is nobody to tell.
            let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
        }
    }
}

/// A process that makes traffic.
pub struct Maker {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Maker {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Its process id: `ip netns exec` becomes the program it starts.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Lets it send.
    pub fn start(&mut self) {
        self.input.as_mut().unwrap().write_all(b"go\n").unwrap();
    }

    /// Waits until it has moved everything; returns the payload bytes.
    pub fn finish(&mut self) -> u64 {
        let line = self.line();
        line.strip_prefix("done ").unwrap_or_else(|| panic!("it said {line:?}")).parse().unwrap()
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
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
