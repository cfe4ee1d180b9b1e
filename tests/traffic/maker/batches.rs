//! UDP in batches: questions and answers by sendmmsg(2) and recvmmsg(2), many datagrams with each call.

use super::exchange::is_called;
use super::udp::bound;
use super::{Moved, Orders, Outcome, Report, say, wait_for_line};
use std::io::{Error, ErrorKind, Result};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Datagrams per call, and their payload.
const BATCH: usize = 16;
const DATAGRAM: usize = 1200;

/// The time after which a missing answer is given up.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Room for a batch of datagrams with their addresses.
struct Batch {
    payloads: Vec<[u8; DATAGRAM]>,
    addresses: Vec<libc::sockaddr_in6>,
    lengths: Vec<usize>,
}

impl Batch {
    fn new() -> Batch {
        // SAFETY: zeros are a valid value of each of its fields.
        let no_address: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
        Batch {
            payloads: vec![[0x5a; DATAGRAM]; BATCH],
            addresses: vec![no_address; BATCH],
            lengths: vec![DATAGRAM; BATCH],
        }
    }

    /// Makes a call with the headers of the first `count` datagrams: with their addresses, or without them on
    /// a connected socket.
    fn with_headers(
        &mut self,
        count: usize,
        has_addresses: bool,
        call: impl FnOnce(&mut [libc::mmsghdr]) -> i32,
    ) -> Result<Vec<usize>> {
        let payloads = self.payloads.iter_mut().zip(&self.lengths);
        let mut parts: Vec<libc::iovec> = payloads
            .map(|(bytes, &iov_len)| libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len })
            .collect();
        let mut headers: Vec<libc::mmsghdr> = Vec::new();
        for (part, address) in parts.iter_mut().zip(&mut self.addresses).take(count) {
            // SAFETY: zeros are a valid value of each of its fields.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            (header.msg_hdr.msg_iov, header.msg_hdr.msg_iovlen) = (part, 1);
            if has_addresses {
                header.msg_hdr.msg_name = (&raw mut *address).cast();
                header.msg_hdr.msg_namelen = size_of_val(address) as libc::socklen_t;
            }
            headers.push(header);
        }
        let moved = call(&mut headers);
        if moved < 0 {
            return Err(Error::last_os_error());
        }
        Ok(headers[..moved as usize].iter().map(|header| header.msg_len as usize).collect())
    }

    /// Sends the first datagrams. Returns the number of bytes sent.
    fn send(&mut self, socket: &impl AsRawFd, count: usize, has_addresses: bool) -> Result<u64> {
        let socket = socket.as_raw_fd();
        let sent = self.with_headers(count, has_addresses, |headers| {
            // SAFETY: the headers point to memory that outlives the call, with its true lengths.
            unsafe { libc::sendmmsg(socket, headers.as_mut_ptr(), headers.len() as u32, 0) }
        })?;
        Ok(sent.iter().sum::<usize>() as u64)
    }

    /// Receives the available datagrams. Returns their lengths.
    fn receive(&mut self, socket: &impl AsRawFd, has_addresses: bool) -> Result<Vec<usize>> {
        self.lengths.fill(DATAGRAM);
        let socket = socket.as_raw_fd();
        let (flags, no_timeout) = (libc::MSG_WAITFORONE, std::ptr::null_mut());
        self.with_headers(BATCH, has_addresses, |headers| {
            let count = headers.len() as u32;
            // SAFETY: the headers point to memory that outlives the call; the kernel writes at most
            // the given lengths.
            unsafe { libc::recvmmsg(socket, headers.as_mut_ptr(), count, flags, no_timeout) }
        })
    }
}

/// Sends `rate` datagrams a second for `milliseconds` in batches over one connected socket. The next batch is
/// sent once all answers to the previous one have arrived or timed out.
pub fn clients(orders: &Orders) -> Outcome<Report> {
    let address: SocketAddr = orders.address.parse()?;
    let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    let rate = orders.number("rate", 1000) as f64;
    let length = Duration::from_millis(orders.number("milliseconds", 1000));
    say("ready")?;
    wait_for_line()?;
    let (began, mut batch) = (Instant::now(), Batch::new());
    let mut moved = Moved { connections: 1, ..Moved::default() };
    for number in 0.. {
        let due = Duration::from_secs_f64((number * BATCH) as f64 / rate);
        if due >= length || began.elapsed() > length + TIMEOUT {
            break;
        }
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        batch.lengths.fill(DATAGRAM);
        moved.sent += batch.send(&socket, BATCH, false)?;
        let mut missing = BATCH;
        while missing > 0 {
            match batch.receive(&socket, false) {
                Ok(lengths) => {
                    missing = missing.saturating_sub(lengths.len());
                    moved.received += lengths.iter().sum::<usize>() as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    let failed = u64::from(moved.received == 0);
    Ok(Report { failed, ..Report::own(moved, began) }.holding(socket))
}

/// Answers each batch of datagrams with one batch, until a line can be read.
pub fn server(orders: &Orders) -> Outcome<Report> {
    let socket = OwnedFd::from(bound(orders)?);
    say("ready")?;
    let (began, mut batch) = (Instant::now(), Batch::new());
    let mut moved = Moved { connections: 1, ..Moved::default() };
    while is_called(&socket)? {
        while let Ok(lengths) = batch.receive(&socket, true) {
            moved.received += lengths.iter().sum::<usize>() as u64;
            batch.lengths[..lengths.len()].copy_from_slice(&lengths);
            // A full send buffer loses datagrams, as networks do.
            moved.sent += batch.send(&socket, lengths.len(), true).unwrap_or(0);
        }
    }
    Ok(Report::own(moved, began).holding(socket))
}
