//! Tests of rows built from the kernel's headers, of damaged rows, and of the running kernel's rows against
//! other sources.

use super::*;
use nix::ifaddrs::getifaddrs;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Returns an attribute with its padding.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = (value.len() as u16 + 4).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Returns the `struct ifinfomsg` of an Ethernet device with these attributes.
fn link_row(index: u32, flags: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
    row_of_type(1, index, flags, attributes)
}

fn row_of_type(hardware: u16, index: u32, flags: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
    let mut row = vec![0, 0];
    row.extend(hardware.to_ne_bytes());
    for word in [index, flags, 0] {
        row.extend(word.to_ne_bytes());
    }
    row.extend(attributes.concat());
    row
}

fn address_row(family: i32, prefix: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
    let mut row = vec![family as u8, prefix, 0, 0, 2, 0, 0, 0];
    row.extend(attributes.concat());
    row
}

/// Returns the row of eth0.5, a VLAN device with the tag 0x88a8, 5 on device 2, enslaved to 7, with nested
/// flags as newer kernels set them.
fn vlan_row() -> Vec<u8> {
    let data =
        [attribute(1, &5u16.to_ne_bytes()), attribute(2, &[0; 8]), attribute(5, &[0x88, 0xa8])].concat();
    let info = [attribute(1, b"vlan\0"), attribute(2 | 0x8000, &data)].concat();
    let mut stats = vec![0u8; 200];
    stats[2 * 8..3 * 8].copy_from_slice(&100u64.to_ne_bytes());
    stats[3 * 8..4 * 8].copy_from_slice(&200u64.to_ne_bytes());
    stats[14 * 8..15 * 8].copy_from_slice(&3u64.to_ne_bytes());
    stats[15 * 8..16 * 8].copy_from_slice(&4u64.to_ne_bytes());
    link_row(
        9,
        0x1003,
        &[
            attribute(1, &[2, 0, 0, 0, 0, 9]),
            attribute(3, b"eth0.5\0"),
            attribute(4, &1400u32.to_ne_bytes()),
            attribute(5, &2u32.to_ne_bytes()),
            attribute(10, &7u32.to_ne_bytes()),
            attribute(23, &stats),
            attribute(18 | 0x8000, &info),
        ],
    )
}

#[test]
fn a_vlan_device_is_understood() {
    let expected = Interface {
        index: 9,
        name: "eth0.5".into(),
        up: true,
        loopback: false,
        frames: FrameKind::Ethernet,
        address: Some([2, 0, 0, 0, 0, 9]),
        tells_passage: true,
        master: Some(7),
        lower: Some(2),
        kind: InterfaceKind::Vlan(Vlan { protocol: 0x88a8, id: 5 }),
        mtu: Some(1400),
        lost_by_device: 7,
        carried: 300,
    };
    assert_eq!(interface(&vlan_row()), Some(expected));
}

#[test]
fn a_lower_device_elsewhere_is_none_of_ours() {
    let info = attribute(18, &attribute(1, b"macvlan"));
    let lower = attribute(5, &2u32.to_ne_bytes());
    let here = interface(&link_row(3, 0, &[lower.clone(), info.clone()])).unwrap();
    assert_eq!((here.kind, here.lower, here.up), (InterfaceKind::SharesLower, Some(2), false));
    let elsewhere = interface(&link_row(3, 8, &[lower, attribute(37, &[0; 4]), info])).unwrap();
    assert_eq!((elsewhere.lower, elsewhere.loopback), (None, true));
}

#[test]
fn frames_are_those_of_the_type_unless_the_kind_says_more() {
    let of = |hardware, attributes: &[Vec<u8>]| {
        interface(&row_of_type(hardware, 3, 0, attributes)).map(|interface| interface.frames)
    };
    let tun =
        |mode: u8| attribute(18, &[attribute(1, b"tun"), attribute(2, &attribute(3, &[mode]))].concat());
    // Ethernet and loopback; PPP, tunnels of IPv4 and IPv6, GRE, bare IP; 802.11 with radiotap headers,
    // nlmon.
    for (hardware, frames) in
        [(1, FrameKind::Ethernet), (772, FrameKind::Ethernet), (803, FrameKind::Others(803))]
            .into_iter()
            .chain([(824, FrameKind::Others(824)), (512, FrameKind::Ppp)])
            .chain([768, 769, 776, 778, 823, 519, 65_534].map(|hardware| (hardware, FrameKind::Datagrams)))
    {
        assert_eq!(of(hardware, &[]), Some(frames), "{hardware}");
        assert_eq!(of(hardware, &[tun(1)]), Some(FrameKind::Datagrams), "{hardware}");
        assert_eq!(of(hardware, &[tun(2)]), Some(FrameKind::Ethernet), "{hardware}");
    }
    let address = |value: &[u8]| interface(&link_row(3, 0, &[attribute(1, value)])).unwrap().address;
    assert_eq!(address(&[2, 0, 0, 0, 0, 1]), Some([2, 0, 0, 0, 0, 1]));
    assert_eq!((address(&[0; 6]), address(&[10, 0, 0, 1])), (None, None), "loopback, and a tunnel's");
    let vrf = interface(&link_row(3, 0, &[attribute(18, &attribute(1, b"vrf"))])).unwrap();
    assert!(!vrf.tells_passage && interface(&vlan_row()).unwrap().tells_passage);
}

#[test]
fn own_addresses_and_broadcasts_are_told_apart() {
    let v4 = |a, b, c, d| Address::v4([a, b, c, d]);
    let mut addresses = LocalAddresses::default();
    let ethernet =
        [attribute(1, &[10, 1, 2, 3]), attribute(2, &[10, 1, 2, 3]), attribute(4, &[10, 1, 2, 255])];
    insert_address(&mut addresses, &address_row(libc::AF_INET, 20, &ethernet));
    assert!(addresses.contains(&v4(10, 1, 2, 3)));
    assert!(addresses.is_group(&v4(10, 1, 2, 255)), "as configured");
    assert!(addresses.is_group(&v4(10, 1, 15, 255)), "as the prefix of 20 bits has it");
    assert!(!addresses.is_group(&v4(10, 1, 3, 255)));
    let tunnel = [attribute(1, &[192, 0, 2, 9]), attribute(2, &[192, 0, 2, 8])];
    insert_address(&mut addresses, &address_row(libc::AF_INET, 31, &tunnel));
    assert!(
        addresses.contains(&v4(192, 0, 2, 8)) && !addresses.contains(&v4(192, 0, 2, 9)),
        "the peer is not us"
    );
    assert!(!addresses.is_group(&v4(192, 0, 2, 9)), "a network of two has no broadcast");
    let v6 = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    insert_address(&mut addresses, &address_row(libc::AF_INET6, 64, &[attribute(1, &v6)]));
    assert!(addresses.contains(&Address::v6(v6)));
    let before = addresses.clone();
    insert_address(&mut addresses, &address_row(libc::AF_INET, 24, &[attribute(2, &[1, 2])]));
    insert_address(&mut addresses, &address_row(99, 24, &[attribute(2, &[1, 2, 3, 4])]));
    insert_address(&mut addresses, &[2, 24]);
    assert_eq!(addresses, before, "rows that are no IP addresses");
    insert_address(&mut addresses, &address_row(libc::AF_INET, 0, &[attribute(2, &[1, 2, 3, 4])]));
    assert!(addresses.is_group(&v4(255, 255, 255, 255)));
}

#[test]
fn the_running_kernel_agrees_with_getifaddrs() {
    let mut route = Rtnetlink::open().unwrap();
    let names: BTreeSet<String> = route.interfaces().unwrap().into_iter().map(|i| i.name).collect();
    let index_names: BTreeSet<String> = nix::net::if_::if_nameindex()
        .unwrap()
        .iter()
        .map(|interface| interface.name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names, index_names);
    let addresses = route.addresses().unwrap();
    for interface in getifaddrs().unwrap() {
        let Some(address) = interface.address else { continue };
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        let ip = v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())));
        if let Some(ip) = ip {
            assert!(addresses.contains(&Address::from(ip)), "{ip} of {}", interface.interface_name);
        }
        let broadcast =
            interface.broadcast.and_then(|broadcast| broadcast.as_sockaddr_in().map(|v4| v4.ip()));
        if let Some(ip) = broadcast.filter(|ip| !ip.is_unspecified()) {
            assert!(addresses.is_group(&Address::from(IpAddr::V4(ip))), "{ip}");
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = interface(&bytes);
        insert_address(&mut LocalAddresses::default(), &bytes);
    }

    #[test]
    fn a_damaged_row_is_survived(at in 0usize..300, byte: u8, end in 0usize..400) {
        let mut row = vlan_row();
        if let Some(place) = row.get_mut(at) {
            *place = byte;
        }
        let _ = interface(&row);
        let _ = interface(row.get(..end).unwrap_or(&row));
    }
}
