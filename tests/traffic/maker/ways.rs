//! Ways of using TCP sockets that differ from the usual one by an option or a flag: peeking, Fast
//! Open, Multipath TCP.

use super::exchange::{Way, family};
use nix::sys::socket::{MsgFlags, SockFlag, SockType, SockaddrStorage, connect, recv, sendto, socket};
use std::io::{Error, Result};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `MPTCP_INFO` of <linux/mptcp.h> at the level `SOL_MPTCP`, and the flag of a fallback to TCP.
const MPTCP_LEVEL: i32 = 284;
const MPTCP_INFO: i32 = 1;
const MPTCP_FELL_BACK: u32 = 1;

/// Offset of `mptcpi_flags` in `struct mptcp_info`: after eight one-byte numbers.
const MPTCP_FLAGS_AT: usize = 8;

/// `TCPI_OPT_SYN_DATA` of <linux/tcp.h>: the SYN was acknowledged with its data. The options are the sixth
/// byte of `struct tcp_info`.
const SYN_DATA: u8 = 32;
const TCP_OPTIONS_AT: usize = 5;

/// Peeks at all data before it receives it.
pub struct Peeking;

impl Way for Peeking {
    fn receive(&mut self, socket: &OwnedFd, buffer: &mut [u8]) -> Result<usize> {
        let seen = recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_PEEK)?;
        // A stream may have more data by now.
        Ok(recv(socket.as_raw_fd(), &mut buffer[..seen], MsgFlags::empty())?)
    }
}

/// Sends the beginning of the request with the SYN.
#[derive(Default)]
pub struct FastOpen {
    /// Set after a first connection, which has delivered the cookie.
    has_cookie: bool,
}

impl Way for FastOpen {
    fn open(&mut self, address: SocketAddr, request: &[u8]) -> Result<OwnedFd> {
        let opened = socket(family(address), SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let target = SockaddrStorage::from(address);
        let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN) | MsgFlags::MSG_NOSIGNAL;
        let count = sendto(opened.as_raw_fd(), request, &target, flags)?;
        self.send_all(&opened, &request[count..])?;
        Ok(opened)
    }

    fn is_so(&mut self, socket: &OwnedFd) -> bool {
        let had_cookie = std::mem::replace(&mut self.has_cookie, true);
        let options = option_bytes::<8>(socket, libc::IPPROTO_TCP, libc::TCP_INFO);
        !had_cookie || options.is_ok_and(|bytes| bytes[TCP_OPTIONS_AT] & SYN_DATA != 0)
    }
}

/// Connections of Multipath TCP (RFC 8684).
pub struct Multipath;

impl Way for Multipath {
    fn open(&mut self, address: SocketAddr, request: &[u8]) -> Result<OwnedFd> {
        let opened = multipath_socket(address, 0)?;
        connect(opened.as_raw_fd(), &SockaddrStorage::from(address))?;
        self.send_all(&opened, request)?;
        Ok(opened)
    }

    fn is_so(&mut self, socket: &OwnedFd) -> bool {
        let info = option_bytes::<16>(socket, MPTCP_LEVEL, MPTCP_INFO);
        info.is_ok_and(|bytes| bytes[MPTCP_FLAGS_AT] & MPTCP_FELL_BACK as u8 == 0)
    }
}

/// Returns a Multipath TCP socket, which the wrapper of socket(2) does not support.
pub fn multipath_socket(address: SocketAddr, flags: i32) -> Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | flags;
    // SAFETY: the call takes no pointers.
    let descriptor = unsafe { libc::socket(family(address) as i32, kind, libc::IPPROTO_MPTCP) };
    if descriptor < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the call has just returned the descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Lets a listener accept data with the SYN, for at most 1024 connections that are not yet established.
pub fn allow_fast_open(listener: &OwnedFd) -> Result<()> {
    let waiting: libc::c_int = 1024;
    let length = size_of_val(&waiting) as libc::socklen_t;
    let (level, option) = (libc::IPPROTO_TCP, libc::TCP_FASTOPEN);
    // SAFETY: the pointer is to a number of this length, which the call only reads.
    let status =
        unsafe { libc::setsockopt(listener.as_raw_fd(), level, option, (&raw const waiting).cast(), length) };
    if status == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

/// Returns the first bytes of a socket option.
fn option_bytes<const COUNT: usize>(socket: &OwnedFd, level: i32, option: i32) -> Result<[u8; COUNT]> {
    let mut bytes = [0; COUNT];
    let mut length = COUNT as libc::socklen_t;
    // SAFETY: the pointers are to the bytes and to their number, and the call writes at most that many.
    let status = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, bytes.as_mut_ptr().cast(), &mut length)
    };
    if status == 0 { Ok(bytes) } else { Err(Error::last_os_error()) }
}
