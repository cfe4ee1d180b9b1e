//! The first packets of flows without delay: a packet socket without a ring, which wakes its reader for every
//! packet that the `filter` passes.
//!
//! The main capture delivers batches, which are too late for a connection that lives for a millisecond. This
//! socket sees the same packets when they are sent or arrive, but only those that begin a flow.

use super::filter::{Choice, MAX_PORTS, SNAPLEN, program};
use crate::error::{Code, Error, Result};
use crate::model::{Direction, Timestamp};
use crate::netlink::attach_filter;
use crate::tap::live::bind_to;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Bytes of packets that may wait, as the kernel counts them, about 800 for each. A packet that finds no room
/// is missed here but not by the capture.
const BUFFER: usize = 4 << 20;

/// A packet socket for first packets. It belongs to the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct FirstPacketSocket {
    socket: OwnedFd,
    choice: Choice,
    buffer: [u8; SNAPLEN as usize],
}

/// A packet that may begin a flow.
#[derive(Clone, Copy, Debug)]
pub struct FirstPacket<'a> {
    /// The packet from its IP header on, truncated.
    pub data: &'a [u8],
    /// The index of the device that it passed.
    pub device: u32,
    /// Its direction; `None` on loopback, where it goes in both.
    pub direction: Option<Direction>,
    /// The kernel's time stamp of the packet, which is the same for this socket and for the capture.
    pub time: Timestamp,
}

impl FirstPacketSocket {
    /// Opens the socket on all devices of the calling thread's network namespace. Needs CAP_NET_RAW.
    ///
    /// # Errors
    /// Fails with `OpenDevice` if the system refuses it.
    pub fn open() -> Result<FirstPacketSocket> {
        let refused = |errno| Error::system(Code::OpenDevice, "opening a socket for first packets", errno);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // Without a protocol the socket receives nothing until it is bound, and by then it has its filter.
        let socket = socket(AddressFamily::Packet, SockType::Datagram, flags, None).map_err(refused)?;
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
            // Without CAP_NET_ADMIN the system's limit applies, which suffices.
            let _ = setsockopt(&socket, sockopt::RcvBuf, &BUFFER);
        }
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true).map_err(refused)?;
        let choice = Choice { ports: Vec::new(), openings: u32::MAX, datagrams: u32::MAX };
        attach_filter(socket.as_fd(), &program(&choice)).map_err(refused)?;
        bind_to(socket.as_fd(), 0).map_err(refused)?;
        Ok(FirstPacketSocket { socket, choice, buffer: [0; SNAPLEN as usize] })
    }

    /// Delivers the available packets, at most `limit`, without blocking. Returns their number.
    ///
    /// # Errors
    /// Fails with the system's error for the socket. `ENETDOWN`, which the end of one device causes, is not
    /// reported.
    pub fn read(&mut self, limit: usize, mut each: impl FnMut(FirstPacket<'_>)) -> nix::Result<usize> {
        for count in 0..limit {
            // SAFETY: all-zero values are valid for these plain structures.
            let (mut from, mut message): (libc::sockaddr_ll, libc::msghdr) = unsafe { std::mem::zeroed() };
            let mut data =
                libc::iovec { iov_base: self.buffer.as_mut_ptr().cast(), iov_len: self.buffer.len() };
            let mut control = [0_u64; 8];
            message.msg_name = (&raw mut from).cast();
            message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            message.msg_iov = &raw mut data;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&control) as _;
            // SAFETY: the kernel writes at most the given lengths to the buffer, the address and the control
            // data, all exclusively borrowed during the call; the descriptor is open and belongs to this
            // socket.
            let received = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, 0) };
            let received = match Errno::result(received) {
                Ok(received) => usize::try_from(received).unwrap_or(0),
                Err(Errno::EAGAIN) => return Ok(count),
                Err(Errno::EINTR | Errno::ENETDOWN) => continue,
                Err(errno) => return Err(errno),
            };
            let direction = match from.sll_pkttype {
                _ if from.sll_hatype == libc::ARPHRD_LOOPBACK => None,
                libc::PACKET_OUTGOING => Some(Direction::Send),
                _ => Some(Direction::Receive),
            };
            let device = u32::try_from(from.sll_ifindex).unwrap_or(0);
            // SAFETY: the kernel has just filled in the message and its control data, which is still live.
            let time = unsafe { stamp(&message) }.unwrap_or_else(Timestamp::now);
            let data = self.buffer.get(..received).unwrap_or_default();
            each(FirstPacket { data, device, direction, time });
        }
        Ok(limit)
    }

    /// Changes the selection of packets.
    ///
    /// # Errors
    /// Fails with the system's error for the filter; the old filter then stays in place.
    pub fn thin(&mut self, thinning: &SamplingRate) -> nix::Result<()> {
        let of_all = |share: f64| (share.clamp(0.0, 1.0) * f64::from(u32::MAX)) as u32;
        let choice = Choice {
            ports: thinning.ports.iter().copied().take(SamplingRate::MAX_PORTS).collect(),
            openings: of_all(thinning.openings),
            datagrams: of_all(thinning.datagrams),
        };
        if choice != self.choice {
            attach_filter(self.socket.as_fd(), &program(&choice))?;
            self.choice = choice;
        }
        Ok(())
    }
}

/// Returns the time stamp in a message's control data.
///
/// # Safety
/// The control data must be as the kernel left it.
unsafe fn stamp(message: &libc::msghdr) -> Option<Timestamp> {
    // SAFETY: by the caller's promise the first header is null or within the control data.
    let header = unsafe { libc::CMSG_FIRSTHDR(message).as_ref()? };
    if (header.cmsg_level, header.cmsg_type) != (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) {
        return None;
    }
    // SAFETY: a header of this type is followed by a `timespec`.
    let time = unsafe { libc::CMSG_DATA(header).cast::<libc::timespec>().read_unaligned() };
    let nanoseconds = u64::try_from(time.tv_nsec).ok()?;
    Some(Timestamp(u64::try_from(time.tv_sec).ok()?.saturating_mul(1_000_000_000) + nanoseconds))
}

/// The limits on the first packets that are delivered, so that they are not too many.
#[derive(Clone, PartialEq, Debug)]
pub struct SamplingRate {
    /// Local UDP ports whose packets are excluded, at most [`SamplingRate::MAX_PORTS`].
    pub ports: Vec<u16>,
    /// The share of TCP's opening packets that is delivered, 0 to 1, chosen at random.
    pub openings: f64,
    /// The share of the other datagrams that is delivered, 0 to 1, chosen at random.
    pub datagrams: f64,
}

impl SamplingRate {
    /// The maximum number of ports that can be excluded.
    pub const MAX_PORTS: usize = MAX_PORTS;
}

impl Default for SamplingRate {
    fn default() -> SamplingRate {
        SamplingRate { ports: Vec::new(), openings: 1.0, datagrams: 1.0 }
    }
}

impl AsFd for FirstPacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
#[path = "socket_tests.rs"]
mod tests;
