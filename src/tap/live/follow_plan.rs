//! Applies the plan of a namespace: opens, keeps and closes its devices.

use super::common::Common;
use super::device::{DeviceOpening, HardwareAddresses, Surroundings};
use super::namespace_capture::{Awaited, NamespaceCapture, last_block};
use super::plan::{Plan, Target, plan};
use crate::netlink::{FrameKind, Interface};
use crate::tap::options::TapOptions;
use crate::tap::report::Notes;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

impl NamespaceCapture {
    /// Closes devices that the plan excludes, and begins to open others.
    pub(super) fn follow_plan(&mut self, interfaces: &[Interface], common: &mut Common<'_>) {
        let plan = plan(interfaces, |interface| self.wants(interface, common.options));
        self.follow_hardware_addresses(&plan);
        let has_ppp = plan.targets.iter().any(|target| target.interface.frames == FrameKind::Ppp);
        let mut targets: HashMap<u32, _> =
            plan.targets.into_iter().map(|target| (target.interface.index, target)).collect();
        let (mut place, now) = (0, Instant::now());
        let last = last_block(common.options);
        while let Some(device) = self.devices.get_mut(place) {
            if !interfaces.iter().any(|interface| interface.index == device.index) {
                device.leaves.get_or_insert(last);
            }
            if let Some(leaves) = device.leaves {
                // A device that has reappeared needs another ring, under the same token.
                match leaves <= now || targets.contains_key(&device.index) {
                    true => self.close(place, common, "it has disappeared"),
                    false => place += 1,
                }
                continue;
            }
            match targets.remove(&device.index) {
                Some(target) => {
                    device.name.clone_from(&target.interface.name);
                    device.follow(surroundings_of(target, has_ppp));
                    device.know(&self.hardware_addresses);
                    place += 1;
                }
                None => self.close(place, common, "another device shows the same packets"),
            }
        }
        plan.covered.iter().for_each(|(one, _)| self.before.leave_out(one.index));
        self.note_covered(&plan.covered, common.notes);
        // A device that is being opened and is no longer wanted is closed once it is open.
        self.awaited.retain(|index, awaited| {
            let target = targets.remove(index);
            target.map(|target| awaited.surroundings = surroundings_of(target, has_ppp)).is_some()
        });
        // The order of the indices is that of age: the oldest devices get the largest rings.
        let mut targets: Vec<_> = targets.into_values().collect();
        targets.sort_unstable_by_key(|target| target.interface.index);
        for target in targets {
            if common.opener.is_behind() {
                return;
            }
            self.begin_to_open(target, has_ppp, common);
        }
    }

    fn follow_hardware_addresses(&mut self, plan: &Plan<'_>) {
        let targets = plan.targets.iter().map(|target| target.interface);
        let address =
            |interface: &Interface| interface.address.filter(|_| interface.frames == FrameKind::Ethernet);
        let addresses = HardwareAddresses {
            captured: targets.filter_map(address).collect(),
            covered: plan.covered.iter().filter_map(|(one, _)| address(one)).collect(),
        };
        if addresses != *self.hardware_addresses {
            self.hardware_addresses = Arc::new(addresses);
        }
    }

    fn begin_to_open(&mut self, target: Target<'_>, has_ppp: bool, common: &mut Common<'_>) {
        let interface = target.interface;
        let ring = common.options.next_buffer(common.books.rings);
        common.books.rings += u64::from(ring);
        common.books.openings += 1;
        let ticket = common.books.openings;
        let (name, surroundings) = (interface.name.clone(), surroundings_of(target, has_ppp));
        self.awaited.insert(interface.index, Awaited { ticket, name, surroundings });
        let opening = DeviceOpening { ticket, entry: self.entry.clone(), interface: interface.clone(), ring };
        // In the session's own namespace an opening is urgent: a device that replaces others is missed as
        // soon as those have been closed.
        common.opener.open(opening, self.entry.is_none());
    }

    /// Returns true if the caller wants this interface captured, and it can be or is captured.
    fn wants(&self, interface: &Interface, options: &TapOptions) -> bool {
        let named = || options.devices.contains(&interface.name);
        // An open device that is down stays open: it delivers frames from the moment it is up again, and then
        // still stands for others.
        let open = || self.devices.iter().any(|device| device.index == interface.index);
        (options.every_device() || named())
            && (interface.up || open())
            && self.refused.get(&interface.index).is_none_or(|refused| refused.wait == 0)
    }

    fn note_covered(&mut self, covered: &[(&Interface, &Interface)], notes: &mut Notes) {
        let mut fresh: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (one, other) in covered {
            if !self.covered.contains(&one.index) {
                fresh.entry(&other.name).or_default().push(&one.name);
            }
        }
        for (other, ones) in fresh {
            let (ones, place) = (ones.join(", "), self.place());
            notes.inform(format!("not capturing on {ones}{place}: {other} shows the same packets"));
        }
        self.covered = covered.iter().map(|(one, _)| one.index).collect();
    }
}

fn surroundings_of(target: Target<'_>, has_ppp: bool) -> Surroundings {
    Surroundings { vlans: target.vlans, mtu: target.mtu, address: target.interface.address, has_ppp }
}
