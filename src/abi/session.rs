//! The session interface: any number of sessions in a program, with user data and natural units.

use super::arguments::session_options;
use super::boundary::{busy, code_of, forked, guarded, read_size, read_sized};
use super::classic_types::*;
use super::flow_types::*;
use super::process_types::*;
use super::records::{ProcessArray, session_flow, session_packets};
use super::session_types::*;
use crate::config::Engine;
use crate::error::{Code, Error, Result};
use crate::log::LogLine;
use crate::model::{FlowRecord, ProbeState, ProcessRecord, Quality, Undecoded, Unowned};
use crate::session::{Session, SessionFd, Stats, StatsReader, Units};
use crate::sync::{Mutex, MutexGuard};
use std::ffi::{CString, c_void};
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// A session. It belongs to the process that opened it, not to a child forked from that process.
pub struct CaptureSession {
    process: u32,
    descriptor: Arc<SessionFd>,
    stats: StatsReader,
    log_handler: CaptureLogHandler,
    log_user_data: *mut c_void,
    state: Mutex<SessionState>,
}

struct SessionState {
    session: Session,
    removed: Vec<ProcessRecord>,
    array: ProcessArray,
}

impl CaptureSession {
    fn lock(&self) -> Result<MutexGuard<'_, SessionState>> {
        if self.process != std::process::id() {
            return Err(forked(self.process));
        }
        self.state.try_lock().ok_or_else(busy)
    }

    /// Passes the log's lines to the host's handler. Not guarded: an exception of the handler must pass
    /// through.
    fn deliver_log(&self, lines: Vec<LogLine>) {
        let Some(handler) = self.log_handler else { return };
        for line in lines {
            let level = match line.level {
                tracing::Level::ERROR => CaptureLogLevel::Error,
                tracing::Level::WARN => CaptureLogLevel::Warn,
                tracing::Level::INFO => CaptureLogLevel::Info,
                tracing::Level::DEBUG => CaptureLogLevel::Debug,
                tracing::Level::TRACE => CaptureLogLevel::Trace,
            };
            let bytes: Vec<u8> = line.text.into_bytes().into_iter().filter(|&byte| byte != 0).collect();
            let text = CString::new(bytes).unwrap_or_default();
            // SAFETY: the host guarantees that its handler may be called; the text lives through the call.
            unsafe { handler(self.log_user_data, level, text.as_ptr()) };
        }
    }
}

/// Opens a session and stores it in `*session`, or stores NULL there on failure. NULL options mean the
/// defaults.
///
/// If privileges are missing, the session opens with what it may read. The log and `missing_capabilities` of
/// CaptureStats state what would make the rest available. Close the session with `CaptureSessionClose`.
///
/// Returns CAPTURE_OK or one of CaptureCode. Fails with CAPTURE_CODE_INVALID_ARGUMENT if `session` is NULL or
/// an option is not valid.
///
/// # Safety
/// `options` is NULL or a structure whose `size` is set and whose pointers are NULL or valid. `session` is
/// writable or NULL; NULL is an error.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn CaptureSessionOpen(
    options: *const CaptureOptions,
    session: *mut *mut CaptureSession,
) -> i32 {
    let opened = guarded(|| {
        if session.is_null() {
            return Err(Error::new(
                Code::InvalidArgument,
                "session is NULL; it must point to a variable for the session",
            ));
        }
        // SAFETY: the caller guarantees that `session` is writable.
        unsafe { *session = std::ptr::null_mut() };
        // SAFETY: the caller guarantees that the options are valid.
        let parsed = unsafe { session_options(options)? };
        // SAFETY: `session_options` has checked that a structure that is not NULL is complete.
        let handler = unsafe { options.as_ref() }.map(|given| (given.log_handler, given.log_user_data));
        let (log_handler, log_user_data) = handler.unwrap_or((None, std::ptr::null_mut()));
        let opened = Session::open(parsed)?;
        Ok(Box::new(CaptureSession {
            process: std::process::id(),
            descriptor: opened.shared_descriptor(),
            stats: opened.stats_reader(),
            log_handler,
            log_user_data,
            state: Mutex::new(SessionState {
                session: opened,
                removed: Vec::new(),
                array: ProcessArray::default(),
            }),
        }))
    });
    match opened {
        Ok(opened) => {
            let opened = Box::into_raw(opened);
            // SAFETY: the session was created above. Calls made by the log handler cannot close it, because
            // it is locked until all lines are delivered.
            let opened_here = unsafe { &*opened };
            let state = opened_here.state.lock();
            let lines = state.session.take_log_lines();
            // SAFETY: the caller guarantees that `session` is writable.
            unsafe { *session = opened };
            opened_here.deliver_log(lines);
            CAPTURE_OK
        }
        Err(error) => code_of(Err(error)),
    }
}

/// Samples every process and runs the handlers on the calling thread. The order is: the log's lines, the
/// processes that have ended, with their last figures, the living processes, the flows, the packets. NULL
/// handlers only sample: the processes that have ended are then not reported at all, while ended flows and
/// packets stay held.
///
/// The update does not wait for packets that are still in a capture buffer. A process that has ended is
/// delivered as ended once, with complete figures, by the first update after its last packets were counted:
/// the read timeout and some milliseconds after its end was found, at most the read timeout and 2 s. Until
/// then it is delivered neither as ended nor as living. For final figures, update once more before the
/// session is closed. With `CAPTURE_ENABLE_WAIT_FOR_ENDED` the update waits for these packets instead. If flows are
/// recorded, the update waits for the capture thread to deliver the living flows, a few milliseconds and at
/// most 200 ms; if they are late, it delivers those of the previous update.
///
/// A handler may throw a C++ exception, which passes through. longjmp(3) must not leave a handler: the
/// session could never be closed.
///
/// Other processes can keep reads of /proc from returning: a page fault on a dead file server locks a
/// process's memory, and an exec that closes a file there locks its other figures. The update waits a quarter
/// of a second for such a read when it encounters the read for the first time, and at most two seconds for all
/// such reads of its samples. Then it continues without them. Figures that could not be read are not valid;
/// if BPF iterators sample the processes, this concerns only the command line. A thread continues to wait.
/// Such a process is read again one second after its read has returned, and after twice as long each further
/// time, up to 300 s. At most 16 threads of a program wait, 8 of them for command lines and control groups.
/// Beyond that, no such file of any process is read until one of these reads returns.
///
/// Fails with CAPTURE_CODE_NOT_INITIALISED if `session` is NULL, with CAPTURE_CODE_INVALID_ARGUMENT if the
/// `size` of `handlers` is not plausible or an unknown field is set, with CAPTURE_CODE_BUSY if another call
/// on the session runs, and with CAPTURE_CODE_FORKED in a process forked from the opener. No handler runs
/// then. Fails with CAPTURE_CODE_PROCESS_OPEN_DIRECTORY if /proc itself cannot be read, with
/// CAPTURE_CODE_SAVEFILE, once, if the savefile broke off, and with CAPTURE_CODE_SESSION_FAILED, from then
/// on, if a thread of the session has failed. The handlers still run in these cases.
///
/// # Safety
/// `session` is open or NULL; NULL is an error. `handlers` is NULL or a structure whose `size` is set.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn CaptureSessionUpdate(
    session: *mut CaptureSession,
    handlers: *const CaptureHandlers,
) -> i32 {
    let prepared = guarded(|| {
        // SAFETY: the caller guarantees that the session is open.
        let session = unsafe { session.as_ref() }.ok_or_else(no_session)?;
        let handlers = if handlers.is_null() {
            None
        } else {
            // SAFETY: the caller guarantees that the structure is readable; every field is valid when zero.
            Some(unsafe { read_sized("CaptureHandlers", handlers, MIN_HANDLERS_SIZE)? })
        };
        let mut state = session.lock()?;
        let updated = state.session.update();
        let removed = state.session.take_removed();
        state.removed.extend(removed);
        let lines = state.session.take_log_lines();
        // A savefile that broke off is reported after everything in it was counted.
        let result = updated.and_then(|()| state.session.health());
        Ok((session, handlers, state, lines, result))
    });
    let (session, handlers, mut state, lines, result) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return code_of(Err(error)),
    };
    session.deliver_log(lines);
    match handlers {
        Some(handlers) => state.deliver(&handlers),
        // No handler fetches them, and they must not accumulate.
        None => state.removed.clear(),
    }
    code_of(result)
}

/// Passes the packets held so far to the packet handler, and the log's lines to the log handler, without sampling
/// processes: between two updates, as often as packets are to be taken. The other handlers are not called.
///
/// Fails with CAPTURE_CODE_NOT_INITIALISED if `session` is NULL, with CAPTURE_CODE_INVALID_ARGUMENT if
/// `handlers` is NULL, its `size` is not plausible or an unknown field is set, with CAPTURE_CODE_BUSY if another
/// call on the session runs, and with CAPTURE_CODE_FORKED in a process forked from the opener. No handler runs
/// then.
///
/// # Safety
/// `session` is open or NULL; NULL is an error. `handlers` is a structure whose `size` is set, or NULL; NULL is
/// an error.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn CaptureSessionPackets(
    session: *mut CaptureSession,
    handlers: *const CaptureHandlers,
) -> i32 {
    let prepared = guarded(|| {
        // SAFETY: the caller guarantees that the session is open.
        let session = unsafe { session.as_ref() }.ok_or_else(no_session)?;
        if handlers.is_null() {
            return Err(Error::new(
                Code::InvalidArgument,
                "handlers is NULL; there is no handler for packets",
            ));
        }
        // SAFETY: the caller guarantees that the structure is readable; every field is valid when zero.
        let handlers = unsafe { read_sized("CaptureHandlers", handlers, MIN_HANDLERS_SIZE)? };
        let state = session.lock()?;
        let lines = state.session.take_log_lines();
        Ok((session, handlers, state, lines))
    });
    match prepared {
        Ok((session, handlers, mut state, lines)) => {
            session.deliver_log(lines);
            state.deliver_packets(&handlers);
            CAPTURE_OK
        }
        Err(error) => code_of(Err(error)),
    }
}

impl SessionState {
    /// Runs the handlers. Not guarded: their exceptions must pass through.
    fn deliver(&mut self, handlers: &CaptureHandlers) {
        let SessionState { session, removed, array } = self;
        let units = session.units();
        if let Some(handler) = handlers.process {
            let show = |action, array: &ProcessArray| {
                let (processes, size) = (array.as_slice(), size_of::<CaptureProcess>());
                // SAFETY: the host guarantees that its handler may be called; the array lives through the
                // call.
                unsafe { handler(handlers.user_data, action, processes.as_ptr(), processes.len(), size) };
            };
            if !removed.is_empty() {
                array.fill(removed.iter(), &units);
                removed.clear();
                show(CaptureAction::ACTION_REMOVE, array);
            }
            array.fill(session.processes(), &units);
            show(CaptureAction::ACTION_UPDATE, array);
        }
        removed.clear();
        if let Some(handler) = handlers.flow {
            let ended = session.take_ended_flows();
            let show = |action, flows: &[CaptureFlow]| {
                // SAFETY: as above.
                unsafe {
                    handler(
                        handlers.user_data,
                        action,
                        flows.as_ptr(),
                        flows.len(),
                        size_of::<CaptureFlow>(),
                    );
                }
            };
            deliver_flows(ended.iter(), &units, |flows| show(CaptureAction::ACTION_REMOVE, flows));
            deliver_flows(session.flows(), &units, |flows| show(CaptureAction::ACTION_UPDATE, flows));
        }
        self.deliver_packets(handlers);
    }

    /// Runs the handler of packets. Not guarded, like [`SessionState::deliver`].
    fn deliver_packets(&mut self, handlers: &CaptureHandlers) {
        if let Some(handler) = handlers.packet {
            let limit = match handlers.packet_limit {
                0 => usize::MAX,
                limit => usize::try_from(limit).unwrap_or(usize::MAX),
            };
            let batches = self.session.take_packets(limit);
            let mut packets = Vec::new();
            for batch in &batches {
                session_packets(batch, &mut packets);
            }
            if !packets.is_empty() {
                let size = size_of::<CapturePacket>();
                // SAFETY: as above; the packets point into the batches, which outlive the call.
                unsafe { handler(handlers.user_data, packets.as_ptr(), packets.len(), size) };
            }
        }
    }
}

/// Number of flows delivered at once, so that the structures of a million flows need not be held together.
const FLOWS_AT_ONCE: usize = 4096;

fn deliver_flows<'r>(
    records: impl Iterator<Item = &'r FlowRecord>,
    units: &Units,
    mut show: impl FnMut(&[CaptureFlow]),
) {
    let mut flows = records.map(|record| session_flow(record, units)).peekable();
    let mut part = Vec::new();
    while flows.peek().is_some() {
        part.clear();
        part.extend(flows.by_ref().take(FLOWS_AT_ONCE));
        show(&part);
    }
}

/// Returns the session's descriptor, or -1 on failure. It is readable when packets are held, when
/// `interval_ms` have passed since the last update, when a savefile has been read to its end, and when the
/// session has failed: poll it, then update. The descriptor belongs to the session: do not read or close it.
///
/// Fails if `session` is NULL, or in a process forked from the opener; `CaptureErrorText` has the reason.
///
/// # Safety
/// `session` is NULL or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn CaptureSessionDescriptor(session: *const CaptureSession) -> i32 {
    let descriptor = guarded(|| {
        // SAFETY: the caller guarantees that the session is open.
        let session = unsafe { session.as_ref() }.ok_or_else(no_session)?;
        if session.process != std::process::id() {
            return Err(forked(session.process));
        }
        session.descriptor.get().map(|descriptor| descriptor.as_raw_fd())
    });
    descriptor.unwrap_or_else(|error| {
        code_of(Err(error));
        -1
    })
}

/// Fills `*stats`, up to its `size`. May be called from any thread, also while an update runs.
///
/// Fails with CAPTURE_CODE_NOT_INITIALISED if `session` is NULL, with CAPTURE_CODE_INVALID_ARGUMENT if
/// `stats` is NULL or its `size` is not plausible, and with CAPTURE_CODE_FORKED in a process forked from the
/// opener.
///
/// # Safety
/// `session` is open or NULL; NULL is an error. `stats` has `size` writable bytes or is NULL; NULL is an
/// error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn CaptureSessionStats(
    session: *const CaptureSession,
    stats: *mut CaptureStats,
) -> i32 {
    code_of(guarded(|| {
        // SAFETY: the caller guarantees that the session is open.
        let session = unsafe { session.as_ref() }.ok_or_else(no_session)?;
        if session.process != std::process::id() {
            return Err(forked(session.process));
        }
        // Only the size is an input: the rest may contain anything, such as the results of the last call.
        // SAFETY: the caller guarantees that the structure is readable.
        let size = unsafe { read_size("CaptureStats", stats, MIN_STATS_SIZE)? };
        let mut filled = stats_record(&session.stats.read());
        filled.size = size;
        let known = size.min(size_of::<CaptureStats>());
        // SAFETY: the caller guarantees `size` bytes, and at most that many are written; the rest stays
        // unchanged.
        unsafe {
            std::ptr::copy_nonoverlapping((&raw const filled).cast::<u8>(), stats.cast::<u8>(), known);
        }
        Ok(())
    }))
}

/// Ends the capture, joins the session's threads and releases everything; `session` is then invalid. Fails,
/// without closing the session, with CAPTURE_CODE_FORKED in a process forked from the opener and with
/// CAPTURE_CODE_BUSY while another call on the session runs. Fails with CAPTURE_CODE_NOT_INITIALISED if
/// `session` is NULL.
///
/// If a thread waits in a read of /proc that does not return, the call waits for it a quarter of a second and
/// leaves it behind. When the read returns, the thread ends and releases what it holds: its memory, the
/// descriptors that it was reading with, those that it found owners with, and the log file. The thread
/// executes code of the library, which stays in memory even after dlclose(3).
///
/// # Safety
/// `session` is open or NULL; NULL is an error.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn CaptureSessionClose(session: *mut CaptureSession) -> i32 {
    let closed = guarded(|| {
        // SAFETY: the caller guarantees that the session is open.
        let shared = unsafe { session.as_ref() }.ok_or_else(no_session)?;
        let mut state = shared.lock()?;
        let lines = state.session.close();
        Ok((Released(session), shared, state, lines))
    });
    match closed {
        // The lock is dropped before the session, and both after the lines are delivered: calls that the log
        // handler makes are refused.
        Ok((_released, shared, _state, lines)) => {
            shared.deliver_log(lines);
            CAPTURE_OK
        }
        Err(error) => code_of(Err(error)),
    }
}

/// A session that its owner has given up; it is released even if the log handler throws.
struct Released(*mut CaptureSession);

impl Drop for Released {
    fn drop(&mut self) {
        // SAFETY: `CaptureSessionOpen` created it, and the caller of `CaptureSessionClose` gave it up.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

/// Sizes of the statistics and the handlers in the first version of the interface.
const MIN_STATS_SIZE: usize = std::mem::offset_of!(CaptureStats, lost_flows);
const MIN_HANDLERS_SIZE: usize = std::mem::offset_of!(CaptureHandlers, flow);

fn no_session() -> Error {
    Error::new(Code::NotInitialised, "session is NULL; open one with CaptureSessionOpen")
}

fn stats_record(stats: &Stats) -> CaptureStats {
    let undecoded = |reason: Undecoded| stats.undecoded[reason as usize];
    let owned = |quality: Quality| stats.bytes.owned[quality as usize];
    let unowned = |reason: Unowned| stats.bytes.unowned[reason as usize];
    CaptureStats {
        size: 0,
        frames: stats.frames,
        frame_bytes: stats.frame_bytes,
        undecoded_truncated: undecoded(Undecoded::Truncated),
        undecoded_not_ip: undecoded(Undecoded::NotIp),
        undecoded_malformed: undecoded(Undecoded::Malformed),
        lost_in_kernel: stats.lost_in_kernel,
        lost_in_device: stats.lost_in_device,
        lost_packets: stats.lost_packets,
        lost_log_lines: stats.lost_log_lines,
        devices: stats.devices,
        flows: stats.flows,
        flows_expired: stats.flows_expired,
        flows_evicted: stats.flows_evicted,
        flows_waiting: stats.flows_waiting,
        bytes_exact: owned(Quality::Exact),
        bytes_shared: owned(Quality::Shared),
        bytes_guessed: owned(Quality::Guessed),
        bytes_pending: unowned(Unowned::Pending),
        bytes_no_socket: unowned(Unowned::NoSocket),
        bytes_no_holder: unowned(Unowned::NoHolder),
        bytes_ambiguous: unowned(Unowned::Ambiguous),
        bytes_not_permitted: unowned(Unowned::NotPermitted),
        bytes_queue_full: unowned(Unowned::QueueFull),
        bytes_fragment: unowned(Unowned::Fragment),
        bytes_not_local: unowned(Unowned::NotLocal),
        bytes_no_ports: unowned(Unowned::NoPorts),
        bytes_owner_ended: unowned(Unowned::OwnerEnded),
        bytes_unreadable: unowned(Unowned::Unreadable),
        processes_skipped: stats.processes_skipped,
        update_ns: stats.update_ns,
        missing_capabilities: stats.missing_capabilities,
        early_lookup_packets: stats.first.packets,
        early_lookup_found: stats.first.found,
        early_lookup_too_late: stats.first.too_late,
        early_lookup_not_found: stats.first.not_found,
        early_lookup_queue_full: stats.first.crowded_out,
        early_lookup_evicted: stats.first_forgotten,
        connections_checked: stats.connections_checked,
        connections_incomplete: stats.connections_short,
        bytes_recovered: stats.bytes_completed,
        close_events_lost: stats.ends_lost,
        devices_pending: stats.devices_pending,
        lost_flows: stats.lost_flows,
        offloaded_frames: stats.offloaded_frames,
        offloaded_packets: stats.offloaded_packets,
        estimated_bytes: stats.estimated_bytes,
        engine: match stats.engine {
            Engine::Kernel => CaptureEngine::Kernel,
            Engine::Pcap | Engine::Auto => CaptureEngine::Pcap,
        },
        socket_probes: probe_state(stats.socket_probes),
        sample_probes: probe_state(stats.sample_probes),
        socket_programs: stats.socket_programs.0,
        bytes_before_capture: stats.bytes_before_capture,
        sampled_ns: stats.sampled_ns[0],
        sampled_before_ns: stats.sampled_ns[1],
        replay_finished: stats.replay_finished.into(),
    }
}

fn probe_state(state: ProbeState) -> CaptureProbeState {
    match state {
        ProbeState::Off => CaptureProbeState::Off,
        ProbeState::Active => CaptureProbeState::Active,
        ProbeState::NotBuilt => CaptureProbeState::NotBuilt,
        ProbeState::NoTypes => CaptureProbeState::NoTypes,
        ProbeState::NotPermitted => CaptureProbeState::NotPermitted,
        ProbeState::NotSupported => CaptureProbeState::NotSupported,
        ProbeState::NoMemory => CaptureProbeState::NoMemory,
        ProbeState::NoCgroup => CaptureProbeState::NoCgroup,
        ProbeState::PidNamespace => CaptureProbeState::PidNamespace,
        ProbeState::NoDescriptor => CaptureProbeState::NoDescriptor,
    }
}
