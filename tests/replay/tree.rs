//! A `/proc` fixture: the machine's files, socket tables, and processes that hold sockets.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::Path;

/// `TCP_ESTABLISHED` (include/net/tcp_states.h), also the state of connected sockets of other protocols.
pub const ESTABLISHED: u8 = 1;
/// `TCP_CLOSE`, the state of unconnected sockets of other protocols.
pub const UNCONNECTED: u8 = 7;

const TABLES: [&str; 10] =
    ["tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "icmp", "icmp6", "raw", "raw6"];
const HEADING: &str =
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

/// The tree, which is removed when dropped.
pub struct Tree(tempfile::TempDir);

impl Tree {
    /// Makes a machine without processes and sockets.
    pub fn new() -> Tree {
        let tree = Tree(tempfile::tempdir().unwrap());
        tree.write("stat", "cpu  1000 0 0 9000 0 0 0 0 0 0\nbtime 1700000000\n");
        tree.write("meminfo", "MemTotal:       2048 kB\n");
        fs::create_dir(tree.path().join("net")).unwrap();
        for table in TABLES {
            tree.write(&format!("net/{table}"), HEADING);
        }
        tree
    }

    /// Returns the path of the tree.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Adds a process that started `start` ticks after boot and holds these sockets. It replaces any
    /// process with its pid.
    pub fn process(&self, pid: i32, name: &str, start: u64, sockets: &[u64]) {
        let _ = fs::remove_dir_all(self.path().join(pid.to_string()));
        let file = |name: &str| format!("{pid}/{name}");
        fs::create_dir_all(self.path().join(file("fd"))).unwrap();
        let tail = format!("S 1 1 1 0 -1 0 0 0 0 0 5 6 0 0 20 0 1 0 {start} 8192 2 9 1 1 1000\n");
        self.write(&file("stat"), &format!("{pid} ({name}) {tail}"));
        self.write(&file("statm"), "2 1 0 0 0 0 0\n");
        self.write(&file("status"), &format!("Name:\t{name}\nTgid:\t{pid}\nPid:\t{pid}\n"));
        self.write(&file("io"), "rchar: 1\nwchar: 2\nread_bytes: 3\nwrite_bytes: 4\n");
        self.write(&file("cmdline"), &format!("/bin/{name}\0-x\0"));
        symlink("/dev/null", self.path().join(file("fd/0"))).unwrap();
        for (number, inode) in sockets.iter().enumerate() {
            let link = self.path().join(file(&format!("fd/{}", number + 3)));
            symlink(format!("socket:[{inode}]"), link).unwrap();
        }
    }

    pub fn end(&self, pid: i32) {
        fs::remove_dir_all(self.path().join(pid.to_string())).unwrap();
    }

    /// Adds a socket to a table. The form of its addresses must be that of the table.
    pub fn socket(&self, table: &str, local: &str, remote: &str, state: u8, inode: u64) {
        let ends = [local, remote].map(as_the_kernel_prints);
        let row = format!(
            "   0: {} {} {state:02X} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1 0 0\n",
            ends[0], ends[1]
        );
        let path = self.path().join("net").join(table);
        OpenOptions::new().append(true).open(path).unwrap().write_all(row.as_bytes()).unwrap();
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).unwrap();
    }
}

/// Formats an endpoint as the tables do: the words of the address as numbers in this machine's byte
/// order, and the port.
fn as_the_kernel_prints(endpoint: &str) -> String {
    let endpoint: SocketAddr = endpoint.parse().unwrap();
    let bytes = match endpoint.ip() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let words = bytes.as_chunks::<4>().0;
    let address: String = words.iter().map(|word| format!("{:08X}", u32::from_ne_bytes(*word))).collect();
    format!("{address}:{:04X}", endpoint.port())
}
