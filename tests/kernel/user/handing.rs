//! Sockets on which one process requests data that another process reads.

use super::processes::{Board, Children, Counts, wait_for};
use super::{Orders, Outcome, end, say, wait_for_line};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::Ordering;

/// Bytes of a datagram.
const DATAGRAM: usize = 500;
/// The size of a receive buffer that holds everything that arrives before it is read.
const BUFFER: usize = 32 << 20;

enum Socket {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Socket {
    /// Requests this many bytes from the peer: sends the number as text and a newline.
    fn ask(&self, bytes: u64) -> std::io::Result<usize> {
        let text = format!("{bytes}\n");
        match self {
            Socket::Udp(socket) => socket.send(text.as_bytes()),
            Socket::Tcp(stream) => (&*stream).write_all(text.as_bytes()).map(|()| text.len()),
        }
    }

    /// Reads this many bytes or more.
    fn read(&self, bytes: u64, own: &Counts) -> std::io::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        let mut left = bytes;
        while left > 0 {
            let read = match self {
                Socket::Udp(socket) => socket.recv(&mut buffer)?,
                Socket::Tcp(stream) => {
                    let room = buffer.len().min(left as usize);
                    (&*stream).read(&mut buffer[..room])?
                }
            };
            if read == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            own.received(read);
            left = left.saturating_sub(read as u64);
        }
        Ok(())
    }

    /// Waits until this many bytes have arrived, without reading any.
    fn wait(&self, bytes: u64) {
        let descriptor = match self {
            Socket::Udp(socket) => socket.as_raw_fd(),
            Socket::Tcp(stream) => stream.as_raw_fd(),
        };
        wait_for(|| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            queued(descriptor) >= bytes as usize
        });
    }
}

/// Returns the bytes that can be read (tcp(7)), or those of the next datagram (udp(7)).
fn queued(descriptor: RawFd) -> usize {
    let mut bytes = 0_i32;
    // SAFETY: the call writes an int to the pointer.
    let result = unsafe { libc::ioctl(descriptor, libc::FIONREAD, &raw mut bytes) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    bytes as usize
}

fn connect(orders: &Orders) -> Outcome<Socket> {
    if orders.number("tcp", 0) != 0 {
        let stream = TcpStream::connect(orders.address)?;
        setsockopt(&stream, sockopt::RcvBufForce, &BUFFER)?;
        return Ok(Socket::Tcp(stream));
    }
    let socket = UdpSocket::bind(if orders.address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    socket.connect(orders.address)?;
    Ok(Socket::Udp(socket))
}

/// Requests `bytes` on each of `sockets`, reads `parent` percent of them when all have arrived, and leaves
/// the rest to a child. With `pass`, this child was forked before and is sent the socket (unix(7)).
pub fn run(orders: &Orders) -> Outcome<()> {
    let board = Board::new()?;
    let (bytes, count) = (orders.number("bytes", 1_000_000), orders.number("sockets", 1));
    let first = bytes * orders.number("parent", 0) / 100 / DATAGRAM as u64 * DATAGRAM as u64;
    let is_passed = orders.number("pass", 0) != 0;
    let (sending, receiving) = UnixDatagram::pair()?;
    let mut children = Children::default();
    if is_passed {
        children.fork(|| {
            for _ in 0..count {
                let socket = receive(&receiving, orders.number("tcp", 0) != 0)?;
                socket.read(bytes - first, board.own(1))?;
                board.words[0].fetch_add(1, Ordering::AcqRel);
            }
            Ok(())
        })?;
    }
    say("ready")?;
    wait_for_line()?;
    let own = board.own(0);
    let mut sockets = Vec::new();
    for done in 0..count {
        let socket = connect(orders)?;
        own.sent(socket.ask(bytes)?);
        socket.wait(if matches!(socket, Socket::Tcp(_)) { bytes } else { 1 });
        // For datagrams, only the length of the next one can be queried.
        std::thread::sleep(std::time::Duration::from_millis(orders.number("pause", 200)));
        socket.read(first, own)?;
        if is_passed {
            pass(&sending, &socket)?;
        } else {
            children.fork(|| {
                socket.read(bytes - first, board.own(1 + done as usize))?;
                board.words[0].fetch_add(1, Ordering::AcqRel);
                Ok(())
            })?;
        }
        wait_for(|| {
            std::thread::yield_now();
            board.words[0].load(Ordering::Acquire) > done
        });
        sockets.push(socket);
    }
    board.report()?;
    end()
}

fn pass(to: &UnixDatagram, socket: &Socket) -> Outcome<()> {
    let descriptors = [match socket {
        Socket::Udp(socket) => socket.as_raw_fd(),
        Socket::Tcp(stream) => stream.as_raw_fd(),
    }];
    let message = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(b".")], &message, MsgFlags::empty(), None)?;
    Ok(())
}

fn receive(from: &UnixDatagram, is_tcp: bool) -> Outcome<Socket> {
    let mut room = nix::cmsg_space!(RawFd);
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let descriptor = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    let descriptor = descriptor.ok_or("a socket is sent with each byte")?;
    // SAFETY: the descriptor has just been received, and nothing else owns it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    Ok(if is_tcp { Socket::Tcp(descriptor.into()) } else { Socket::Udp(descriptor.into()) })
}

/// Two processes request data by turns on one socket, `rounds` times, and each reads what it has requested.
pub fn ping_pong(orders: &Orders) -> Outcome<()> {
    let board = Board::new()?;
    let socket = connect(orders)?;
    if let Socket::Tcp(stream) = &socket {
        stream.set_nodelay(true)?;
    }
    let rounds = orders.number("rounds", 10_000);
    let play = |number: usize| -> Outcome<()> {
        let own = board.own(number);
        // Each process requests a different amount.
        let bytes = (1 + number as u64) * DATAGRAM as u64;
        for round in 0..rounds {
            let turn = 2 * round + number as u64;
            wait_for(|| {
                std::thread::yield_now();
                board.words[0].load(Ordering::Acquire) == turn
            });
            own.sent(socket.ask(bytes)?);
            socket.read(bytes, own)?;
            board.words[0].store(turn + 1, Ordering::Release);
        }
        Ok(())
    };
    say("ready")?;
    wait_for_line()?;
    let mut children = Children::default();
    children.fork(|| play(1))?;
    play(0)?;
    wait_for(|| {
        std::thread::yield_now();
        board.words[0].load(Ordering::Acquire) == 2 * rounds
    });
    board.report()?;
    end()
}
