//! The devices of one network namespace: opened, closed and opened again as its interfaces change.

use super::before::BeforeCapture;
use super::common::Common;
use super::device::{Device, HardwareAddresses, Surroundings, Unopened, token};
use super::local::Local;
use super::news::{Heard, News};
use super::opener::{Opened, OpenerPool};
use crate::error::{Code, Error, Result};
use crate::model::{LocalAddresses, Namespace};
use crate::namespace::{EnterError, NamespaceEntry, enter};
use crate::netlink::{FrameKind, Interface, Rtnetlink};
use crate::tap::frames::FrameHandler;
use crate::tap::options::TapOptions;
use crate::tap::report::{Notes, TapStats};
use std::collections::{HashMap, HashSet};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Refreshes that what does not open is left alone for: some reasons pass, such as want of memory.
pub(in crate::tap) const RETRY: u32 = 60;

/// Least time between two refreshes on news, which may come by the thousand.
const NEWS_INTERVAL: Duration = Duration::from_millis(20);

/// How long beyond the read timeout the kernel may take to hand over the last block of a ring.
const BLOCK_SLACK: Duration = Duration::from_millis(50);

/// A device that did not open.
pub(super) struct RefusedDevice {
    reason: String,
    /// Refreshes until it is tried again.
    pub(super) wait: u32,
}

/// A device that is being opened.
pub(super) struct Awaited {
    pub(super) ticket: u64,
    pub(super) name: String,
    pub(super) surroundings: Surroundings,
}

/// A namespace that is captured in.
pub(in crate::tap) struct NamespaceCapture {
    /// What it is and how to get there; `None` for the one that the tap was opened in.
    pub(super) entry: Option<NamespaceEntry>,
    route: Rtnetlink,
    pub(super) devices: Vec<Device>,
    pub(super) awaited: HashMap<u32, Awaited>,
    pub(super) refused: HashMap<u32, RefusedDevice>,
    /// Devices that others stand for, once that has been noted.
    pub(super) covered: HashSet<u32>,
    pub(super) hardware_addresses: Arc<HardwareAddresses>,
    news: News,
    local: Local,
    pub(super) before: BeforeCapture,
    /// Networks that are local for packets which a routing rule selects.
    conditional: LocalAddresses,
    /// Whether these are to be listed anew.
    lists_conditional: bool,
    /// Whether there was news since the last refresh that takes another.
    is_stale: bool,
    refreshed: Instant,
    /// When its rings have been read to the end, of a namespace that is gone.
    leaves: Option<Instant>,
}

impl NamespaceCapture {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// `SystemResource` when its interfaces or addresses cannot be listed.
    pub(in crate::tap) fn home() -> Result<NamespaceCapture> {
        NamespaceCapture::with(None, open_sockets()?)
    }

    /// Another namespace.
    ///
    /// # Errors
    /// What [`enter`] returns, and `SystemResource` when its interfaces or addresses cannot be listed.
    pub(in crate::tap) fn elsewhere(
        entry: &NamespaceEntry,
    ) -> std::result::Result<NamespaceCapture, EnterError> {
        let sockets = enter(entry, open_sockets)?.map_err(EnterError::Refused)?;
        NamespaceCapture::with(Some(entry.clone()), sockets).map_err(EnterError::Refused)
    }

    fn with(entry: Option<NamespaceEntry>, (news, route): (News, Rtnetlink)) -> Result<NamespaceCapture> {
        let mut capture = NamespaceCapture {
            entry,
            route,
            devices: Vec::new(),
            awaited: HashMap::new(),
            refused: HashMap::new(),
            covered: HashSet::new(),
            hardware_addresses: Arc::default(),
            news,
            local: Local::default(),
            before: BeforeCapture::default(),
            conditional: LocalAddresses::default(),
            lists_conditional: true,
            is_stale: false,
            refreshed: Instant::now(),
            leaves: None,
        };
        capture.read_addresses()?;
        Ok(capture)
    }

    /// Its number.
    pub(in crate::tap) fn namespace(&self) -> Namespace {
        self.entry.as_ref().map_or(Namespace::HOME, |entry| entry.namespace)
    }

    /// Takes over another way in, if `entry` is one into this very namespace. Returns whether it is.
    pub(in crate::tap) fn is_reached_by(&mut self, entry: &NamespaceEntry) -> bool {
        let same = |own: &NamespaceEntry| (own.namespace, own.inode) == (entry.namespace, entry.inode);
        let own = self.entry.as_mut().filter(|own| same(own));
        own.map(|own| own.clone_from(entry)).is_some()
    }

    /// Its addresses as of the last refresh.
    pub(in crate::tap) fn addresses(&self) -> &Arc<LocalAddresses> {
        self.local.shown()
    }

    /// The descriptor that is readable when there is news, and its token, which is no device's.
    pub(in crate::tap) fn news(&self) -> (BorrowedFd<'_>, u64) {
        (self.news.descriptor(), token(self.namespace(), 0))
    }

    /// Reads the news: addresses that have come count from now on, the rest is for the next refresh.
    pub(in crate::tap) fn hear(&mut self, options: &TapOptions) -> Heard {
        let mut come = LocalAddresses::default();
        let heard = self.news.read(&mut come);
        self.local.add(&come);
        self.conditional.extend_conditional(&come);
        self.lists_conditional |= heard.lost || heard.condition_gone;
        let last = last_block(options);
        heard.enslaved.iter().for_each(|index| self.before.leave_out(*index));
        for gone in &heard.gone {
            match self.devices.iter_mut().find(|device| device.index == gone.index) {
                Some(device) => drop(device.leaves.get_or_insert(last)),
                None => self.count_unopened(gone, options),
            }
        }
        // A listing waits for whatever changes devices now, so only what may have to be opened is worth one at once.
        let is_known = |index: &u32| {
            self.awaited.contains_key(index)
                || self.covered.contains(index)
                || self.refused.get(index).is_some_and(|refused| refused.wait > 1)
                || self.devices.iter().any(|device| device.index == *index)
        };
        self.is_stale |= heard.lost || heard.up.iter().any(|index| !is_known(index));
        heard
    }

    /// Counts what a device has carried that was never captured on.
    fn count_unopened(&mut self, interface: &Interface, options: &TapOptions) {
        let is_decoded = !matches!(interface.frames, FrameKind::Others(_));
        if is_decoded && (options.every_device() || options.devices.contains(&interface.name)) {
            self.before.count(interface.index, interface.carried);
        }
    }

    /// Leaves out what the devices that are there have carried so far: the capture begins now.
    ///
    /// # Errors
    /// `SystemResource` when they cannot be listed.
    pub(in crate::tap) fn begin(&mut self) -> Result<()> {
        self.route.interfaces()?.iter().for_each(|interface| self.before.leave_out(interface.index));
        Ok(())
    }

    /// When it is to be refreshed for news.
    pub(in crate::tap) fn refresh_due(&self) -> Option<Instant> {
        self.is_stale.then(|| self.refreshed + NEWS_INTERVAL)
    }

    /// When a device that is gone is to be closed.
    pub(in crate::tap) fn closing_due(&self) -> Option<Instant> {
        self.devices.iter().filter_map(|device| device.leaves).min()
    }

    /// Closes the devices that are gone and have been read to their end.
    pub(in crate::tap) fn close_gone(&mut self, now: Instant, common: &mut Common<'_>) {
        let is_over = |device: &Device| device.leaves.is_some_and(|leaves| leaves <= now);
        while let Some(place) = self.devices.iter().position(is_over) {
            self.close(place, common, "it is gone");
        }
    }

    /// When it is to be closed, if its namespace is gone. From then on it is only read.
    pub(in crate::tap) fn leave(&mut self, options: &TapOptions) -> Instant {
        *self.leaves.get_or_insert_with(|| last_block(options))
    }

    /// Whether its namespace is gone.
    pub(in crate::tap) fn is_leaving(&self) -> bool {
        self.leaves.is_some()
    }

    /// Its interfaces, up or not.
    ///
    /// # Errors
    /// `SystemResource` when they cannot be listed.
    pub(in crate::tap) fn interfaces(&mut self) -> Result<Vec<Interface>> {
        self.route.interfaces()
    }

    /// Its open devices.
    pub(in crate::tap) fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// The device that the token of an event names.
    pub(in crate::tap) fn device_mut(&mut self, token: u64) -> Option<&mut Device> {
        self.devices.iter_mut().find(|device| device.token() == token)
    }

    /// Whether devices are being opened.
    pub(in crate::tap) fn is_waiting(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// Asks for the current interfaces and addresses and acts on what has changed: devices are closed, and others are
    /// begun to be opened.
    ///
    /// # Errors
    /// `SystemResource` when interfaces or addresses cannot be listed; all goes on as it was.
    pub(in crate::tap) fn refresh(&mut self, common: &mut Common<'_>) -> Result<()> {
        (self.is_stale, self.refreshed) = (false, Instant::now());
        let interfaces = self.route.interfaces()?;
        let by_index: HashMap<u32, &Interface> = interfaces.iter().map(|i| (i.index, i)).collect();
        for device in &mut self.devices {
            if let Some(interface) = by_index.get(&device.index) {
                device.observe(interface.lost_by_device);
            }
        }
        self.refused.retain(|index, _| by_index.contains_key(index));
        self.before.keep(&interfaces);
        for (index, refused) in &mut self.refused {
            // One that went down and comes back is tried at once.
            let up = by_index.get(index).is_some_and(|interface| interface.up);
            refused.wait = if up { refused.wait.saturating_sub(1) } else { 0 };
        }
        self.follow_plan(&interfaces, common);
        self.read_addresses()
    }

    /// Takes up those of `all` openings that it waits for. Returns why devices did not open that had not been refused
    /// before.
    pub(in crate::tap) fn take_up(&mut self, all: &mut Vec<Opened>, common: &mut Common<'_>) -> Vec<Error> {
        let (mut names, mut failures, mut is_refused) = (Vec::new(), Vec::new(), false);
        let awaits =
            |opened: &mut Opened| self.awaited.values().any(|awaited| awaited.ticket == opened.ticket);
        let own: Vec<Opened> = all.extract_if(.., awaits).collect();
        for opened in own {
            let Some(index) = self.index_of(opened.ticket) else { continue };
            let Some(awaited) = self.awaited.remove(&index) else { continue };
            let ring = u64::from(opened.ring);
            let Awaited { name, surroundings, .. } = awaited;
            let opened = opened.outcome.and_then(|mut device| {
                device.follow(surroundings);
                device.know(&self.hardware_addresses);
                self.have_waited_for(device, common)
            });
            match opened {
                Ok(()) => names.push(name),
                Err(unopened) => {
                    common.books.rings = common.books.rings.saturating_sub(ring);
                    is_refused = true;
                    failures.extend(self.refuse(index, unopened, common.notes));
                }
            }
        }
        if !names.is_empty() {
            common.notes.inform(format!("capturing on {}{}", names.join(", "), self.place()));
        }
        // A device that does not open cannot stand for another: it is planned again without it. Each time refuses at
        // least one more, so this ends. Where interfaces cannot be listed now, the next refresh does it.
        if is_refused && let Ok(interfaces) = self.route.interfaces() {
            self.follow_plan(&interfaces, common);
        }
        failures
    }

    fn read_addresses(&mut self) -> Result<()> {
        let mut addresses = self.route.addresses()?;
        if self.lists_conditional {
            self.conditional = self.route.conditional()?;
            self.lists_conditional = false;
        }
        addresses.extend_conditional(&self.conditional);
        self.local.set(addresses, Instant::now());
        Ok(())
    }

    /// Where it is, to be put behind the name of a device.
    pub(super) fn place(&self) -> String {
        self.entry.as_ref().map_or_else(String::new, |entry| format!(" of {}", entry.path.display()))
    }

    fn index_of(&self, ticket: u64) -> Option<u32> {
        self.awaited.iter().find(|(_, awaited)| awaited.ticket == ticket).map(|(&index, _)| index)
    }

    /// Has an open device waited for.
    fn have_waited_for(
        &mut self,
        device: Device,
        common: &mut Common<'_>,
    ) -> std::result::Result<(), Unopened> {
        if let Err(errno) = common.poller.add(device.descriptor(), device.token()) {
            let tried = format_args!("waiting for the device {}", device.name).to_string();
            common.opener.close(device);
            return Err(Unopened::Failed(Error::system(Code::SystemResource, tried, errno)));
        }
        self.refused.remove(&device.index);
        self.before.count(device.index, device.carried_before);
        common.books.counted.devices_opened += 1;
        self.devices.push(device);
        Ok(())
    }

    /// Remembers that a device did not open, and notes a reason that is new.
    fn refuse(&mut self, index: u32, unopened: Unopened, notes: &mut Notes) -> Option<Error> {
        let (wait, error) = match unopened {
            Unopened::Down => (1, None),
            Unopened::Failed(error) => (RETRY, Some(error)),
        };
        let reason = error.as_ref().map_or_else(String::new, |error| error.text.clone());
        let before = self.refused.insert(index, RefusedDevice { reason: reason.clone(), wait });
        let error = error.filter(|_| before.is_none_or(|before| before.reason != reason))?;
        notes.warn(format!("not captured{}: {error}", self.place()));
        Some(error)
    }

    /// Closes the device at `place`; what it has lost stays counted.
    pub(super) fn close(&mut self, place: usize, common: &mut Common<'_>, why: &str) {
        let mut device = self.devices.swap_remove(place);
        let (by_kernel, by_device) = device.losses();
        common.books.counted.dropped_by_kernel += by_kernel;
        common.books.counted.dropped_by_device += by_device;
        common.books.counted.devices_closed += 1;
        common.books.rings = common.books.rings.saturating_sub(device.ring.into());
        common.poller.remove(device.descriptor());
        common.notes.inform(format!("no longer capturing on {}{}: {why}", device.name, self.place()));
        common.opener.close(device);
    }

    /// Gives up its devices to be closed, with nothing said of them.
    pub(in crate::tap) fn surrender(self, opener: &mut OpenerPool) {
        self.devices.into_iter().for_each(|device| opener.close(device));
    }

    /// Closes all devices; with them, everything is closed soon that keeps the namespace alive.
    pub(in crate::tap) fn close_all(mut self, common: &mut Common<'_>) {
        common.poller.remove(self.news.descriptor());
        for interface in self.route.interfaces().unwrap_or_default() {
            self.count_unopened(&interface, common.options);
        }
        common.books.counted.bytes_before_capture += self.before.bytes();
        while !self.devices.is_empty() {
            self.close(0, common, "its network namespace is gone");
        }
    }

    /// Reads at most `limit` frames from each ready device and returns how many. One that fails is closed.
    pub(in crate::tap) fn read(
        &mut self,
        limit: usize,
        common: &mut Common<'_>,
        handler: &mut impl FrameHandler,
    ) -> usize {
        let (mut frames, mut place) = (0, 0);
        while let Some(device) = self.devices.get_mut(place) {
            place += 1;
            if !device.ready {
                continue;
            }
            let batch = device.read(limit, |frame| handler.frame(frame));
            frames += batch.frames;
            common.books.counted.received += batch.frames as u64;
            common.books.counted.left_to_vlans += batch.skipped as u64;
            if let Some(why) = batch.failure {
                place -= 1;
                let name = device.name.clone();
                common.notes.warn(format!("reading the device {name}{}: {why}", self.place()));
                self.close(place, common, "it cannot be read");
            }
        }
        frames
    }

    /// Adds what is counted by device.
    pub(in crate::tap) fn add_losses(&mut self, stats: &mut TapStats) {
        stats.devices_open =
            stats.devices_open.saturating_add(u32::try_from(self.devices.len()).unwrap_or(u32::MAX));
        stats.bytes_before_capture += self.before.bytes();
        for device in &mut self.devices {
            let (by_kernel, by_device) = device.losses();
            stats.dropped_by_kernel += by_kernel;
            stats.dropped_by_device += by_device;
        }
    }
}

/// The time by which the kernel has handed over the last block of a ring that gets nothing any more.
pub(super) fn last_block(options: &TapOptions) -> Instant {
    Instant::now() + options.timeout + BLOCK_SLACK
}

/// Sockets that tell of the devices and addresses of the calling thread's namespace. News first, so that nothing changes unheard.
fn open_sockets() -> Result<(News, Rtnetlink)> {
    Ok((News::open()?, Rtnetlink::open()?))
}
