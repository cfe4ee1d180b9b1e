//! Which devices to capture on, so that every packet is seen once.

use super::interfaces::Interface;
use super::options::TapOptions;

/// The devices to capture on now.
///
/// By default every one that is up, but no port of a bridge, bond or team that is up itself: what passes a port
/// passes its master, too. Named devices are captured as they are named.
pub(super) fn wanted<'i>(interfaces: &'i [Interface], options: &TapOptions) -> Vec<&'i Interface> {
    let is_up = |index| interfaces.iter().any(|other| other.index == index && other.is_up);
    let every_device = options.every_device();
    interfaces
        .iter()
        .filter(|interface| interface.is_up)
        .filter(|interface| match every_device {
            true => interface.master == 0 || !is_up(interface.master),
            false => options.devices.contains(&interface.name),
        })
        .collect()
}

/// The VLAN identifiers whose own devices, on top of this one, are among those captured: frames with these tags are
/// counted there.
pub(super) fn vlans_above(index: u32, captured: &[&Interface]) -> Vec<u16> {
    let vlans = captured.iter().filter_map(|interface| interface.vlan);
    vlans.filter(|&(below, _)| below == index).map(|(_, id)| id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, name: &str, is_up: bool, master: u32, vlan: Option<(u32, u16)>) -> Interface {
        Interface { index, name: name.into(), is_up, master, vlan }
    }

    fn machine() -> Vec<Interface> {
        vec![
            interface(1, "lo", true, 0, None),
            interface(2, "eth0", true, 0, None),
            interface(3, "eth1", false, 0, None),
            interface(4, "br0", true, 0, None),
            interface(5, "veth0", true, 4, None),
            interface(6, "br1", false, 0, None),
            interface(7, "veth1", true, 6, None),
            interface(8, "eth0.5", true, 0, Some((2, 5))),
            interface(9, "eth0.6", false, 0, Some((2, 6))),
        ]
    }

    fn names(devices: &[&str]) -> Vec<String> {
        let machine = machine();
        let devices = devices.iter().map(|&name| name.to_owned()).collect();
        let options = TapOptions { devices, ..TapOptions::default() };
        wanted(&machine, &options).iter().map(|interface| interface.name.clone()).collect()
    }

    #[test]
    fn ports_of_a_master_that_is_up_are_left_out() {
        assert_eq!(names(&[]), ["lo", "eth0", "br0", "veth1", "eth0.5"]);
        assert_eq!(names(&["any"]), names(&[]));
    }

    #[test]
    fn named_devices_are_taken_as_they_are() {
        assert_eq!(names(&["veth0", "eth1"]), ["veth0"], "a device that is down is waited for");
    }

    #[test]
    fn tags_of_captured_vlan_devices_are_known() {
        let machine = machine();
        let captured: Vec<&Interface> = machine.iter().filter(|interface| interface.is_up).collect();
        assert_eq!(vlans_above(2, &captured), [5]);
        assert_eq!(vlans_above(1, &captured), [] as [u16; 0]);
    }
}
