//! Which addresses are this host's, in each network namespace that is captured in.

use crate::model::{Address, LocalAddresses, Namespace};
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

    /// Whether an address is the namespace's for all packets.
    pub fn is_local(&self, namespace: Namespace, address: &Address) -> bool {
        self.devices(namespace).contains(address)
            || namespace == Namespace::HOME && self.also_local.contains(address)
    }

    /// Whether an address is the namespace's for some packets, and others to it are forwarded.
    pub fn is_conditional(&self, namespace: Namespace, address: &Address) -> bool {
        self.devices(namespace).is_conditional(address) && !self.is_local(namespace, address)
    }

    /// Whether an address is that of a group which the namespace may be in: multicast or broadcast.
    pub fn is_group(&self, namespace: Namespace, address: &Address) -> bool {
        self.devices(namespace).is_group(address)
    }

    fn devices(&self, namespace: Namespace) -> &LocalAddresses {
        &self.devices[usize::from(namespace.0)]
    }
}
