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

/// What one reading gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Frames handed to the handler.
    pub frames: usize,
    /// Whether more is there already, so that a wait would end at once.
    pub more: bool,
    /// Whether the source will never give another frame: a savefile that is at its end. Live capture never ends.
    pub ended: bool,
}

enum FrameSource {
    Live(Box<Live>),
    Savefile(Replay),
}

/// A source of frames.
///
/// It is opened, called and dropped by one thread; [`Waker`] alone may be used from others. Live, it captures in the
/// network namespace of that thread, and in those besides that its options choose. The thread itself never leaves its
/// namespace: what must be done inside another is done by short-lived threads that [`Tap::live`] and [`Tap::refresh`]
/// start. So are devices opened and closed, which takes some 10 and 25 ms for each; dropping the tap waits for these
/// threads.
pub struct Tap {
    source: FrameSource,
    poller: Poller,
    addresses: Vec<(Namespace, Arc<LocalAddresses>)>,
    known: Known,
    notes: Notes,
    /// Whether the addresses have changed since a handler was given them.
    is_changed: bool,
}

impl Tap {
    /// Starts capturing on the devices that `options` name, or on every usable one.
    ///
    /// Usable are the network interfaces that are up and have a link type that is decoded. Of several devices that
    /// show the same packets one is captured, also when all were named: the master instead of bridge ports and bond
    /// members, the device below instead of macvlan and ipvlan, and frames with a VLAN tag on the VLAN's device. A
    /// named device that is down or vanishes later is waited for.
    ///
    /// # Errors
    /// `NotPermitted` (code `OpenDevice`) without CAP_NET_RAW. `InvalidArgument` for an option out of bounds,
    /// `NoDevice` for a name that does not exist, `OpenDevice` when a named device, or each of all, does not open,
    /// `CompileFilter` or `SetFilter` when the filter suits none of them, `SystemResource`. For the chosen network
    /// namespaces `InvalidArgument` when a path is not one, `SystemResource` when one may not be entered, `Thread`.
    pub fn live(options: &TapOptions) -> std::result::Result<Tap, TapError> {
        Tap::live_beside(options, Path::new("/proc"))
    }

    /// The same where the processes are found in another `/proc` tree, such as that of the machine around a container.
    /// It matters only for finding their network namespaces.
    ///
    /// # Errors
    /// As [`Tap::live`]; `OpenDirectory` when the tree cannot be opened.
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
    /// Its local addresses are those of this machine, none if they cannot be listed.
    ///
    /// # Errors
    /// `Savefile` when it cannot be opened, is of neither format or of a link type that is not decoded;
    /// `CompileFilter`, `SetFilter` or `InvalidArgument` for the filter; `SystemResource`.
    pub fn savefile(path: &Path, filter: Option<&str>) -> Result<Tap> {
        let replay = Replay::open(path, filter)?;
        let mut notes = Notes::default();
        let addresses = Rtnetlink::open().and_then(|mut route| route.addresses()).unwrap_or_else(|error| {
            notes.warn(format!("no local addresses are known: {error}"));
            LocalAddresses::default()
        });
        let (source, poller) = (FrameSource::Savefile(replay), Poller::new()?);
        let addresses = vec![(Namespace::HOME, Arc::new(addresses))];
        Ok(Tap { source, poller, addresses, known: Known::default(), notes, is_changed: true })
    }

    /// A handle by which any thread can end this tap's [`Tap::wait`].
    pub fn waker(&self) -> Waker {
        self.poller.waker()
    }

    /// Blocks until there are frames to read, the waker was rung, or `max` has passed; a signal may end it early.
    /// A savefile has frames until its end.
    ///
    /// # Errors
    /// `SystemResource` when the system refuses to wait.
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

    /// Hands what is there now to `handler`, without blocking and without a system call per frame: at most `limit`
    /// frames (at least 1) of each device, so that the owner gets to do other things in between.
    ///
    /// Live, the news of devices, addresses and namespaces is taken in first, which costs a system call for each namespace: the
    /// kernel tells of what a frame comes by before the frame, so that an address counts from its first packet on.
    ///
    /// A savefile with a filter is read on to the `limit`th frame that passes it. When `handler` panics, the tap
    /// stays usable and goes on with the next frame.
    ///
    /// # Errors
    /// `Savefile`, once, where a savefile is damaged; what comes before was handed on. `SystemResource` as in
    /// [`Tap::wait`]. A live device that fails is closed, with a note, and is no error.
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

    /// Takes up the news, and the devices that have been opened meanwhile.
    fn take_up(&mut self) {
        if let FrameSource::Live(live) = &mut self.source {
            live.hear(&self.poller, &mut self.notes);
            live.take_up(&self.poller, &mut self.notes);
        }
        self.compare_addresses();
    }

    /// Finds out whether the addresses have changed.
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

    /// Whether frames are known to be there.
    fn more(&self) -> bool {
        match &self.source {
            FrameSource::Live(live) => live.any_ready(),
            FrameSource::Savefile(replay) => !replay.ended(),
        }
    }

    /// Follows what has changed on the machine, as [`Tap::begin_refresh`] does, and waits until every device is open
    /// or closed that is to be.
    ///
    /// # Errors
    /// As [`Tap::begin_refresh`].
    pub fn refresh(&mut self) -> Result<()> {
        let refreshed = self.begin_refresh();
        if let FrameSource::Live(live) = &mut self.source {
            live.finish(&self.poller, &mut self.notes);
        }
        refreshed
    }

    /// Follows what has changed on the machine: opens devices that are new, came up or can now be opened, closes
    /// those that are gone, and reads the addresses anew; enters network namespaces that have come and leaves those
    /// that are gone, so that nothing here keeps one alive for much longer than to the next refresh. To be called about
    /// once a second; an unchanged machine costs some 3 µs for each interface, and looking for namespaces what
    /// [`crate::namespace::Registry`] says. Does nothing for a savefile.
    ///
    /// Devices are opened and closed by other threads while this one reads those that are open. A device is captured on
    /// from the first [`Tap::wait`] or [`Tap::read`] after its opening, which ends a wait.
    ///
    /// # Errors
    /// `SystemResource` when interfaces or addresses cannot be listed; the capture goes on with what is open.
    pub fn begin_refresh(&mut self) -> Result<()> {
        let FrameSource::Live(live) = &mut self.source else { return Ok(()) };
        let refreshed = live.refresh(&self.poller, &mut self.notes);
        self.compare_addresses();
        refreshed
    }

    /// Whether frames arrive as they are captured, and not as fast as they can be read.
    pub fn is_live(&self) -> bool {
        matches!(self.source, FrameSource::Live(_))
    }

    /// The addresses of each namespace as of the last refresh, with the broadcast addresses of its networks; those of
    /// the session's own come first. Another pointer means other addresses.
    pub fn local_addresses(&self) -> &[(Namespace, Arc<LocalAddresses>)] {
        &self.addresses
    }

    /// Shows the namespaces besides the session's own, as of the last refresh, to any thread. For a savefile there are
    /// none.
    pub fn known_namespaces(&self) -> &Known {
        &self.known
    }

    /// The counters. Costs a few system calls per device.
    pub fn stats(&mut self) -> TapStats {
        match &mut self.source {
            FrameSource::Live(live) => live.stats(),
            FrameSource::Savefile(replay) => TapStats { received: replay.frames(), ..TapStats::default() },
        }
    }

    /// Takes the lines for the log that have come up: devices opened, closed, left out, and why.
    pub fn take_notes(&mut self) -> Vec<Note> {
        self.notes.take()
    }
}

/// The addresses of all namespaces.
fn owned(live: &Live) -> Vec<(Namespace, Arc<LocalAddresses>)> {
    live.addresses().map(|(namespace, addresses)| (namespace, Arc::clone(addresses))).collect()
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if matches!(self.source, FrameSource::Live(_)) { "live" } else { "savefile" };
        write!(f, "Tap({kind})")
    }
}
