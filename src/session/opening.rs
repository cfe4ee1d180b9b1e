//! Opens the sources of a session's figures, at the same time as far as they do not depend on each other.

use crate::config::{Options, Source};
use crate::error::Result;
use crate::kernel::{Counters, TaskSource, load_tasks};
use crate::log::Log;
use crate::model::{ProbeState, SampleSet};
use crate::proc::ProcRoot;
use crate::session::lookup::KernelOwners;
use crate::session::probes::Probes;
use crate::tap::{Tap, TapError};
use crate::thread::both;
use tracing::{info, warn};

/// Number of selected processes up to which reading their files is faster than a walk over all tasks.
const FEW_PROCESSES: usize = 64;

/// The sources of bytes and owners.
pub(super) struct Sources {
    pub(super) probes: Probes,
    pub(super) counters: Option<Counters>,
    pub(super) owners: Option<KernelOwners>,
    pub(super) tap: Option<Box<Tap>>,
}

/// Opens the kernel's counters or, if they are unavailable, the capture together with the eBPF programs that
/// record owners.
///
/// # Errors
/// The errors of [`open_tap`].
pub(super) fn open_sources(
    options: &Options,
    root: &ProcRoot,
    what: SampleSet,
    log: &Log,
) -> Result<Sources> {
    if options.source == Source::Live {
        // Checked before anything is loaded or opened for it.
        options.capture.namespaces.check_present()?;
    }
    let ticks_per_second = root.facts().ticks_per_second;
    let mut probes = Probes::new(what);
    let counters = probes.for_counting(options, ticks_per_second);
    if counters.is_some() {
        return Ok(Sources { probes, counters, owners: None, tap: None });
    }
    if options.source != Source::Live {
        return Ok(Sources { probes, counters, owners: None, tap: open_tap(options)? });
    }
    let state = probes.state;
    let (owners, tap) = both(
        "capture-load",
        || {
            let _entered = log.enter();
            probes.for_owners(options, ticks_per_second)
        },
        || open_tap(options),
    );
    let tap = tap?;
    let owners = owners.filter(|_| tap.is_some());
    if tap.is_none() {
        // There are no flows whose owners could be looked up.
        probes = Probes::new(what);
        probes.state = state;
    }
    Ok(Sources { probes, counters, owners, tap })
}

/// Loads the BPF iterator that samples all processes at once, if the options and the kernel allow it.
///
/// # Errors
/// The state of the eBPF programs, which gives the reason.
pub(super) fn tasks_of(
    options: &Options,
    root: &ProcRoot,
    what: SampleSet,
) -> std::result::Result<Box<dyn TaskSource>, ProbeState> {
    if !options.probes || (1..=FEW_PROCESSES).contains(&options.selection.pids.len()) {
        return Err(ProbeState::Off);
    }
    if !root.tells_own_numbers() {
        info!("/proc belongs to another PID namespace; processes are sampled without eBPF programs");
        return Err(ProbeState::PidNamespace);
    }
    load_tasks(what).map_err(|fault| {
        info!("sampling with eBPF programs is unavailable; falling back to /proc: {fault}");
        fault.state
    })
}

/// Opens the tap of the options; `None` if they request none, or if it is not permitted.
fn open_tap(options: &Options) -> Result<Option<Box<Tap>>> {
    let opened = match &options.source {
        Source::None => return Ok(None),
        Source::Savefile(path) => {
            return Tap::savefile(path, options.capture.filter.as_deref()).map(Box::new).map(Some);
        }
        Source::Live => Tap::live_beside(&options.capture, &options.proc_root),
    };
    match opened {
        Ok(tap) => Ok(Some(Box::new(tap))),
        Err(TapError::NotPermitted(error)) => {
            warn!("packet capture is unavailable: {error}");
            Ok(None)
        }
        Err(TapError::Failed(error)) => Err(error),
    }
}
