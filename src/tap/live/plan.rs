//! The choice of the devices to capture on, so that no packet is seen twice. It is a pure function of the
//! list of interfaces.
//!
//! A packet passes several devices on its way through the machine. The one nearest to the host's own protocol
//! stack is captured, because it sees all that the host sends and receives through those below:
//! - the master (bridge, bond, team, VRF) rather than the devices enslaved to it;
//! - the VLAN device, and on the device below it only frames without its tag. (The lower device alone does
//!   not suffice: a filter such as `tcp port 80` does not match a frame with a tag in it.)
//! - the internal ports of an Open vSwitch switch rather than its other ports. Its master is usually down.
//!
//! The exceptions are macvlan and ipvlan, whose frames pass their lower device unchanged: the lower device is
//! captured. The inside and the outside of a tunnel are two packets of different endpoints and are both
//! captured.

use crate::netlink::{Interface, InterfaceKind, Vlan};
use std::collections::{HashMap, HashSet};

/// A device to capture on.
#[derive(PartialEq, Eq, Debug)]
pub(in crate::tap) struct Target<'i> {
    pub interface: &'i Interface,
    /// The tags whose frames other devices show; such frames are skipped on this one.
    pub vlans: Vec<Vlan>,
    /// The longest IP datagram that is one packet on the wire.
    pub mtu: Option<u32>,
}

/// The devices to capture on, and those left out with the reason.
#[derive(Debug)]
pub(in crate::tap) struct Plan<'i> {
    pub targets: Vec<Target<'i>>,
    /// Wanted devices that another one stands for, each with that other.
    pub covered: Vec<(&'i Interface, &'i Interface)>,
}

/// The maximum depth of the search. No real stack of devices is deeper; the limit ends the search if the
/// kernel's list is contradictory.
const DEPTH: usize = 8;

/// Returns the plan for `interfaces`. `wanted` returns true for those that the caller wants captured and that
/// can be captured.
pub(in crate::tap) fn plan(interfaces: &[Interface], wanted: impl Fn(&Interface) -> bool) -> Plan<'_> {
    let stack = Stack {
        interfaces,
        by_index: interfaces.iter().map(|interface| (interface.index, interface)).collect(),
        wanted: interfaces.iter().filter(|other| wanted(other)).map(|other| other.index).collect(),
        vlans: interfaces.iter().filter(|other| matches!(other.kind, InterfaceKind::Vlan(_))).collect(),
        internal_ports: interfaces.iter().filter(|other| other.kind == InterfaceKind::OpenVswitch).collect(),
    };
    let mut plan = Plan { targets: Vec::new(), covered: Vec::new() };
    for interface in interfaces.iter().filter(|interface| stack.wants(interface)) {
        match stack.cover(interface, DEPTH) {
            Some(other) => plan.covered.push((interface, other)),
            None => {
                let (vlans, mtu) = (stack.vlans_above(interface), stack.mtu(interface));
                plan.targets.push(Target { interface, vlans, mtu });
            }
        }
    }
    plan
}

struct Stack<'i> {
    interfaces: &'i [Interface],
    by_index: HashMap<u32, &'i Interface>,
    wanted: HashSet<u32>,
    vlans: Vec<&'i Interface>,
    internal_ports: Vec<&'i Interface>,
}

impl<'i> Stack<'i> {
    /// Returns the nearest wanted device that shows what `interface` shows, if there is one.
    fn cover(&self, interface: &Interface, depth: usize) -> Option<&'i Interface> {
        let depth = depth.checked_sub(1)?;
        let lower = interface.lower.filter(|_| interface.kind == InterfaceKind::SharesLower);
        for index in [interface.master, lower].into_iter().flatten() {
            let Some(&other) = self.by_index.get(&index) else { continue };
            if self.wants(other) {
                return Some(other);
            }
            if let Some(beyond) = self.cover(other, depth) {
                return Some(beyond);
            }
        }
        // A port of a switch: the internal ports of the same switch stand for it.
        if interface.master.is_none() || interface.kind == InterfaceKind::OpenVswitch {
            return None;
        }
        let mut internal = self.internal_ports.iter().filter(|other| other.master == interface.master);
        internal.find(|other| self.wants(other)).copied()
    }

    /// Returns the MTU of an interface. For a master it is at most the largest of the devices enslaved to it,
    /// because that of a VRF means nothing.
    fn mtu(&self, interface: &Interface) -> Option<u32> {
        let enslaved = self.interfaces.iter().filter(|other| other.master == Some(interface.index));
        let largest = enslaved.filter_map(|other| other.mtu).max();
        [interface.mtu, largest].into_iter().flatten().min()
    }

    fn wants(&self, interface: &Interface) -> bool {
        self.wanted.contains(&interface.index)
    }

    /// Returns the tags of the VLAN devices on `interface` whose frames are captured elsewhere: on the VLAN
    /// device itself, or on one that stands for it.
    fn vlans_above(&self, interface: &Interface) -> Vec<Vlan> {
        let above = self.vlans.iter().filter(|other| other.lower == Some(interface.index));
        above
            .filter_map(|other| match other.kind {
                InterfaceKind::Vlan(vlan) if self.wants(other) || self.cover(other, DEPTH).is_some() => {
                    Some(vlan)
                }
                _ => None,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::FrameKind;
    use proptest::prelude::*;

    fn device(index: u32, name: &str) -> Interface {
        Interface {
            index,
            name: name.into(),
            up: true,
            loopback: name == "lo",
            frames: FrameKind::Ethernet,
            address: None,
            tells_passage: true,
            master: None,
            lower: None,
            kind: InterfaceKind::Plain,
            mtu: Some(1500),
            lost_by_device: 0,
            carried: 0,
        }
    }

    fn slave(index: u32, name: &str, master: u32) -> Interface {
        Interface { master: Some(master), ..device(index, name) }
    }

    fn vlan(index: u32, name: &str, lower: u32, id: u16) -> Interface {
        let kind = InterfaceKind::Vlan(Vlan { protocol: 0x8100, id });
        Interface { lower: Some(lower), kind, ..device(index, name) }
    }

    fn down(interface: Interface) -> Interface {
        Interface { up: false, ..interface }
    }

    /// Returns the plan for all interfaces that are up, as `name` or `name-id-id` with the tags to skip.
    fn names(interfaces: &[Interface]) -> Vec<String> {
        named(interfaces, |interface| interface.up)
    }

    fn named(interfaces: &[Interface], wanted: impl Fn(&Interface) -> bool) -> Vec<String> {
        let text = |target: &Target<'_>| {
            let tags: String = target.vlans.iter().map(|vlan| format!("-{}", vlan.id)).collect();
            format!("{}{tags}", target.interface.name)
        };
        plan(interfaces, wanted).targets.iter().map(text).collect()
    }

    #[test]
    fn plain_devices_are_all_captured_when_up() {
        assert_eq!(names(&[device(1, "lo"), device(2, "eth0"), down(device(3, "eth1"))]), ["lo", "eth0"]);
        assert_eq!(names(&[]), [] as [&str; 0]);
    }

    #[test]
    fn a_master_stands_for_its_slaves() {
        let mut bridged = vec![device(1, "br0"), slave(2, "eth0", 1), slave(3, "veth0", 1)];
        assert_eq!(names(&bridged), ["br0"]);
        let covered = plan(&bridged, |i| i.up).covered;
        let covered: Vec<_> = covered.iter().map(|(one, other)| (&*one.name, &*other.name)).collect();
        assert_eq!(covered, [("eth0", "br0"), ("veth0", "br0")]);
        bridged[0].up = false;
        assert_eq!(names(&bridged), ["eth0", "veth0"], "a bridge that is down carries nothing");
        assert_eq!(
            names(&[slave(2, "eth0", 77)]),
            ["eth0"],
            "a master that is not listed stands for nothing"
        );
    }

    #[test]
    fn a_stack_of_masters_is_captured_at_its_top() {
        let stack = [device(1, "br0"), slave(2, "bond0", 1), slave(3, "eth0", 2), slave(4, "eth1", 2)];
        assert_eq!(names(&stack), ["br0"]);
        let between_down = [device(1, "br0"), down(slave(2, "bond0", 1)), slave(3, "eth0", 2)];
        assert_eq!(names(&between_down), ["br0"]);
    }

    #[test]
    fn tagged_frames_are_left_to_the_vlan_device() {
        let vlans = [device(1, "eth0"), vlan(2, "eth0.5", 1, 5), vlan(3, "eth0.6", 1, 6), vlan(4, "q", 2, 7)];
        assert_eq!(names(&vlans), ["eth0-5-6", "eth0.5-7", "eth0.6", "q"]);
        assert_eq!(names(&[device(1, "eth0"), down(vlan(2, "eth0.5", 1, 5))]), ["eth0"]);
        let bridged =
            [device(9, "br0"), device(1, "eth0"), Interface { master: Some(9), ..vlan(2, "v", 1, 5) }];
        assert_eq!(names(&bridged), ["br0", "eth0-5"], "the bridge above the VLAN device shows its frames");
    }

    #[test]
    fn macvlan_is_left_to_the_lower_device() {
        let macvlan = |lower| Interface { kind: InterfaceKind::SharesLower, lower, ..device(2, "mv0") };
        assert_eq!(names(&[device(1, "eth0"), macvlan(Some(1))]), ["eth0"]);
        assert_eq!(names(&[device(1, "eth0"), macvlan(None)]), ["eth0", "mv0"], "lower device elsewhere");
        assert_eq!(named(&[device(1, "eth0"), macvlan(Some(1))], |i| i.name == "mv0"), ["mv0"]);
    }

    #[test]
    fn the_peer_of_a_veth_is_not_a_lower_device() {
        let peers = [
            Interface { lower: Some(2), ..device(1, "veth0") },
            Interface { lower: Some(1), ..device(2, "veth1") },
        ];
        assert_eq!(names(&peers), ["veth0", "veth1"]);
    }

    #[test]
    fn packets_are_no_larger_than_the_largest_device_below_lets_pass() {
        let with_mtu = |mtu, interface| Interface { mtu, ..interface };
        let interfaces = [
            with_mtu(Some(65_575), device(1, "vrf0")),
            with_mtu(Some(1500), slave(2, "eth0", 1)),
            with_mtu(Some(9000), slave(3, "eth1", 1)),
            with_mtu(Some(1400), device(4, "br0")),
            with_mtu(Some(1500), slave(5, "eth2", 4)),
            with_mtu(None, device(6, "odd0")),
        ];
        let plan = plan(&interfaces, |interface| interface.up);
        let mtus: Vec<_> = plan.targets.iter().map(|target| (&*target.interface.name, target.mtu)).collect();
        assert_eq!(mtus, [("vrf0", Some(9000)), ("br0", Some(1400)), ("odd0", None)]);
    }

    #[test]
    fn internal_ports_stand_for_a_switch() {
        let ovs = |interface| Interface { kind: InterfaceKind::OpenVswitch, ..interface };
        let switch = [down(ovs(device(1, "ovs-system"))), ovs(slave(2, "br-ex", 1)), slave(3, "eth0", 1)];
        assert_eq!(names(&switch), ["br-ex"]);
        assert_eq!(names(&[switch[0].clone(), switch[2].clone()]), ["eth0"]);
    }

    #[test]
    fn only_what_is_wanted_can_stand_for_another() {
        let bridged = [device(1, "br0"), slave(2, "eth0", 1), vlan(3, "eth0.5", 2, 5)];
        assert_eq!(named(&bridged, |i| i.name == "eth0"), ["eth0"]);
        assert_eq!(named(&bridged, |i| i.name != "eth0.5"), ["br0"]);
        assert_eq!(named(&bridged, |i| i.name != "br0"), ["eth0-5", "eth0.5"]);
    }

    proptest! {
        /// Even for contradictory listings the search ends, every wanted device is either captured or stood
        /// for, and a device that stands for another is wanted itself.
        #[test]
        fn every_wanted_device_is_accounted_for(
            rows in proptest::collection::vec(
                (any::<bool>(), proptest::option::of(0u32..12), proptest::option::of(0u32..12), 0u16..4), 0..12),
        ) {
            let interfaces: Vec<Interface> = (0u32..).zip(rows).map(|(index, (up, master, lower, kind))| {
                let kind = match kind {
                    0 => InterfaceKind::Plain,
                    1 => InterfaceKind::SharesLower,
                    2 => InterfaceKind::OpenVswitch,
                    _ => InterfaceKind::Vlan(Vlan { protocol: 0x8100, id: index as u16 }),
                };
                Interface { up, master, lower, kind, ..device(index, &index.to_string()) }
            }).collect();
            let plan = plan(&interfaces, |interface| interface.up);
            let mut seen: Vec<u32> = plan.targets.iter().map(|target| target.interface.index).collect();
            seen.extend(plan.covered.iter().map(|(one, _)| one.index));
            seen.sort_unstable();
            let up: Vec<u32> = interfaces.iter().filter(|i| i.up).map(|i| i.index).collect();
            prop_assert_eq!(seen, up);
            for (_, other) in &plan.covered {
                prop_assert!(other.up);
            }
        }
    }
}
