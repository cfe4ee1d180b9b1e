//! A netlink socket. It belongs permanently to the network namespace of the thread that opened it.

use super::message::{Message, messages};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, NetlinkAddr, bind, recv, recvfrom, sendto, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Bytes of notices that may wait: those of a burst of some thousands.
const NOTICE_BUFFER: usize = 4 << 20;
/// The maximum number of notices delivered in one call, so that the reader can do other work in between.
const MOST: usize = 4096;

/// A netlink socket for requests or for notices.
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

impl Socket {
    /// Opens a socket for requests to one of the `NETLINK_` protocols. The kernel replies at once. If it ever
    /// does not, receiving fails with `EAGAIN` after a second, so that the caller does not hang.
    pub fn for_questions(protocol: i32) -> nix::Result<Socket> {
        let socket = Socket::open(protocol, 0)?;
        setsockopt(&socket.0, sockopt::ReceiveTimeout, &TimeVal::seconds(1))?;
        Ok(socket)
    }

    /// Opens a socket that never blocks, for the notices of `groups` (bits as in `sockaddr_nl`).
    pub fn for_notices(protocol: i32, groups: u32) -> nix::Result<Socket> {
        let socket = Socket::open(protocol, libc::SOCK_NONBLOCK)?;
        if setsockopt(&socket.0, sockopt::RcvBufForce, &NOTICE_BUFFER).is_err() {
            // Without CAP_NET_ADMIN the system's limit applies, which suffices.
            let _ = setsockopt(&socket.0, sockopt::RcvBuf, &NOTICE_BUFFER);
        }
        bind(socket.0.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(socket)
    }

    fn open(protocol: i32, flags: i32) -> nix::Result<Socket> {
        // SAFETY: the call takes numbers only; nothing else owns the descriptor that it returns.
        unsafe {
            let socket =
                libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC | flags, protocol);
            Errno::result(socket).map(|socket| Socket(OwnedFd::from_raw_fd(socket)))
        }
    }

    /// Sets `NETLINK_GET_STRICT_CHK` (netlink(7)).
    pub fn be_strict(&self) -> nix::Result<()> {
        let on: libc::c_int = 1;
        // SAFETY: the kernel reads no more than the given length, which is that of the number.
        let status = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_NETLINK,
                libc::NETLINK_GET_STRICT_CHK,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        Errno::result(status).map(drop)
    }

    /// Sends a message to the kernel.
    pub fn send(&self, message: &[u8]) -> nix::Result<()> {
        sendto(self.0.as_raw_fd(), message, &NetlinkAddr::new(0, 0), MsgFlags::empty()).map(drop)
    }

    /// Receives one datagram of the kernel.
    ///
    /// # Errors
    /// Fails with the error of recvfrom(2); with `ENOBUFS` if notices were lost.
    pub fn receive<'b>(&self, buffer: &'b mut [u8]) -> nix::Result<&'b [u8]> {
        loop {
            let (count, sender) = match recvfrom::<NetlinkAddr>(self.0.as_raw_fd(), buffer) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            // Any process may send to a netlink socket; only the kernel has number 0.
            if sender.is_some_and(|sender| sender.pid() == 0) {
                return Ok(buffer.get(..count).unwrap_or_default());
            }
        }
    }

    /// Reads and discards all waiting datagrams. For a list that is the entire rest, because each read makes
    /// the kernel continue the list.
    ///
    /// # Errors
    /// Fails with the error of recv(2).
    pub fn drain(&self, buffer: &mut [u8]) -> nix::Result<()> {
        loop {
            match recv(self.0.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Delivers the available notices, in order, without blocking; the socket stays readable while there are
    /// more. `buffer` has room for the longest. Returns true if the kernel had to drop some for lack of room.
    ///
    /// # Errors
    /// Fails with the error of recvfrom(2).
    pub fn notices(&self, buffer: &mut [u8], mut each: impl FnMut(Message<'_>)) -> nix::Result<bool> {
        let mut lost = false;
        for _ in 0..MOST {
            match self.receive(buffer) {
                Ok(datagram) => messages(datagram).flatten().for_each(&mut each),
                Err(Errno::EAGAIN) => break,
                Err(Errno::ENOBUFS) => lost = true,
                Err(errno) => return Err(errno),
            }
        }
        Ok(lost)
    }

    /// Returns the number of notices that the kernel has dropped for lack of room, modulo 2^32.
    ///
    /// # Errors
    /// Fails with the error of getsockopt(2).
    pub fn dropped(&self) -> nix::Result<u32> {
        const DROPS: usize = libc::SK_MEMINFO_DROPS as usize;
        let mut figures = [0u32; DROPS + 1];
        let mut length = size_of_val(&figures) as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes, which is the size of the array, and the length
        // written.
        let status = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                figures.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        Errno::result(status).map(|_| figures[DROPS])
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Attaches a classic BPF filter to a socket, which decides what the socket receives (socket(7),
/// `SO_ATTACH_FILTER`).
pub(crate) fn attach_filter(socket: BorrowedFd<'_>, program: &[libc::sock_filter]) -> nix::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the option takes a sock_fprog. It and the instructions that it points to, which are only read,
    // live throughout the call, in which the kernel copies them.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    Errno::result(status).map(drop)
}
