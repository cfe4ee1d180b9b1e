//! The classic interface: one session for the whole program.

use super::arguments::classic_options;
use super::boundary::{busy, code_of, copy_text, forked, guarded};
use super::classic_types::*;
use super::records::{classic_packets, classic_process};
use crate::error::{Code, Error, Result};
use crate::model::ProcessRecord;
use crate::session::Session;
use crate::sync::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Opens the program's session. It may be opened again after `CaptureExit`.
///
/// A NULL config means the defaults. Either callback may be NULL; its data is then not gathered. If
/// privileges are missing, the session opens with what it may read, and the log states what is missing. On
/// failure the function returns one of CaptureCode, and `errorbuf`, unless NULL, receives the text. Fails
/// with CAPTURE_CODE_INVALID_ARGUMENT if an option is not valid, and with CAPTURE_CODE_ALREADY_OPEN if the
/// session is open.
///
/// # Safety
/// `config` is NULL or points to a complete structure. Its strings are NULL or NUL-terminated. Its errorbuf
/// is NULL or has room for CAPTURE_ERROR_SIZE bytes. The callbacks may be called until `CaptureExit` returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn CaptureInit(
    config: *const CaptureInitt,
    process_callback: ProcessInfoCallback,
    packet_callback: PacketCallback,
) -> i32 {
    let result = guarded(|| {
        let defaults = CaptureInitt {
            logfile: std::ptr::null(),
            ms: 0,
            snaplen: 0,
            promise: 0,
            fliter: std::ptr::null(),
            errorbuf: std::ptr::null_mut(),
            r#loop: std::mem::MaybeUninit::zeroed(),
        };
        // SAFETY: the caller guarantees that `config` is valid.
        let config = unsafe { config.as_ref() }.unwrap_or(&defaults);
        // SAFETY: the caller guarantees that its strings are valid.
        let options = unsafe { classic_options(config, packet_callback.is_some())? };
        let mut state = lock(slot_for_init()?)?;
        if state.is_some() {
            return Err(Error::new(
                Code::AlreadyOpen,
                "the session is already open; call CaptureExit before CaptureInit",
            ));
        }
        *state = Some(Classic {
            session: Session::open(options)?,
            process_callback,
            packet_callback,
            removed: VecDeque::new(),
            sampled: false,
            processes: Vec::new(),
        });
        Ok(())
    });
    if let Err(error) = &result
        // SAFETY: the caller guarantees that `config` is valid.
        && let Some(config) = unsafe { config.as_ref() }
        && !config.errorbuf.is_null()
    {
        // SAFETY: the caller guarantees a buffer of this size.
        let room = unsafe { std::slice::from_raw_parts_mut(config.errorbuf, CAPTURE_ERROR_SIZE) };
        copy_text(error.text.as_bytes(), room);
    }
    code_of(result)
}

/// Samples every process and runs the callbacks on the calling thread. First comes `ACTION_REMOVE`, once for
/// each process that has ended, with its last figures. Then comes `ACTION_UPDATE`, once with all living
/// processes. Then come the packets captured since the last update: at most `cnt` of them, or all that are
/// held if `cnt` is -1.
///
/// The update does not wait for packets that are still in a capture buffer. `ACTION_REMOVE` comes with the
/// first update after a process's last packets were counted: the read timeout and some milliseconds after its
/// end was found, at most the read timeout and 2 s. Until then the process is in no `ACTION_UPDATE`. For
/// final figures, update once more before `CaptureExit`, after that time.
///
/// A callback may throw a C++ exception. It passes through, and the next update delivers the rest. Reads of
/// /proc that do not return are treated as in `CaptureSessionUpdate`; in this interface the figures of such a
/// process are 0.
///
/// Fails with CAPTURE_CODE_INVALID_ARGUMENT if `cnt` is less than -1, with CAPTURE_CODE_NOT_INITIALISED if no
/// session is open, with CAPTURE_CODE_BUSY if another call runs, and with CAPTURE_CODE_FORKED in a process
/// forked from the one that opened the session.
///
/// # Safety
/// The callbacks that were passed to `CaptureInit` may still be called.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn CaptureUpdate(cnt: i32) -> i32 {
    let prepared = guarded(|| {
        if cnt < -1 {
            let text = format!("cnt is {cnt}; it must be -1, for all packets, or not negative");
            return Err(Error::new(Code::InvalidArgument, text));
        }
        let mut state = lock(slot()?)?;
        let result = state.as_mut().ok_or_else(not_open)?.update();
        Ok((state, result))
    });
    let (mut state, result) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return code_of(Err(error)),
    };
    if let Some(classic) = state.as_mut() {
        classic.deliver(cnt);
    }
    code_of(result)
}

/// Ends the capture, joins the library's threads and releases everything. No callback runs after the function
/// has returned. Threads that wait in reads of /proc are treated as in `CaptureSessionClose`. Fails with
/// CAPTURE_CODE_NOT_INITIALISED if no session is open, with CAPTURE_CODE_BUSY if another call runs, and with
/// CAPTURE_CODE_FORKED in a process forked from the one that opened the session.
#[unsafe(no_mangle)]
pub extern "C" fn CaptureExit() -> i32 {
    code_of(guarded(|| {
        let mut state = lock(slot()?)?;
        state.take().map(drop).ok_or_else(not_open)
    }))
}

/// The open session with its callbacks and the buffers that are passed to them.
struct Classic {
    session: Session,
    process_callback: ProcessInfoCallback,
    packet_callback: PacketCallback,
    /// Ended processes that have not been delivered yet.
    removed: VecDeque<ProcessRecord>,
    /// True if `processes` was filled by the update that is being delivered.
    sampled: bool,
    processes: Vec<Process_t>,
}

impl Classic {
    fn update(&mut self) -> Result<()> {
        self.sampled = false;
        if self.process_callback.is_none() {
            return self.session.health();
        }
        self.session.update()?;
        self.sampled = true;
        self.removed.extend(self.session.take_removed());
        let units = self.session.units();
        self.processes.clear();
        self.processes.extend(self.session.processes().map(|record| classic_process(record, &units)));
        // A savefile that broke off is reported after everything in it was counted.
        self.session.health()
    }

    /// Runs the callbacks. Not guarded: their exceptions must pass through. The state advances before each
    /// call, so that nothing is delivered twice after an exception.
    fn deliver(&mut self, cnt: i32) {
        if let Some(callback) = self.process_callback {
            let units = self.session.units();
            while let Some(record) = self.removed.pop_front() {
                let process = classic_process(&record, &units);
                // SAFETY: the host guarantees that its callback may be called; the record and the count live
                // through the call.
                unsafe { callback(CaptureAction::ACTION_REMOVE, &process, &mut 1) };
            }
            if std::mem::take(&mut self.sampled) {
                let mut count = self.processes.len() as u32;
                // SAFETY: as above; the array holds `count` records.
                unsafe { callback(CaptureAction::ACTION_UPDATE, self.processes.as_ptr(), &mut count) };
            }
        }
        if let Some(callback) = self.packet_callback {
            let limit = usize::try_from(cnt).unwrap_or(usize::MAX);
            let mut batches = self.session.take_packets(limit);
            let mut packets = Vec::new();
            for batch in &mut batches {
                classic_packets(batch, &mut packets);
            }
            if !packets.is_empty() {
                let mut count = packets.len() as u32;
                // SAFETY: as above; the packets point into the batches, which outlive the call.
                unsafe { callback(packets.as_ptr(), &mut count) };
            }
        }
    }
}

/// The slot of the session. A process forked from one with a session creates a new slot: the lock of the old
/// one may be held by a thread that does not exist in the child.
struct SessionSlot {
    process: u32,
    state: Mutex<Option<Classic>>,
}

static SLOT: AtomicPtr<SessionSlot> = AtomicPtr::new(std::ptr::null_mut());

/// Returns this process's slot, for all functions but `CaptureInit`.
fn slot() -> Result<&'static SessionSlot> {
    // SAFETY: a slot, once stored, is never freed.
    match unsafe { SLOT.load(Ordering::Acquire).as_ref() } {
        None => Err(not_open()),
        Some(slot) if slot.process == std::process::id() => Ok(slot),
        Some(slot) => Err(forked(slot.process)),
    }
}

/// Returns this process's slot and creates it if necessary.
fn slot_for_init() -> Result<&'static SessionSlot> {
    let current = SLOT.load(Ordering::Acquire);
    // SAFETY: a slot, once stored, is never freed.
    if let Some(slot) = unsafe { current.as_ref() }
        && slot.process == std::process::id()
    {
        return Ok(slot);
    }
    let made = Box::into_raw(Box::new(SessionSlot { process: std::process::id(), state: Mutex::new(None) }));
    match SLOT.compare_exchange(current, made, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: `made` was stored and is never freed.
        Ok(_) => Ok(unsafe { &*made }),
        Err(_) => {
            // SAFETY: another thread was first, so no other thread has a reference to `made`.
            drop(unsafe { Box::from_raw(made) });
            slot()
        }
    }
}

fn lock(slot: &'static SessionSlot) -> Result<MutexGuard<'static, Option<Classic>>> {
    slot.state.try_lock().ok_or_else(busy)
}

fn not_open() -> Error {
    Error::new(Code::NotInitialised, "there is no open session; call CaptureInit first")
}
