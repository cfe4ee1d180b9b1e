//! The addresses that are this host's, in each captured network namespace.

use crate::model::{Address, FlowKey, LocalAddresses, Namespace, Packet, Passage};
use crate::owner::LocalEnd;
use std::sync::Arc;

/// All values of a namespace's number.
const NAMESPACES: usize = 1 << u8::BITS;

/// The addresses of all namespaces.
pub struct Locality {
    /// Those of each namespace's devices and routes, indexed by its number.
    devices: Box<[Arc<LocalAddresses>; NAMESPACES]>,
    /// Additional addresses in the session's own namespace.
    also_local: LocalAddresses,
}

impl Locality {
    /// Returns the addresses `also_local` in the session's own namespace, and none of devices.
    pub fn new(also_local: &[Address]) -> Locality {
        let none = Arc::<LocalAddresses>::default();
        Locality {
            devices: Box::new(std::array::from_fn(|_| Arc::clone(&none))),
            also_local: also_local.iter().copied().collect(),
        }
    }

    /// Replaces the addresses of the devices of all namespaces. A namespace that is not listed has none.
    pub fn set(&mut self, addresses: &[(Namespace, Arc<LocalAddresses>)]) {
        self.devices.fill(Arc::default());
        for (namespace, addresses) in addresses {
            self.devices[usize::from(namespace.0)] = Arc::clone(addresses);
        }
    }

    /// Returns true if the address is the namespace's for all packets.
    pub fn is_local(&self, namespace: Namespace, address: &Address) -> bool {
        self.devices(namespace).contains(address)
            || namespace == Namespace::HOME && self.also_local.contains(address)
    }

    /// Returns true if the address is the namespace's for some packets, while others to it are forwarded.
    pub fn is_conditional(&self, namespace: Namespace, address: &Address) -> bool {
        self.devices(namespace).is_conditional(address) && !self.is_local(namespace, address)
    }

    /// Returns two flags for a packet that passed a device: its sender is here, its receiver is here. With
    /// `takes_conditional`, they are also set for an end for which that depends on a socket.
    pub fn ends_here(
        &self,
        packet: &Packet,
        namespace: Namespace,
        passage: Passage,
        takes_conditional: bool,
    ) -> (bool, bool) {
        let (source, destination) = (&packet.source.address, &packet.destination.address);
        let (has_sender, has_receiver) = (passage.has_sender(), passage.has_receiver());
        // A host without an address yet sends from the unspecified one (DHCP).
        let is_nameless = passage == Passage::Outgoing && source.is_unspecified();
        let is_looped = passage == Passage::Loopback;
        let from_here = has_sender && (is_nameless || is_looped || self.is_local(namespace, source));
        let to_here = has_receiver
            && (self.is_local(namespace, destination) || !from_here && self.is_group(namespace, destination));
        if from_here || to_here || !takes_conditional {
            return (from_here, to_here);
        }
        let may_be = |address| self.is_conditional(namespace, address);
        (has_sender && may_be(source), has_receiver && may_be(destination))
    }

    /// Returns the relation of a flow's local endpoint to this host.
    pub fn local_end(&self, key: &FlowKey) -> LocalEnd {
        match self.is_conditional(key.namespace, &key.local.address) {
            true => LocalEnd::Diverted,
            false => LocalEnd::Own,
        }
    }

    /// Returns true if the address is that of a group which the namespace may be in: multicast or broadcast.
    pub fn is_group(&self, namespace: Namespace, address: &Address) -> bool {
        self.devices(namespace).is_group(address)
    }

    fn devices(&self, namespace: Namespace) -> &LocalAddresses {
        &self.devices[usize::from(namespace.0)]
    }
}
