//! Starts the threads of a session with what each of them needs.

use super::core::Core;
use crate::blocking::Supervised;
use crate::error::{Code, Error, Result};
use crate::kernel::Counters;
use crate::model::SampleSet;
use crate::namespace::{Known, PerNamespace, current_inode};
use crate::netlink::{InetDiag, ProcessEvents};
use crate::owner::{Budget, EarlyLookup, EarlyOwnerCache, Finder, SearchExchange, ThreadMeter, Translations};
use crate::proc::ProcRoot;
use crate::session::flows::{EndedReader, FlowView, Recorder, TcpReader};
use crate::session::kernel_counters::{KernelCounterReader, keep_reading};
use crate::session::limits::FlowLimits;
use crate::session::lookup::{
    EarlyLookupThread, FirstPacketThrottle, IdentityCache, KernelOwners, Resolver, follow_identities,
    open_events,
};
use crate::session::pipeline::{CaptureShared, CaptureThread, FramePipeline};
use crate::sync::Mutex;
use crate::tap::{FirstPacketSocket, Note, Tap};
use crate::thread::spawn;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

impl Core {
    /// Starts the threads. Dropping the core ends those that were started.
    pub(super) fn start(
        &mut self,
        mut tap: Box<Tap>,
        owners: Option<KernelOwners>,
        limits: FlowLimits,
    ) -> Result<()> {
        tap.take_notes().iter().for_each(Note::log);
        let timeout = self.options.capture.timeout;
        let mut pipeline =
            Box::new(FramePipeline::new(limits, &self.options.local_addresses, Arc::clone(&self.packets))?);
        if self.options.flows {
            self.record_flows(&tap, &mut pipeline)?;
        }
        self.shared.barrier.set_waker(tap.waker());
        let root = Arc::new(ProcRoot::open(&self.options.proc_root)?);
        let known = tap.known_namespaces().clone();
        if tap.is_live() {
            // Without the inode, it is unknown which processes are captured.
            self.captured = current_inode().ok().map(|home| (home, known.clone()));
            self.start_first(&root, known.clone())?;
        }
        self.start_resolver(root, known, tap.is_live(), owners)?;
        let (packets, poll) = (Arc::clone(&self.packets), Arc::clone(&self.poll));
        let supervision = Arc::clone(&self.supervision);
        let capture =
            CaptureThread::new(tap, pipeline, timeout, Arc::clone(&self.shared), packets, poll, supervision);
        let log = Arc::clone(&self.log);
        self.spawn("capture-tap", move || {
            let _entered = log.enter();
            capture.run();
        })
    }

    /// Starts the resolver thread.
    fn start_resolver(
        &mut self,
        root: Arc<ProcRoot>,
        known: Known,
        is_live: bool,
        owners: Option<KernelOwners>,
    ) -> Result<()> {
        let (early, exchange, what) =
            (Arc::clone(&self.early), Arc::clone(&self.exchange), self.options.sample);
        let looks_up = is_live || self.options.replay_owners;
        let resolver = move || {
            let budget = match is_live {
                true => Budget::default(),
                // During a replay, only the caller waits.
                false => Budget::new(1.0, Duration::from_secs(1), Box::new(ThreadMeter)),
            };
            let mut finder = Finder::new(Arc::clone(&root), budget, Arc::clone(&exchange));
            match is_live.then(InetDiag::open) {
                Some(Ok(diag)) => finder.ask_kernel(diag),
                Some(Err(errno)) => {
                    info!("sock_diag is unavailable ({errno}); falling back to /proc/net")
                }
                None => {}
            }
            if is_live {
                finder.translate(Translations::open(Arc::clone(&root), true));
            }
            let identity_cache = IdentityCache::new(Arc::clone(&root), what);
            let mut resolver = Resolver::new(finder, Arc::clone(&early), identity_cache, known.clone());
            owners.iter().for_each(|owners| resolver.ask_records(owners.clone()));
            if !looks_up {
                resolver.disable();
            }
            resolver
        };
        let (log, shared) = (Arc::clone(&self.log), Arc::clone(&self.shared));
        self.supervise("capture-owner", move || {
            let _entered = log.enter();
            resolver().run(&shared.lookup_queue, &shared.ledger, &shared.barrier);
        })
    }

    /// Starts the thread that reads the kernel's counters.
    pub(super) fn start_counting(&mut self, counters: Counters) -> Result<()> {
        let root = Arc::new(ProcRoot::open(&self.options.proc_root)?);
        self.start_following(&root)?;
        let identity_cache = IdentityCache::with_helper(root, self.options.sample);
        let choice = self.options.capture.namespaces.clone();
        let flows = self.options.flows.then(|| Arc::clone(&self.shared.flows));
        self.flows = flows.clone().map(|mailbox| FlowView::new(mailbox, None));
        let counting =
            Arc::new(Mutex::new(KernelCounterReader::new(counters, identity_cache, choice, flows)?));
        self.counting = Some(Arc::clone(&counting));
        let (log, shared) = (Arc::clone(&self.log), Arc::clone(&self.shared));
        self.spawn("capture-kernel", move || {
            let _entered = log.enter();
            keep_reading(&counting, &shared);
        })
    }

    /// Starts the thread that follows the identities of processes, if no other thread does.
    fn start_following(&mut self, root: &Arc<ProcRoot>) -> Result<()> {
        let (root, what) = (Arc::clone(root), self.options.sample);
        let open = || open_events(ProcessEvents::open_for_names);
        let Some(events) = open() else { return Ok(()) };
        let events = Mutex::new(Some(events));
        let (log, shared) = (Arc::clone(&self.log), Arc::clone(&self.shared));
        self.supervise("capture-events", move || {
            let _entered = log.enter();
            let identity_cache = IdentityCache::new(Arc::clone(&root), what);
            let Some(bell) = shared.stop_event() else { return };
            let opened = events.lock().take();
            if let Some(events) = opened.or_else(open) {
                follow_identities(events, identity_cache, &shared.latest, &shared.stopping, bell.as_fd());
            }
        })
    }

    /// Makes the pipeline record flows, and adds the kernel's tcp_info to living ones if it is available.
    fn record_flows(&mut self, tap: &Tap, pipeline: &mut FramePipeline) -> Result<()> {
        let mailbox = Arc::clone(&self.shared.flows);
        let home = tap.is_live().then(|| current_inode().ok()).flatten();
        let known = tap.known_namespaces().clone();
        pipeline.record_flows(Recorder::new(Arc::clone(&mailbox), home.unwrap_or(0), known))?;
        let open = || {
            let opened = TcpReader::open(tap.known_namespaces().clone());
            opened.inspect_err(|errno| info!("tcp_info is unavailable: {errno}")).ok()
        };
        let reader = tap.is_live().then(open).flatten();
        self.flows = Some(FlowView::new(mailbox, reader.map(|reader| Arc::new(Mutex::new(reader)))));
        Ok(())
    }

    /// Starts early lookups, if they are possible; the capture works without them.
    fn start_first(&mut self, root: &Arc<ProcRoot>, known: Known) -> Result<()> {
        let opener = FirstOpener {
            // With socket records of eBPF programs, lookups need not be early.
            looks: !self.probes.are_active(),
            what: self.options.sample,
            compares: self.options.capture.is_of_everything(),
            records: self.options.flows,
            connections: self.flows.as_ref().and_then(FlowView::reader),
            root: Arc::clone(root),
            early: Arc::clone(&self.early),
            exchange: Arc::clone(&self.exchange),
            shared: Arc::clone(&self.shared),
            known,
        };
        let Some(first) = opener.open() else { return Ok(()) };
        let first = Mutex::new(Some(first));
        let (log, shared) = (Arc::clone(&self.log), Arc::clone(&self.shared));
        self.supervise("capture-first", move || {
            let _entered = log.enter();
            let opened = first.lock().take();
            if let Some(first) = opened.or_else(|| opener.open()) {
                first.run(&shared.stopping, &shared.ledger, &shared.first);
            }
        })
    }

    /// Starts a thread that reads `/proc` and may be replaced.
    fn supervise(&mut self, name: &'static str, body: impl Fn() + Send + Sync + 'static) -> Result<()> {
        let on_panic = self.on_panic(name);
        self.supervision.add(Supervised::start(name, body, on_panic)?);
        Ok(())
    }

    fn on_panic(&self, name: &'static str) -> impl Fn(String) + Send + Sync + 'static {
        let (shared, poll) = (Arc::clone(&self.shared), Arc::clone(&self.poll));
        move |text: String| {
            shared.fail(Error::new(Code::SessionFailed, format!("the thread {name} has failed: {text}")));
            poll.notify();
        }
    }

    fn spawn(&mut self, name: &'static str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let on_panic = self.on_panic(name);
        self.threads.push(spawn(name, work, on_panic)?);
        Ok(())
    }
}

/// Opens the state of the early lookup thread, at the start and when the thread has to be replaced.
struct FirstOpener {
    looks: bool,
    what: SampleSet,
    /// Set if ended connections are compared with what was captured of them.
    compares: bool,
    /// Set if flows are recorded.
    records: bool,
    /// The reader of the kernel's tcp_info of living connections, if there is one.
    connections: Option<Arc<Mutex<TcpReader>>>,
    root: Arc<ProcRoot>,
    early: Arc<EarlyOwnerCache>,
    exchange: Arc<SearchExchange>,
    shared: Arc<CaptureShared>,
    known: Known,
}

impl FirstOpener {
    fn open(&self) -> Option<EarlyLookupThread> {
        let FirstOpener { root, early, exchange, shared, known, .. } = self;
        let mut look = EarlyLookup::new(Arc::clone(root), Arc::clone(early), Arc::clone(exchange));
        let diag = InetDiag::open().ok()?;
        look.ask_kernel(diag, Translations::open(Arc::clone(root), true));
        look.follow(known.clone());
        let mut sockets = PerNamespace::new(known.clone());
        match self.looks.then(FirstPacketSocket::open).transpose() {
            Ok(socket) => socket.into_iter().for_each(|socket| sockets.set_home(socket)),
            Err(error) => {
                warn!("early lookups are unavailable: {error}");
                return None;
            }
        }
        Some(EarlyLookupThread {
            looks: self.looks,
            sockets,
            events: open_events(ProcessEvents::open),
            look,
            identity_cache: IdentityCache::new(Arc::clone(root), self.what),
            to_meet: Vec::new(),
            latest: Arc::clone(&shared.latest),
            bell: shared.stop_event()?,
            throttle: FirstPacketThrottle::new(Box::new(ThreadMeter)),
            ended: self.open_ended(),
            connections: self.connections.clone(),
        })
    }

    /// Opens the reader of ended connections, if all their packets are to be captured or flows are recorded.
    fn open_ended(&self) -> Option<EndedReader> {
        let compared = self.compares.then(|| Arc::clone(&self.shared.ended));
        let recorded = self.records.then(|| Arc::clone(&self.shared.flows));
        if compared.is_none() && recorded.is_none() {
            return None;
        }
        let opened = EndedReader::open(self.known.clone(), compared, recorded);
        opened.inspect_err(|errno| info!("notices of closed connections are unavailable: {errno}")).ok()
    }
}
