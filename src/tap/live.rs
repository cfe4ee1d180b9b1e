//! The devices of a live capture: opened, closed and opened again as the interfaces of the machine change.

use super::device::{Device, Unopened};
use super::open;
use super::options::TapOptions;
use super::plan::{Interface, plan};
use super::route::Route;
use super::source::{Notes, TapError, TapStats};
use super::wake::Bell;
use crate::error::{Code, Error, Result};
use crate::model::{Frame, LocalAddresses};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Refreshes that a device which does not open is left alone for: some reasons pass, such as want of memory.
const RETRY: u32 = 60;

/// A device that did not open.
struct Refused {
    reason: String,
    /// Refreshes until it is tried again.
    wait: u32,
}

/// A live capture.
pub(super) struct Live {
    options: TapOptions,
    route: Route,
    devices: Vec<Device>,
    refused: HashMap<u32, Refused>,
    /// Devices that others stand for, once that has been noted.
    covered: HashSet<u32>,
    /// What was counted on devices that are closed, and all that is not counted by device.
    counted: TapStats,
}

impl Live {
    /// Opens what there is to open.
    ///
    /// # Errors
    /// `NotPermitted` without CAP_NET_RAW. Otherwise `InvalidArgument`, `NoDevice` for a name that does not exist,
    /// `OpenDevice`, `CompileFilter`, `SetFilter`, `SystemResource`.
    pub(super) fn start(
        options: &TapOptions,
        bell: &Bell,
        notes: &mut Notes,
    ) -> std::result::Result<Live, TapError> {
        options.check()?;
        if let Err(refused) = permitted() {
            // A filter that means nothing is told of now, not on the day that the privilege is given.
            open::try_filter(options.filter.as_deref().unwrap_or_default())?;
            return Err(refused);
        }
        let mut route = Route::open()?;
        known(options, &route.interfaces()?)?;
        let mut live = Live {
            options: options.clone(),
            route,
            devices: Vec::new(),
            refused: HashMap::new(),
            covered: HashSet::new(),
            counted: TapStats::default(),
        };
        let mut failures = live.refresh(bell, notes)?;
        // A device that was named must work, but a filter need not suit the link type of every device.
        let named = !options.every_device();
        let fatal = |error: &Error| live.devices.is_empty() || named && error.code != Code::CompileFilter;
        if let Some(place) = failures.iter().position(fatal) {
            return Err(failures.swap_remove(place).into());
        }
        if live.devices.is_empty() {
            open::try_filter(options.filter.as_deref().unwrap_or_default())?;
            notes.add("no device to capture on is up yet".into());
        }
        Ok(live)
    }

    /// Asks for the current interfaces and acts on what has changed. Returns why devices did not open that had not
    /// been refused before.
    ///
    /// # Errors
    /// `SystemResource` when the interfaces cannot be listed; all goes on as it was.
    pub(super) fn refresh(&mut self, bell: &Bell, notes: &mut Notes) -> Result<Vec<Error>> {
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
        while self.follow_plan(&interfaces, bell, notes, &mut opened, &mut failures) {}
        if !opened.is_empty() {
            notes.add(format!("capturing on {}", opened.join(", ")));
        }
        Ok(failures)
    }

    /// Closes and opens devices as the plan says. Returns whether a device was refused, which changes the plan.
    fn follow_plan(
        &mut self,
        interfaces: &[Interface],
        bell: &Bell,
        notes: &mut Notes,
        opened: &mut Vec<String>,
        failures: &mut Vec<Error>,
    ) -> bool {
        let plan = plan(interfaces, |interface| self.wants(interface));
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
                    self.close(place, bell, notes, "it was renamed");
                    targets.insert(target.interface.index, target);
                }
                None => {
                    let gone = !interfaces.iter().any(|interface| interface.index == device.index);
                    let why = if gone { "it is gone" } else { "another device stands for it" };
                    self.close(place, bell, notes, why);
                }
            }
        }
        self.note_covered(&plan.covered, notes);
        let mut refused = false;
        // In the order of the indices, which is that of age: the oldest devices get the largest rings.
        let mut targets: Vec<_> = targets.into_values().collect();
        targets.sort_unstable_by_key(|target| target.interface.index);
        for target in targets {
            let taken = self.devices.iter().map(|device| u64::from(device.ring)).sum();
            let ring = self.options.next_buffer(taken);
            let result =
                Device::open(target.interface, target.vlans, ring, &self.options).and_then(|device| {
                    bell.add(device.descriptor(), device.index)
                        .map_err(|errno| {
                            let tried = format_args!("waiting for the device {}", device.name);
                            Unopened::Failed(Error::system(Code::SystemResource, tried, errno))
                        })
                        .map(|()| device)
                });
            match result {
                Ok(device) => {
                    self.refused.remove(&device.index);
                    self.counted.devices_opened += 1;
                    opened.push(device.name.clone());
                    self.devices.push(device);
                }
                Err(unopened) => {
                    refused = true;
                    failures.extend(self.refuse(target.interface.index, unopened, notes));
                }
            }
        }
        refused
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
        notes.add(format!("not captured: {error}"));
        Some(error)
    }

    /// Whether the caller would have this interface captured, and it can be or is.
    fn wants(&self, interface: &Interface) -> bool {
        let named = || self.options.devices.contains(&interface.name);
        // An open device that is down stays open: it delivers from the moment it is up again, and still stands for
        // others then.
        let open = || self.devices.iter().any(|device| device.index == interface.index);
        (self.options.every_device() || named())
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
            notes.add(format!("not captured, since {other} shows the same packets: {}", ones.join(", ")));
        }
        self.covered = covered.iter().map(|(one, _)| one.index).collect();
    }

    /// Closes the device at `place`; what it has lost stays counted.
    fn close(&mut self, place: usize, bell: &Bell, notes: &mut Notes, why: &str) {
        let mut device = self.devices.swap_remove(place);
        let (by_kernel, by_device) = device.losses();
        self.counted.dropped_by_kernel += by_kernel;
        self.counted.dropped_by_device += by_device;
        self.counted.devices_closed += 1;
        bell.remove(device.descriptor());
        notes.add(format!("no longer capturing on {}: {why}", device.name));
    }

    /// The addresses of the machine.
    ///
    /// # Errors
    /// `SystemResource` when they cannot be listed.
    pub(super) fn addresses(&mut self) -> Result<LocalAddresses> {
        self.route.addresses()
    }

    /// Marks the device that has frames.
    pub(super) fn ready(&mut self, index: u32) {
        if let Some(device) = self.devices.iter_mut().find(|device| device.index == index) {
            device.ready = true;
        }
    }

    /// Whether a device is known to have frames.
    pub(super) fn any_ready(&self) -> bool {
        self.devices.iter().any(|device| device.ready)
    }

    /// Reads at most `limit` frames from each ready device and returns how many. One that fails is closed.
    pub(super) fn read(
        &mut self,
        limit: usize,
        bell: &Bell,
        notes: &mut Notes,
        mut handler: impl FnMut(Frame<'_>),
    ) -> usize {
        let (mut frames, mut place) = (0, 0);
        while let Some(device) = self.devices.get_mut(place) {
            place += 1;
            if !device.ready {
                continue;
            }
            let batch = device.read(limit, &mut handler);
            frames += batch.frames;
            self.counted.received += batch.frames as u64;
            self.counted.left_to_vlans += batch.skipped as u64;
            if let Some(why) = batch.failure {
                place -= 1;
                self.close(place, bell, notes, &why);
            }
        }
        frames
    }

    /// The counters, those of closed devices included.
    pub(super) fn stats(&mut self) -> TapStats {
        let mut stats = self.counted;
        stats.devices_open = u32::try_from(self.devices.len()).unwrap_or(u32::MAX);
        for device in &mut self.devices {
            let (by_kernel, by_device) = device.losses();
            stats.dropped_by_kernel += by_kernel;
            stats.dropped_by_device += by_device;
        }
        stats
    }
}

/// Whether this thread may open packet sockets at all, by opening one that receives nothing.
fn permitted() -> std::result::Result<(), TapError> {
    match socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None) {
        Ok(_) => Ok(()),
        Err(errno @ (Errno::EPERM | Errno::EACCES)) => {
            let text = format!(
                "capturing packets needs the capability CAP_NET_RAW: opening a packet socket: {errno}"
            );
            Err(TapError::NotPermitted(Error::new(Code::OpenDevice, text)))
        }
        Err(errno) => Err(Error::system(Code::OpenDevice, "opening a packet socket", errno).into()),
    }
}

/// Refuses names that no interface bears.
fn known(options: &TapOptions, interfaces: &[Interface]) -> Result<()> {
    if options.every_device() {
        return Ok(());
    }
    let exists = |name: &String| interfaces.iter().any(|interface| interface.name == *name);
    let Some(unknown) = options.devices.iter().find(|name| !exists(name)) else { return Ok(()) };
    let names: Vec<&str> = interfaces.iter().map(|interface| &*interface.name).collect();
    let text = format!("there is no network device {unknown:?}; there are: {}", names.join(", "));
    Err(Error::new(Code::NoDevice, text))
}
