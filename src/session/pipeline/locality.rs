//! Which addresses are this host's, in each network namespace that is captured in.

use crate::model::{Address, FlowKey, LocalAddresses, Namespace, Packet, Passage};
use crate::owner::LocalEnd;
use std::sync::Arc;

/// As many as there are numbers for.
const NAMESPACES: usize = 1 << u8::BITS;

/// The addresses of all namespaces.
pub struct Locality {
    /// Those of each namespace's devices and routes, by its number.
    devices: Box<[Arc<LocalAddresses>; NAMESPACES]>,
    /// Further ones of the session's own namespace.
    also_local: LocalAddresses,
}

impl Locality {
    /// No addresses but `also_local`, of the session's own namespace.
    pub fn new(also_local: &[Address]) -> Locality {
        let none = Arc::<LocalAddresses>::default();
        Locality {
            devices: Box::new(std::array::from_fn(|_| Arc::clone(&none))),
            also_local: also_local.iter().copied().collect(),
        }
    }

    /// Replaces the addresses of the devices of all namespaces. One that is not listed has none.
    pub fn set(&mut self, addresses: &[(Namespace, Arc<LocalAddresses>)]) {
        self.devices.fill(Arc::default());
        for (namespace, addresses) in addresses {
            self.devices[usize::from(namespace.0)] = Arc::clone(addresses);
        }
    }

    /// True of an address that is the namespace's for all packets.
    pub fn is_local(&self, namespace: Namespace, address: &Address) -> bool {
        self.devices(namespace).contains(address)
            || namespace == Namespace::HOME && self.also_local.contains(address)
    }

    /// True of an address that is the namespace's for some packets, while others to it are forwarded.
    pub fn is_conditional(&self, namespace: Namespace, address: &Address) -> bool {
        self.devices(namespace).is_conditional(address) && !self.is_local(namespace, address)
    }

    /// The ends that are here, sender and receiver, of a packet that passed a device. With `takes_conditional` also
    /// where that depends on a socket.
    pub fn ends_here(
        &self,
        packet: &Packet,
        namespace: Namespace,
        passage: Passage,
        takes_conditional: bool,
    ) -> (bool, bool) {
        let (source, destination) = (&packet.source.address, &packet.destination.address);
        let (has_sender, has_receiver) = (passage.has_sender(), passage.has_receiver());
        // A host without an address yet sends from none (DHCP).
        let is_nameless = passage == Passage::Outgoing && source.is_unspecified();
        let from_here = has_sender && (is_nameless || self.is_local(namespace, source));
        let to_here = has_receiver
            && (self.is_local(namespace, destination) || !from_here && self.is_group(namespace, destination));
        if from_here || to_here || !takes_conditional {
            return (from_here, to_here);
        }
        let may_be = |address| self.is_conditional(namespace, address);
        (has_sender && may_be(source), has_receiver && may_be(destination))
    }

    /// Whose the local end of a flow is.
    pub fn local_end(&self, key: &FlowKey) -> LocalEnd {
        match self.is_conditional(key.namespace, &key.local.address) {
            true => LocalEnd::Diverted,
            false => LocalEnd::Own,
        }
    }

    /// True of the address of a group which the namespace may be in: multicast or broadcast.
    pub fn is_group(&self, namespace: Namespace, address: &Address) -> bool {
        self.devices(namespace).is_group(address)
    }

    fn devices(&self, namespace: Namespace) -> &LocalAddresses {
        &self.devices[usize::from(namespace.0)]
    }
}
