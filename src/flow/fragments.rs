//! Ports of fragmented datagrams: only the first fragment carries them, and this table supplies them to the
//! later ones.

use crate::bounded::{BoundedMap, Eviction};
use crate::model::{Address, Fragment, Namespace, Packet, Protocol, Timestamp};

/// The maximum number of datagrams in the table; beyond it the oldest are evicted.
const LIMIT: usize = 4096;

/// The longest time between fragments of one datagram, nanoseconds: the kernel's own reassembly time
/// (`net.ipv4.ipfrag_time`).
const LIFETIME_NANOSECONDS: u64 = 30_000_000_000;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct DatagramKey {
    source: Address,
    destination: Address,
    id: u32,
    namespace: Namespace,
}

struct Ports {
    /// A later fragment may name another protocol: the extension header in front of the cut (RFC 8200, 4.5).
    protocol: Protocol,
    source: u16,
    destination: u16,
    seen: Timestamp,
}

/// Records the ports of datagrams whose first fragment was seen.
pub struct FragmentTable {
    ports: BoundedMap<DatagramKey, Ports>,
}

impl Default for FragmentTable {
    fn default() -> FragmentTable {
        FragmentTable { ports: BoundedMap::new(LIMIT, Eviction::Oldest) }
    }
}

impl FragmentTable {
    /// Sets the ports of a later fragment to those of its datagram, and records the ports of a first
    /// fragment. Returns `false` for a later fragment whose first fragment was not seen.
    ///
    /// Datagrams of different namespaces are never matched with each other.
    pub fn complete(&mut self, packet: &mut Packet, namespace: Namespace, now: Timestamp) -> bool {
        let (source, destination) = (packet.source.address, packet.destination.address);
        let key = |id| DatagramKey { source, destination, id, namespace };
        match packet.fragment {
            Fragment::Whole => true,
            Fragment::First { id } => {
                let ports = Ports {
                    protocol: packet.protocol,
                    source: packet.source.port,
                    destination: packet.destination.port,
                    seen: now,
                };
                self.ports.insert(key(id), ports);
                true
            }
            Fragment::Later { id } => {
                let known =
                    self.ports.get(&key(id)).filter(|ports| now.since(ports.seen) <= LIFETIME_NANOSECONDS);
                let Some(ports) = known else { return false };
                packet.protocol = ports.protocol;
                (packet.source.port, packet.destination.port) = (ports.source, ports.destination);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Endpoint, TcpFlags};

    const HOME: Namespace = Namespace::HOME;

    fn packet(fragment: Fragment, ports: (u16, u16)) -> Packet {
        Packet {
            protocol: Protocol::UDP,
            source: Endpoint::new(Address::v4([10, 0, 0, 1]), ports.0),
            destination: Endpoint::new(Address::v4([10, 0, 0, 2]), ports.1),
            tcp_flags: TcpFlags::default(),
            has_payload: true,
            fragment,
            vlan: 0,
        }
    }

    fn complete(
        table: &mut FragmentTable,
        mut packet: Packet,
        at: Namespace,
        now: Timestamp,
    ) -> Option<Packet> {
        table.complete(&mut packet, at, now).then_some(packet)
    }

    #[test]
    fn later_fragments_get_the_ports_of_the_first() {
        let mut table = FragmentTable::default();
        let first = packet(Fragment::First { id: 7 }, (5000, 53));
        let later = packet(Fragment::Later { id: 7 }, (0, 0));
        assert_eq!(complete(&mut table, later, HOME, Timestamp(0)), None, "the first was not seen yet");
        assert_eq!(complete(&mut table, first, HOME, Timestamp(0)), Some(first));
        let completed = complete(&mut table, later, HOME, Timestamp(1)).unwrap();
        assert_eq!((completed.source.port, completed.destination.port), (5000, 53));
        assert_eq!(complete(&mut table, packet(Fragment::Later { id: 8 }, (0, 0)), HOME, Timestamp(1)), None);
        assert_eq!(complete(&mut table, later, HOME, Timestamp(LIFETIME_NANOSECONDS + 1)), None, "too late");
    }

    #[test]
    fn an_identification_that_comes_round_again_means_the_newer_datagram() {
        let mut table = FragmentTable::default();
        complete(&mut table, packet(Fragment::First { id: 7 }, (1, 2)), HOME, Timestamp(0));
        complete(&mut table, packet(Fragment::First { id: 7 }, (3, 4)), HOME, Timestamp(1));
        let completed =
            complete(&mut table, packet(Fragment::Later { id: 7 }, (0, 0)), HOME, Timestamp(2)).unwrap();
        assert_eq!(completed.source.port, 3);
    }

    #[test]
    fn equal_datagrams_of_two_namespaces_stay_apart() {
        let mut table = FragmentTable::default();
        complete(&mut table, packet(Fragment::First { id: 7 }, (1, 2)), HOME, Timestamp(0));
        let later = packet(Fragment::Later { id: 7 }, (0, 0));
        assert_eq!(complete(&mut table, later, Namespace(1), Timestamp(1)), None);
        complete(&mut table, packet(Fragment::First { id: 7 }, (3, 4)), Namespace(1), Timestamp(2));
        let port = |table: &mut FragmentTable, namespace| {
            complete(table, later, namespace, Timestamp(3)).map(|packet| packet.source.port)
        };
        assert_eq!([port(&mut table, HOME), port(&mut table, Namespace(1))], [Some(1), Some(3)]);
    }

    #[test]
    fn the_table_is_bounded() {
        let mut table = FragmentTable::default();
        for id in 0..LIMIT as u32 * 3 {
            complete(&mut table, packet(Fragment::First { id }, (1, 2)), HOME, Timestamp(0));
        }
        assert_eq!(table.ports.len(), LIMIT);
        assert_eq!(table.ports.evicted(), LIMIT as u64 * 2);
        assert!(
            complete(&mut table, packet(Fragment::Later { id: 0 }, (0, 0)), HOME, Timestamp(0)).is_none()
        );
    }
}
