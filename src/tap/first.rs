//! The first packets of flows, at once: a packet socket without a ring, which wakes its reader for every packet that
//! the `first_filter` passes.
//!
//! The capture proper hands over batches, too late for a connection that lives for a millisecond. This socket sees the
//! same packets when they are sent or arrive, but only those that begin something.

use super::first_filter::{Choice, MOST_PORTS, SNAPLEN, program};
use super::open::bind_to;
use crate::error::{Code, Error, Result};
use crate::model::Direction;
use crate::netlink::attach_filter;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Bytes of packets that may wait, as the kernel counts them, about 800 for each. What finds no room is missed here and
/// not by the capture.
const BUFFER: usize = 4 << 20;

/// A packet socket for first packets. It belongs to the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct FirstPackets {
    socket: OwnedFd,
    choice: Choice,
    buffer: [u8; SNAPLEN as usize],
}

/// A packet that may begin a flow.
#[derive(Clone, Copy, Debug)]
pub struct FirstPacket<'a> {
    /// The packet from its IP header on, cut short.
    pub data: &'a [u8],
    /// The index of the device that it passed.
    pub device: u32,
    /// Which way it went; `None` on loopback, where it goes both.
    pub direction: Option<Direction>,
}

impl FirstPackets {
    /// Opens the socket on all devices of the calling thread's network namespace. Needs CAP_NET_RAW.
    ///
    /// # Errors
    /// `OpenDevice` when the system refuses it.
    pub fn open() -> Result<FirstPackets> {
        let refused = |errno| Error::system(Code::OpenDevice, "opening a socket for first packets", errno);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // Without a protocol it receives nothing until it is bound, by when it has its filter.
        let socket = socket(AddressFamily::Packet, SockType::Datagram, flags, None).map_err(refused)?;
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
            // Without CAP_NET_ADMIN the system's limit holds, which will do.
            let _ = setsockopt(&socket, sockopt::RcvBuf, &BUFFER);
        }
        let choice = Choice { ports: Vec::new(), openings: u32::MAX, datagrams: u32::MAX };
        attach_filter(socket.as_fd(), &program(&choice)).map_err(refused)?;
        bind_to(socket.as_fd(), 0).map_err(refused)?;
        Ok(FirstPackets { socket, choice, buffer: [0; SNAPLEN as usize] })
    }

    /// Hands on what is there, at most `limit` packets, without blocking. Returns how many.
    ///
    /// # Errors
    /// What the system says of the socket; `ENETDOWN` of one device's end is none.
    pub fn read(&mut self, limit: usize, mut each: impl FnMut(FirstPacket<'_>)) -> nix::Result<usize> {
        for count in 0..limit {
            // SAFETY: an all-zero address is a valid one of this plain structure.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            // SAFETY: the kernel writes at most the given lengths to the buffer and the address, both exclusively
            // borrowed for the length of the call; the descriptor is ours and open.
            let received = unsafe {
                libc::recvfrom(
                    self.socket.as_raw_fd(),
                    self.buffer.as_mut_ptr().cast(),
                    self.buffer.len(),
                    0,
                    (&raw mut from).cast(),
                    &raw mut length,
                )
            };
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
            let data = self.buffer.get(..received).unwrap_or_default();
            each(FirstPacket { data, device, direction });
        }
        Ok(limit)
    }

    /// Changes what is seen.
    ///
    /// # Errors
    /// What the system says of the filter; the old one stays then.
    pub fn thin(&mut self, thinning: &Thinning) -> nix::Result<()> {
        let of_all = |share: f64| (share.clamp(0.0, 1.0) * f64::from(u32::MAX)) as u32;
        let choice = Choice {
            ports: thinning.ports.iter().copied().take(Thinning::MOST_PORTS).collect(),
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

/// What is not seen of first packets, so that they are not too many.
#[derive(Clone, PartialEq, Debug)]
pub struct Thinning {
    /// Local UDP ports whose packets are left out, at most [`Thinning::MOST_PORTS`].
    pub ports: Vec<u16>,
    /// The share of TCP's opening packets that is seen, 0 to 1, chosen at random.
    pub openings: f64,
    /// The share of the other datagrams that is seen, likewise.
    pub datagrams: f64,
}

impl Thinning {
    /// Most ports that can be left out.
    pub const MOST_PORTS: usize = MOST_PORTS;
}

impl Default for Thinning {
    fn default() -> Thinning {
        Thinning { ports: Vec::new(), openings: 1.0, datagrams: 1.0 }
    }
}

impl AsFd for FirstPackets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
#[path = "first_tests.rs"]
mod tests;
