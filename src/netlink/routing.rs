//! Routing queries (rtnetlink(7)): local delivery to an address, and forwarding in the network namespace.

use super::exchange::Exchange;
use super::message::{ATTRIBUTE_HEADER, MESSAGE_HEADER, Message, attributes, put, u32_at};
use crate::model::Address;
use nix::errno::Errno;

/// Bytes of `struct rtmsg` (linux/rtnetlink.h), and the offset of its type.
const ROUTE_HEADER: usize = 12;
const TYPE: usize = 7;
/// `RTA_DST`.
const DESTINATION: u16 = 1;
/// `RTM_GETNETCONF`, bytes of `struct netconfmsg`, `NETCONFA_FORWARDING` (linux/netconf.h).
const GET_SETTINGS: u16 = 82;
const SETTINGS_HEADER: usize = 4;
const FORWARDING: u16 = 2;
/// The kernel answers a dump in pieces of at most 32 KiB.
const BUFFER: usize = 32 << 10;

/// A socket for queries of routes and settings. It belongs to the network namespace of the thread that opened
/// it, and any thread may use it.
#[derive(Debug)]
pub struct Routing(Exchange);

impl Routing {
    /// Opens the socket. Needs no capability.
    ///
    /// # Errors
    /// Fails with the error of socket(2).
    pub fn open() -> nix::Result<Routing> {
        Exchange::open(libc::NETLINK_ROUTE, BUFFER).map(Routing)
    }

    /// Returns true if packets to `address` are delivered in the namespace: it is an address of a device, or
    /// a route of the type `local` covers it. Costs two system calls, some 3 to 8 µs.
    ///
    /// # Errors
    /// Fails with the kernel's error, unless the error is that there is no route to the address.
    pub fn is_local(&mut self, address: &Address) -> nix::Result<bool> {
        let is_v4 = address.is_v4();
        let bytes = address.bytes();
        let (family, bytes) =
            if is_v4 { (libc::AF_INET, &bytes[12..]) } else { (libc::AF_INET6, &bytes[..]) };
        let mut message = vec![0; MESSAGE_HEADER + ROUTE_HEADER + ATTRIBUTE_HEADER + bytes.len()];
        put(&mut message, MESSAGE_HEADER, &[family as u8, bytes.len() as u8 * 8]);
        let at = MESSAGE_HEADER + ROUTE_HEADER;
        put(&mut message, at, &((ATTRIBUTE_HEADER + bytes.len()) as u16).to_ne_bytes());
        put(&mut message, at + 2, &DESTINATION.to_ne_bytes());
        put(&mut message, at + ATTRIBUTE_HEADER, bytes);
        let is_local = |message: &Message<'_>| Some(Ok(message.payload.get(TYPE) == Some(&libc::RTN_LOCAL)));
        match self.0.ask(&mut message, libc::RTM_GETROUTE, libc::NLM_F_REQUEST, is_local)? {
            // The kernel reports these errors for routes that prohibit packets.
            Err(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL) => Ok(false),
            answer => answer,
        }
    }

    /// Returns true if any device forwards packets that are not for this host, for IPv4 or for IPv6.
    ///
    /// # Errors
    /// Fails with the kernel's error; with `EAGAIN` if the devices changed in every attempt to list them.
    pub fn forwards(&mut self) -> nix::Result<bool> {
        Ok(self.has_forwarding(libc::AF_INET)? || self.has_forwarding(libc::AF_INET6)?)
    }

    fn has_forwarding(&mut self, family: i32) -> nix::Result<bool> {
        let mut message = [0; MESSAGE_HEADER + SETTINGS_HEADER];
        message[MESSAGE_HEADER] = family as u8;
        let dumped = self.0.dump(&mut message, GET_SETTINGS, |found: &mut bool, payload| {
            let settings = payload.get(SETTINGS_HEADER..).unwrap_or_default();
            *found |=
                attributes(settings).any(|(kind, value)| kind == FORWARDING && u32_at(value, 0) != Some(0));
        });
        match dumped {
            Ok(dump) if dump.rows => Ok(true),
            // A missing row may be the one that says so.
            Ok(dump) => dump.consistent(),
            // A kernel without the family.
            Err(Errno::EOPNOTSUPP) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use capture_test_support::namespaces::in_new_namespace;
    use std::net::IpAddr;
    use std::process::Command;

    #[test]
    fn addresses_of_devices_and_local_routes_stay_and_others_leave_root() {
        in_new_namespace(|| {
            let ip = |words: &str| Command::new("ip").args(words.split(' ')).status().unwrap().success();
            assert!(ip("address add 10.1.0.1/24 dev lo") && ip("address add fd01::1/64 dev lo nodad"));
            assert!(ip("route add local 10.2.0.0/24 dev lo") && ip("route add local fd02::/64 dev lo"));
            assert!(ip("link add away type veth peer name other") && ip("link set away up"));
            assert!(ip("address add 10.3.0.1/24 dev away") && ip("address add fd03::1/64 dev away nodad"));
            assert!(ip("route add unreachable 10.4.0.0/24") && ip("route add prohibit 10.5.0.0/24"));
            let mut routing = Routing::open().unwrap();
            let stay =
                ["127.0.0.9", "10.1.0.1", "10.2.0.7", "10.3.0.1", "::1", "fd01::1", "fd02::7", "fd03::1"];
            let leave = ["10.3.0.2", "fd03::2", "192.0.2.1", "2001:db8::1", "10.4.0.1", "10.5.0.1"];
            for (texts, expected) in [(&stay[..], true), (&leave[..], false)] {
                for text in texts {
                    let address = Address::from(text.parse::<IpAddr>().unwrap());
                    assert_eq!(routing.is_local(&address), Ok(expected), "{text}");
                }
            }
        });
    }

    #[test]
    fn one_device_that_forwards_is_enough_root() {
        in_new_namespace(|| {
            let set = |name: &str, value: &str| {
                std::fs::write(format!("/proc/sys/net/{name}/forwarding"), value).unwrap();
            };
            let mut routing = Routing::open().unwrap();
            set("ipv4/conf/all", "0");
            set("ipv6/conf/all", "0");
            assert_eq!(routing.forwards(), Ok(false));
            for device in ["ipv4/conf/lo", "ipv6/conf/lo", "ipv4/conf/all", "ipv6/conf/all"] {
                set(device, "1");
                assert_eq!(routing.forwards(), Ok(true), "{device}");
                set(device, "0");
                assert_eq!(routing.forwards(), Ok(false), "{device}");
            }
        });
    }
}
