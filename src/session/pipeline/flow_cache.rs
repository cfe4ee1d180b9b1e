//! The flows that counted the last packet between two endpoints, so that the next one is counted without a
//! search.
//!
//! Most packets follow others between the same endpoints. The cache is only a shortcut: its user checks that
//! the cached flows still exist.

use crate::flow::FlowId;
use crate::model::{Direction, Endpoint, Namespace, Packet, Passage, Protocol};

/// Number of cached pairs of endpoints, each in the one entry that its ports select: 20 KiB in all.
const PLACES: usize = 256;

/// The endpoints of packets, and the flows that count them.
#[derive(Clone, Copy)]
struct CacheEntry {
    source: Endpoint,
    destination: Endpoint,
    protocol: Protocol,
    namespace: Namespace,
    passage: Passage,
    flows: PacketFlows,
}

/// The flows that count a packet: for its sender, for its receiver, or for both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PacketFlows {
    /// The sender's, if it is on this host.
    pub send: Option<FlowId>,
    /// The receiver's, if it is on this host.
    pub receive: Option<FlowId>,
    /// Set if a socket on this host may start to receive the packet, too, since it was sent to a group.
    pub may_loop: bool,
}

impl PacketFlows {
    /// Returns these flows, each with the direction of the packet seen from its end.
    #[inline]
    pub fn ends(self) -> impl Iterator<Item = (FlowId, Direction)> {
        let ends = [(self.send, Direction::Send), (self.receive, Direction::Receive)];
        ends.into_iter().filter_map(|(id, direction)| Some((id?, direction)))
    }
}

/// The cache entries.
pub struct FlowCache {
    places: Box<[Option<CacheEntry>; PLACES]>,
}

impl Default for FlowCache {
    fn default() -> FlowCache {
        FlowCache { places: Box::new([None; PLACES]) }
    }
}

impl FlowCache {
    /// Returns the flows that counted the latest packet with the same endpoints and the same passage.
    #[inline]
    pub fn get(&self, packet: &Packet, namespace: Namespace, passage: Passage) -> Option<PacketFlows> {
        let path = self.places[place(packet)].as_ref()?;
        let is_same = path.source == packet.source
            && path.destination == packet.destination
            && path.protocol == packet.protocol
            && path.namespace == namespace
            && path.passage == passage;
        is_same.then_some(path.flows)
    }

    /// Records the flows that have counted a packet.
    pub fn set(&mut self, packet: &Packet, namespace: Namespace, passage: Passage, flows: PacketFlows) {
        let &Packet { source, destination, protocol, .. } = packet;
        self.places[place(packet)] =
            Some(CacheEntry { source, destination, protocol, namespace, passage, flows });
    }

    /// Removes all entries.
    pub fn clear(&mut self) {
        self.places.fill(None);
    }
}

/// Returns the index of the entry for a packet's endpoints. A collision costs only a search, so a simple
/// mixture of the most varying bits is enough.
#[inline]
fn place(packet: &Packet) -> usize {
    let last = |end: &Endpoint| u16::from(end.address.bytes()[15]);
    let (source, destination) = (&packet.source, &packet.destination);
    let mixed =
        source.port ^ last(source).rotate_left(3) ^ (destination.port ^ last(destination)).rotate_left(5);
    usize::from(mixed ^ (mixed >> 8)) % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::FlowTable;
    use crate::model::{Address, FlowKey, Fragment, TcpFlags, Timestamp};

    fn packet(port: u16) -> Packet {
        Packet {
            protocol: Protocol::TCP,
            source: Endpoint::new(Address::v4([10, 0, 0, 1]), port),
            destination: Endpoint::new(Address::v4([10, 0, 0, 2]), 80),
            tcp_flags: TcpFlags::ACK,
            has_payload: true,
            fragment: Fragment::Whole,
            vlan: 0,
        }
    }

    #[test]
    fn only_the_same_endpoints_lead_to_the_same_flows() {
        let mut flows = FlowTable::new(4).unwrap();
        let (one, namespace, passage) = (packet(1), Namespace::HOME, Passage::Outgoing);
        let key = FlowKey { local: one.source, remote: one.destination, protocol: one.protocol, namespace };
        let send = flows.record(&key, Direction::Send, 60, TcpFlags::ACK, Timestamp(1));
        let found = PacketFlows { send: Some(send), receive: None, may_loop: false };
        let mut paths = FlowCache::default();
        assert_eq!(paths.get(&one, namespace, passage), None);
        paths.set(&one, namespace, passage, found);
        assert_eq!(paths.get(&one, namespace, passage), Some(found));
        assert_eq!(
            paths.get(&Packet { tcp_flags: TcpFlags::FIN, vlan: 7, ..one }, namespace, passage),
            Some(found)
        );
        let back = Packet { source: one.destination, destination: one.source, ..one };
        let others = [
            Packet { protocol: Protocol::UDP, ..one },
            Packet { source: Endpoint::new(Address::v4([10, 0, 1, 1]), 1), ..one },
            Packet { destination: Endpoint::new(Address::v4([11, 0, 0, 2]), 80), ..one },
            // In the same entry.
            packet(1 | 1 << 8 | 1),
            back,
        ];
        for other in others {
            assert_eq!(paths.get(&other, namespace, passage), None, "{other:?}");
        }
        assert_eq!(paths.get(&one, Namespace(1), passage), None);
        assert_eq!(paths.get(&one, namespace, Passage::Incoming), None);
        paths.clear();
        assert_eq!(paths.get(&one, namespace, passage), None);
    }

    #[test]
    fn ports_spread_over_the_places() {
        let places: std::collections::HashSet<usize> =
            (40_000..40_200).map(|port| place(&packet(port))).collect();
        assert_eq!(places.len(), 200);
    }
}
