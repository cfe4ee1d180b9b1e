//! The addresses of a host: its own addresses, broadcast addresses, and networks.

use super::address::Address;
use super::networks::Networks;
use std::collections::HashSet;

/// The addresses at which this host is an endpoint, and the directed broadcast addresses of its networks.
///
/// A packet is counted if its source or destination is one of these. Everything else is forwarded traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalAddresses {
    own: HashSet<Address, foldhash::fast::FixedState>,
    broadcast: HashSet<Address, foldhash::fast::FixedState>,
    /// Networks that are entirely local to this host, by a route.
    networks: Networks,
    /// Networks that are local to this host only for packets that a routing rule selects.
    conditional: Networks,
}

impl LocalAddresses {
    /// Adds an address of this host.
    pub fn insert(&mut self, address: Address) {
        self.own.insert(address);
    }

    /// Adds the directed broadcast address of one of this host's networks.
    pub fn insert_broadcast(&mut self, address: Address) {
        self.broadcast.insert(address);
    }

    /// Adds all addresses of the network of `address` with a prefix of `length` bits.
    pub fn insert_network(&mut self, address: &Address, length: u8) {
        let all = if address.is_v4() { 32 } else { 128 };
        match length < all {
            true => self.networks.insert(address, length),
            false => self.insert(*address),
        }
    }

    /// Adds a conditional network: some packets to the network of `address` with a prefix of `length` bits
    /// are delivered on this host.
    pub fn insert_conditional_network(&mut self, address: &Address, length: u8) {
        self.conditional.insert(address, length);
    }

    /// Adds the conditional networks of `others`.
    pub fn extend_conditional(&mut self, others: &LocalAddresses) {
        self.conditional.extend(&others.conditional);
    }

    /// Adds all addresses and networks of `others`.
    pub fn extend(&mut self, others: &LocalAddresses) {
        self.own.extend(&others.own);
        self.broadcast.extend(&others.broadcast);
        self.networks.extend(&others.networks);
        self.conditional.extend(&others.conditional);
    }

    /// Returns true if the set includes all addresses and networks of `others`.
    pub fn covers(&self, others: &LocalAddresses) -> bool {
        others.own.is_subset(&self.own)
            && others.broadcast.is_subset(&self.broadcast)
            && self.networks.covers(&others.networks)
            && self.conditional.covers(&others.conditional)
    }

    /// Returns true if this host is the endpoint at `address`.
    #[inline]
    pub fn contains(&self, address: &Address) -> bool {
        address.is_loopback() || self.own.contains(address) || self.networks.contains(address)
    }

    /// Returns true if `address` is local to this host for some packets only: a routing rule directs them to
    /// a table in which the address is local (TPROXY).
    #[inline]
    pub fn is_conditional(&self, address: &Address) -> bool {
        self.conditional.contains(address)
            && !address.is_unspecified()
            && !self.contains(address)
            && !self.is_group(address)
    }

    /// Returns true if this host may be one of several receivers of a packet to `address`: multicast or
    /// broadcast.
    #[inline]
    pub fn is_group(&self, address: &Address) -> bool {
        address.is_multicast() || self.broadcast.contains(address)
    }
}

impl FromIterator<Address> for LocalAddresses {
    fn from_iter<I: IntoIterator<Item = Address>>(addresses: I) -> LocalAddresses {
        LocalAddresses { own: addresses.into_iter().collect(), ..LocalAddresses::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    #[test]
    fn addresses_are_local_one_by_one_and_by_networks() {
        let of = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        let mut local = LocalAddresses::default();
        local.insert_network(&of("10.99.0.0"), 24);
        local.insert_network(&of("10.1.0.1"), 32);
        local.insert_network(&of("fd00::1"), 128);
        assert!(local.contains(&of("10.99.0.7")) && !local.contains(&of("10.99.1.7")));
        assert!(local.contains(&of("10.1.0.1")) && local.contains(&of("fd00::1")));
        assert_eq!(local.own.len(), 2, "a whole address is one");
        let mut more: LocalAddresses = [of("10.2.0.1")].into_iter().collect();
        assert!(!more.covers(&local) && !local.covers(&more));
        more.extend(&local);
        assert!(more.covers(&local) && more.contains(&of("10.2.0.1")) && more.contains(&of("10.99.0.7")));
    }

    #[test]
    fn an_address_is_conditional_that_is_local_for_some_packets_only() {
        let of = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        let mut local: LocalAddresses = [of("10.0.0.1")].into_iter().collect();
        local.insert_broadcast(of("10.0.0.255"));
        assert!(!local.is_conditional(&of("203.0.113.7")));
        let mut more = LocalAddresses::default();
        more.insert_conditional_network(&of("0.0.0.0"), 0);
        assert!(!local.covers(&more));
        local.extend_conditional(&more);
        assert!(local.covers(&more) && local.is_conditional(&of("203.0.113.7")));
        for text in ["10.0.0.1", "10.0.0.255", "127.0.0.1", "239.1.1.1", "0.0.0.0", "2001:db8::1"] {
            assert!(!local.is_conditional(&of(text)), "{text}");
        }
        assert!(!local.contains(&of("203.0.113.7")));
    }

    #[test]
    fn local_addresses_hold_loopback_by_nature() {
        let local: LocalAddresses = [Address::v4([10, 0, 0, 1])].into_iter().collect();
        assert!(local.contains(&Address::v4([10, 0, 0, 1])));
        assert!(local.contains(&Address::v4([127, 0, 0, 1])));
        assert!(!local.contains(&Address::v4([10, 0, 0, 2])));
        assert!(
            local.is_group(&Address::v4([239, 1, 1, 1])) && !local.is_group(&Address::v4([10, 0, 0, 255]))
        );
    }
}
