//! A fixture machine on which each process has an address of its own, the traffic of its sockets, and the
//! bytes that each process must be found to have sent and received.

use capture_test_support::frames::{Carries, Packet, Part, Wire};
use capture_test_support::proc_tree::{ESTABLISHED, ProcTree, UNCONNECTED};
use capture_test_support::savefile::Record;
use std::collections::BTreeMap;
use std::net::IpAddr;

const LISTEN: u8 = 10;

/// A process with one socket: pid, name, socket table, local and remote endpoint, state, inode.
type Holder = (i32, &'static str, &'static str, &'static str, &'static str, u8, u64);

const HOLDERS: [Holder; 13] = [
    (101, "web", "tcp", "192.0.2.1:80", "198.51.100.7:40000", ESTABLISHED, 1001),
    (102, "resolver", "udp", "192.0.2.2:53", "0.0.0.0:0", UNCONNECTED, 1002),
    (103, "mail", "tcp6", "[2001:db8::3]:50000", "[2001:db8:f::1]:443", ESTABLISHED, 1003),
    (104, "ping", "icmp", "192.0.2.4:77", "0.0.0.0:0", UNCONNECTED, 1004),
    (105, "left", "tcp", "127.0.0.5:6000", "127.0.0.6:7000", ESTABLISHED, 1005),
    (106, "right", "tcp", "127.0.0.6:7000", "127.0.0.5:6000", ESTABLISHED, 1006),
    (108, "shell", "tcp", "192.0.2.8:22", "198.51.100.7:40001", ESTABLISHED, SHARED),
    (109, "nfs", "udp", "192.0.2.9:5000", "198.51.100.9:6000", ESTABLISHED, 1009),
    (110, "dual", "tcp6", "[::ffff:192.0.2.10]:8080", "[::ffff:198.51.100.7]:40002", ESTABLISHED, 1010),
    (111, "group", "udp", "0.0.0.0:5353", "0.0.0.0:0", UNCONNECTED, 1011),
    (113, "ping six", "icmp6", "[2001:db8::13]:88", "[::]:0", UNCONNECTED, 1013),
    (114, "tunnel", "udp6", "[2001:db8::14]:5000", "[::]:0", UNCONNECTED, 1014),
    (115, "idle", "tcp", "192.0.2.15:9", "0.0.0.0:0", LISTEN, 1015),
];

/// The socket that process 108 holds, and also the older process 107.
const SHARED: u64 = 1008;

/// The host's addresses other than loopback, each with the process that it belongs to. The last one
/// has no process.
const ADDRESSES: [(&str, Option<i32>); 11] = [
    ("192.0.2.1", Some(101)),
    ("192.0.2.2", Some(102)),
    ("2001:db8::3", Some(103)),
    ("192.0.2.4", Some(104)),
    ("192.0.2.8", Some(108)),
    ("192.0.2.9", Some(109)),
    ("192.0.2.10", Some(110)),
    ("2001:db8::13", Some(113)),
    ("2001:db8::14", Some(114)),
    ("192.0.2.15", Some(115)),
    ("192.0.2.99", None),
];

/// Bytes sent and received.
pub type Bytes = (u64, u64);

/// Returns the machine's `/proc`.
pub fn tree() -> ProcTree {
    let tree = ProcTree::new();
    for (pid, name, table, local, remote, state, inode) in HOLDERS {
        tree.process(pid, name, 500, &[inode]);
        tree.socket(table, local, remote, state, inode);
    }
    tree.process(107, "parent", 400, &[SHARED]);
    tree
}

/// Returns the host's addresses.
pub fn addresses() -> Vec<capture::internals::model::Address> {
    ADDRESSES.iter().map(|(address, _)| address.parse::<IpAddr>().unwrap().into()).collect()
}

/// Returns the process that an address belongs to. The multicast group belongs to the process
/// that listens to it.
pub fn process_at(address: IpAddr) -> Option<i32> {
    let of = |text: &str| text.parse::<IpAddr>().unwrap();
    let extra = [("127.0.0.5", 105), ("127.0.0.6", 106), ("224.0.0.251", 111)];
    let extra = extra.iter().find(|(text, _)| of(text) == address).map(|(_, pid)| *pid);
    extra.or(ADDRESSES.iter().find(|(text, _)| of(text) == address).and_then(|(_, pid)| *pid))
}

/// Returns the packets on the machine's devices; all but the last two have an owner.
pub fn packets() -> Vec<Packet> {
    use Carries::{Echo, Tcp, Udp};
    let both = |carries, here: &str, there: &str| {
        let bigger = 700 + here.len();
        [Packet::new(carries, here, there, bigger), Packet::new(carries, there, here, 33)]
    };
    let part = |from, to, id, offset, more| Packet {
        part: Some(Part { id, offset, more }),
        ..Packet::new(Udp, from, to, if offset == 0 { 800 } else { 160 })
    };
    let mut packets = Vec::new();
    packets.extend(both(Tcp(0x18), "192.0.2.1:80", "198.51.100.7:40000"));
    packets.extend(both(Udp, "192.0.2.2:53", "198.51.100.53:1234"));
    packets.extend(both(Udp, "192.0.2.2:53", "198.51.100.54:4321"));
    packets.extend(both(Tcp(0x10), "[2001:db8::3]:50000", "[2001:db8:f::1]:443"));
    packets.extend(both(Echo, "192.0.2.4:77", "198.51.100.1:0"));
    packets.extend(both(Tcp(0x10), "127.0.0.5:6000", "127.0.0.6:7000"));
    packets.extend(both(Tcp(0x10), "192.0.2.8:22", "198.51.100.7:40001"));
    for more in [true, false] {
        let offset = if more { 0 } else { 808 };
        packets.push(part("192.0.2.9:5000", "198.51.100.9:6000", 7, offset, more));
        packets.push(part("198.51.100.9:6000", "192.0.2.9:5000", 8, offset, more));
        packets.push(part("[2001:db8::14]:5000", "[2001:db8:f::1]:6", 9, offset, more));
    }
    packets.extend(both(Tcp(0x18), "192.0.2.10:8080", "198.51.100.7:40002"));
    packets.push(Packet::new(Udp, "198.51.100.7:5353", "224.0.0.251:5353", 120));
    packets.extend(both(Echo, "[2001:db8::13]:88", "[2001:db8:f::2]:0"));
    packets.push(Packet::new(Udp, "192.0.2.99:9", "198.51.100.7:9", 50));
    packets.push(Packet::new(Udp, "203.0.113.1:9", "203.0.113.2:9", 60));
    packets
}

/// Returns the packets as frames of a link, two of every three cut to their headers, as in a capture with
/// a small snaplen.
pub fn records(wire: Wire, packets: &[Packet]) -> Vec<Record> {
    let records = packets.iter().enumerate().map(|(number, packet)| {
        let mut record = Record::whole(wire.frame(&packet.bytes()));
        if number % 3 != 0 {
            record.data.truncate(96);
        }
        record
    });
    records.collect()
}

/// Returns the bytes that each process must be found to have sent and received, from its addresses alone.
pub fn expected<'a>(frames: impl Iterator<Item = (IpAddr, IpAddr, u64)> + 'a) -> BTreeMap<i32, Bytes> {
    let mut expected: BTreeMap<i32, Bytes> = HOLDERS.iter().map(|holder| (holder.0, (0, 0))).collect();
    expected.insert(107, (0, 0));
    for (from, to, bytes) in frames {
        if let Some(pid) = process_at(from) {
            expected.entry(pid).or_default().0 += bytes;
        }
        if let Some(pid) = process_at(to) {
            expected.entry(pid).or_default().1 += bytes;
        }
    }
    expected
}

/// Returns the records with their lengths on the link.
pub fn on_link(wire: Wire, records: &[Record]) -> Vec<Record> {
    let record = |record: &Record| Record { wire_len: wire.link_len(record.wire_len), ..record.clone() };
    records.iter().map(record).collect()
}

/// Returns the frames in the form that [`expected`] takes.
pub fn ends<'a>(
    packets: &'a [Packet],
    records: &'a [Record],
) -> impl Iterator<Item = (IpAddr, IpAddr, u64)> + 'a {
    let pairs = packets.iter().zip(records);
    pairs.map(|(packet, record)| (packet.from.ip(), packet.to.ip(), record.wire_len.into()))
}
