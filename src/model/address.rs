//! IP addresses in the form that all tables of the library compare: 16 bytes, with IPv4 mapped into IPv6.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 or IPv6 address as 16 bytes. An IPv4 address is kept in its IPv4-mapped form (`::ffff:a.b.c.d`).
///
/// A socket bound to `::ffff:10.0.0.1` in an IPv6 table and a packet from `10.0.0.1` therefore compare equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address([u8; 16]);

impl Address {
    /// `0.0.0.0`, the IPv4 wildcard.
    pub const UNSPECIFIED_V4: Address = Address([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0]);
    /// `255.255.255.255`, the limited broadcast address.
    pub const BROADCAST_V4: Address =
        Address([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    /// `::`, the IPv6 wildcard. On a dual-stack socket it also stands for every IPv4 address.
    pub const UNSPECIFIED_V6: Address = Address([0; 16]);

    /// The IPv4 address with these four bytes in network order.
    #[inline]
    pub const fn v4(bytes: [u8; 4]) -> Address {
        Address([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    /// The IPv6 address with these sixteen bytes in network order.
    #[inline]
    pub const fn v6(bytes: [u8; 16]) -> Address {
        Address(bytes)
    }

    /// The sixteen bytes, in network order.
    #[inline]
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Returns true if this is an IPv4 address (in its mapped form).
    #[inline]
    pub fn is_v4(&self) -> bool {
        self.0[..12] == Self::UNSPECIFIED_V4.0[..12]
    }

    /// Returns true if this is a wildcard: `0.0.0.0` or `::`.
    #[inline]
    pub fn is_unspecified(&self) -> bool {
        *self == Self::UNSPECIFIED_V6 || *self == Self::UNSPECIFIED_V4
    }

    /// Returns true if this is a loopback address: `127.0.0.0/8` or `::1`.
    #[inline]
    pub fn is_loopback(&self) -> bool {
        if self.is_v4() { self.0[12] == 127 } else { self.0 == Ipv6Addr::LOCALHOST.octets() }
    }

    /// Returns true if this is a link-local IPv6 address (`fe80::/10`), which is meaningless without its
    /// link.
    #[inline]
    pub fn is_link_local_v6(&self) -> bool {
        self.0[0] == 0xfe && self.0[1] & 0xc0 == 0x80
    }

    /// Returns true if this is a multicast group or the IPv4 limited broadcast address.
    #[inline]
    pub fn is_multicast(&self) -> bool {
        if self.is_v4() { self.0[12] & 0xf0 == 0xe0 || self.0[12..] == [0xff; 4] } else { self.0[0] == 0xff }
    }

    /// The address in the standard library's form.
    pub fn ip(&self) -> IpAddr {
        if self.is_v4() {
            IpAddr::V4(Ipv4Addr::new(self.0[12], self.0[13], self.0[14], self.0[15]))
        } else {
            IpAddr::V6(Ipv6Addr::from(self.0))
        }
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Address {
        match ip {
            IpAddr::V4(v4) => Address::v4(v4.octets()),
            IpAddr::V6(v6) => Address::v6(v6.octets()),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

/// An address and a port. The port is 0 for protocols without ports. For an ICMP echo, the port of the
/// requesting end is the identifier of the echo.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The address.
    pub address: Address,
    /// The port, in host order.
    pub port: u16,
}

impl Endpoint {
    /// Joins an address and a port.
    #[inline]
    pub const fn new(address: Address, port: u16) -> Endpoint {
        Endpoint { address, port }
    }
}

/// Formats the endpoint as `10.0.0.1:80` or `[fe80::1]:80`.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address.ip() {
            IpAddr::V4(v4) => write!(f, "{v4}:{}", self.port),
            IpAddr::V6(v6) => write!(f, "[{v6}]:{}", self.port),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_socket_and_an_ipv4_packet_have_one_address() {
        let mapped: IpAddr = "::ffff:10.1.2.3".parse().unwrap();
        let plain: IpAddr = "10.1.2.3".parse().unwrap();
        assert_eq!(Address::from(mapped), Address::from(plain));
        assert!(Address::from(mapped).is_v4());
    }

    #[test]
    fn kinds_of_address() {
        let of = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        assert!(of("127.9.9.9").is_loopback() && of("::1").is_loopback());
        assert!(!of("128.0.0.1").is_loopback() && !of("::2").is_loopback());
        assert!(of("224.0.0.251").is_multicast() && of("ff02::fb").is_multicast());
        assert!(of("255.255.255.255").is_multicast() && !of("10.0.0.255").is_multicast());
        assert!(of("fe80::1").is_link_local_v6() && of("febf::1").is_link_local_v6());
        assert!(!of("fec0::1").is_link_local_v6() && !of("169.254.0.1").is_link_local_v6());
        assert!(of("0.0.0.0").is_unspecified() && of("::").is_unspecified() && !of("::1").is_unspecified());
    }

    #[test]
    fn endpoints_are_shown_as_in_a_packet_hash() {
        let of = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(Endpoint::new(of("10.0.0.1"), 80).to_string(), "10.0.0.1:80");
        assert_eq!(Endpoint::new(of("fe80::1"), 80).to_string(), "[fe80::1]:80");
    }
}
