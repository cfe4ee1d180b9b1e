//! Requests to the kernel and its replies, one request at a time.

use super::message::{Message, begin, errno_of, messages, u32_at};
use super::socket::Socket;
use nix::errno::Errno;

/// The maximum number of passes of a dump. It is restarted if something changed while it was read.
const MAX_PASSES: usize = 5;

/// The way that requests and replies take: a socket, or a fixture's made-up replies.
pub(super) trait MessageSocket {
    /// Sends a request.
    fn send(&self, message: &[u8]) -> nix::Result<()>;

    /// Receives one datagram of replies.
    fn receive<'b>(&self, buffer: &'b mut [u8]) -> nix::Result<&'b [u8]>;

    /// Reads and discards the rest of a dump that was not read to its end.
    fn drain(&self, buffer: &mut [u8]) -> nix::Result<()>;
}

impl MessageSocket for Socket {
    fn send(&self, message: &[u8]) -> nix::Result<()> {
        Socket::send(self, message)
    }

    fn receive<'b>(&self, buffer: &'b mut [u8]) -> nix::Result<&'b [u8]> {
        Socket::receive(self, buffer)
    }

    fn drain(&self, buffer: &mut [u8]) -> nix::Result<()> {
        Socket::drain(self, buffer)
    }
}

/// A socket for requests. It belongs to the network namespace of the thread that opened it, and any thread
/// may use it.
#[derive(Debug)]
pub(crate) struct Exchange<T = Socket> {
    pub(super) transport: T,
    sequence: u32,
    buffer: Vec<u8>,
    /// Set if a dump was begun that has not been read to its end. The kernel makes one at a time (`EBUSY`).
    unfinished: bool,
}

/// The rows of a dump, as the caller has collected them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Dump<C> {
    pub rows: C,
    /// True if nothing changed while the rows were read. Otherwise rows may be missing or doubled.
    pub is_consistent: bool,
}

impl<C> Dump<C> {
    /// Returns the rows if they are consistent.
    ///
    /// # Errors
    /// Fails with `EAGAIN` if every pass was interrupted by a change.
    pub fn consistent(self) -> nix::Result<C> {
        if self.is_consistent { Ok(self.rows) } else { Err(Errno::EAGAIN) }
    }
}

impl Exchange {
    /// Opens a socket for one of the `NETLINK_` protocols, with a buffer of `room` bytes for a datagram of
    /// replies.
    ///
    /// # Errors
    /// Fails with the error of socket(2).
    pub fn open(protocol: i32, room: usize) -> nix::Result<Exchange> {
        Ok(Exchange::over(Socket::for_questions(protocol)?, room))
    }

    /// Makes the kernel apply the filters of a dump request, and reject what it does not know (Linux 4.20).
    ///
    /// # Errors
    /// Fails with `ENOPROTOOPT` on older kernels.
    pub fn be_strict(&self) -> nix::Result<()> {
        self.transport.be_strict()
    }
}

impl<T: MessageSocket> Exchange<T> {
    fn over(transport: T, room: usize) -> Exchange<T> {
        Exchange { transport, sequence: 0, buffer: vec![0; room], unfinished: false }
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
        self.transport.send(question)?;
        loop {
            // The whole buffer is needed, because the next datagram may be the rest of a dump that was not
            // read to its end.
            for message in messages(self.transport.receive(&mut self.buffer)?) {
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

    /// Requests a dump and collects its rows: `row` adds the payload of each to a collection. If the kernel
    /// reports that something changed meanwhile (`NLM_F_DUMP_INTR`), the dump is restarted with an empty
    /// collection, up to [`MAX_PASSES`] in all; the rows of the last pass are returned in any case.
    ///
    /// # Errors
    /// Fails with the kernel's error for the request or for the end of the dump, or with that of sending or
    /// receiving.
    pub fn dump<C: Default>(
        &mut self,
        question: &mut [u8],
        kind: u16,
        mut row: impl FnMut(&mut C, &[u8]),
    ) -> nix::Result<Dump<C>> {
        let mut passes = 0;
        loop {
            let mut rows = C::default();
            let is_consistent = self.pass(question, kind, |payload| row(&mut rows, payload))?;
            passes += 1;
            if is_consistent || passes == MAX_PASSES {
                return Ok(Dump { rows, is_consistent });
            }
        }
    }

    /// Makes one pass of a dump. Returns true if it is consistent.
    fn pass(&mut self, question: &mut [u8], kind: u16, mut row: impl FnMut(&[u8])) -> nix::Result<bool> {
        if self.unfinished {
            self.transport.drain(&mut self.buffer)?;
        }
        self.unfinished = true;
        let mut is_consistent = true;
        let answer = self.ask(question, kind, libc::NLM_F_REQUEST | libc::NLM_F_DUMP, |message| {
            is_consistent &= i32::from(message.flags) & libc::NLM_F_DUMP_INTR == 0;
            if i32::from(message.kind) == libc::NLMSG_DONE {
                // It may contain an error number, as a negative value, 0 or none.
                let error = u32_at(message.payload, 0).filter(|error| *error != 0);
                return Some(error.map_or(Ok(()), |error| Err(errno_of(error))));
            }
            row(message.payload);
            None
        })?;
        self.unfinished = false;
        answer.map(|()| is_consistent)
    }
}

#[cfg(test)]
#[path = "exchange_tests.rs"]
mod tests;
