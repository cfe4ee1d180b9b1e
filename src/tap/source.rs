//! The tap: one interface to live devices and savefiles, owned and driven by one thread.

use super::frames::FrameHandler;
use super::live::Live;
use super::options::TapOptions;
use super::poller::{Poller, Waker};
use super::report::{Note, Notes, TapError, TapStats};
use super::savefile::Replay;
use crate::error::Result;
use crate::model::{LocalAddresses, Namespace};
use crate::namespace::Known;
use crate::netlink::Rtnetlink;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The result of one call of [`Tap::read`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Frames handed to the handler.
    pub frames: usize,
    /// True if more frames are already available, so that a wait would end at once.
    pub more: bool,
    /// True if the source will never give another frame: a savefile that is at its end. Live capture never
    /// ends.
    pub ended: bool,
}

enum FrameSource {
    Live(Box<Live>),
    Savefile(Replay),
}

/// A source of frames.
///
/// One thread opens, calls and drops it; only [`Waker`] may be used from other threads. A live tap captures
/// in the network namespace of that thread, and in the additional ones that its options choose. The thread
/// itself never leaves its namespace: short-lived threads that [`Tap::live`] and [`Tap::refresh`] start do
/// the work inside other namespaces. Such threads also open and close devices, which takes some 10 and 25 ms
/// for each. Dropping the tap waits for these threads.
pub struct Tap {
    source: FrameSource,
    poller: Poller,
    addresses: Vec<(Namespace, Arc<LocalAddresses>)>,
    known: Known,
    notes: Notes,
    /// Set if the addresses have changed since the handler last received them.
    is_changed: bool,
}

impl Tap {
    /// Starts capturing on the devices that `options` name, or on every usable one.
    ///
    /// Network interfaces are usable if they are up and have a link type that is decoded. If several devices
    /// show the same packets, one of them is captured, even if all were named: the master instead of bridge
    /// ports and bond members, the device below instead of macvlan and ipvlan, and frames with a VLAN tag on
    /// the VLAN's device. The tap waits for a named device that is down or disappears later.
    ///
    /// # Errors
    /// - Fails with `NotPermitted` if the thread lacks CAP_NET_RAW or a filter of system calls refuses its
    ///   sockets. The code is `OpenDevice`, or `SystemResource` for a netlink socket.
    /// - Fails with `InvalidArgument` if an option is out of bounds, with `NoDevice` if a named device does
    ///   not exist, with `OpenDevice` if a named device, or every device, does not open, with `CompileFilter`
    ///   if the filter suits none of the devices, and with `SystemResource` if the system lacks a resource.
    /// - For the chosen network namespaces, fails with `InvalidArgument` if a path is not a namespace, with
    ///   `SystemResource` if one may not be entered, and with `Thread` if a thread does not start.
    pub fn live(options: &TapOptions) -> std::result::Result<Tap, TapError> {
        Tap::live_beside(options, Path::new("/proc"))
    }

    /// Starts a live capture as [`Tap::live`] does, but finds the processes in another `/proc` tree, such as
    /// that of the machine around a container. The tree matters only for finding the network namespaces of
    /// processes.
    ///
    /// # Errors
    /// Fails as [`Tap::live`] does, and with `OpenDirectory` if the tree cannot be opened.
    pub fn live_beside(options: &TapOptions, proc_path: &Path) -> std::result::Result<Tap, TapError> {
        let poller = Poller::new()?;
        let mut notes = Notes::default();
        let live = Live::start(options, proc_path, &poller, &mut notes)?;
        let (addresses, known) = (owned(&live), live.known());
        Ok(Tap {
            source: FrameSource::Live(Box::new(live)),
            poller,
            addresses,
            known,
            notes,
            is_changed: true,
        })
    }

    /// Opens a pcap or pcapng savefile, to be replayed as fast as it can be read. It must be a regular file.
    ///
    /// Its local addresses are those of this machine, or none if they cannot be listed.
    ///
    /// # Errors
    /// Fails with `Savefile` if the file cannot be opened, is in neither format or has a link type that is
    /// not decoded; with `CompileFilter`, `SetFilter` or `InvalidArgument` if the filter is rejected; with
    /// `SystemResource` if the process or the system has no descriptor left.
    pub fn savefile(path: &Path, filter: Option<&str>) -> Result<Tap> {
        let replay = Replay::open(path, filter)?;
        let mut notes = Notes::default();
        let addresses = Rtnetlink::open().and_then(|mut route| route.addresses()).unwrap_or_else(|error| {
            notes.warn(format!("local addresses are unavailable: {error}"));
            LocalAddresses::default()
        });
        let (source, poller) = (FrameSource::Savefile(replay), Poller::new()?);
        let addresses = vec![(Namespace::HOME, Arc::new(addresses))];
        Ok(Tap { source, poller, addresses, known: Known::default(), notes, is_changed: true })
    }

    /// Returns a handle by which any thread can end this tap's [`Tap::wait`].
    pub fn waker(&self) -> Waker {
        self.poller.waker()
    }

    /// Blocks until there are frames to read, the waker was triggered, or `max` has passed; a signal may end
    /// it early. A savefile has frames until its end.
    ///
    /// # Errors
    /// Fails with `SystemResource` if the system refuses to wait.
    pub fn wait(&mut self, max: Duration) -> Result<()> {
        let due = match &self.source {
            FrameSource::Live(live) => live.due().map(|due| due.saturating_duration_since(Instant::now())),
            FrameSource::Savefile(_) => None,
        };
        let max = if self.more() { Duration::ZERO } else { due.map_or(max, |due| due.min(max)) };
        let source = &mut self.source;
        self.poller.wait(max, |token| {
            if let FrameSource::Live(live) = source {
                live.ready(token);
            }
        })
    }

    /// Hands the available frames to `handler`, without blocking and without a system call per frame: at most
    /// `limit` frames (at least 1) of each device, so that the caller can do other work in between.
    ///
    /// A live tap first processes the notices about devices, addresses and namespaces, which costs a system
    /// call for each namespace. The kernel reports an address before the first frame that arrives at it, so
    /// that an address counts from its first packet on.
    ///
    /// A savefile with a filter is read on to the `limit`th frame that passes it. If `handler` panics, the
    /// tap stays usable and continues with the next frame.
    ///
    /// # Errors
    /// Fails with `Savefile`, once, if a savefile is damaged; the frames before the damage have been
    /// delivered. Fails with `SystemResource` as [`Tap::wait`] does. A live device that fails is closed, with
    /// a note, and causes no error.
    pub fn read(&mut self, limit: usize, handler: &mut impl FrameHandler) -> Result<Progress> {
        let limit = limit.max(1);
        if !self.more() {
            self.wait(Duration::ZERO)?;
        }
        self.take_up();
        if std::mem::take(&mut self.is_changed) {
            handler.set_addresses(&self.addresses);
        }
        let frames = match &mut self.source {
            FrameSource::Live(live) => live.read(limit, &self.poller, &mut self.notes, handler),
            FrameSource::Savefile(replay) => replay.read(limit, |frame| handler.frame(frame))?,
        };
        let ended = matches!(&self.source, FrameSource::Savefile(replay) if replay.ended());
        Ok(Progress { frames, more: self.more(), ended })
    }

    /// Processes the notices, and the devices that have been opened meanwhile.
    fn take_up(&mut self) {
        if let FrameSource::Live(live) = &mut self.source {
            live.hear(&self.poller, &mut self.notes);
            live.take_up(&self.poller, &mut self.notes);
        }
        self.compare_addresses();
    }

    /// Updates the addresses, and sets `is_changed` if they have changed.
    fn compare_addresses(&mut self) {
        let FrameSource::Live(live) = &self.source else { return };
        let is_same = |((namespace, addresses), known): (_, &(Namespace, Arc<LocalAddresses>))| {
            namespace == known.0 && Arc::ptr_eq(addresses, &known.1)
        };
        if live.addresses().count() != self.addresses.len()
            || !live.addresses().zip(&self.addresses).all(is_same)
        {
            (self.addresses, self.is_changed) = (owned(live), true);
        }
    }

    /// Returns true if frames are known to be available.
    fn more(&self) -> bool {
        match &self.source {
            FrameSource::Live(live) => live.any_ready(),
            FrameSource::Savefile(replay) => !replay.ended(),
        }
    }

    /// Follows the changes on the machine, as [`Tap::begin_refresh`] does, and waits until all pending
    /// devices are open or closed.
    ///
    /// # Errors
    /// Fails as [`Tap::begin_refresh`] does.
    pub fn refresh(&mut self) -> Result<()> {
        let refreshed = self.begin_refresh();
        if let FrameSource::Live(live) = &mut self.source {
            live.finish(&self.poller, &mut self.notes);
        }
        refreshed
    }

    /// Follows the changes on the machine. It opens devices that are new, came up or can now be opened,
    /// closes those that have disappeared, and rereads the addresses. It enters network namespaces that have
    /// appeared and leaves those that have disappeared, so that the tap does not keep one alive for much
    /// longer than to the next refresh. The caller should call it about once a second. An unchanged machine
    /// costs some 3 µs for each interface, and for the search for namespaces the cost that
    /// [`crate::namespace::Registry`] states. The function does nothing for a savefile.
    ///
    /// Other threads open and close devices while this one reads those that are open. A device is captured on
    /// from the first [`Tap::wait`] or [`Tap::read`] after its opening, which ends a wait.
    ///
    /// # Errors
    /// Fails with `SystemResource` if interfaces or addresses cannot be listed; the capture continues with
    /// the open devices.
    pub fn begin_refresh(&mut self) -> Result<()> {
        let FrameSource::Live(live) = &mut self.source else { return Ok(()) };
        let refreshed = live.refresh(&self.poller, &mut self.notes);
        self.compare_addresses();
        refreshed
    }

    /// Returns true if frames arrive as they are captured, rather than as fast as they can be read.
    pub fn is_live(&self) -> bool {
        matches!(self.source, FrameSource::Live(_))
    }

    /// Returns the addresses of each namespace as of the last refresh, with the broadcast addresses of its
    /// networks. The session's own namespace is the first. A different pointer means different addresses.
    pub fn local_addresses(&self) -> &[(Namespace, Arc<LocalAddresses>)] {
        &self.addresses
    }

    /// Returns the namespaces besides the session's own, as of the last refresh, readable from any thread. A
    /// savefile has none.
    pub fn known_namespaces(&self) -> &Known {
        &self.known
    }

    /// Returns the counters. Costs a few system calls per device.
    pub fn stats(&mut self) -> TapStats {
        match &mut self.source {
            FrameSource::Live(live) => live.stats(),
            FrameSource::Savefile(replay) => TapStats { received: replay.frames(), ..TapStats::default() },
        }
    }

    /// Takes the pending lines for the log: devices opened, closed or left out, and the reasons.
    pub fn take_notes(&mut self) -> Vec<Note> {
        self.notes.take()
    }
}

/// Returns the addresses of all namespaces.
fn owned(live: &Live) -> Vec<(Namespace, Arc<LocalAddresses>)> {
    live.addresses().map(|(namespace, addresses)| (namespace, Arc::clone(addresses))).collect()
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if matches!(self.source, FrameSource::Live(_)) { "live" } else { "savefile" };
        write!(f, "Tap({kind})")
    }
}
