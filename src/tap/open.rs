//! Opening what frames come from: packet sockets on devices, and savefiles with libpcap.
//!
//! Live, libpcap would do almost the same and is passed by for what it does besides: it does not tell which way a frame went,
//! gives some devices a link header of its own making, and takes the names of others (`any`, `nflog`, `usbmon1`) for
//! sources of its own. A savefile's handle, once open, is the `pcap` crate's, whose own way of opening leaks the stream of
//! one that does not open.

use super::filter::Filter;
use super::frames::words;
use super::options::TapOptions;
use super::pcapng;
use super::plan::{Frames, Interface};
use super::ring::{Ring, set_option};
use super::route::Route;
use crate::error::{Code, Error, Result};
use crate::model::LinkType;
use crate::netlink::attach_filter;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use pcap::{Activated, Capture, Offline};
use std::ffi::{CStr, c_char, c_uint, c_void};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd};
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

/// Why a device did not open.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// It is not up, or gone by now: it can be opened when it is up.
    Down,
    /// Anything else.
    Failed(Error),
}

fn text_of(buffer: &[u8; ERROR_TEXT]) -> String {
    CStr::from_bytes_until_nul(buffer).unwrap_or_default().to_string_lossy().into_owned()
}

/// Opens an interface of the calling thread's network namespace, for a ring of `buffer` bytes. Of what it shows, `program`
/// decides. Returns also what the device had carried by then.
pub(super) fn live(
    interface: &Interface,
    buffer: u32,
    options: &TapOptions,
    program: &[libc::sock_filter],
) -> std::result::Result<(Ring, u64), Refusal> {
    let failed = |tried: &'static str| {
        move |errno: Errno| match errno {
            Errno::ENETDOWN | Errno::ENODEV => Refusal::Down,
            errno => Refusal::Failed(Error::system(Code::OpenDevice, tried, errno)),
        }
    };
    let is_ethernet = match interface.frames {
        Frames::Ethernet => true,
        Frames::Datagrams | Frames::Ppp => false,
        Frames::Others(hardware) => {
            let text = format!("frames of the hardware type {hardware} (linux/if_arp.h) are not decoded");
            return Err(Refusal::Failed(Error::new(Code::OpenDevice, text)));
        }
    };
    // Where there is no link header that is decoded, the kernel is to leave out any.
    let kind = if is_ethernet { SockType::Raw } else { SockType::Datagram };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    // Without a protocol it receives nothing until it is bound, by when it has its filter and ring.
    let socket = socket(AddressFamily::Packet, kind, flags, None).map_err(failed("a packet socket"))?;
    attach_filter(socket.as_fd(), program).map_err(failed("its filter"))?;
    if interface.loopback {
        // Linux 4.20 and later; before, what was sent takes up half of the ring.
        let _ = set_option(&socket, libc::PACKET_IGNORE_OUTGOING, &1i32);
    }
    if options.promiscuous {
        let index = interface.index.cast_signed();
        let member = libc::packet_mreq {
            mr_ifindex: index,
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        set_option(&socket, libc::PACKET_ADD_MEMBERSHIP, &member).map_err(failed("promiscuous mode"))?;
    }
    let ring = Ring::new(socket, buffer, options.timeout, is_ethernet).map_err(failed("its ring"))?;
    // Where that cannot be told nothing is missing as far as is known.
    let carried = Route::open().ok().and_then(|mut route| route.interface(interface.index).ok().flatten());
    let carried = carried.map_or(0, |interface| interface.carried);
    bind_to(ring.as_fd(), interface.index).map_err(failed("a packet socket"))?;
    match ring.take_error() {
        None => Ok((ring, carried)),
        Some(errno) => Err(failed("a packet socket")(errno)),
    }
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

/// Has a packet socket receive everything of an interface, 0 for all.
pub(super) fn bind_to(socket: BorrowedFd<'_>, index: u32) -> nix::Result<()> {
    // SAFETY: an all-zero address is a valid one of this plain structure.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index.cast_signed();
    // SAFETY: the address is of the given length and lives through the call (packet(7)).
    let status = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    Errno::result(status).map(drop)
}
