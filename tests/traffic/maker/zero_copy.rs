//! Data that bypasses the buffers of the process: a file sent by sendfile(2), an echo by splice(2).

use super::bulk::{paced, read_all};
use super::exchange::Way;
use super::{Moved, Orders, Outcome, Report, say, wait_for_line};
use std::fs::File;
use std::io::{Error, ErrorKind, PipeReader, PipeWriter, Result, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Instant;

/// Length of the file, which is sent repeatedly from its beginning, and of each piece.
const FILE: usize = 1 << 20;
const PIECE: usize = 1 << 16;

/// Sends a file over one connection.
pub fn sendfile_source(orders: &Orders) -> Outcome<Report> {
    let mut file = unnamed_file()?;
    file.write_all(&vec![0x5a; FILE])?;
    let stream = TcpStream::connect(&orders.address)?;
    say("ready")?;
    wait_for_line()?;
    let began = Instant::now();
    let mut at = 0;
    let sent = paced(orders, PIECE, |piece| {
        let mut left = piece.len();
        while left > 0 {
            let count = sendfile(&stream, &file, at, left)?;
            left -= count;
            at = (at + count) % FILE;
        }
        Ok(())
    })?;
    // If the socket were closed, the kernel could send the FIN after the counters were read.
    stream.shutdown(std::net::Shutdown::Write)?;
    read_all(stream)?;
    Ok(Report::own(Moved { connections: 1, sent, received: 0 }, began))
}

/// Makes a file in memory.
fn unnamed_file() -> Result<File> {
    // SAFETY: the name ends with NUL, and the call only reads it.
    let descriptor = unsafe { libc::memfd_create(c"sent".as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the call has just returned the descriptor, and nothing else owns it.
    Ok(File::from(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(descriptor) }))
}

/// Returns the number of bytes sent; at the end of the file, fewer than requested.
fn sendfile(stream: &TcpStream, file: &File, at: usize, count: usize) -> Result<usize> {
    let mut offset = at as libc::off_t;
    // SAFETY: the pointer is to a number that the call reads and writes.
    let sent = unsafe { libc::sendfile(stream.as_raw_fd(), file.as_raw_fd(), &mut offset, count) };
    if sent < 0 { Err(Error::last_os_error()) } else { Ok(sent as usize) }
}

/// A server that echoes the received data through a pipe, without ever reading it.
pub struct Splicing {
    pipe: (PipeReader, PipeWriter),
}

impl Splicing {
    pub fn new() -> Result<Splicing> {
        Ok(Splicing { pipe: std::io::pipe()? })
    }
}

impl Way for Splicing {
    /// Echoes until the client closes.
    fn serve(&mut self, socket: &OwnedFd, _: &Orders, moved: &mut Moved) -> Result<()> {
        let (from, to) = (self.pipe.0.as_raw_fd(), self.pipe.1.as_raw_fd());
        loop {
            let count = splice(socket.as_raw_fd(), to, PIECE)?;
            if count == 0 {
                return Ok(());
            }
            moved.received += count as u64;
            let mut left = count;
            while left > 0 {
                match splice(from, socket.as_raw_fd(), left)? {
                    0 => return Err(ErrorKind::WriteZero.into()),
                    count => left -= count,
                }
            }
            moved.sent += count as u64;
        }
    }
}

fn splice(from: RawFd, to: RawFd, most: usize) -> Result<usize> {
    let none = std::ptr::null_mut();
    // SAFETY: without pointers to offsets, the call touches no memory of this process.
    let moved = unsafe { libc::splice(from, none, to, none, most, libc::SPLICE_F_MOVE) };
    if moved < 0 { Err(Error::last_os_error()) } else { Ok(moved as usize) }
}
