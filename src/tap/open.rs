//! Opening libpcap handles, live and savefile, and setting their filter.
//!
//! Once open, a handle is the `pcap` crate's. Its own ways of opening are passed by for three reasons: it takes a
//! warning of `pcap_activate(3PCAP)` for a failure (later releases of libpcap warn about every tunnel device), it
//! drops the status that tells "down" from other reasons, and it leaks the stream of a savefile that
//! does not open.

use super::frames::words;
use super::options::TapOptions;
use super::ring::keep_from_children;
use crate::error::{Code, Error, Result};
use nix::errno::Errno;
use pcap::{Activated, Active, Capture, Offline};
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;

/// Declared as in `pcap/pcap.h`; the `pcap` crate links the library.
mod ffi {
    use super::{c_char, c_int, c_uint, c_void};

    unsafe extern "C" {
        pub fn pcap_create(source: *const c_char, errbuf: *mut c_char) -> *mut c_void;
        pub fn pcap_set_snaplen(handle: *mut c_void, snaplen: c_int) -> c_int;
        pub fn pcap_set_promisc(handle: *mut c_void, promisc: c_int) -> c_int;
        pub fn pcap_set_timeout(handle: *mut c_void, milliseconds: c_int) -> c_int;
        pub fn pcap_set_buffer_size(handle: *mut c_void, bytes: c_int) -> c_int;
        pub fn pcap_set_tstamp_precision(handle: *mut c_void, precision: c_int) -> c_int;
        pub fn pcap_activate(handle: *mut c_void) -> c_int;
        pub fn pcap_geterr(handle: *mut c_void) -> *const c_char;
        pub fn pcap_statustostr(status: c_int) -> *const c_char;
        pub fn pcap_close(handle: *mut c_void);
        pub fn pcap_fopen_offline_with_tstamp_precision(
            file: *mut libc::FILE,
            precision: c_uint,
            errbuf: *mut c_char,
        ) -> *mut c_void;
    }
}

const PCAP_TSTAMP_PRECISION_NANO: u8 = 1;
const PCAP_ERROR_IFACE_NOT_UP: c_int = -9;
/// `PCAP_ERRBUF_SIZE`.
const ERROR_TEXT: usize = 256;

/// Why a device did not open.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// It is not up: it can be opened when it comes up.
    Down,
    /// Anything else, in libpcap's words.
    Failed(String),
}

/// A handle that this module owns until it passes it on to the `pcap` crate.
struct Handle(NonNull<c_void>);

impl Handle {
    fn as_ptr(&self) -> *mut c_void {
        self.0.as_ptr()
    }

    /// What libpcap says of a status: the handle's own text, or the general one.
    fn words(&self, status: c_int) -> String {
        // SAFETY: the handle is open; its error text is a NUL-terminated array inside it, copied here at once.
        let own = unsafe { CStr::from_ptr(ffi::pcap_geterr(self.as_ptr())) }.to_string_lossy().into_owned();
        if !own.is_empty() {
            return own;
        }
        // SAFETY: a NUL-terminated string for any status, in static memory that the next call may rewrite, so it
        // is copied at once.
        unsafe { CStr::from_ptr(ffi::pcap_statustostr(status)) }.to_string_lossy().into_owned()
    }

    fn into_raw(self) -> NonNull<c_void> {
        let raw = self.0;
        std::mem::forget(self);
        raw
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and `into_raw` forgets `self`, so nothing else will close it.
        unsafe { ffi::pcap_close(self.as_ptr()) }
    }
}

fn text_of(buffer: &[u8; ERROR_TEXT]) -> String {
    CStr::from_bytes_until_nul(buffer).unwrap_or_default().to_string_lossy().into_owned()
}

/// Opens the interface `name` for non-blocking capture with a ring of `buffer` bytes. `loopback` says that the
/// device shows each frame both sent and received, of which only the latter is captured.
///
/// It has no filter yet: until [`set_filter`] it captures whole frames.
pub(super) fn live(
    name: &str,
    loopback: bool,
    buffer: u32,
    options: &TapOptions,
) -> std::result::Result<Capture<Active>, Refusal> {
    let name = CString::new(name).map_err(|_| Refusal::Failed("the name contains a NUL".into()))?;
    let mut text = [0u8; ERROR_TEXT];
    // SAFETY: `name` is NUL-terminated and outlives the call; `text` has the room that pcap_create(3PCAP) asks for.
    let created = unsafe { ffi::pcap_create(name.as_ptr(), text.as_mut_ptr().cast()) };
    let handle = Handle(NonNull::new(created).ok_or_else(|| Refusal::Failed(text_of(&text)))?);
    // These fit: TapOptions::check has bounded each.
    let int = |value: u128| c_int::try_from(value).unwrap_or(c_int::MAX);
    // SAFETY: the handle is created and not yet activated, which is when these may be called; they cannot fail
    // then. pcap_activate may be called once, which it is.
    let status = unsafe {
        ffi::pcap_set_snaplen(handle.as_ptr(), int(options.snaplen.into()));
        ffi::pcap_set_promisc(handle.as_ptr(), options.promiscuous.into());
        ffi::pcap_set_timeout(handle.as_ptr(), int(options.timeout.as_millis()));
        ffi::pcap_set_buffer_size(handle.as_ptr(), int(buffer.into()));
        ffi::pcap_set_tstamp_precision(handle.as_ptr(), PCAP_TSTAMP_PRECISION_NANO.into());
        ffi::pcap_activate(handle.as_ptr())
    };
    match status {
        // A positive status is a warning: the handle works.
        0.. => {}
        PCAP_ERROR_IFACE_NOT_UP => return Err(Refusal::Down),
        _ => return Err(Refusal::Failed(handle.words(status))),
    }
    let capture = Capture::<Active>::from(handle.into_raw().cast());
    let capture = capture.setnonblock().map_err(|error| Refusal::Failed(words(error)))?;
    keep_private(&capture);
    keep_from_children(capture.as_fd());
    if loopback {
        ignore_outgoing(&capture);
    }
    Ok(capture)
}

/// Keeps the packet socket from programs that the host starts: libpcap opens it without close-on-exec.
fn keep_private(capture: &Capture<Active>) {
    let flags = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
    // It cannot fail on an open descriptor.
    let _ = nix::fcntl::fcntl(capture, flags);
}

/// Has the kernel leave out the sent copy of each loopback frame. libpcap drops it anyway, but only after it has
/// taken up half of the ring and of the loss counters. Linux 4.20 and later; before, libpcap's dropping does.
fn ignore_outgoing(capture: &Capture<Active>) {
    let on: c_int = 1;
    // SAFETY: the option takes an int (packet(7), net/packet/af_packet.c), which `on` is; the kernel copies it.
    unsafe {
        libc::setsockopt(
            capture.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_IGNORE_OUTGOING,
            (&raw const on).cast(),
            size_of::<c_int>() as libc::socklen_t,
        );
    }
}

/// Opens a pcap or pcapng savefile, which must be a regular file: reading a pipe or terminal could block for ever.
///
/// # Errors
/// `Savefile` with the path and what the system or libpcap says.
pub(super) fn savefile(path: &Path) -> Result<Capture<Offline>> {
    let refused = |why: &dyn std::fmt::Display| {
        Error::new(Code::Savefile, format!("opening the savefile {}: {why}", path.display()))
    };
    // O_NONBLOCK, lest the opening itself wait for the other end of a pipe.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| refused(&error))?;
    if !file.metadata().map_err(|error| refused(&error))?.is_file() {
        return Err(refused(&"it is not a regular file"));
    }
    // SAFETY: the descriptor is open for reading and the mode agrees. On success the stream owns it, on failure
    // `file` still does.
    let stream = unsafe { libc::fdopen(file.as_raw_fd(), c"rb".as_ptr()) };
    if stream.is_null() {
        return Err(refused(&Errno::last()));
    }
    let _owned_by_the_stream = file.into_raw_fd();
    let mut text = [0u8; ERROR_TEXT];
    // SAFETY: the stream is open, and `text` has the room that pcap_open_offline(3PCAP) asks for. On success the
    // handle owns the stream, which pcap_close closes; on failure the stream remains ours.
    let handle = unsafe {
        let precision = PCAP_TSTAMP_PRECISION_NANO.into();
        ffi::pcap_fopen_offline_with_tstamp_precision(stream, precision, text.as_mut_ptr().cast())
    };
    match NonNull::new(handle) {
        Some(handle) => Ok(Capture::<Offline>::from(handle.cast())),
        None => {
            // SAFETY: the stream is open and, as said, still ours; it is not used after this.
            unsafe { libc::fclose(stream) };
            Err(refused(&text_of(&text)))
        }
    }
}

/// Compiles `filter` for the handle's link type and sets it.
///
/// # Errors
/// `CompileFilter` or `SetFilter` with the filter and libpcap's words.
pub(super) fn set_filter<T: Activated>(capture: &mut Capture<T>, filter: &str) -> Result<()> {
    let Err(error) = capture.filter(filter, true) else { return Ok(()) };
    let code = if capture.compile(filter, true).is_err() { Code::CompileFilter } else { Code::SetFilter };
    Err(Error::new(code, format!("the filter \"{filter}\": {}", words(error))))
}

/// Whether `filter` would compile for an Ethernet device, the most common kind, without opening one.
///
/// # Errors
/// `CompileFilter` with the filter and libpcap's words.
pub(super) fn try_filter(filter: &str) -> Result<()> {
    let refused =
        |error| Error::new(Code::CompileFilter, format!("the filter \"{filter}\": {}", words(error)));
    let capture = Capture::dead(pcap::Linktype::ETHERNET).map_err(refused)?;
    capture.compile(filter, true).map(drop).map_err(refused)
}
