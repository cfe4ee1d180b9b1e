//! Questions to the kernel and its answers, one question at a time.

use super::message::{Message, begin, errno_of, messages, u32_at};
use super::socket::Socket;
use nix::errno::Errno;

/// A socket for questions. It belongs to the network namespace of the thread that opened it, and may be used from any.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Exchange {
    /// Opens a socket for one of the `NETLINK_` protocols, with so many bytes of room for a datagram of answers.
    ///
    /// # Errors
    /// What socket(2) says.
    pub fn open(protocol: i32, room: usize) -> nix::Result<Exchange> {
        let socket = Socket::for_questions(protocol)?;
        Ok(Exchange { socket, sequence: 0, buffer: vec![0; room] })
    }

    /// Writes the header of `question`, which is as long as the message is to be, sends it, and hands the kernel's messages
    /// to `take` until one gives the answer. The inner error is the kernel's refusal.
    ///
    /// # Errors
    /// What sending and receiving says; `EBADMSG` for what is no message.
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
            // The whole buffer, since what comes first may be the rest of a list that was not read to its end.
            for message in messages(self.socket.receive(&mut self.buffer)?) {
                let message = message?;
                // The answer to an earlier question may come late.
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

    /// Reads and forgets the rest of a list.
    ///
    /// # Errors
    /// What recv(2) says.
    pub fn drain(&mut self) -> nix::Result<()> {
        self.socket.drain(&mut self.buffer)
    }
}
