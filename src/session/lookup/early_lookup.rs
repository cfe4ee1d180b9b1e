//! The early lookup thread: finds the owners of flows at their first packets, while the sockets exist, and
//! leaves them for the resolver.

use super::identity_cache::IdentityCache;
use super::latest_identities::{LatestIdentities, changes_identity};
use super::throttle::FirstPacketThrottle;
use crate::decode::{decode, sequence_number};
use crate::model::{Direction, FlowKey, Fragment, LinkType, Namespace};
use crate::namespace::{PerNamespace, enter_initial};
use crate::netlink::{ProcessEvent, ProcessEvents};
use crate::owner::{EarlyLookup, EarlyLookupStats, Opening, Side};
use crate::session::accounting::Ledger;
use crate::session::flows::{EndedReader, TcpReader};
use crate::sync::Mutex;
use crate::tap::{FirstPacket, FirstPacketSocket};
use crate::thread::be_prompt;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::EventFd;
use nix::sys::time::TimeSpec;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

/// Limit of the packets read from one socket before due searches continue.
const PACKETS_PER_TURN: usize = 64;

/// Interval at which the filters are adjusted.
const GOVERNING_INTERVAL: Duration = Duration::from_millis(250);

/// A turn that took this long was not caused by load: the process had been stopped.
const STOPPED: Duration = Duration::from_secs(5);

/// Longest wait without an event, so that namespaces are followed on an idle machine, too.
const IDLE_WAIT: Duration = Duration::from_secs(1);

/// The state of the early lookup thread.
pub struct EarlyLookupThread {
    /// Set if owners are looked up at first packets; otherwise the thread does only its other work.
    pub looks: bool,
    /// The sockets for first packets.
    pub sockets: PerNamespace<FirstPacketSocket>,
    /// The process events, if the kernel reports them.
    pub events: Option<ProcessEvents>,
    /// The search.
    pub look: EarlyLookup,
    /// Publishes the owners' identities in the ledger.
    pub identity_cache: IdentityCache,
    /// Processes that have just executed a program or changed their name.
    pub to_meet: Vec<i32>,
    /// The latest identities of these processes.
    pub latest: Arc<LatestIdentities>,
    /// Signalled to end the thread.
    pub bell: Arc<EventFd>,
    /// Keeps the cost within bounds.
    pub throttle: FirstPacketThrottle,
    /// Reads the notices of ended connections, if they are wanted and available.
    pub ended: Option<EndedReader>,
    /// The update's reader of living connections. It has to follow namespaces between updates, too.
    pub connections: Option<Arc<Mutex<TcpReader>>>,
}

impl EarlyLookupThread {
    /// Runs until `stopping` is set and the bell is signalled.
    pub fn run(mut self, stopping: &AtomicBool, ledger: &Ledger, stats: &Mutex<EarlyLookupStats>) {
        let mut due = None;
        let mut governed = Instant::now();
        // A due search starts on time, not together with other timers.
        let _ = nix::sys::prctl::set_timerslack(1);
        // On a busy machine, a socket may have disappeared before a thread with the usual scheduling runs.
        if let Err(errno) = be_prompt() {
            debug!("early lookups run with the default scheduling: {errno}");
        }
        self.look.tell_events(self.events.is_some());
        while !stopping.load(Ordering::Acquire) {
            if let Err(errno) = self.wait(due) {
                warn!("early lookups stopped: {errno}");
                return;
            }
            let now = Instant::now();
            self.read_events(now);
            self.look.learn();
            self.read_packets(now);
            let identity_cache = &mut self.identity_cache;
            due = self.look.look(Instant::now(), |_, owner| identity_cache.publish(owner.process, ledger));
            self.meet(now);
            *stats.lock() = self.look.stats();
            if let Some(ended) = &mut self.ended {
                ended.read(Instant::now(), |key| self.look.find_socket(key));
            }
            let passed = now.saturating_duration_since(governed);
            if passed >= GOVERNING_INTERVAL || self.throttle.is_flooded() {
                self.govern(passed);
                // After a long stop, the resolver still has to look up what was found before it.
                if passed < STOPPED {
                    self.look.expire(now);
                }
                self.follow_namespaces();
                governed = now;
            }
        }
    }

    /// Waits for packets, events or the bell, at most until `due`.
    fn wait(&self, due: Option<Instant>) -> nix::Result<()> {
        let bell = std::iter::once(self.bell.as_fd());
        let events = self.events.as_ref().map(AsFd::as_fd);
        let sockets = self.sockets.iter().map(|(_, socket)| socket.as_fd());
        let now = Instant::now();
        let rest = self.ended.as_ref().and_then(|ended| ended.rest(now));
        let ended = self.ended.iter().filter(|_| rest.is_none()).flat_map(EndedReader::descriptors);
        let mut watched: Vec<PollFd<'_>> = bell
            .chain(events)
            .chain(sockets)
            .chain(ended)
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        let due = due.map(|due| due.saturating_duration_since(now));
        let patience = due.into_iter().chain(rest).fold(IDLE_WAIT, Duration::min);
        match ppoll(&mut watched, Some(TimeSpec::from_duration(patience)), None) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn read_events(&mut self, now: Instant) {
        let Some(events) = &mut self.events else { return };
        let (look, to_meet) = (&mut self.look, &mut self.to_meet);
        let take = |event: ProcessEvent| {
            look.process_event(&event, now);
            if changes_identity(&event) {
                to_meet.push(event.pid);
            }
        };
        match events.read(take) {
            Ok(false) => {}
            Ok(true) => self.look.missed_events(),
            Err(errno) => {
                warn!("process events stopped: {errno}");
                self.events = None;
                self.look.tell_events(false);
            }
        }
    }

    /// Prefetches the identities of processes that have just changed them. This takes longer than the rest,
    /// so it comes last.
    fn meet(&mut self, now: Instant) {
        for pid in self.to_meet.drain(..) {
            if let Some((process, identity)) = self.identity_cache.prefetch(pid, now) {
                self.look.identify(process);
                self.latest.record(process, identity);
            }
        }
    }

    fn read_packets(&mut self, now: Instant) {
        let EarlyLookupThread { look, throttle, .. } = self;
        self.sockets.retain(|namespace, socket| {
            let read = socket.read(PACKETS_PER_TURN, |packet| take(look, throttle, namespace, &packet, now));
            read.inspect_err(|errno| warn!("early lookups stopped in a network namespace: {errno}")).is_ok()
        });
    }

    fn follow_namespaces(&mut self) {
        // The early lookup looks up the sockets of ended connections, too.
        if self.looks || self.ended.is_some() {
            self.look.follow_namespaces();
        }
        if let Some(ended) = &mut self.ended {
            ended.follow_namespaces();
        }
        if let Some(connections) = &self.connections {
            connections.lock().follow_namespaces();
        }
        if self.looks {
            self.sockets.follow_inside(FirstPacketSocket::open, |entry, error| {
                warn!("early lookups are unavailable in {}: {error}", entry.path.display());
            });
        }
    }

    fn govern(&mut self, passed: Duration) {
        self.throttle.judge(&self.look.stats());
        let Some(thinning) = self.throttle.govern(passed) else { return };
        for (_, socket) in self.sockets.iter_mut() {
            if let Err(errno) = socket.thin(&thinning) {
                warn!("changing the filter of first packets failed: {errno}");
            }
        }
    }
}

/// Passes a packet's endpoints to the search as local ends. It does not check that an end is local: a remote
/// one has no socket.
fn take(
    look: &mut EarlyLookup,
    throttle: &mut FirstPacketThrottle,
    namespace: Namespace,
    packet: &FirstPacket<'_>,
    now: Instant,
) {
    let Ok(decoded) = decode(LinkType::RawIp, packet.data) else { return };
    if matches!(decoded.fragment, Fragment::Later { .. }) {
        return;
    }
    throttle.count(&decoded);
    let (source, destination, protocol) = (decoded.source, decoded.destination, decoded.protocol);
    let &FirstPacket { data, device, time, .. } = packet;
    let sequence = sequence_number(LinkType::RawIp, data);
    if packet.direction != Some(Direction::Receive) {
        let key = FlowKey { local: source, remote: destination, protocol, namespace };
        look.packet(Opening { key, side: Side::Opener, device, sequence, time }, now);
    }
    if packet.direction != Some(Direction::Send) {
        let key = FlowKey { local: destination, remote: source, protocol, namespace };
        look.packet(Opening { key, side: Side::Called, device, sequence, time }, now);
    }
}

/// Opens the source of process events. It works only in the initial network namespace.
pub fn open_events(open: fn() -> nix::Result<ProcessEvents>) -> Option<ProcessEvents> {
    // A process that may not enter that namespace may be in it already.
    let opened = enter_initial(open).unwrap_or_else(|_| open());
    opened
        .inspect_err(|errno| {
            info!("process events are unavailable ({errno}); falling back to listing new processes")
        })
        .ok()
}
