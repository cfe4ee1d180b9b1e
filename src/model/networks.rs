//! Sets of IP networks, each given by an address prefix.

use super::address::Address;
use std::collections::{BTreeMap, HashSet};

/// The number of bits before the IPv4 address in an address of 16 bytes.
const MAPPED: u8 = 96;

/// A set of networks. A lookup takes one step for each distinct prefix length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(BTreeMap<u8, HashSet<u128, foldhash::fast::FixedState>>);

impl Networks {
    /// Adds the network of `address` with a prefix of `length` bits, at most 32 for an IPv4 address.
    pub fn insert(&mut self, address: &Address, length: u8) {
        let bits = if address.is_v4() { MAPPED.saturating_add(length) } else { length }.min(128);
        self.0.entry(bits).or_default().insert(network(address, bits));
    }

    /// Returns true if one of the networks contains `address`.
    pub fn contains(&self, address: &Address) -> bool {
        self.0.iter().any(|(&bits, networks)| networks.contains(&network(address, bits)))
    }

    /// Adds all networks of `others`.
    pub fn extend(&mut self, others: &Networks) {
        for (&bits, networks) in &others.0 {
            self.0.entry(bits).or_default().extend(networks);
        }
    }

    /// Returns true if the set includes every network of `others`.
    pub fn covers(&self, others: &Networks) -> bool {
        others.0.iter().all(|(bits, networks)| self.0.get(bits).is_some_and(|own| networks.is_subset(own)))
    }
}

/// Returns the first `bits` bits of an address, with the rest cleared.
fn network(address: &Address, bits: u8) -> u128 {
    let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
    u128::from_be_bytes(*address.bytes()) & mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    #[test]
    fn an_address_is_in_the_networks_of_its_prefixes() {
        let of = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        let mut networks = Networks::default();
        assert!(!networks.contains(&of("10.1.2.3")));
        for (text, length) in [("10.1.2.3", 24), ("192.0.2.5", 32), ("fd00:99::7", 64), ("10.4.0.0", 14)] {
            networks.insert(&of(text), length);
        }
        for inside in ["10.1.2.255", "192.0.2.5", "fd00:99::ffff", "10.7.255.255"] {
            assert!(networks.contains(&of(inside)), "{inside}");
        }
        for outside in ["10.1.3.0", "192.0.2.4", "fd00:99:0:1::", "10.8.0.0", "::"] {
            assert!(!networks.contains(&of(outside)), "{outside}");
        }
        let mut all = Networks::default();
        all.insert(&of("0.0.0.0"), 0);
        assert!(all.contains(&of("203.0.113.1")) && !all.contains(&of("2001:db8::1")));
        assert!(!all.covers(&networks) && !networks.covers(&all) && networks.covers(&Networks::default()));
        all.extend(&networks);
        assert!(all.covers(&networks));
        all.insert(&of("2001:db8::"), 0);
        assert!(all.contains(&of("::")));
    }
}
