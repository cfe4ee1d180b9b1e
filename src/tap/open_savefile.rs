//! Opening of savefiles with libpcap, and filters on them.
//!
//! An open savefile's handle belongs to the `pcap` crate. The crate's own function for opening leaks the
//! stream of a file that fails to open.

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

/// Declarations as in `pcap/pcap.h`. The `pcap` crate links the library.
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

/// Opens a pcap or pcapng savefile. It must be a regular file, because a read of a pipe or terminal could
/// block for ever.
///
/// # Errors
/// Fails with `Savefile`, the path and the text of the system or of libpcap if the file does not open.
pub(super) fn savefile(path: &Path) -> Result<Savefile> {
    let refused = |why: &dyn std::fmt::Display| {
        Error::new(Code::Savefile, format!("opening the savefile {}: {why}", path.display()))
    };
    // O_NONBLOCK keeps the open itself from waiting for the other end of a pipe.
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| refused(&error))?;
    if !file.metadata().map_err(|error| refused(&error))?.is_file() {
        return Err(refused(&"it is not a regular file"));
    }
    let mut magic = [0; pcapng::MAGIC.len()];
    // A shorter file goes to libpcap, which reports that it is truncated.
    let is_pcapng = file.read_exact(&mut magic).is_ok() && magic == pcapng::MAGIC;
    file.rewind().map_err(|error| refused(&error))?;
    if is_pcapng {
        return Ok(Savefile::Pcapng(file));
    }
    // SAFETY: the descriptor is open for reading and the mode agrees. On success the stream owns it, on
    // failure `file` still does.
    let stream = unsafe { libc::fdopen(file.as_raw_fd(), c"rb".as_ptr()) };
    if stream.is_null() {
        return Err(refused(&Errno::last()));
    }
    let _owned_by_the_stream = file.into_raw_fd();
    let mut text = [0u8; ERROR_TEXT];
    // SAFETY: the stream is open, and `text` has the size that pcap_open_offline(3PCAP) requires. On success
    // the handle owns the stream, which pcap_close closes; on failure this function still owns the stream.
    let handle = unsafe {
        let precision = PCAP_TSTAMP_PRECISION_NANO.into();
        ffi::pcap_fopen_offline_with_tstamp_precision(stream, precision, text.as_mut_ptr().cast())
    };
    match NonNull::new(handle) {
        Some(handle) => Ok(Savefile::Pcap(Capture::<Offline>::from(handle.cast()))),
        None => {
            // SAFETY: the stream is open and this function still owns it, as stated above. It is not used
            // afterwards.
            unsafe { libc::fclose(stream) };
            Err(refused(&text_of(&text)))
        }
    }
}

/// Compiles `filter` for the handle's link type and sets it.
///
/// # Errors
/// Fails with `CompileFilter` or `SetFilter`, the filter and libpcap's text if libpcap rejects the filter.
pub(super) fn set_filter<T: Activated>(capture: &mut Capture<T>, filter: &str) -> Result<()> {
    let Err(error) = capture.filter(filter, true) else { return Ok(()) };
    let code = if capture.compile(filter, true).is_err() { Code::CompileFilter } else { Code::SetFilter };
    Err(Error::new(code, format!("the filter \"{filter}\": {}", words(error))))
}

/// Compiles `filter` for an Ethernet device, the most common kind, without opening a device.
///
/// # Errors
/// Fails with `CompileFilter`, the filter and libpcap's text if the filter does not compile.
pub(super) fn try_filter(filter: &str) -> Result<()> {
    Filter::compile(filter, LinkType::Ethernet).map(drop)
}
