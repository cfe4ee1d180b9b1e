//! The devices of one network namespace: opened, closed and reopened as its interfaces change.

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

/// The number of refreshes until a device that did not open is retried. Some reasons pass, such as lack of
/// memory.
pub(in crate::tap) const RETRY: u32 = 60;

/// The minimum time between two refreshes that notices cause. Notices may arrive by the thousand.
const NEWS_INTERVAL: Duration = Duration::from_millis(20);

/// The time beyond the read timeout that the kernel may take to deliver the last block of a ring.
const BLOCK_SLACK: Duration = Duration::from_millis(50);

/// A device that did not open.
pub(super) struct RefusedDevice {
    reason: String,
    /// Refreshes until it is retried.
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
    /// The namespace and the way to enter it; `None` for the one that the tap was opened in.
    pub(super) entry: Option<NamespaceEntry>,
    route: Rtnetlink,
    pub(super) devices: Vec<Device>,
    pub(super) awaited: HashMap<u32, Awaited>,
    pub(super) refused: HashMap<u32, RefusedDevice>,
    /// Devices that others stand for and for which this has been noted.
    pub(super) covered: HashSet<u32>,
    pub(super) hardware_addresses: Arc<HardwareAddresses>,
    news: News,
    local: Local,
    pub(super) before: BeforeCapture,
    /// Networks that are local for packets that a routing rule selects.
    conditional: LocalAddresses,
    /// Set if these networks must be listed again.
    lists_conditional: bool,
    /// Set if a notice since the last refresh requires another.
    is_stale: bool,
    refreshed: Instant,
    /// The time by which its rings have been read to the end, if the namespace has disappeared.
    leaves: Option<Instant>,
}

impl NamespaceCapture {
    /// Creates the capture of the calling thread's namespace.
    ///
    /// # Errors
    /// Fails with `SystemResource` if its interfaces or addresses cannot be listed.
    pub(in crate::tap) fn home(options: &TapOptions) -> Result<NamespaceCapture> {
        NamespaceCapture::with(None, open_sockets()?, options)
    }

    /// Creates the capture of another namespace.
    ///
    /// # Errors
    /// Fails with the errors of [`enter`], and with `SystemResource` if its interfaces or addresses cannot be
    /// listed.
    pub(in crate::tap) fn elsewhere(
        entry: &NamespaceEntry,
        options: &TapOptions,
    ) -> std::result::Result<NamespaceCapture, EnterError> {
        let sockets = enter(entry, open_sockets)?.map_err(EnterError::Refused)?;
        NamespaceCapture::with(Some(entry.clone()), sockets, options).map_err(EnterError::Refused)
    }

    fn with(
        entry: Option<NamespaceEntry>,
        (news, route): (News, Rtnetlink),
        options: &TapOptions,
    ) -> Result<NamespaceCapture> {
        let mut capture = NamespaceCapture {
            entry,
            route,
            devices: Vec::new(),
            awaited: HashMap::new(),
            refused: HashMap::new(),
            covered: HashSet::new(),
            hardware_addresses: Arc::default(),
            news,
            local: Local::new(options.timeout),
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

    /// Returns the number of the namespace.
    pub(in crate::tap) fn namespace(&self) -> Namespace {
        self.entry.as_ref().map_or(Namespace::HOME, |entry| entry.namespace)
    }

    /// Replaces the way to enter the namespace if `entry` leads to the same one. Returns true if it does.
    pub(in crate::tap) fn is_reached_by(&mut self, entry: &NamespaceEntry) -> bool {
        let same = |own: &NamespaceEntry| (own.namespace, own.inode) == (entry.namespace, entry.inode);
        let own = self.entry.as_mut().filter(|own| same(own));
        own.map(|own| own.clone_from(entry)).is_some()
    }

    /// Returns its addresses as of the last refresh.
    pub(in crate::tap) fn addresses(&self) -> &Arc<LocalAddresses> {
        self.local.shown()
    }

    /// Returns the descriptor that is readable if there are notices, and its token, which no device has.
    pub(in crate::tap) fn news(&self) -> (BorrowedFd<'_>, u64) {
        (self.news.descriptor(), token(self.namespace(), 0))
    }

    /// Reads the notices. New addresses count from now on; the other changes wait for the next refresh.
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
        // A listing blocks while the kernel changes devices, so only a device that may have to be opened
        // justifies an immediate one.
        let is_known = |index: &u32| {
            self.awaited.contains_key(index)
                || self.covered.contains(index)
                || self.refused.get(index).is_some_and(|refused| refused.wait > 1)
                || self.devices.iter().any(|device| device.index == *index)
        };
        self.is_stale |= heard.lost || heard.up.iter().any(|index| !is_known(index));
        heard
    }

    /// Counts the bytes of a device that was never captured.
    fn count_unopened(&mut self, interface: &Interface, options: &TapOptions) {
        let is_decoded = !matches!(interface.frames, FrameKind::Others(_));
        if is_decoded && (options.every_device() || options.devices.contains(&interface.name)) {
            self.before.count(interface.index, interface.carried);
        }
    }

    /// Excludes the bytes that the existing devices have carried so far: the capture begins now.
    ///
    /// # Errors
    /// Fails with `SystemResource` if the devices cannot be listed.
    pub(in crate::tap) fn begin(&mut self) -> Result<()> {
        self.route.interfaces()?.iter().for_each(|interface| self.before.leave_out(interface.index));
        Ok(())
    }

    /// Returns the time of the refresh that notices require.
    pub(in crate::tap) fn refresh_due(&self) -> Option<Instant> {
        self.is_stale.then(|| self.refreshed + NEWS_INTERVAL)
    }

    /// Returns the time when a device that has disappeared is to be closed.
    pub(in crate::tap) fn closing_due(&self) -> Option<Instant> {
        self.devices.iter().filter_map(|device| device.leaves).min()
    }

    /// Closes the devices that have disappeared and have been read to their end.
    pub(in crate::tap) fn close_gone(&mut self, now: Instant, common: &mut Common<'_>) {
        let is_over = |device: &Device| device.leaves.is_some_and(|leaves| leaves <= now);
        while let Some(place) = self.devices.iter().position(is_over) {
            self.close(place, common, "it has disappeared");
        }
    }

    /// Marks the namespace as disappeared. From then on it is only read. Returns the time when it is to be
    /// closed.
    pub(in crate::tap) fn leave(&mut self, options: &TapOptions) -> Instant {
        *self.leaves.get_or_insert_with(|| last_block(options))
    }

    /// Returns true if its namespace has disappeared.
    pub(in crate::tap) fn is_leaving(&self) -> bool {
        self.leaves.is_some()
    }

    /// Returns its interfaces, up or down.
    ///
    /// # Errors
    /// Fails with `SystemResource` if they cannot be listed.
    pub(in crate::tap) fn interfaces(&mut self) -> Result<Vec<Interface>> {
        self.route.interfaces()
    }

    /// Returns its open devices.
    pub(in crate::tap) fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Returns the device that has an event's token.
    pub(in crate::tap) fn device_mut(&mut self, token: u64) -> Option<&mut Device> {
        self.devices.iter_mut().find(|device| device.token() == token)
    }

    /// Returns true if devices are being opened.
    pub(in crate::tap) fn is_waiting(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// Lists the current interfaces and addresses and acts on the changes: it closes devices and begins to
    /// open others.
    ///
    /// # Errors
    /// Fails with `SystemResource` if interfaces or addresses cannot be listed; the capture continues
    /// unchanged.
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
            // A device that went down and comes up again is retried at once.
            let up = by_index.get(index).is_some_and(|interface| interface.up);
            refused.wait = if up { refused.wait.saturating_sub(1) } else { 0 };
        }
        self.follow_plan(&interfaces, common);
        self.read_addresses()
    }

    /// Processes those of `all` openings that it waits for. Returns the reasons why devices did not open,
    /// unless they had been refused before.
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
        // A device that does not open cannot stand for another, so the plan is made again without it. Each
        // round refuses at least one more device, so this ends. If interfaces cannot be listed now, the next
        // refresh repeats it.
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

    /// Returns the location of the namespace, as a suffix of a device's name.
    pub(super) fn place(&self) -> String {
        self.entry.as_ref().map_or_else(String::new, |entry| format!(" of {}", entry.path.display()))
    }

    fn index_of(&self, ticket: u64) -> Option<u32> {
        self.awaited.iter().find(|(_, awaited)| awaited.ticket == ticket).map(|(&index, _)| index)
    }

    /// Adds an open device to the poller.
    ///
    /// # Errors
    /// Fails with `SystemResource` if the poller does not accept it.
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

    /// Records that a device did not open, and notes a reason that is new.
    fn refuse(&mut self, index: u32, unopened: Unopened, notes: &mut Notes) -> Option<Error> {
        let (wait, error) = match unopened {
            Unopened::Down => (1, None),
            Unopened::Failed(error) => (RETRY, Some(error)),
        };
        let reason = error.as_ref().map_or_else(String::new, |error| error.text.clone());
        let before = self.refused.insert(index, RefusedDevice { reason: reason.clone(), wait });
        let error = error.filter(|_| before.is_none_or(|before| before.reason != reason))?;
        notes.warn(format!("not capturing on a device{}: {error}", self.place()));
        Some(error)
    }

    /// Closes the device at `place`; its losses stay counted.
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

    /// Passes its devices to `opener` to be closed, without notes.
    pub(in crate::tap) fn surrender(self, opener: &mut OpenerPool) {
        self.devices.into_iter().for_each(|device| opener.close(device));
    }

    /// Closes all devices. Soon afterwards everything that keeps the namespace alive is closed.
    pub(in crate::tap) fn close_all(mut self, common: &mut Common<'_>) {
        common.poller.remove(self.news.descriptor());
        for interface in self.route.interfaces().unwrap_or_default() {
            self.count_unopened(&interface, common.options);
        }
        common.books.counted.bytes_before_capture += self.before.bytes();
        while !self.devices.is_empty() {
            self.close(0, common, "its network namespace has disappeared");
        }
    }

    /// Reads at most `limit` frames from each ready device and returns their number. A device that fails is
    /// closed.
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

    /// Adds the counts that are kept by device.
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

/// Returns the time by which the kernel has delivered the last block of a ring that receives no more frames.
pub(super) fn last_block(options: &TapOptions) -> Instant {
    Instant::now() + options.timeout + BLOCK_SLACK
}

/// Opens the sockets that report the devices and addresses of the calling thread's namespace. The one for
/// notices is first, so that no change is missed.
///
/// # Errors
/// Fails with `SystemResource` if the system refuses a socket.
fn open_sockets() -> Result<(News, Rtnetlink)> {
    Ok((News::open()?, Rtnetlink::open()?))
}
