//! The addresses of this machine's devices.

use crate::model::{Address, LocalAddresses};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;
use std::net::IpAddr;

/// The addresses of all devices in the calling thread's network namespace (getifaddrs(3)). Those that are up and
/// those that are not: an address answers on any device.
pub(super) fn local_addresses() -> nix::Result<LocalAddresses> {
    let mut local = LocalAddresses::default();
    for device in getifaddrs()? {
        if let Some(address) = device.address.as_ref().and_then(address) {
            local.insert(address);
        }
        if let Some(broadcast) = device.broadcast.as_ref().and_then(address) {
            local.insert_broadcast(broadcast);
        }
    }
    Ok(local)
}

fn address(socket_address: &SockaddrStorage) -> Option<Address> {
    let v4 = socket_address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    let ip = v4.or_else(|| socket_address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())));
    ip.map(Address::from)
}
