//! Notices of TCP connections that have ended, with their byte counts: the destroy groups of sock_diag(7).

use super::inet_diag::{BY_FAMILY, INFO, InetSocket, REPLY, parse as parse_socket};
use super::message::attributes;
use super::socket::Socket;
use super::tcp_info::TcpInfo;
use crate::model::Protocol;
use std::os::fd::{AsFd, BorrowedFd};

/// `SKNLGRP_INET_TCP_DESTROY` and `SKNLGRP_INET6_TCP_DESTROY` of linux/sock_diag.h: groups 1 and 3.
const GROUPS: u32 = 0b0101;
/// `INET_DIAG_PROTOCOL` of linux/inet_diag.h.
const PROTOCOL: u16 = 10;
/// The size of the buffer in bytes. No notice is longer.
const BUFFER: usize = 4 << 10;

/// Receives notices of the TCP sockets of one network namespace that have ended.
#[derive(Debug)]
pub struct CloseNotices {
    socket: Socket,
    buffer: Vec<u8>,
    /// The kernel's count of dropped notices so far.
    dropped: u32,
}

impl CloseNotices {
    /// Begins to listen in the network namespace of the calling thread, without blocking. Afterwards any
    /// thread may read. With CAP_NET_ADMIN the socket has more room for notices that wait to be read.
    ///
    /// # Errors
    /// Fails with the system's error; with `EPERM` if the kernel requires CAP_NET_ADMIN for it.
    pub fn open() -> nix::Result<CloseNotices> {
        let socket = Socket::for_notices(libc::NETLINK_SOCK_DIAG, GROUPS)?;
        Ok(CloseNotices { socket, buffer: vec![0; BUFFER], dropped: 0 })
    }

    /// Delivers the available notices, without blocking; the descriptor stays readable while there are more.
    /// Returns the number of notices that the kernel has dropped for lack of room since the last call.
    ///
    /// The kernel no longer reports inode and user: both are 0. The cookie is the same as in the socket's
    /// life. A socket that becomes a TIME_WAIT row ends then, and the kernel does not report the end of the
    /// row. It also reports sockets that listened.
    ///
    /// # Errors
    /// Fails with the system's error for the socket.
    pub fn read(&mut self, mut each: impl FnMut(&InetSocket, &TcpInfo)) -> nix::Result<u32> {
        self.socket.notices(&mut self.buffer, |message| {
            if message.kind == BY_FAMILY
                && let Some((socket, totals)) = parse(message.payload)
            {
                each(&socket, &totals);
            }
        })?;
        let dropped = self.socket.dropped()?;
        let new = dropped.wrapping_sub(self.dropped);
        self.dropped = dropped;
        Ok(new)
    }
}

impl AsFd for CloseNotices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Parses a notice: a `struct inet_diag_msg` with the protocol and the byte counts among its attributes.
fn parse(payload: &[u8]) -> Option<(InetSocket, TcpInfo)> {
    let socket = parse_socket(payload)?;
    let (mut is_tcp, mut totals) = (false, None);
    for (kind, value) in attributes(payload.get(REPLY..)?) {
        match kind {
            PROTOCOL => is_tcp = value.first() == Some(&Protocol::TCP.0),
            INFO => totals = TcpInfo::parse(value),
            _ => {}
        }
    }
    Some((socket, totals.filter(|_| is_tcp)?))
}

#[cfg(test)]
#[path = "close_notices_tests.rs"]
mod tests;
