//! A `/proc` fixture: the machine's files, socket tables, and processes that hold sockets.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Ticks in user mode of each process that [`ProcTree::process`] adds.
pub const USER_TICKS: u64 = 5;
/// `TCP_ESTABLISHED` (include/net/tcp_states.h), also the state of connected sockets of other protocols.
pub const ESTABLISHED: u8 = 1;
/// `TCP_CLOSE`, the state of unconnected sockets of other protocols.
pub const UNCONNECTED: u8 = 7;

const TABLES: [&str; 10] =
    ["tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "icmp", "icmp6", "raw", "raw6"];
const HEADING: &str =
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

/// The tree, which is removed when dropped.
pub struct ProcTree(tempfile::TempDir);

impl ProcTree {
    /// Makes a tree without any file.
    pub fn empty() -> ProcTree {
        ProcTree(tempfile::tempdir().unwrap())
    }

    /// Makes a machine without processes and sockets.
    pub fn new() -> ProcTree {
        let tree = ProcTree::empty();
        tree.write("stat", "cpu  1000 0 0 9000 0 0 0 0 0 0\nbtime 1700000000\n");
        tree.write("meminfo", "MemTotal:       2048 kB\n");
        for table in TABLES {
            tree.write(&format!("net/{table}"), HEADING);
        }
        tree
    }

    /// Returns the path of the tree.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Returns the path of a file in the tree.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Writes a file, and makes the directories that it needs.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.file(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Makes or replaces a symbolic link, and makes the directories that it needs.
    pub fn link(&self, name: &str, target: &str) {
        let path = self.file(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path);
        symlink(target, path).unwrap();
    }

    /// Removes a file or a directory with all that it contains.
    pub fn remove(&self, name: &str) {
        let path = self.file(name);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    }

    /// Gives a process links to these sockets as its descriptors from 3 on.
    pub fn sockets(&self, pid: i32, inodes: &[u64]) {
        for (inode, descriptor) in inodes.iter().zip(3..) {
            self.link(&format!("{pid}/fd/{descriptor}"), &format!("socket:[{inode}]"));
        }
    }

    /// Adds a process that started `start` ticks after boot and holds these sockets. It replaces any
    /// process with its pid.
    pub fn process(&self, pid: i32, name: &str, start: u64, sockets: &[u64]) {
        let _ = fs::remove_dir_all(self.file(&pid.to_string()));
        let tail = format!("S 1 1 1 0 -1 0 0 0 0 0 {USER_TICKS} 6 0 0 20 0 1 0 {start} 8192 2 9 1 1 1000\n");
        let files = [
            ("stat", format!("{pid} ({name}) {tail}")),
            ("statm", "2 1 0 0 0 0 0\n".to_owned()),
            ("status", format!("Name:\t{name}\nTgid:\t{pid}\nPid:\t{pid}\n")),
            ("io", "rchar: 1\nwchar: 2\nread_bytes: 3\nwrite_bytes: 4\n".to_owned()),
            ("cmdline", format!("/bin/{name}\0-x\0")),
        ];
        files.iter().for_each(|(file, text)| self.write(&format!("{pid}/{file}"), text));
        self.link(&format!("{pid}/fd/0"), "/dev/null");
        self.sockets(pid, sockets);
    }

    /// Removes a process.
    pub fn end(&self, pid: i32) {
        self.remove(&pid.to_string());
    }

    /// Adds a socket to a table. The form of its addresses must be that of the table.
    pub fn socket(&self, table: &str, local: &str, remote: &str, state: u8, inode: u64) {
        let ends = [local, remote].map(as_the_kernel_prints);
        let row = format!(
            "   0: {} {} {state:02X} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1 0 0\n",
            ends[0], ends[1]
        );
        let path = self.file(&format!("net/{table}"));
        OpenOptions::new().append(true).open(path).unwrap().write_all(row.as_bytes()).unwrap();
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
