//! What a session has in its private descriptor table: opened, updated and closed there.

use super::opening::{Sources, open_sources, tasks_of};
use super::units::Units;
use crate::blocking::bounded;
use crate::capability::{BPF, NET_RAW, PERFMON, bit, explanations, missing_capabilities};
use crate::config::{Engine, Options, Source};
use crate::error::{Code, Error, Result};
use crate::log::{Log, LogLine};
use crate::model::{FlowRecord, ProbeState, ProcessRecord, SampleSet, Validity};
use crate::namespace::{Coverage, Known};
use crate::owner::{EarlyOwnerCache, SearchExchange};
use crate::proc::ProcRoot;
use crate::process::{Sampler, told_by_kernel};
use crate::session::accounting::AccountMerger;
use crate::session::flows::FlowView;
use crate::session::kernel_counters::KernelCounterReader;
use crate::session::limits::FlowLimits;
use crate::session::pipeline::{CaptureShared, PacketBatch, PacketQueue};
use crate::session::probes::Probes;
use crate::session::session_fd::Readiness;
use crate::session::stats::{StatsReader, UpdateCounts};
use crate::session::supervision::Supervision;
use crate::sync::Mutex;
use crate::thread::both;
use nix::errno::Errno;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

/// How long an update waits for the last bytes of processes that ended, where it does, beyond the capture's read timeout.
const TIMEOUT: Duration = Duration::from_millis(100);

/// A running session. All of it works in the descriptor table of the thread that opens it, and is dropped there; other
/// threads only read what it has gathered.
pub(super) struct Core {
    pub(super) log: Arc<Log>,
    pub(super) options: Options,
    is_closed: bool,
    sampler: Sampler,
    /// As of the opening: start times name processes, so they do not follow when the system's clock is set.
    boot_time_ns: u64,
    merge: AccountMerger,
    removed: Vec<ProcessRecord>,
    /// When the last sample began.
    sampled_at: Instant,
    pub(super) shared: Arc<CaptureShared>,
    pub(super) early: Arc<EarlyOwnerCache>,
    pub(super) packets: Arc<PacketQueue>,
    pub(super) poll: Arc<Readiness>,
    updates: Arc<UpdateCounts>,
    missing_capabilities: u64,
    engine: Engine,
    has_network: bool,
    /// The session's own network namespace and the others that packets are captured in, if live ones are.
    pub(super) captured: Option<(u64, Known)>,
    /// The flows, if they were asked for and packets are captured.
    pub(super) flows: Option<FlowView>,
    pub(super) exchange: Arc<SearchExchange>,
    /// Shares of the CPU and pids, for the time of an update.
    busy: Vec<(f64, i32)>,
    /// They end with the session.
    pub(super) probes: Probes,
    /// What reads the kernel's counters, where the kernel counts.
    pub(super) counting: Option<Arc<Mutex<KernelCounterReader>>>,
    pub(super) threads: Vec<JoinHandle<()>>,
    /// Threads that read `/proc` by themselves.
    pub(super) supervision: Arc<Supervision>,
}

impl Core {
    /// Opens it, and starts the capture. The table is the host's if `shared_because` says why it has to be.
    ///
    /// # Errors
    /// As [`super::handle::Session::open`].
    pub(super) fn open(
        options: Options,
        limits: FlowLimits,
        poll: Arc<Readiness>,
        shared_because: Option<Errno>,
    ) -> Result<Core> {
        let log = Arc::new(Log::open(&options.log)?);
        let _entered = log.enter();
        if let Some(errno) = shared_because {
            warn!(
                "children that the host forks inherit the session's descriptors: close_range(2) and unshare(2) are \
                 refused ({errno})"
            );
        }
        let missing_capabilities = missing_capabilities();
        let packets = Arc::new(PacketQueue::new(options.packet_bytes));
        let root = Arc::new(ProcRoot::open(&options.proc_root)?);
        let (what, tree) = (options.sample, Arc::clone(&root));
        // Where it does not return, as little is left to the kernel's programs as can be.
        let from_kernel = bounded("capture-files", move || told_by_kernel(what, &tree))
            .unwrap_or(SampleSet(what.0 & !SampleSet::CGROUP.0));
        let (tasks, sources) = both(
            "capture-load",
            || {
                let _entered = log.enter();
                tasks_of(&options, &root, from_kernel)
            },
            || open_sources(&options, &root, from_kernel, &log),
        );
        let Sources { probes, counters, owners, tap } = sources?;
        let has_network = tap.is_some() || counters.is_some();
        let mut sampler = Sampler::new(root, options.sample, options.selection.clone())?;
        let sample_probes = match tasks {
            Ok(tasks) => {
                sampler.take_from(tasks);
                ProbeState::Active
            }
            Err(state) => state,
        };
        if has_network && options.source == Source::Live {
            sampler.follow_networks();
        }
        let mut core = Core {
            boot_time_ns: sampler.machine().boot_time_ns,
            sampler,
            merge: AccountMerger::default(),
            removed: Vec::new(),
            sampled_at: Instant::now(),
            shared: Arc::new(CaptureShared::new(limits)?),
            early: Arc::default(),
            packets,
            poll,
            updates: Arc::new(UpdateCounts {
                sample_probes: Mutex::new(sample_probes),
                ..UpdateCounts::default()
            }),
            missing_capabilities: missing_capabilities & useful_capabilities(&options, counters.is_some()),
            engine: if counters.is_some() { Engine::Kernel } else { Engine::Pcap },
            has_network,
            captured: None,
            flows: None,
            exchange: Arc::default(),
            busy: Vec::new(),
            probes,
            counting: None,
            threads: Vec::new(),
            supervision: Arc::default(),
            log: Arc::clone(&log),
            options,
            is_closed: false,
        };
        explanations(core.missing_capabilities).for_each(|text| warn!("{text}"));
        if let Some(tap) = tap {
            core.start(tap, owners, limits)?;
        }
        if let Some(counters) = counters {
            core.start_counting(counters)?;
        }
        info!(version = env!("CARGO_PKG_VERSION"), network = has_network, "session opened");
        Ok(core)
    }

    /// Samples the processes and adds what they sent and received. The result stays until the next update:
    /// `Session::processes`, `Session::take_removed`, `Session::take_packets`.
    ///
    /// It does not wait for the last packets of processes that have ended, unless [`Options::wait_for_ended`] says so: such
    /// a process is removed by the first update that finds everything counted which was captured before its end, or after
    /// the read timeout and 2 s, and is among neither the living nor the removed until then. Where flows are recorded it
    /// waits for the capture to show them, a few milliseconds and at most 200; those not shown by then stay as they were.
    ///
    /// # Errors
    /// What [`Sampler::sample`] returns. No bytes are lost then: they come with the next update.
    pub(super) fn update(&mut self) -> Result<()> {
        let log = Arc::clone(&self.log);
        let _entered = log.enter();
        let began = Instant::now();
        let sampled = self.sampler.sample();
        if let Some(fault) = self.sampler.take_fault() {
            warn!("processes are sampled from /proc from now on: {fault}");
            *self.updates.sample_probes.lock() = fault.state;
        }
        sampled?;
        match (&self.counting, &mut self.flows) {
            (Some(counting), flows) => {
                counting.lock().read(&self.shared);
                flows.iter_mut().for_each(FlowView::take_left);
            }
            (None, Some(flows)) => flows.update(&self.shared.barrier),
            (None, None) => {}
        }
        let Core { sampler, merge, shared, options, sampled_at, .. } = self;
        merge.collect(&shared.ledger, sampler, &options.selection);
        if let Some(ended) =
            merge.take_up_ended(sampler, &shared.ledger, &options.selection, &shared.latest, *sampled_at)
        {
            let (now, timeout) = (Instant::now(), options.capture.timeout);
            let complete = match &self.counting {
                // What the kernel counts is complete as soon as it is read, which it was after the sample.
                Some(counting) => {
                    let mut counting = counting.lock();
                    if merge.ended_since_sample() || counting.has_moved() {
                        counting.read(shared);
                    }
                    Some(now)
                }
                None if !self.has_network => Some(now),
                None => {
                    if options.wait_for_ended {
                        shared.barrier.complete_through(ended, timeout + TIMEOUT);
                    } else {
                        shared.barrier.request(ended);
                    }
                    shared.barrier.complete(now)
                }
            };
            merge.collect(&shared.ledger, sampler, &options.selection);
            merge.take_latest(&shared.latest, *sampled_at, sampler);
            let (ledger, selection) = (&shared.ledger, &options.selection);
            merge.take_final(complete, now, timeout, ledger, selection, &mut self.removed);
        }
        self.shared.latest.release(began);
        self.sampled_at = began;
        if self.has_network {
            self.mark_counted();
            self.tell_busy();
        }
        let took = began.elapsed();
        self.updates.update_ns.store(took.as_nanos() as u64, Ordering::Relaxed);
        self.updates.processes_skipped.store(self.sampler.unreadable(), Ordering::Relaxed);
        debug!(took_us = took.as_micros() as u64, removed = self.removed.len(), "updated");
        Ok(())
    }

    /// Says of each process whether its bytes are counted: where it is, or in another namespace that a socket of its is of.
    fn mark_counted(&mut self) {
        let counted = match self.flows {
            Some(_) => Validity::NETWORK | Validity::CONNECTIONS,
            None => Validity::NETWORK,
        };
        let coverage = self.coverage();
        let is_counted = |record: &ProcessRecord| {
            coverage.has(record.network_namespace)
                || !record.traffic.is_empty()
                || record.connections.is_some()
        };
        let records = self.sampler.processes_mut().chain(&mut self.removed);
        records.filter(|record| is_counted(record)).for_each(|record| record.valid |= counted);
    }

    /// The network namespaces that are counted in now. A savefile knows of none.
    fn coverage(&self) -> Coverage {
        match (&self.counting, &self.captured) {
            (Some(counting), _) => counting.lock().coverage().clone(),
            (None, Some((home, others))) => {
                let others = others.snapshot();
                Coverage::Only(others.iter().map(|entry| entry.inode).chain([*home]).collect())
            }
            (None, None) => Coverage::Every,
        }
    }

    /// Tells the search for owners which processes are busy.
    fn tell_busy(&mut self) {
        let busy = |record: &&ProcessRecord| record.cpu_percent > 0.0;
        let records = self.sampler.processes().filter(busy);
        self.busy.clear();
        self.busy.extend(records.map(|record| (record.cpu_percent, record.sample.id.pid)));
        self.busy.sort_unstable_by(|one, other| other.0.total_cmp(&one.0));
        self.exchange.set_busy(self.busy.iter().map(|(_, pid)| *pid));
    }

    /// Why the capture has ended by itself, if it has.
    ///
    /// # Errors
    /// `Savefile`, once, when the savefile broke off; `SessionFailed`, from then on, when a thread has failed.
    pub(super) fn health(&self) -> Result<()> {
        let mut failure = self.shared.failure.lock();
        match &*failure {
            None => Ok(()),
            Some(error) if error.code == Code::Savefile => failure.take().map_or(Ok(()), Err),
            Some(error) => Err(Error::new(Code::SessionFailed, error.text.clone())),
        }
    }

    /// The living processes of the selection as of the last update, by pid.
    pub(super) fn processes(&self) -> impl Iterator<Item = &ProcessRecord> {
        self.sampler.processes()
    }

    /// The processes that have ended since this was last called, with their last figures.
    pub(super) fn take_removed(&mut self) -> Vec<ProcessRecord> {
        std::mem::take(&mut self.removed)
    }

    /// The flows that live, of all processes, as of the last update; none unless [`Options::flows`] asks for them.
    pub(super) fn flows(&self) -> impl Iterator<Item = &FlowRecord> {
        self.flows.iter().flat_map(FlowView::living)
    }

    /// The last records of the flows that have ended since this was last called, of all processes, the oldest first. A
    /// flow is told of a third of a second after its end or later, when its owner is known.
    pub(super) fn take_ended_flows(&mut self) -> Vec<FlowRecord> {
        self.flows.as_mut().map(FlowView::take_ended).unwrap_or_default()
    }

    /// Up to `count` of the packets held, oldest first.
    pub(super) fn take_packets(&mut self, count: usize) -> Vec<PacketBatch> {
        self.packets.take(count)
    }

    /// Lines of the log since this was last called, if the options asked for them to be queued.
    pub(super) fn take_log_lines(&self) -> Vec<LogLine> {
        self.log.take_lines()
    }

    /// What turns the kernel's units into natural ones, as of the last update.
    pub(super) fn units(&self) -> Units {
        Units {
            ticks_per_second: self.sampler.root().facts().ticks_per_second,
            boot_time_ns: self.boot_time_ns,
            memory_bytes: self.sampler.machine().memory_bytes,
        }
    }

    /// Reads the statistics from any thread, for as long as the reader is kept.
    pub(super) fn stats_reader(&self) -> StatsReader {
        StatsReader {
            shared: Arc::clone(&self.shared),
            early: Arc::clone(&self.early),
            packets: Arc::clone(&self.packets),
            log: Arc::clone(&self.log),
            updates: Arc::clone(&self.updates),
            missing_capabilities: self.missing_capabilities,
            engine: self.engine,
            socket_probes: self.probes.state,
            socket_programs: self.probes.programs(),
        }
    }

    /// Whether all of a savefile has been counted, or the capture has failed.
    pub(super) fn has_ended(&self) -> bool {
        self.shared.barrier.has_ended()
    }

    /// Ends the capture and joins the threads, once. Returns the last lines of the log.
    pub(super) fn close(&mut self) -> Vec<LogLine> {
        if std::mem::replace(&mut self.is_closed, true) {
            return Vec::new();
        }
        let _entered = self.log.enter();
        self.shared.stop();
        for thread in self.threads.drain(..) {
            // The thread's panic, if there was one, has been noted as the session's failure.
            let _ = thread.join();
        }
        let waiting = self.supervision.join();
        if waiting > 0 {
            info!("{waiting} threads wait in reads of /proc that do not return; they end when these do");
        }
        self.shared.release_descriptors();
        info!("session closed");
        self.log.take_lines()
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.close();
    }
}

/// The capabilities that could bring a session more, one bit for each number.
fn useful_capabilities(options: &Options, is_counting: bool) -> u64 {
    let mut useful = u64::MAX;
    if options.source != Source::Live || is_counting {
        useful &= !bit(NET_RAW);
    }
    if !options.probes || !cfg!(feature = "ebpf") {
        useful &= !(bit(BPF) | bit(PERFMON));
    }
    useful
}
