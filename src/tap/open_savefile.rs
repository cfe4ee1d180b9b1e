//! Opening of savefiles with libpcap, and filters on them.
//!
//! A savefile's handle, once open, is the `pcap` crate's, whose own way of opening leaks the stream of one that does not open.

use super::filter::Filter;
use super::frames::words;
use super::pcapng;
use crate::error::{Code, Error, Result};
use crate::model::LinkType;
use nix::errno::Errno;
use pcap::{Activated, Capture, Offline};
use std::ffi::{CStr, c_char, c_uint, c_void};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;

/// Declared as in `pcap/pcap.h`; the `pcap` crate links the library.
mod ffi {
    use super::{c_char, c_uint, c_void};

    unsafe extern "C" {
        pub fn pcap_fopen_offline_with_tstamp_precision(
            file: *mut libc::FILE,
            precision: c_uint,
            errbuf: *mut c_char,
        ) -> *mut c_void;
    }
}

const PCAP_TSTAMP_PRECISION_NANO: u8 = 1;
/// `PCAP_ERRBUF_SIZE`.
const ERROR_TEXT: usize = 256;

fn text_of(buffer: &[u8; ERROR_TEXT]) -> String {
    CStr::from_bytes_until_nul(buffer).unwrap_or_default().to_string_lossy().into_owned()
}

/// A savefile by its format.
pub(super) enum Savefile {
    Pcap(Capture<Offline>),
    Pcapng(File),
}

/// Opens a pcap or pcapng savefile, which must be a regular file: reading a pipe or terminal could block for ever.
///
/// # Errors
/// `Savefile` with the path and what the system or libpcap says.
pub(super) fn savefile(path: &Path) -> Result<Savefile> {
    let refused = |why: &dyn std::fmt::Display| {
        Error::new(Code::Savefile, format!("opening the savefile {}: {why}", path.display()))
    };
    // O_NONBLOCK, lest the opening itself wait for the other end of a pipe.
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| refused(&error))?;
    if !file.metadata().map_err(|error| refused(&error))?.is_file() {
        return Err(refused(&"it is not a regular file"));
    }
    let mut magic = [0; pcapng::MAGIC.len()];
    // A shorter file is left to libpcap, which says that it is one.
    let is_pcapng = file.read_exact(&mut magic).is_ok() && magic == pcapng::MAGIC;
    file.rewind().map_err(|error| refused(&error))?;
    if is_pcapng {
        return Ok(Savefile::Pcapng(file));
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
        Some(handle) => Ok(Savefile::Pcap(Capture::<Offline>::from(handle.cast()))),
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
    Filter::compile(filter, LinkType::Ethernet).map(drop)
}
