//! Packet sockets on devices, with their ring.
//!
//! libpcap would do almost the same. It is not used because it does not report the direction of a frame,
//! gives some devices a link header of its own, and takes the names of others (`any`, `nflog`, `usbmon1`) for
//! sources of its own.

use super::ring::{Ring, set_option};
use crate::error::{Code, Error};
use crate::netlink::{FrameKind, Interface, Rtnetlink, attach_filter};
use crate::tap::options::TapOptions;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// The reason why a device did not open.
#[derive(PartialEq, Eq, Debug)]
pub(in crate::tap) enum Refusal {
    /// It is down or has disappeared: it can be opened when it is up.
    Down,
    /// Any other reason.
    Failed(Error),
}

/// Opens an interface of the calling thread's network namespace, with a ring of `buffer` bytes. The filter
/// `program` selects its frames. Returns also the bytes that the device had carried by then.
///
/// # Errors
/// Fails with `Down` if the device is down or has disappeared, and with `Failed` (code `OpenDevice`)
/// otherwise.
pub(in crate::tap) fn open(
    interface: &Interface,
    buffer: u32,
    options: &TapOptions,
    program: &[libc::sock_filter],
) -> Result<(Ring, u64), Refusal> {
    let failed = |tried: &'static str| {
        move |errno: Errno| match errno {
            Errno::ENETDOWN | Errno::ENODEV => Refusal::Down,
            errno => Refusal::Failed(Error::system(Code::OpenDevice, tried, errno)),
        }
    };
    let is_ethernet = match interface.frames {
        FrameKind::Ethernet => true,
        FrameKind::Datagrams | FrameKind::Ppp => false,
        FrameKind::Others(hardware) => {
            let text = format!("frames of the hardware type {hardware} (linux/if_arp.h) are not decoded");
            return Err(Refusal::Failed(Error::new(Code::OpenDevice, text)));
        }
    };
    // If the link header is not decoded, the kernel must omit it.
    let kind = if is_ethernet { SockType::Raw } else { SockType::Datagram };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    // Without a protocol the socket receives nothing until it is bound, and by then it has its filter and
    // ring.
    let socket = socket(AddressFamily::Packet, kind, flags, None).map_err(failed("a packet socket"))?;
    attach_filter(socket.as_fd(), program).map_err(failed("its filter"))?;
    if interface.loopback {
        // Linux 4.20 and later. On older kernels, sent frames take up half of the ring.
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
    // If this cannot be determined, no bytes are counted as missing.
    let carried =
        Rtnetlink::open().ok().and_then(|mut route| route.interface(interface.index).ok().flatten());
    let carried = carried.map_or(0, |interface| interface.carried);
    bind_to(ring.as_fd(), interface.index).map_err(failed("a packet socket"))?;
    match ring.take_error() {
        None => Ok((ring, carried)),
        Some(errno) => Err(failed("a packet socket")(errno)),
    }
}

/// Makes a packet socket receive everything of an interface, or of all interfaces if `index` is 0.
pub(in crate::tap) fn bind_to(socket: BorrowedFd<'_>, index: u32) -> nix::Result<()> {
    // SAFETY: an all-zero address is valid for this plain structure.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index.cast_signed();
    // SAFETY: the address has the given length and lives throughout the call (packet(7)).
    let status = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    Errno::result(status).map(drop)
}
