//! Notices of sockets that have ended, with what TCP connections carried: the destroy groups of sock_diag(7).

use super::inet_diag::{BY_FAMILY, InetSocket, REPLY, parse as parse_socket};
use super::message::{attributes, u32_at, u64_at};
use super::socket::Socket;
use crate::model::Protocol;
use std::os::fd::{AsFd, BorrowedFd};

/// `SKNLGRP_INET_TCP_DESTROY`, `SKNLGRP_INET_UDP_DESTROY` and their IPv6 siblings of linux/sock_diag.h: groups 1 to 4.
const GROUPS: u32 = 0b1111;
/// `INET_DIAG_INFO` and `INET_DIAG_PROTOCOL` of linux/inet_diag.h.
const INFO: u16 = 2;
const PROTOCOL: u16 = 10;
/// No notice is longer.
const BUFFER: usize = 4 << 10;

/// What a TCP connection carried (`struct tcp_info` of linux/tcp.h). Bytes are those of the stream, without headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcpTotals {
    /// Bytes sent, those sent again included.
    pub sent_bytes: u64,
    /// Bytes sent again.
    pub retransmitted_bytes: u64,
    /// Bytes received in order; the peer's FIN counts as one more.
    pub received_bytes: u64,
    /// Segments sent, those without data included.
    pub sent_segments: u64,
    /// Segments received, those without data included.
    pub received_segments: u64,
}

impl TcpTotals {
    /// `None` where the kernel gives less than all of them (before Linux 4.19).
    fn parse(info: &[u8]) -> Option<TcpTotals> {
        Some(TcpTotals {
            sent_bytes: u64_at(info, 200)?,
            retransmitted_bytes: u64_at(info, 208)?,
            received_bytes: u64_at(info, 128)?,
            sent_segments: u32_at(info, 136)?.into(),
            received_segments: u32_at(info, 140)?.into(),
        })
    }
}

/// Notices of TCP and UDP sockets of one network namespace that have ended; UDP-Lite has none.
#[derive(Debug)]
pub struct Ended {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Ended {
    /// Begins to listen in the network namespace of the calling thread, without blocking. Any thread may read then.
    /// The room for notices that wait to be read is larger with CAP_NET_ADMIN.
    ///
    /// # Errors
    /// What the system says; `EPERM` where the kernel wants CAP_NET_ADMIN for it.
    pub fn open() -> nix::Result<Ended> {
        let socket = Socket::for_notices(libc::NETLINK_SOCK_DIAG, GROUPS)?;
        Ok(Ended { socket, buffer: vec![0; BUFFER] })
    }

    /// Hands on the notices that are there, without blocking; the descriptor stays readable while there are more.
    /// Returns whether the kernel had to drop some for want of room.
    ///
    /// The kernel tells neither inode nor user any more: both are 0. The cookie is what the socket always had. A socket
    /// that becomes a TIME_WAIT row ends then, and the row's end is not told. Totals come with TCP.
    ///
    /// # Errors
    /// What the system says of the socket.
    pub fn read(
        &mut self,
        mut each: impl FnMut(&InetSocket, Protocol, Option<TcpTotals>),
    ) -> nix::Result<bool> {
        self.socket.notices(&mut self.buffer, |message| {
            if message.kind == BY_FAMILY
                && let Some((socket, protocol, totals)) = parse(message.payload)
            {
                each(&socket, protocol, totals);
            }
        })
    }
}

impl AsFd for Ended {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A notice is a `struct inet_diag_msg` with the protocol among its attributes.
fn parse(payload: &[u8]) -> Option<(InetSocket, Protocol, Option<TcpTotals>)> {
    let socket = parse_socket(payload)?;
    let (mut protocol, mut totals) = (None, None);
    for (kind, value) in attributes(payload.get(REPLY..)?) {
        match kind {
            PROTOCOL => protocol = value.first().copied().map(Protocol),
            INFO => totals = TcpTotals::parse(value),
            _ => {}
        }
    }
    // Of what is announced only TCP has the latter.
    Some((socket, protocol?, totals))
}

#[cfg(test)]
#[path = "ended_tests.rs"]
mod tests;
