//! The threads of a session, and what each is given to work with.

use super::Session;
use crate::engine::capture::Capture;
use crate::engine::counting::{Counting, keep_reading};
use crate::engine::ended::EndedReader;
use crate::engine::first::{First, open_events};
use crate::engine::flows::{FlowView, Recorder, TcpReader};
use crate::engine::governor::Governor;
use crate::engine::introduce::Introducer;
use crate::engine::kernel_owners::KernelOwners;
use crate::engine::pipeline::Pipeline;
use crate::engine::resolver::Resolver;
use crate::error::{Code, Error, Result};
use crate::kernel::Counters;
use crate::model::Namespace;
use crate::namespace::{Follower, Known, current_inode};
use crate::netlink::InetDiag;
use crate::owner::{Budget, EarlyOwners, Finder, FirstLook, ThreadMeter, Translations};
use crate::process::ProcRoot;
use crate::sync::Mutex;
use crate::tap::{FirstPackets, Tap};
use crate::thread::spawn;
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

impl Session {
    /// Starts the threads. What was started is ended by dropping the session.
    pub(super) fn start(&mut self, mut tap: Tap, owners: Option<KernelOwners>) -> Result<()> {
        tap.take_notes().iter().for_each(|note| info!("{note}"));
        let (flow_limit, timeout) = (self.options.flow_limit, self.options.capture.timeout);
        let mut pipeline =
            Pipeline::new(flow_limit, &self.options.local_addresses, Arc::clone(&self.packets))?;
        if self.options.flows {
            self.record_flows(&tap, &mut pipeline)?;
        }
        self.shared.activity.set_waker(tap.waker());
        let budget = match tap.is_live() {
            true => Budget::default(),
            // Nothing but the caller waits for a replay.
            false => Budget::new(1.0, Duration::from_secs(1), Box::new(ThreadMeter)),
        };
        let root = Arc::new(ProcRoot::open(&self.options.proc_root)?);
        let (early, hints) = (Arc::clone(&self.early), Arc::clone(&self.hints));
        let mut finder = Finder::new(Arc::clone(&root), budget, Arc::clone(&hints));
        let known = tap.known_namespaces().clone();
        if tap.is_live() {
            // Without it, it cannot be told what is captured of whom.
            self.captured = current_inode().ok().map(|home| (home, known.clone()));
            match InetDiag::open() {
                Ok(diag) => finder.ask_kernel(diag),
                Err(errno) => {
                    info!("sockets are looked up in tables, since sock_diag is not to be had: {errno}")
                }
            }
            finder.translate(Namespace::HOME, Translations::open(Arc::clone(&root), true));
        }
        if tap.is_live() {
            self.start_first(&root, &early, known.clone())?;
        }
        let introducer = Introducer::new(root, self.options.sample);
        let mut resolver = Resolver::new(finder, early, introducer, Follower::new(known));
        if let Some(owners) = owners {
            resolver.ask_records(owners);
        }
        let (log, shared) = (Arc::clone(&self.log), Arc::clone(&self.shared));
        self.spawn("capture-owner", move || {
            let _entered = log.enter();
            resolver.run(&shared.desk, &shared.ledger, &shared.activity);
        })?;
        let (packets, poll) = (Arc::clone(&self.packets), Arc::clone(&self.poll));
        let capture = Capture::new(tap, pipeline, timeout, Arc::clone(&self.shared), packets, poll);
        let log = Arc::clone(&self.log);
        self.spawn("capture-tap", move || {
            let _entered = log.enter();
            capture.run();
        })
    }

    /// Starts the thread that reads what the kernel counts.
    pub(super) fn start_counting(&mut self, counters: Counters) -> Result<()> {
        let root = Arc::new(ProcRoot::open(&self.options.proc_root)?);
        let introducer = Introducer::new(root, self.options.sample);
        let choice = self.options.capture.namespaces.clone();
        let flows = self.options.flows.then(|| Arc::clone(&self.shared.flows));
        self.flows = flows.clone().map(|desk| FlowView::new(desk, None));
        let counting = Arc::new(Mutex::new(Counting::new(counters, introducer, choice, flows)?));
        self.counting = Some(Arc::clone(&counting));
        let (log, shared) = (Arc::clone(&self.log), Arc::clone(&self.shared));
        self.spawn("capture-kernel", move || {
            let _entered = log.enter();
            keep_reading(&counting, &shared);
        })
    }

    /// Has flows recorded; live ones also as the kernel knows them, where it tells.
    fn record_flows(&mut self, tap: &Tap, pipeline: &mut Pipeline) -> Result<()> {
        let desk = Arc::clone(&self.shared.flows);
        let home = tap.is_live().then(|| current_inode().ok()).flatten();
        pipeline.record_flows(Recorder::new(Arc::clone(&desk), home.unwrap_or(0)))?;
        let open = || {
            let opened = TcpReader::open(Follower::new(tap.known_namespaces().clone()));
            opened.inspect_err(|errno| info!("the kernel is not asked about connections: {errno}")).ok()
        };
        self.flows = Some(FlowView::new(desk, tap.is_live().then(open).flatten()));
        Ok(())
    }

    /// Starts looking at first packets, as far as that is possible; the capture does without it.
    fn start_first(&mut self, root: &Arc<ProcRoot>, early: &Arc<EarlyOwners>, known: Known) -> Result<()> {
        let hints = Arc::clone(&self.hints);
        let mut look = FirstLook::new(Arc::clone(root), Arc::clone(early), hints);
        match InetDiag::open() {
            Ok(diag) => {
                look.add_namespace(Namespace::HOME, diag, Translations::open(Arc::clone(root), true));
            }
            Err(_) => return Ok(()),
        }
        // What the kernel tells of sockets does not hurry.
        let looks = !self.probes.are_active();
        let sockets = match looks.then(FirstPackets::open).transpose() {
            Ok(socket) => socket.into_iter().map(|socket| (Namespace::HOME, socket)).collect(),
            Err(error) => {
                warn!("first packets are not looked at: {error}");
                return Ok(());
            }
        };
        let first = First {
            looks,
            sockets,
            events: open_events(),
            look,
            introducer: Introducer::new(Arc::clone(root), self.options.sample),
            to_meet: Vec::new(),
            bell: Arc::clone(&self.shared.first_bell),
            governor: Governor::new(Box::new(ThreadMeter)),
            ended: self.open_ended(known.clone()),
            follower: Follower::new(known),
        };
        let (log, shared) = (Arc::clone(&self.log), Arc::clone(&self.shared));
        self.spawn("capture-first", move || {
            let _entered = log.enter();
            first.run(&shared.stopping, &shared.ledger, &shared.first);
        })
    }

    /// What tells of ended connections, where all their packets are to be captured or flows are recorded.
    fn open_ended(&self, known: Known) -> Option<EndedReader> {
        let compared = self.options.capture.is_of_everything().then(|| Arc::clone(&self.shared.ended));
        let recorded = self.options.flows.then(|| Arc::clone(&self.shared.flows));
        if compared.is_none() && recorded.is_none() {
            return None;
        }
        let opened = EndedReader::open(Follower::new(known), compared, recorded);
        opened.inspect_err(|errno| info!("what ended connections carried is not told: {errno}")).ok()
    }

    fn spawn(&mut self, name: &'static str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let (shared, poll) = (Arc::clone(&self.shared), Arc::clone(&self.poll));
        let on_panic = move |text: String| {
            shared.fail(Error::new(Code::SessionFailed, format!("the thread {name} has failed: {text}")));
            poll.notify();
        };
        self.threads.push(spawn(name, work, on_panic)?);
        Ok(())
    }
}
