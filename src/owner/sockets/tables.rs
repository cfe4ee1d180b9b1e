//! The source of sockets that every Linux has: the socket tables under `/proc/net`.
//!
//! The tables are those of the network namespace of the thread that reads them (`/proc/thread-self/net`);
//! sockets of other namespaces, which may have the same addresses, are not in them. IPv4 flows are also
//! looked up in the IPv6 tables, because a dual-stack socket is listed there. SCTP has no table of this form.
//!
//! The kernel walks a UDP table from its start for every 4 KiB that are read (`udp_get_idx` in
//! net/ipv4/udp.c), so its cost grows with the square of the number of sockets: 200 ms for 20,000. Only the
//! budget limits that.

use super::index::{NO_RANK, SocketIndex, TableKind};
use super::table::parse_table;
use crate::error::{Code, Error};
use crate::model::{FlowKey, Protocol};
use crate::owner::source::{CandidateSocket, Looked, Match, Report, SocketSource, SourceStatus, Turn};
use crate::proc::{PidPath, ProcRoot};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::time::Instant;

/// The size of the pieces in which tables are read, so that a table's text is never in memory as a whole.
const PIECE: usize = 64 * 1024;

/// The limit of sockets of one local endpoint. From this number on they are not distinguished. Each of them
/// is kept for each flow of a round.
pub(in crate::owner) const CROWD: usize = 128;

/// The names of the tables, and the meaning of their columns. Each table is followed by its IPv6 sibling.
pub(in crate::owner) const NAMES: [(&str, TableKind); 10] = [
    ("tcp", TableKind::Tcp),
    ("tcp6", TableKind::Tcp),
    ("udp", TableKind::Datagram),
    ("udp6", TableKind::Datagram),
    ("udplite", TableKind::Datagram),
    ("udplite6", TableKind::Datagram),
    ("icmp", TableKind::Ping),
    ("icmp6", TableKind::Ping),
    ("raw", TableKind::Raw),
    ("raw6", TableKind::Raw),
];
const TCP: usize = 0;
const UDP: usize = 2;
const UDPLITE: usize = 4;
const ICMP: usize = 6;
const RAW: usize = 8;

struct SocketTable {
    name: &'static str,
    path: CString,
    index: SocketIndex,
    /// The start of the latest reading.
    read_at: Option<Instant>,
    state: TableState,
}

/// The state of a table as of its latest reading.
enum TableState {
    Readable,
    /// The process whose table it is has ended, which is no fault.
    Gone,
    Faulty(Error),
}

/// The tables, each read when a flow needs it.
pub(in crate::owner) struct Tables {
    directory: CString,
    tables: [SocketTable; NAMES.len()],
    piece: Vec<u8>,
    loads: u64,
    malformed: u64,
}

impl Tables {
    /// Probes the tables of the calling thread's network namespace.
    pub fn of_this_thread(root: &ProcRoot) -> Tables {
        // A thread may be in another network namespace than its process; kernels before 3.17 and `/proc`
        // fixtures have no `thread-self`.
        let directory = [c"thread-self/net", c"net"].into_iter().find(|path| root.stat(path).is_ok());
        Tables::probe(root, directory.unwrap_or(c"net").to_owned())
    }

    /// Probes the tables of a process's network namespace.
    pub fn of_process(root: &ProcRoot, pid: i32) -> Tables {
        Tables::probe(root, PidPath::new(pid).file("net").to_owned())
    }

    /// Opens each table once to determine its state.
    fn probe(root: &ProcRoot, directory: CString) -> Tables {
        let tables = NAMES.map(|(name, kind)| {
            let path = [directory.to_bytes(), b"/", name.as_bytes()].concat();
            let path = CString::new(path).unwrap_or_default();
            SocketTable {
                name,
                path,
                index: SocketIndex::new(kind),
                read_at: None,
                state: TableState::Readable,
            }
        });
        let mut tables = Tables { directory, tables, piece: vec![0; PIECE], loads: 0, malformed: 0 };
        for table in &mut tables.tables {
            let opened = open(root, &table.path).map(drop);
            table.state = state(root, &tables.directory, &table.path, opened);
        }
        tables
    }

    /// Reads a table if it is older than `since`.
    fn refresh(&mut self, table: usize, since: Instant, turn: &Turn<'_>) -> Result<(), Looked> {
        let Tables { directory, tables, piece, .. } = self;
        let Some(table) = tables.get_mut(table) else { return Ok(()) };
        if table.read_at.is_none_or(|at| at < since) {
            turn.budget.allow().map_err(Looked::Busy)?;
            table.read_at = Some(turn.now);
            table.index.clear();
            let read = read_table(turn.root, &table.path, piece, &mut table.index);
            self.loads += 1;
            self.malformed += *read.as_ref().unwrap_or(&0);
            if read.is_err() {
                // A part of a table would be taken for the whole.
                table.index.clear();
            }
            table.index.arrange();
            table.state = state(turn.root, directory, &table.path, read.map(drop));
        }
        if matches!(table.state, TableState::Readable) { Ok(()) } else { Err(Looked::Failed) }
    }

    /// Looks up a connection, or else the listeners of its port.
    fn stream(
        &mut self,
        key: &FlowKey,
        since: Instant,
        turn: &Turn<'_>,
        sockets: &mut Vec<CandidateSocket>,
    ) -> Looked {
        let start = sockets.len();
        let mut worst = None;
        for table in siblings(TCP, key) {
            if let Err(looked) = self.refresh(*table, since, turn) {
                worst = Some(looked);
                continue;
            }
            self.tables[*table].index.connected(key, CROWD, sockets);
            if sockets.len() > start {
                let end = sockets.len();
                self.bound(&[*table], key, false, sockets);
                let listener = sockets.get(end).map(|socket| socket.inode);
                sockets.truncate(end);
                return Looked::Found { by: Match::Own, listener };
            }
        }
        if let Some(looked) = worst {
            return looked;
        }
        self.bound(siblings(TCP, key), key, false, sockets);
        if sockets.len() > start { Looked::Listener { is_seen: false } } else { Looked::Missing }
    }

    /// Looks up sockets of a protocol that has ports or echo identifiers but no connections.
    fn datagram(
        &mut self,
        tables: &[usize],
        key: &FlowKey,
        since: Instant,
        turn: &Turn<'_>,
        sockets: &mut Vec<CandidateSocket>,
    ) -> Looked {
        let start = sockets.len();
        let mut worst = None;
        for table in tables {
            match self.refresh(*table, since, turn) {
                Ok(()) => self.tables[*table].index.connected(key, CROWD, sockets),
                Err(looked) => worst = Some(looked),
            }
        }
        if sockets.len() > start {
            return Looked::Found { by: Match::Own, listener: None };
        }
        if let Some(looked) = worst {
            return looked;
        }
        // A packet to a group reaches every socket bound to the port, whichever address the socket is bound
        // to.
        self.bound(tables, key, key.local.address.is_multicast(), sockets);
        if sockets.len() > start {
            Looked::Found { by: Match::Bound, listener: None }
        } else {
            Looked::Missing
        }
    }

    /// Looks up raw sockets, each of which receives every packet of its protocol that its addresses admit.
    fn raw(
        &mut self,
        key: &FlowKey,
        since: Instant,
        turn: &Turn<'_>,
        sockets: &mut Vec<CandidateSocket>,
    ) -> Looked {
        let start = sockets.len();
        let mut key = *key;
        key.local.port = u16::from(key.protocol.0);
        key.remote.port = 0;
        let table = family(RAW, &key);
        if let Err(looked) = self.refresh(table, since, turn) {
            return looked;
        }
        self.bound(&[table], &key, true, sockets);
        self.tables[table].index.connected(&key, CROWD, sockets);
        if sockets.len() > start {
            Looked::Found { by: Match::Indirect, listener: None }
        } else {
            Looked::Missing
        }
    }

    fn bound(&self, tables: &[usize], key: &FlowKey, all: bool, sockets: &mut Vec<CandidateSocket>) {
        let start = sockets.len();
        let mut best = NO_RANK;
        for table in tables {
            self.tables[*table].index.bound(key, all, CROWD, (start, &mut best), sockets);
        }
    }
}

impl SocketSource for Tables {
    fn look_up(
        &mut self,
        key: &FlowKey,
        since: Instant,
        turn: &Turn<'_>,
        sockets: &mut Vec<CandidateSocket>,
    ) -> Looked {
        let start = sockets.len();
        let looked = match key.protocol {
            Protocol::TCP => self.stream(key, since, turn, sockets),
            Protocol::UDP => self.datagram(siblings(UDP, key), key, since, turn, sockets),
            Protocol::UDPLITE => self.datagram(siblings(UDPLITE, key), key, since, turn, sockets),
            // Not an echo: an error or discovery message, which the kernel sends and answers.
            Protocol::ICMP | Protocol::ICMPV6 if key.local.port == 0 => Looked::NoPorts,
            Protocol::ICMP | Protocol::ICMPV6 => {
                match self.datagram(&[family(ICMP, key)], key, since, turn, sockets) {
                    Looked::Missing => self.raw(key, since, turn, sockets),
                    looked => looked,
                }
            }
            _ => match self.raw(key, since, turn, sockets) {
                Looked::Missing => Looked::NoPorts,
                looked => looked,
            },
        };
        if sockets.len() - start >= CROWD {
            sockets.truncate(start);
            return Looked::Crowd;
        }
        // A table that changes while it is read can contain a socket twice.
        remove_repeated(start, sockets);
        looked
    }

    fn report(&self, report: &mut Report) {
        for table in &self.tables {
            let fault = match &table.state {
                TableState::Faulty(error) => Some(error.clone()),
                TableState::Readable | TableState::Gone => None,
            };
            report.sources.push(SourceStatus { name: table.name, fault });
            report.dropped_rows += table.index.dropped();
        }
        report.table_loads += self.loads;
        report.malformed_rows += self.malformed;
    }
}

/// Returns the tables that can contain a socket of the flow's local endpoint: an IPv4 flow's socket may be in
/// the table of either family.
fn siblings(first: usize, key: &FlowKey) -> &'static [usize] {
    const NUMBERS: [usize; NAMES.len()] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
    let first = if key.local.address.is_v4() { first..first + 2 } else { first + 1..first + 2 };
    NUMBERS.get(first).unwrap_or_default()
}

/// Returns the table of the flow's own family.
fn family(first: usize, key: &FlowKey) -> usize {
    if key.local.address.is_v4() { first } else { first + 1 }
}

fn remove_repeated(start: usize, sockets: &mut Vec<CandidateSocket>) {
    let Some(added) = sockets.get_mut(start..).filter(|added| added.len() > 1) else { return };
    added.sort_unstable_by_key(|socket| socket.inode);
    let mut kept = start;
    for at in start..sockets.len() {
        if kept == start || sockets[at].inode != sockets[kept - 1].inode {
            sockets[kept] = sockets[at];
            kept += 1;
        }
    }
    sockets.truncate(kept);
}

fn open(root: &ProcRoot, path: &CStr) -> nix::Result<OwnedFd> {
    openat(root.directory(), path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Returns the state of a table after its reading. A table that does not exist, in a directory that does, has
/// no sockets: the kernel was built or booted without its protocol. For a process that has ended, this
/// directory no longer exists.
fn state(root: &ProcRoot, directory: &CStr, path: &CStr, read: nix::Result<()>) -> TableState {
    let Err(errno) = read else { return TableState::Readable };
    let is_of_process = directory.to_bytes().first().is_some_and(u8::is_ascii_digit);
    match errno {
        Errno::ENOENT if root.stat(directory).is_ok() => TableState::Readable,
        Errno::ENOENT | Errno::ESRCH if is_of_process => TableState::Gone,
        errno => {
            let tried = format!("reading the socket table {}", path.to_string_lossy());
            TableState::Faulty(Error::system(Code::ProcessOpen, tried, errno))
        }
    }
}

/// Reads a table piece by piece into `index`. Returns the number of malformed lines.
fn read_table(root: &ProcRoot, path: &CStr, piece: &mut [u8], index: &mut SocketIndex) -> nix::Result<u64> {
    let file = open(root, path)?;
    let mut malformed = 0;
    // Bytes at the start of `piece` that begin a line whose end has not been read yet.
    let mut begun = 0;
    loop {
        let Some(room) = piece.get_mut(begun..).filter(|room| !room.is_empty()) else {
            // No line of a table is as long as a whole piece.
            begun = 0;
            malformed += 1;
            continue;
        };
        let count = match nix::unistd::read(&file, room) {
            Ok(count) => count,
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
        };
        let filled = begun + count;
        let text = piece.get(..filled).unwrap_or_default();
        let whole = match text.iter().rposition(|&byte| byte == b'\n') {
            Some(end) => end + 1,
            None if count == 0 => filled,
            None => 0,
        };
        malformed += parse_table(text.get(..whole).unwrap_or_default(), |row| index.insert(&row));
        if count == 0 {
            return Ok(malformed);
        }
        piece.copy_within(whole..filled, 0);
        begun = filled - whole;
    }
}
