//! The peers of the other modes, and ways to read or not to read.

use super::processes::Board;
use super::{Orders, Outcome, end, say, wait_for_line};
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

/// The size of a datagram of an answer, bytes.
const DATAGRAM: usize = 500;

/// Answers every line, over TCP and UDP, with as many bytes as the number at its beginning. With `drain`,
/// nothing is answered. With `segment`, an answer over TCP is sent in pieces of this many bytes.
pub fn drain(orders: &Orders) -> Outcome<()> {
    let is_drain = orders.number("drain", 0) != 0;
    let segment = orders.number("segment", 1 << 20) as usize;
    let listener = TcpListener::bind(orders.address)?;
    let socket = UdpSocket::bind(orders.address)?;
    setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20))?;
    let spawn = |work: Box<dyn FnOnce() + Send>| std::thread::Builder::new().stack_size(1 << 16).spawn(work);
    spawn(Box::new(move || {
        let mut line = [0; 2048];
        while let Ok((length, peer)) = socket.recv_from(&mut line) {
            let mut left = number_of(&line[..length]);
            while left > 0 {
                let piece = left.min(DATAGRAM);
                let _ = socket.send_to(&[7; DATAGRAM][..piece], peer);
                left -= piece;
            }
        }
    }))?;
    spawn(Box::new(move || {
        for stream in listener.incoming().flatten() {
            let serve = move || if is_drain { discard(&stream) } else { answer(&stream, segment) };
            let started = std::thread::Builder::new().stack_size(1 << 16).spawn(serve);
            started.map(drop).unwrap_or_else(|error| eprintln!("{error}"));
        }
    }))?;
    say("ready")?;
    end()
}

fn discard(mut stream: &TcpStream) {
    let mut buffer = vec![0; 16_384];
    while stream.read(&mut buffer).is_ok_and(|read| read > 0) {}
}

fn answer(stream: &TcpStream, segment: usize) {
    let _ = stream.set_nodelay(true);
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    let piece = vec![7; segment];
    while lines.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        let mut left = number_of(&line);
        while left > 0 {
            match (&mut &*stream).write(&piece[..left.min(segment)]) {
                Ok(written) => left -= written,
                Err(_) => return,
            }
        }
        line.clear();
    }
}

fn number_of(line: &[u8]) -> usize {
    let digits = line.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'))
}

/// Requests `bytes`, reads them in the way that `way` selects, and then holds the socket.
pub fn run(orders: &Orders) -> Outcome<()> {
    let bytes = orders.number("bytes", 20_000) as usize;
    let board = Board::new()?;
    say("ready")?;
    wait_for_line()?;
    let own = board.own(0);
    let question = format!("{bytes}\n");
    own.sent(question.len());
    if orders.number("tcp", 1) == 0 {
        let socket = UdpSocket::bind(if orders.address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20))?;
        socket.connect(orders.address)?;
        socket.send(question.as_bytes())?;
        std::thread::sleep(Duration::from_millis(300));
        own.received(read(socket.as_raw_fd(), orders.number("way", 0), bytes, Some(DATAGRAM))?);
        board.report()?;
        return end();
    }
    let mut stream = TcpStream::connect(orders.address)?;
    stream.write_all(question.as_bytes())?;
    // All data arrives before any is read.
    std::thread::sleep(Duration::from_millis(300));
    own.received(read(stream.as_raw_fd(), orders.number("way", 0), bytes, None)?);
    board.report()?;
    end()
}

/// Reads everything. `way` is 0: not at all, 1: recv(2), 2: splice(2), 3: MSG_TRUNC, 4: recvmmsg(2), 5: after
/// a peek, 6: by mapping, 7: only a peek.
fn read(socket: RawFd, way: u64, bytes: usize, datagram: Option<usize>) -> Outcome<usize> {
    let mut buffer = vec![0_u8; 1 << 16];
    let room = |left: usize| left.min(1 << 16);
    let mut done = 0;
    let (pipe_out, pipe_in) = nix::unistd::pipe()?;
    let null = std::fs::File::options().write(true).open("/dev/null")?;
    while done < bytes && way != 0 {
        let left = bytes - done;
        let receive = |buffer: &mut [u8], flags| {
            // SAFETY: the buffer has room for this many bytes.
            unsafe { libc::recv(socket, buffer.as_mut_ptr().cast(), room(left), flags) }
        };
        let read = match way {
            1 => receive(&mut buffer, 0),
            2 => {
                let null_offset = std::ptr::null_mut();
                // SAFETY: no offsets are passed.
                let moved = unsafe {
                    libc::splice(socket, null_offset, pipe_in.as_raw_fd(), null_offset, room(left), 0)
                };
                // SAFETY: as above.
                unsafe {
                    libc::splice(
                        pipe_out.as_raw_fd(),
                        null_offset,
                        null.as_raw_fd(),
                        null_offset,
                        moved.unsigned_abs(),
                        0,
                    )
                };
                moved
            }
            3 => match datagram {
                // The call returns the length of the datagram, of which it copies one byte.
                // SAFETY: the buffer has room for the byte.
                Some(_) => unsafe { libc::recv(socket, buffer.as_mut_ptr().cast(), 1, libc::MSG_TRUNC) },
                None => receive(&mut buffer, libc::MSG_TRUNC),
            },
            4 => receive_many(socket, left, datagram)?,
            5 => {
                receive(&mut buffer, libc::MSG_PEEK);
                receive(&mut buffer, 0)
            }
            6 => map(socket, &mut buffer, left)?,
            _ => {
                receive(&mut buffer, libc::MSG_PEEK);
                return Ok(0);
            }
        };
        match usize::try_from(read) {
            Ok(read) if read > 0 => done += read,
            // Mapping does not wait for bytes that have not arrived yet.
            Ok(0) if way == 6 => std::thread::sleep(std::time::Duration::from_millis(1)),
            _ => return Err(std::io::Error::last_os_error().into()),
        }
    }
    Ok(done)
}

fn receive_many(socket: RawFd, left: usize, datagram: Option<usize>) -> Outcome<isize> {
    const PARTS: usize = 16;
    let size = datagram.unwrap_or((left / PARTS).clamp(1, 1 << 14));
    let mut buffers = vec![vec![0_u8; size]; PARTS];
    let mut parts: Vec<libc::iovec> = buffers
        .iter_mut()
        .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = parts
        .iter_mut()
        .map(|part| {
            // SAFETY: all zeros are a valid empty header.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (part, 1);
            message
        })
        .collect();
    let count = PARTS.min(left.div_ceil(size)) as u32;
    // SAFETY: the headers point to buffers that outlive the call.
    let received = unsafe {
        libc::recvmmsg(socket, messages.as_mut_ptr(), count, libc::MSG_WAITFORONE, std::ptr::null_mut())
    };
    let received = usize::try_from(received).map_err(|_| std::io::Error::last_os_error())?;
    Ok(messages[..received].iter().map(|message| message.msg_len as isize).sum())
}

/// The beginning of `struct tcp_zerocopy_receive` (include/uapi/linux/tcp.h).
#[repr(C)]
#[derive(Default)]
struct ZeroCopy {
    address: u64,
    length: u32,
    skip_hint: u32,
    inq: u32,
    error: i32,
    copy_address: u64,
    copy_length: i32,
    flags: u32,
}

/// Receives through TCP_ZEROCOPY_RECEIVE, which copies what it cannot map.
fn map(socket: RawFd, buffer: &mut [u8], left: usize) -> Outcome<isize> {
    const TCP_ZEROCOPY_RECEIVE: i32 = 35;
    let mut orders = ZeroCopy {
        copy_address: buffer.as_mut_ptr() as u64,
        copy_length: left.min(buffer.len()) as i32,
        ..ZeroCopy::default()
    };
    let length = 1 << 16;
    // SAFETY: this is a new mapping of the socket, at an address that the kernel chooses.
    let memory =
        unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, socket, 0) };
    if memory == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error().into());
    }
    (orders.address, orders.length) = (memory as u64, length as u32);
    let mut size = size_of::<ZeroCopy>() as u32;
    // SAFETY: the orders have the stated length, and the memory that they point to outlives the call.
    let result = unsafe {
        libc::getsockopt(
            socket,
            libc::IPPROTO_TCP,
            TCP_ZEROCOPY_RECEIVE,
            (&raw mut orders).cast(),
            &raw mut size,
        )
    };
    let error = std::io::Error::last_os_error();
    // SAFETY: this is the mapping made above, which nothing refers to.
    unsafe { libc::munmap(memory, length) };
    if result != 0 || orders.error != 0 {
        return Err(format!("zero copy: {error}, {}", orders.error).into());
    }
    let copied = isize::try_from(orders.copy_length).unwrap_or(0);
    Ok(orders.length as isize + copied)
}
