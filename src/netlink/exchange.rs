//! Requests to the kernel and its replies, one request at a time.

use super::message::{Message, begin, errno_of, messages, u32_at};
use super::socket::Socket;
use nix::errno::Errno;

/// A socket for requests. It belongs to the network namespace of the thread that opened it, and any thread
/// may use it.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(super) socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Exchange {
    /// Opens a socket for one of the `NETLINK_` protocols, with a buffer of `room` bytes for a datagram of
    /// replies.
    ///
    /// # Errors
    /// Fails with the error of socket(2).
    pub fn open(protocol: i32, room: usize) -> nix::Result<Exchange> {
        let socket = Socket::for_questions(protocol)?;
        Ok(Exchange { socket, sequence: 0, buffer: vec![0; room] })
    }

    /// Writes the header of `question`, whose length is that of the message, sends it, and hands the kernel's
    /// messages to `take` until one gives the answer. The inner error is the kernel's refusal.
    ///
    /// # Errors
    /// Fails with the error of sending or receiving; with `EBADMSG` if a reply is no valid message.
    pub fn ask<R>(
        &mut self,
        question: &mut [u8],
        kind: u16,
        flags: i32,
        mut take: impl FnMut(&Message<'_>) -> Option<nix::Result<R>>,
    ) -> nix::Result<nix::Result<R>> {
        self.sequence = self.sequence.wrapping_add(1);
        begin(question, kind, flags, self.sequence);
        self.socket.send(question)?;
        loop {
            // The whole buffer is needed, because the next datagram may be the rest of a list that was not
            // read to its end.
            for message in messages(self.socket.receive(&mut self.buffer)?) {
                let message = message?;
                // The reply to an earlier request may arrive late.
                if message.sequence != self.sequence {
                    continue;
                }
                if i32::from(message.kind) == libc::NLMSG_ERROR {
                    return Ok(Err(u32_at(message.payload, 0).map_or(Errno::EBADMSG, errno_of)));
                }
                if let Some(answer) = take(&message) {
                    return Ok(answer);
                }
            }
        }
    }

    /// Requests a list and hands the payload of each of its rows to `row`. Returns true if the list is
    /// consistent: nothing changed while it was read.
    ///
    /// # Errors
    /// Fails with the kernel's error for the request or for the end of the list, or with that of sending or
    /// receiving.
    pub fn list(&mut self, question: &mut [u8], kind: u16, mut row: impl FnMut(&[u8])) -> nix::Result<bool> {
        let mut is_consistent = true;
        self.ask(question, kind, libc::NLM_F_REQUEST | libc::NLM_F_DUMP, |message| {
            is_consistent &= i32::from(message.flags) & libc::NLM_F_DUMP_INTR == 0;
            if i32::from(message.kind) == libc::NLMSG_DONE {
                // It may contain an error number, as a negative value, 0 or none.
                let error = u32_at(message.payload, 0).filter(|error| *error != 0);
                return Some(error.map_or(Ok(()), |error| Err(errno_of(error))));
            }
            row(message.payload);
            None
        })??;
        Ok(is_consistent)
    }

    /// Makes the kernel apply the filters of a list request, and reject what it does not know (Linux 4.20).
    ///
    /// # Errors
    /// Fails with `ENOPROTOOPT` on older kernels.
    pub fn be_strict(&self) -> nix::Result<()> {
        self.socket.be_strict()
    }

    /// Reads and discards the rest of a list.
    ///
    /// # Errors
    /// Fails with the error of recv(2).
    pub fn drain(&mut self) -> nix::Result<()> {
        self.socket.drain(&mut self.buffer)
    }
}
