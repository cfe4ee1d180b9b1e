//! A live capture: finds, enters and leaves the captured namespaces as they appear and disappear.

use super::common::{Common, DeviceTotals};
use super::namespace_capture::{NamespaceCapture, RETRY};
use super::opener::OpenerPool;
use crate::capability;
use crate::error::{Code, Error, Result};
use crate::model::{LocalAddresses, Namespace};
use crate::namespace::{EnterError, Known, NamespaceChoice, NamespaceEntry, NamespaceFinder};
use crate::netlink::{Interface, Rtnetlink};
use crate::tap::frames::FrameHandler;
use crate::tap::open_savefile;
use crate::tap::options::TapOptions;
use crate::tap::poller::Poller;
use crate::tap::report::{Notes, TapError, TapStats};
use crate::thread::both;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The minimum time between two searches for namespaces that notices cause.
const SEEK_INTERVAL: Duration = Duration::from_millis(50);

/// A live capture.
pub(in crate::tap) struct Live {
    options: TapOptions,
    /// The finder of namespaces; `None` if the options choose no other namespace.
    registry: Option<NamespaceFinder>,
    /// The session's own namespace first, then the others.
    captures: Vec<NamespaceCapture>,
    /// Namespaces that could not be entered, by inode, and the number of refreshes until a retry.
    shut: HashMap<u64, u32>,
    books: DeviceTotals,
    opener: OpenerPool,
    /// Set if a notice may concern namespaces. `sought` is the time of the last search for them.
    seeks_namespaces: bool,
    sought: Instant,
}

impl Live {
    /// Starts a capture and opens the devices. It finds the processes in the tree at `proc_path`.
    ///
    /// # Errors
    /// Fails with `NotPermitted` as [`permitted`] does. Otherwise fails with `InvalidArgument`, with
    /// `NoDevice` if a named device does not exist, with `OpenDevice`, `CompileFilter` or `SystemResource`,
    /// and with the errors of [`NamespaceFinder::open`] and of entering a chosen namespace.
    pub(in crate::tap) fn start(
        options: &TapOptions,
        proc_path: &Path,
        poller: &Poller,
        notes: &mut Notes,
    ) -> std::result::Result<Live, TapError> {
        options.check()?;
        let choice = &options.namespaces;
        let registry = choice.is_wide().then(|| NamespaceFinder::open(choice, proc_path)).transpose()?;
        let probe = match permitted() {
            Ok(probe) => probe,
            Err(refused) => {
                // An invalid option is reported now rather than on the day that the privilege is granted.
                open_savefile::try_filter(options.filter.as_deref().unwrap_or_default())?;
                if !choice.is_wide()
                    && let Ok(interfaces) = Rtnetlink::open().and_then(|mut route| route.interfaces())
                {
                    check_names(options, &interfaces)?;
                }
                return Err(refused);
            }
        };
        // The kernel does not close a packet socket before all processors have seen it (synchronize_net),
        // which takes as long as opening a device does. Both run at the same time.
        both("capture-devices", move || drop(probe), || Live::open_all(options, registry, poller, notes)).1
    }

    fn open_all(
        options: &TapOptions,
        registry: Option<NamespaceFinder>,
        poller: &Poller,
        notes: &mut Notes,
    ) -> std::result::Result<Live, TapError> {
        let mut live = Live {
            options: options.clone(),
            registry,
            captures: vec![NamespaceCapture::home(options)?],
            shut: HashMap::new(),
            books: DeviceTotals::default(),
            opener: OpenerPool::new(options.clone(), poller.waker()),
            seeks_namespaces: false,
            sought: Instant::now(),
        };
        live.captures.iter().try_for_each(|capture| await_news(capture, poller))?;
        // A namespace that was chosen must work.
        let shut = live.follow_namespaces(poller, notes).into_iter().next();
        live.captures.iter_mut().try_for_each(NamespaceCapture::begin)?;
        if let (Some(error), NamespaceChoice::Chosen(_)) = (shut, &options.namespaces) {
            return Err(error.into());
        }
        live.check_names()?;
        live.refresh_sites(poller, notes)?;
        // If all namespaces are captured, there may be hundreds, none of which the caller has named: their
        // devices are opened while those of the session's own namespace are captured.
        let must_be_open = |capture: &NamespaceCapture| {
            capture.namespace() == Namespace::HOME || options.namespaces != NamespaceChoice::All
        };
        let mut failures = Vec::new();
        while live.captures.iter().any(|capture| must_be_open(capture) && capture.is_waiting()) {
            live.opener.wait();
            failures.extend(live.take_up(poller, notes));
        }
        // A device that was named must work, but a filter need not suit the link type of every device.
        let named = !options.every_device();
        let none = live.captures.iter().all(|capture| capture.devices().is_empty() && !capture.is_waiting());
        let fatal = |error: &Error| none || named && error.code != Code::CompileFilter;
        if let Some(place) = failures.iter().position(fatal) {
            return Err(failures.swap_remove(place).into());
        }
        if none {
            open_savefile::try_filter(options.filter.as_deref().unwrap_or_default())?;
            notes.inform("no device to capture on is up yet".into());
        }
        Ok(live)
    }

    /// Follows the namespaces, and in each of them the devices and addresses. Other threads open and close
    /// devices meanwhile.
    ///
    /// # Errors
    /// Fails with `SystemResource` if interfaces or addresses of the session's own namespace cannot be
    /// listed; the capture continues unchanged.
    pub(in crate::tap) fn refresh(&mut self, poller: &Poller, notes: &mut Notes) -> Result<()> {
        self.follow_namespaces(poller, notes);
        self.refresh_sites(poller, notes)
    }

    /// Reads the notices of all namespaces and acts on them. The caller must do so before reading frames,
    /// since the notices report the addresses of those frames.
    pub(in crate::tap) fn hear(&mut self, poller: &Poller, notes: &mut Notes) {
        let has_registry = self.registry.is_some();
        for capture in &mut self.captures {
            let heard = capture.hear(&self.options);
            self.seeks_namespaces |= has_registry && (heard.namespaces || capture.refresh_due().is_some());
        }
        let now = Instant::now();
        if self.namespaces_due().is_some_and(|due| due <= now) {
            self.follow_namespaces(poller, notes);
        }
        let Live { captures, books, options, opener, .. } = self;
        let mut common = Common { options, poller, notes, books, opener };
        for capture in captures {
            capture.close_gone(now, &mut common);
            if !capture.is_leaving() && capture.refresh_due().is_some_and(|due| due <= now) {
                // A failed listing is repeated within a second, or the reason is reported then.
                let _ = capture.refresh(&mut common);
            }
        }
    }

    /// Returns the time of the next work other than reading frames and notices.
    pub(in crate::tap) fn due(&self) -> Option<Instant> {
        let closings = self.captures.iter().filter_map(NamespaceCapture::closing_due);
        let refreshes = self
            .captures
            .iter()
            .filter(|capture| !capture.is_leaving())
            .filter_map(NamespaceCapture::refresh_due);
        closings.chain(refreshes).chain(self.namespaces_due()).min()
    }

    fn namespaces_due(&self) -> Option<Instant> {
        self.registry.as_ref().filter(|_| self.seeks_namespaces).map(|_| self.sought + SEEK_INTERVAL)
    }

    /// Waits until all openings and closings in progress have finished.
    pub(in crate::tap) fn finish(&mut self, poller: &Poller, notes: &mut Notes) {
        while self.opener.pending() > 0 {
            self.opener.wait();
            self.take_up(poller, notes);
        }
    }

    /// Processes the devices that have been opened. Returns the reasons why devices of the session's own
    /// namespace did not open, unless they had been refused before. Refusals in other namespaces are only
    /// noted. Costs one lock if there are none.
    pub(in crate::tap) fn take_up(&mut self, poller: &Poller, notes: &mut Notes) -> Vec<Error> {
        let mut opened = self.opener.take_opened();
        let mut outcome = Vec::new();
        if opened.is_empty() {
            return outcome;
        }
        let Live { captures, books, options, opener, .. } = self;
        let mut common = Common { options, poller, notes, books, opener };
        for capture in captures {
            let failures = capture.take_up(&mut opened, &mut common);
            if capture.namespace() == Namespace::HOME {
                outcome = failures;
            }
        }
        for late in opened {
            common.books.rings = common.books.rings.saturating_sub(late.ring.into());
            late.outcome.into_iter().for_each(|device| common.opener.close(device));
        }
        outcome
    }

    /// Leaves namespaces that have disappeared and enters those that have appeared. Returns the reasons why
    /// some could not be entered.
    fn follow_namespaces(&mut self, poller: &Poller, notes: &mut Notes) -> Vec<Error> {
        (self.seeks_namespaces, self.sought) = (false, Instant::now());
        let Some(registry) = &mut self.registry else { return Vec::new() };
        let entries = registry.refresh();
        registry.take_notes().into_iter().for_each(|note| notes.warn(note));
        let Live { captures, books, options, shut, opener, .. } = self;
        let mut common = Common { options, poller, notes, books, opener };
        let mut by_number: HashMap<Namespace, &NamespaceEntry> =
            entries.iter().map(|entry| (entry.namespace, entry)).collect();
        let mut place = 1;
        while let Some(capture) = captures.get_mut(place) {
            let number = capture.namespace();
            if by_number.get(&number).is_some_and(|entry| capture.is_reached_by(entry)) {
                by_number.remove(&number);
                place += 1;
            } else if !by_number.contains_key(&number) && capture.leave(common.options) > Instant::now() {
                place += 1;
            } else {
                captures.swap_remove(place).close_all(&mut common);
            }
        }
        shut.retain(|inode, _| entries.iter().any(|entry| entry.inode == *inode));
        let (mut failures, mut fresh) = (Vec::new(), Vec::new());
        for entry in entries.iter().filter(|entry| by_number.contains_key(&entry.namespace)) {
            let wait = shut.entry(entry.inode).or_default();
            *wait = wait.saturating_sub(1);
            if *wait > 0 {
                continue;
            }
            match NamespaceCapture::elsewhere(entry, options) {
                Ok(capture) => {
                    shut.remove(&entry.inode);
                    match await_news(&capture, poller) {
                        Ok(()) => fresh.push(capture),
                        Err(error) => failures.push(error),
                    }
                }
                // A namespace that has just disappeared will be missing from the next refresh.
                Err(EnterError::Gone) => {}
                Err(EnterError::Refused(error)) => {
                    *wait = RETRY;
                    common.notes.warn(format!("a network namespace is not captured in: {error}"));
                    failures.push(error);
                }
            }
        }
        for mut capture in fresh {
            if let Err(error) = capture.refresh(&mut common) {
                common.notes.warn(format!(
                    "refreshing the devices of network namespace {} failed: {error}",
                    capture.namespace().0
                ));
            }
            captures.push(capture);
        }
        failures
    }

    /// Follows the devices and addresses in each namespace.
    ///
    /// # Errors
    /// Fails with `SystemResource` for the session's own namespace; failures in other namespaces are only
    /// noted.
    fn refresh_sites(&mut self, poller: &Poller, notes: &mut Notes) -> Result<()> {
        let Live { captures, books, options, opener, .. } = self;
        let mut common = Common { options, poller, notes, books, opener };
        let mut outcome = Ok(());
        for capture in captures.iter_mut().filter(|capture| !capture.is_leaving()) {
            let refreshed = capture.refresh(&mut common);
            if capture.namespace() == Namespace::HOME {
                outcome = refreshed;
            } else if let Err(error) = refreshed {
                common.notes.warn(format!(
                    "refreshing the devices of network namespace {} failed: {error}",
                    capture.namespace().0
                ));
            }
        }
        outcome
    }

    /// Rejects names that no interface has in any of the namespaces.
    ///
    /// # Errors
    /// Fails with `NoDevice`, listing the existing interfaces, if there is no interface of a name. Fails with
    /// `SystemResource` if interfaces cannot be listed.
    fn check_names(&mut self) -> Result<()> {
        let mut interfaces = Vec::new();
        for capture in &mut self.captures {
            interfaces.extend(capture.interfaces()?);
        }
        check_names(&self.options, &interfaces)
    }

    /// Returns the namespaces besides the session's own.
    pub(in crate::tap) fn known(&self) -> Known {
        self.registry.as_ref().map_or_else(Known::default, |registry| registry.known().clone())
    }

    /// Returns the addresses of each namespace, the session's own first.
    pub(in crate::tap) fn addresses(&self) -> impl Iterator<Item = (Namespace, &Arc<LocalAddresses>)> {
        self.captures.iter().map(|capture| (capture.namespace(), capture.addresses()))
    }

    /// Marks the device that has frames.
    pub(in crate::tap) fn ready(&mut self, token: u64) {
        if let Some(device) = self.captures.iter_mut().find_map(|capture| capture.device_mut(token)) {
            device.ready = true;
        }
    }

    /// Returns true if a device is known to have frames.
    pub(in crate::tap) fn any_ready(&self) -> bool {
        self.captures.iter().any(|capture| capture.devices().iter().any(|device| device.ready))
    }

    /// Reads at most `limit` frames from each ready device and returns their number. A device that fails is
    /// closed.
    pub(in crate::tap) fn read(
        &mut self,
        limit: usize,
        poller: &Poller,
        notes: &mut Notes,
        handler: &mut impl FrameHandler,
    ) -> usize {
        let Live { captures, books, options, opener, .. } = self;
        let mut common = Common { options, poller, notes, books, opener };
        captures.iter_mut().map(|capture| capture.read(limit, &mut common, handler)).sum()
    }

    /// Returns the counters, including those of closed devices.
    pub(in crate::tap) fn stats(&mut self) -> TapStats {
        let mut stats = TapStats {
            namespaces: u32::try_from(self.captures.len() - 1).unwrap_or(u32::MAX),
            namespaces_left_out: self.registry.as_ref().map_or(0, |registry| registry.stats().left_out),
            devices_pending: u32::try_from(self.opener.pending()).unwrap_or(u32::MAX),
            ..self.books.counted
        };
        self.captures.iter_mut().for_each(|capture| capture.add_losses(&mut stats));
        stats
    }
}

impl Drop for Live {
    /// Closes all devices at the same time, which takes far less time than one after the other.
    fn drop(&mut self) {
        for capture in self.captures.drain(..) {
            capture.surrender(&mut self.opener);
        }
    }
}

/// Adds the notices of a namespace to the poller.
///
/// # Errors
/// Fails with `SystemResource` if the system refuses it.
fn await_news(capture: &NamespaceCapture, poller: &Poller) -> Result<()> {
    let (descriptor, token) = capture.news();
    poller
        .add(descriptor, token)
        .map_err(|errno| Error::system(Code::SystemResource, "waiting for route notifications", errno))
}

/// Checks that there is an interface of each name in the options.
///
/// # Errors
/// Fails with `NoDevice`, listing the existing interfaces, if there is none.
fn check_names(options: &TapOptions, interfaces: &[Interface]) -> Result<()> {
    let mut names: Vec<&str> = Vec::new();
    for Interface { name, .. } in interfaces {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let is_unknown = |name: &&String| !names.contains(&name.as_str());
    let Some(unknown) = options.devices.iter().find(is_unknown).filter(|_| !options.every_device()) else {
        return Ok(());
    };
    let text = format!("there is no network device {unknown:?}; there are: {}", names.join(", "));
    Err(Error::new(Code::NoDevice, text))
}

/// The reason for which a system may refuse sockets regardless of capabilities.
const FILTERED: &str = "filter of system calls (seccomp, RestrictAddressFamilies of systemd)";

/// Checks that this thread may open packet sockets, by opening one that receives nothing, and the netlink
/// sockets that list devices and addresses. Returns the packet socket.
///
/// # Errors
/// Fails with `NotPermitted` if the system refuses either socket for lack of permission, and with
/// `OpenDevice` if the packet socket does not open for another reason.
fn permitted() -> std::result::Result<OwnedFd, TapError> {
    let route =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute);
    if let Err(errno @ (Errno::EPERM | Errno::EACCES | Errno::EAFNOSUPPORT)) = route {
        let text = format!(
            "devices and addresses cannot be listed: opening a netlink socket: {errno}; a {FILTERED} may refuse it"
        );
        return Err(TapError::NotPermitted(Error::new(Code::SystemResource, text)));
    }
    match socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None) {
        Ok(probe) => Ok(probe),
        Err(errno @ (Errno::EPERM | Errno::EACCES | Errno::EAFNOSUPPORT)) => {
            let text = format!(
                "packets cannot be captured: opening a packet socket: {errno}; {}; a {FILTERED} may refuse it",
                capability::advice(&[capability::NET_RAW])
            );
            Err(TapError::NotPermitted(Error::new(Code::OpenDevice, text)))
        }
        Err(errno) => Err(Error::system(Code::OpenDevice, "opening a packet socket", errno).into()),
    }
}
