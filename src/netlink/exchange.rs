//! Questions to the kernel and its answers, one question at a time.

use super::message::{Message, begin, errno_of, messages, u32_at};
use super::socket::Socket;
use nix::errno::Errno;

/// A socket for questions. It belongs to the network namespace of the thread that opened it, and may be used from any.
#[derive(Debug)]
pub(crate) struct Exchange {
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

    /// Asks for a list and hands the payload of each of its rows to `row`. Returns whether the list is of one moment: nothing
    /// has changed while it was read.
    ///
    /// # Errors
    /// What the kernel says of the question, of the list at its end, or of sending and receiving.
    pub fn list(&mut self, question: &mut [u8], kind: u16, mut row: impl FnMut(&[u8])) -> nix::Result<bool> {
        let mut is_consistent = true;
        self.ask(question, kind, libc::NLM_F_REQUEST | libc::NLM_F_DUMP, |message| {
            is_consistent &= i32::from(message.flags) & libc::NLM_F_DUMP_INTR == 0;
            if i32::from(message.kind) == libc::NLMSG_DONE {
                // It may bear an error number, as a negative value, 0 or none.
                let error = u32_at(message.payload, 0).filter(|error| *error != 0);
                return Some(error.map_or(Ok(()), |error| Err(errno_of(error))));
            }
            row(message.payload);
            None
        })??;
        Ok(is_consistent)
    }

    /// Has the kernel keep to what a question for a list says of its rows, and refuse what it does not know (Linux 4.20).
    ///
    /// # Errors
    /// `ENOPROTOOPT` from older kernels.
    pub fn be_strict(&self) -> nix::Result<()> {
        self.socket.be_strict()
    }

    /// Reads and forgets the rest of a list.
    ///
    /// # Errors
    /// What recv(2) says.
    pub fn drain(&mut self) -> nix::Result<()> {
        self.socket.drain(&mut self.buffer)
    }
}
