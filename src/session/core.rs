//! The part of a session that works in its private descriptor table, where it is opened, updated and closed.

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
use crate::process::{Sampler, has_groups, told_by_kernel, unknown_users};
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

/// Time for which an update with [`Options::wait_for_ended`] waits for the last bytes of ended processes, in
/// addition to the capture's read timeout.
const TIMEOUT: Duration = Duration::from_millis(100);

/// A running session. All of it works in the descriptor table of the thread that opens it, and is dropped
/// there. Other threads only read its results.
pub(super) struct Core {
    pub(super) log: Arc<Log>,
    pub(super) options: Options,
    is_closed: bool,
    sampler: Sampler,
    /// Boot time as of the opening. Start times identify processes, so they do not follow when the system's
    /// clock is set.
    boot_time_ns: u64,
    merge: AccountMerger,
    removed: Vec<ProcessRecord>,
    /// Time at which the last sample began.
    sampled_at: Instant,
    pub(super) shared: Arc<CaptureShared>,
    pub(super) early: Arc<EarlyOwnerCache>,
    pub(super) packets: Arc<PacketQueue>,
    pub(super) poll: Arc<Readiness>,
    updates: Arc<UpdateCounts>,
    missing_capabilities: u64,
    engine: Engine,
    has_network: bool,
    /// The session's own network namespace and the other captured ones, if packets are captured on devices.
    pub(super) captured: Option<(u64, Known)>,
    /// The flows, if they were requested and packets are captured or the kernel counts.
    pub(super) flows: Option<FlowView>,
    pub(super) exchange: Arc<SearchExchange>,
    /// Buffer of CPU shares and pids, used within an update.
    busy: Vec<(f64, i32)>,
    /// The eBPF programs at sockets, which are released with the session.
    pub(super) probes: Probes,
    /// The reader of the kernel's counters, with engine `kernel`.
    pub(super) counting: Option<Arc<Mutex<KernelCounterReader>>>,
    pub(super) threads: Vec<JoinHandle<()>>,
    /// Threads that read `/proc` and can be abandoned.
    pub(super) supervision: Arc<Supervision>,
}

impl Core {
    /// Opens the core and starts the capture. It works in the host's descriptor table if `shared_because`
    /// gives a reason why it cannot have its own.
    ///
    /// # Errors
    /// The errors of [`super::handle::Session::open`].
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
        // If this check does not return, the eBPF programs are relied on for as little as possible.
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
        core.log_opening();
        Ok(core)
    }

    /// Logs the sources of the session's figures, and options that have no effect.
    fn log_opening(&self) {
        let Core { options, probes, .. } = self;
        let programs =
            |count: &'static str, search: &'static str| if probes.are_active() { count } else { search };
        let bytes = match (&options.source, self.engine) {
            _ if !self.has_network => "no source (network figures are not valid)",
            (Source::Savefile(_), _) => "a savefile",
            (_, Engine::Kernel) => "eBPF programs (engine kernel)",
            _ => "captured packets (engine pcap)",
        };
        let owners = programs("eBPF programs", "a search in /proc and sock_diag");
        let is_replay = matches!(options.source, Source::Savefile(_));
        let has_owners = self.has_network && (!is_replay || options.replay_owners);
        let owners = if has_owners { owners } else { "no source" };
        let is_walked = *self.updates.sample_probes.lock() == ProbeState::Active;
        let processes = if is_walked { "a BPF iterator" } else { "/proc" };
        info!(
            "session opened: version {}, bytes from {bytes}, owners from {owners}, processes from {processes}",
            env!("CARGO_PKG_VERSION")
        );
        for user in unknown_users(&options.selection.users) {
            warn!("option users: the user \"{user}\" does not exist on this system now");
        }
        if options.sample.has(SampleSet::CGROUP) && !has_groups(self.sampler.root()) {
            warn!(
                "control groups are unavailable: /proc/self/cgroup states none in the unified hierarchy or systemd's, \
                 or no such hierarchy is mounted here"
            );
        }
    }

    /// Samples the processes and adds the bytes that they sent and received. The result stays until the next
    /// update: `Session::processes`, `Session::take_removed`, `Session::take_packets`.
    ///
    /// The update does not wait for the last packets of ended processes, unless [`Options::wait_for_ended`]
    /// is set. Such a process is removed by the first update that finds everything counted that was captured
    /// before its end, or after the read timeout and 2 s. Until then it is among neither the living nor the
    /// removed processes. If flows are recorded, the update waits for the capture thread to deliver the
    /// living ones, a few milliseconds and at most 200 ms. If they are late, the previous records stay.
    ///
    /// # Errors
    /// The errors of [`Sampler::sample`]. No bytes are lost then: the next update delivers them.
    pub(super) fn update(&mut self) -> Result<()> {
        let log = Arc::clone(&self.log);
        let _entered = log.enter();
        let began = Instant::now();
        self.updates.begin_sample();
        let sampled = self.sampler.sample();
        if let Some(fault) = self.sampler.take_fault() {
            warn!("sampling with eBPF programs failed; falling back to /proc: {fault}");
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
                // The kernel's counters are complete as soon as they are read, which happened after the
                // sample.
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

    /// Marks the processes whose bytes are counted: in their own network namespace, or in another one that
    /// they have a socket of.
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

    /// Returns the network namespaces that are counted in now. A savefile does not name any, so it covers
    /// all.
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

    /// Reports the processes that use the CPU to the owner search.
    fn tell_busy(&mut self) {
        let busy = |record: &&ProcessRecord| record.cpu_percent > 0.0;
        let records = self.sampler.processes().filter(busy);
        self.busy.clear();
        self.busy.extend(records.map(|record| (record.cpu_percent, record.sample.id.pid)));
        self.busy.sort_unstable_by(|one, other| other.0.total_cmp(&one.0));
        self.exchange.set_busy(self.busy.iter().map(|(_, pid)| *pid));
    }

    /// Reports a capture that has ended by itself.
    ///
    /// # Errors
    /// Fails with `Savefile`, once, if the savefile broke off; with `SessionFailed`, from then on, if a
    /// thread has failed.
    pub(super) fn health(&self) -> Result<()> {
        let mut failure = self.shared.failure.lock();
        match &*failure {
            None => Ok(()),
            Some(error) if error.code == Code::Savefile => failure.take().map_or(Ok(()), Err),
            Some(error) => Err(Error::new(Code::SessionFailed, error.text.clone())),
        }
    }

    /// Returns the living selected processes as of the last update, by pid.
    pub(super) fn processes(&self) -> impl Iterator<Item = &ProcessRecord> {
        self.sampler.processes()
    }

    /// Returns the processes that have ended since the last call, with their last figures.
    pub(super) fn take_removed(&mut self) -> Vec<ProcessRecord> {
        std::mem::take(&mut self.removed)
    }

    /// Returns the living flows of all processes as of the last update; none unless [`Options::flows`] is
    /// set.
    pub(super) fn flows(&self) -> impl Iterator<Item = &FlowRecord> {
        self.flows.iter().flat_map(FlowView::living)
    }

    /// Returns the last records of the flows of all processes that have ended since the last call, oldest
    /// first. A flow is delivered a third of a second after its end, or later, when its owner is known.
    pub(super) fn take_ended_flows(&mut self) -> Vec<FlowRecord> {
        self.flows.as_mut().map(FlowView::take_ended).unwrap_or_default()
    }

    /// Takes at most `count` of the queued packets, oldest first.
    pub(super) fn take_packets(&mut self, count: usize) -> Vec<PacketBatch> {
        self.packets.take(count)
    }

    /// Returns the log lines since the last call, if the options queue them.
    pub(super) fn take_log_lines(&self) -> Vec<LogLine> {
        self.log.take_lines()
    }

    /// Returns the converter of the kernel's units, as of the last update.
    pub(super) fn units(&self) -> Units {
        Units {
            ticks_per_second: self.sampler.root().facts().ticks_per_second,
            boot_time_ns: self.boot_time_ns,
            memory_bytes: self.sampler.machine().memory_bytes,
        }
    }

    /// Returns a reader of the statistics, which works on any thread for as long as it is kept.
    pub(super) fn stats_reader(&self) -> StatsReader {
        StatsReader {
            shared: Arc::clone(&self.shared),
            early: Arc::clone(&self.early),
            packets: Arc::clone(&self.packets),
            log: Arc::clone(&self.log),
            updates: Arc::clone(&self.updates),
            missing_capabilities: self.missing_capabilities,
            is_replay: matches!(self.options.source, Source::Savefile(_)),
            engine: self.engine,
            socket_probes: self.probes.state,
            socket_programs: self.probes.programs(),
        }
    }

    /// Returns true if all of a savefile has been counted, or the capture has failed.
    pub(super) fn has_ended(&self) -> bool {
        self.shared.barrier.has_ended()
    }

    /// Ends the capture and joins the threads, once. Returns the last log lines.
    pub(super) fn close(&mut self) -> Vec<LogLine> {
        if std::mem::replace(&mut self.is_closed, true) {
            return Vec::new();
        }
        let _entered = self.log.enter();
        self.shared.stop();
        for thread in self.threads.drain(..) {
            // A panic of the thread has been recorded as the session's failure.
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

/// Returns the capabilities that could give a session more data, one bit for each number.
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
