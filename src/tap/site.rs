//! The devices of one network namespace: opened, closed and opened again as its interfaces change.

use super::device::{Device, Unopened};
use super::open::{self, Refusal};
use super::options::TapOptions;
use super::plan::{Interface, Target, plan};
use super::route::Route;
use super::source::{Notes, TapStats};
use super::wake::Bell;
use crate::error::{Code, Error, Result};
use crate::model::{Frame, LocalAddresses, Namespace};
use crate::namespace::{EnterError, Entry, enter};
use pcap::{Active, Capture};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// Refreshes that what does not open is left alone for: some reasons pass, such as want of memory.
pub(super) const RETRY: u32 = 60;

/// A device that did not open.
struct Refused {
    reason: String,
    /// Refreshes until it is tried again.
    wait: u32,
}

/// What all namespaces share.
pub(super) struct Common<'a> {
    pub options: &'a TapOptions,
    pub bell: &'a Bell,
    pub notes: &'a mut Notes,
    pub books: &'a mut Books,
}

/// What is kept of all devices together.
#[derive(Default)]
pub(super) struct Books {
    /// What was counted on devices that are closed, and all that is not counted by device.
    pub counted: TapStats,
    /// Bytes of the rings that are open.
    pub rings: u64,
}

/// A namespace that is captured in.
pub(super) struct Site {
    /// What it is and how to get there; `None` for the one that the tap was opened in.
    entry: Option<Entry>,
    route: Route,
    devices: Vec<Device>,
    refused: HashMap<u32, Refused>,
    /// Devices that others stand for, once that has been noted.
    covered: HashSet<u32>,
    addresses: Arc<LocalAddresses>,
}

impl Site {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// `SystemResource` when its interfaces or addresses cannot be listed.
    pub(super) fn home() -> Result<Site> {
        let mut site = Site::with(None, Route::open()?);
        site.read_addresses()?;
        Ok(site)
    }

    /// Another namespace.
    ///
    /// # Errors
    /// What [`enter`] returns, and `SystemResource` when its interfaces or addresses cannot be listed.
    pub(super) fn elsewhere(entry: &Entry) -> std::result::Result<Site, EnterError> {
        let route = enter(entry, Route::open)?.map_err(EnterError::Refused)?;
        let mut site = Site::with(Some(entry.clone()), route);
        site.read_addresses().map_err(EnterError::Refused)?;
        Ok(site)
    }

    fn with(entry: Option<Entry>, route: Route) -> Site {
        Site {
            entry,
            route,
            devices: Vec::new(),
            refused: HashMap::new(),
            covered: HashSet::new(),
            addresses: Arc::default(),
        }
    }

    /// Its number.
    pub(super) fn namespace(&self) -> Namespace {
        self.entry.as_ref().map_or(Namespace::HOME, |entry| entry.namespace)
    }

    /// Takes over another way in, if `entry` is one into this very namespace. Returns whether it is.
    pub(super) fn is_reached_by(&mut self, entry: &Entry) -> bool {
        let same = |own: &Entry| (own.namespace, own.inode) == (entry.namespace, entry.inode);
        let own = self.entry.as_mut().filter(|own| same(own));
        own.map(|own| own.clone_from(entry)).is_some()
    }

    /// Its addresses as of the last refresh.
    pub(super) fn addresses(&self) -> &Arc<LocalAddresses> {
        &self.addresses
    }

    /// Its interfaces, up or not.
    ///
    /// # Errors
    /// `SystemResource` when they cannot be listed.
    pub(super) fn interfaces(&mut self) -> Result<Vec<Interface>> {
        self.route.interfaces()
    }

    /// Its open devices.
    pub(super) fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// The device that the token of an event names.
    pub(super) fn device_mut(&mut self, token: u64) -> Option<&mut Device> {
        self.devices.iter_mut().find(|device| device.token() == token)
    }

    /// Asks for the current interfaces and addresses and acts on what has changed. Returns why devices did not open
    /// that had not been refused before.
    ///
    /// # Errors
    /// `SystemResource` when interfaces or addresses cannot be listed; all goes on as it was.
    pub(super) fn refresh(&mut self, common: &mut Common<'_>) -> Result<Vec<Error>> {
        let interfaces = self.route.interfaces()?;
        let by_index: HashMap<u32, &Interface> = interfaces.iter().map(|i| (i.index, i)).collect();
        for device in &mut self.devices {
            if let Some(interface) = by_index.get(&device.index) {
                device.observe(interface.lost_by_device);
            }
        }
        self.refused.retain(|index, _| by_index.contains_key(index));
        for (index, refused) in &mut self.refused {
            // One that went down and comes back is tried at once.
            let up = by_index.get(index).is_some_and(|interface| interface.up);
            refused.wait = if up { refused.wait.saturating_sub(1) } else { 0 };
        }
        let mut failures = Vec::new();
        let mut opened = Vec::new();
        // A device that does not open cannot stand for another: plan again without it. Each round refuses at least
        // one more, so this ends.
        while self.follow_plan(&interfaces, common, &mut opened, &mut failures) {}
        if !opened.is_empty() {
            common.notes.add(format!("capturing on {}{}", opened.join(", "), self.place()));
        }
        self.read_addresses()?;
        Ok(failures)
    }

    fn read_addresses(&mut self) -> Result<()> {
        let addresses = self.route.addresses()?;
        if addresses != *self.addresses {
            self.addresses = Arc::new(addresses);
        }
        Ok(())
    }

    /// Where it is, to be put behind the name of a device.
    fn place(&self) -> String {
        self.entry.as_ref().map_or_else(String::new, |entry| format!(" of {}", entry.path.display()))
    }

    /// Closes and opens devices as the plan says. Returns whether a device was refused, which changes the plan.
    fn follow_plan(
        &mut self,
        interfaces: &[Interface],
        common: &mut Common<'_>,
        opened: &mut Vec<String>,
        failures: &mut Vec<Error>,
    ) -> bool {
        let plan = plan(interfaces, |interface| self.wants(interface, common.options));
        let mut targets: HashMap<u32, _> =
            plan.targets.into_iter().map(|target| (target.interface.index, target)).collect();
        let mut place = 0;
        while let Some(device) = self.devices.get_mut(place) {
            match targets.remove(&device.index) {
                // A renamed device is opened anew, since libpcap asks for it by its name.
                Some(target) if target.interface.name == device.name => {
                    device.vlans = target.vlans;
                    place += 1;
                }
                Some(target) => {
                    self.close(place, common, "it was renamed");
                    targets.insert(target.interface.index, target);
                }
                None => {
                    let gone = !interfaces.iter().any(|interface| interface.index == device.index);
                    let why = if gone { "it is gone" } else { "another device stands for it" };
                    self.close(place, common, why);
                }
            }
        }
        self.note_covered(&plan.covered, common.notes);
        // In the order of the indices, which is that of age: the oldest devices get the largest rings.
        let mut targets: Vec<_> = targets.into_values().collect();
        targets.sort_unstable_by_key(|target| target.interface.index);
        let mut refused = false;
        for (target, ring, handle) in self.open_handles(targets, common) {
            let index = target.interface.index;
            match self.take_up(target, ring, handle, common) {
                Ok(name) => opened.push(name),
                Err(unopened) => {
                    refused = true;
                    failures.extend(self.refuse(index, unopened, common.notes));
                }
            }
        }
        refused
    }

    /// Opens a handle for each target, inside the namespace. The handles then work on any thread.
    fn open_handles<'i>(
        &self,
        targets: Vec<Target<'i>>,
        common: &Common<'_>,
    ) -> Vec<(Target<'i>, u32, std::result::Result<Capture<Active>, Refusal>)> {
        let options = common.options;
        let mut taken = common.books.rings;
        let mut rings = Vec::with_capacity(targets.len());
        for _ in &targets {
            let ring = options.next_buffer(taken);
            taken += u64::from(ring);
            rings.push(ring);
        }
        let names: Vec<_> =
            targets.iter().map(|target| (&*target.interface.name, target.interface.loopback)).collect();
        let open = || -> Vec<_> {
            let each = names.iter().zip(&rings);
            each.map(|(&(name, loopback), &ring)| open::live(name, loopback, ring, options)).collect()
        };
        let handles = match self.entry.as_ref().filter(|_| !targets.is_empty()) {
            None => open(),
            Some(entry) => enter(entry, open).unwrap_or_else(|error| {
                // A way in that has closed is no fault of the device: it is tried again with the next refresh.
                let refusal = || match &error {
                    EnterError::Gone => Refusal::Down,
                    EnterError::Refused(error) => Refusal::Failed(error.text.clone()),
                };
                targets.iter().map(|_| Err(refusal())).collect()
            }),
        };
        targets
            .into_iter()
            .zip(rings)
            .zip(handles)
            .map(|((target, ring), handle)| (target, ring, handle))
            .collect()
    }

    /// Makes a device of an open handle and has it waited for. Returns its name.
    fn take_up(
        &mut self,
        target: Target<'_>,
        ring: u32,
        handle: std::result::Result<Capture<Active>, Refusal>,
        common: &mut Common<'_>,
    ) -> std::result::Result<String, Unopened> {
        let device = Device::new(handle, target, ring, self.namespace(), common.options)?;
        common.bell.add(device.descriptor(), device.token()).map_err(|errno| {
            let tried = format_args!("waiting for the device {}", device.name);
            Unopened::Failed(Error::system(Code::SystemResource, tried, errno))
        })?;
        self.refused.remove(&device.index);
        common.books.counted.devices_opened += 1;
        common.books.rings += u64::from(ring);
        let name = device.name.clone();
        self.devices.push(device);
        Ok(name)
    }

    /// Remembers that a device did not open, and notes a reason that is new.
    fn refuse(&mut self, index: u32, unopened: Unopened, notes: &mut Notes) -> Option<Error> {
        let (wait, error) = match unopened {
            Unopened::Down => (1, None),
            Unopened::Failed(error) => (RETRY, Some(error)),
        };
        let reason = error.as_ref().map_or_else(String::new, |error| error.text.clone());
        let before = self.refused.insert(index, Refused { reason: reason.clone(), wait });
        let error = error.filter(|_| before.is_none_or(|before| before.reason != reason))?;
        notes.add(format!("not captured{}: {error}", self.place()));
        Some(error)
    }

    /// Whether the caller would have this interface captured, and it can be or is.
    fn wants(&self, interface: &Interface, options: &TapOptions) -> bool {
        let named = || options.devices.contains(&interface.name);
        // An open device that is down stays open: it delivers from the moment it is up again, and still stands for
        // others then.
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
            notes.add(format!("not captured, since {other} shows the same packets: {ones}{place}"));
        }
        self.covered = covered.iter().map(|(one, _)| one.index).collect();
    }

    /// Closes the device at `place`; what it has lost stays counted.
    fn close(&mut self, place: usize, common: &mut Common<'_>, why: &str) {
        let mut device = self.devices.swap_remove(place);
        let (by_kernel, by_device) = device.losses();
        common.books.counted.dropped_by_kernel += by_kernel;
        common.books.counted.dropped_by_device += by_device;
        common.books.counted.devices_closed += 1;
        common.books.rings = common.books.rings.saturating_sub(device.ring.into());
        common.bell.remove(device.descriptor());
        common.notes.add(format!("no longer capturing on {}{}: {why}", device.name, self.place()));
    }

    /// Closes all devices; with the site, everything is closed that keeps the namespace alive.
    pub(super) fn close_all(mut self, common: &mut Common<'_>) {
        while !self.devices.is_empty() {
            self.close(0, common, "its network namespace is gone");
        }
    }

    /// Reads at most `limit` frames from each ready device and returns how many. One that fails is closed.
    pub(super) fn read(
        &mut self,
        limit: usize,
        common: &mut Common<'_>,
        handler: &mut impl FnMut(Frame<'_>),
    ) -> usize {
        let (mut frames, mut place) = (0, 0);
        while let Some(device) = self.devices.get_mut(place) {
            place += 1;
            if !device.ready {
                continue;
            }
            let batch = device.read(limit, &mut *handler);
            frames += batch.frames;
            common.books.counted.received += batch.frames as u64;
            common.books.counted.left_to_vlans += batch.skipped as u64;
            if let Some(why) = batch.failure {
                place -= 1;
                self.close(place, common, &why);
            }
        }
        frames
    }

    /// Adds what is counted by device.
    pub(super) fn add_losses(&mut self, stats: &mut TapStats) {
        stats.devices_open =
            stats.devices_open.saturating_add(u32::try_from(self.devices.len()).unwrap_or(u32::MAX));
        for device in &mut self.devices {
            let (by_kernel, by_device) = device.losses();
            stats.dropped_by_kernel += by_kernel;
            stats.dropped_by_device += by_device;
        }
    }
}
