//! Thousands of sockets that are used at the moment of their end.

use super::again::reset;
use super::processes::{Board, Children, pin, wait_for};
use super::{Orders, Outcome, end, say, wait_for_line};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, SockaddrStorage, accept, connect, listen, recv,
    send, socket,
};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

/// The payload of a message.
const BYTES: &[u8] = &[7; 100];

/// Runs `count` sockets of the given kind, all over loopback.
pub fn run(orders: &Orders) -> Outcome<()> {
    let count = orders.number("count", 10_000);
    say("ready")?;
    wait_for_line()?;
    match orders.number("kind", 0) {
        0 => sent_to_as_they_close(count)?,
        1 => used_as_they_close(count)?,
        2 => reset_as_they_are_accepted(count)?,
        3 => connected_again(count)?,
        4 => listening_elsewhere(count)?,
        _ => shared_for_a_moment(count)?,
    }
    end()
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into()
}

/// Spends some time that differs from call to call.
fn dawdle(number: u64, most: u64) {
    (0..number * 37 % most).for_each(|_| std::hint::spin_loop());
}

/// One thread opens a socket and closes it; at that moment, a thread on another processor sends to it.
fn sent_to_as_they_close(count: u64) -> Outcome<()> {
    let turn = AtomicU64::new(0);
    let port = UdpSocket::bind(loopback(0))?.local_addr()?.port();
    std::thread::scope(|scope| {
        scope.spawn(|| -> std::io::Result<()> {
            pin(1);
            let sender = UdpSocket::bind(loopback(0))?;
            for number in 1..=count {
                wait_for(|| turn.load(Ordering::Acquire) >= number);
                dawdle(number, 700);
                // The port may be closed by now.
                let _ = sender.send_to(BYTES, loopback(port));
            }
            Ok(())
        });
        pin(0);
        for number in 1..=count {
            let socket = UdpSocket::bind(loopback(port))?;
            turn.store(number, Ordering::Release);
            dawdle(number, 1500);
            drop(socket);
        }
        Ok(())
    })
}

/// A thread sends and receives on a descriptor while another one closes it.
fn used_as_they_close(count: u64) -> Outcome<()> {
    let current = AtomicI32::new(-1);
    let is_over = AtomicBool::new(false);
    let sink = UdpSocket::bind(loopback(0))?;
    let listener = TcpListener::bind(loopback(0))?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(1);
            let mut buffer = [0; 200];
            while !is_over.load(Ordering::Relaxed) {
                let descriptor: RawFd = current.load(Ordering::Acquire);
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                let _ = send(descriptor, BYTES, flags);
                let _ = recv(descriptor, &mut buffer, flags);
            }
        });
        scope.spawn(|| {
            // Accepts the other ends of the connections.
            let mut kept = std::collections::VecDeque::new();
            while !is_over.load(Ordering::Relaxed) {
                kept.extend(listener.accept().ok());
                if kept.len() > 3 {
                    kept.pop_front();
                }
            }
        });
        pin(0);
        let open = |number: u64| -> Outcome<()> {
            if number.is_multiple_of(4) {
                let stream = TcpStream::connect(listener.local_addr()?)?;
                current.store(stream.as_raw_fd(), Ordering::Release);
                dawdle(number, 1500);
                if number.is_multiple_of(8) {
                    reset(stream.into())?;
                }
            } else {
                let socket = UdpSocket::bind(loopback(0))?;
                socket.connect(sink.local_addr()?)?;
                current.store(socket.as_raw_fd(), Ordering::Release);
                dawdle(number, 1500);
            }
            Ok(())
        };
        // The thread that still uses the number of a descriptor may bind a new socket before this thread
        // does.
        let failed = (0..count).filter(|&number| open(number).is_err()).count() as u64;
        let outcome = if failed > count / 2 { Err("most sockets failed".into()) } else { Ok(()) };
        is_over.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(listener.local_addr()?)?);
        outcome
    })
}

/// The client resets connections at once, with data under way, while the server accepts them.
fn reset_as_they_are_accepted(count: u64) -> Outcome<()> {
    let listener = TcpListener::bind(loopback(0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..2 {
            let (listener, is_over) = (&listener, &is_over);
            scope.spawn(move || {
                pin(number);
                let mut buffer = [0; 200];
                while !is_over.load(Ordering::Relaxed) {
                    let Ok(descriptor) = accept(listener.as_raw_fd()) else {
                        std::thread::yield_now();
                        continue;
                    };
                    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                    let _ = recv(descriptor, &mut buffer, flags);
                    let _ = send(descriptor, BYTES, flags);
                    let _ = nix::unistd::close(descriptor);
                }
            });
        }
        pin(1);
        let outcome = (0..count).try_for_each(|number| -> Outcome<()> {
            let stream = TcpStream::connect(address)?;
            let _ = send(stream.as_raw_fd(), BYTES, MsgFlags::MSG_NOSIGNAL);
            dawdle(number, 1000);
            match number % 3 {
                0 => drop(stream),
                _ => reset(stream.into())?,
            }
            Ok(())
        });
        is_over.store(true, Ordering::Relaxed);
        outcome
    })
}

/// One TCP socket is refused repeatedly, each time from another port. One UDP socket gets a new peer each
/// time.
fn connected_again(count: u64) -> Outcome<()> {
    let kind = |kind| socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None);
    let (stream, datagrams) = (kind(SockType::Stream)?, kind(SockType::Datagram)?);
    for number in 0..count {
        let closed = SockaddrStorage::from(loopback(20_000 + (number % 5_000) as u16));
        let _ = connect(stream.as_raw_fd(), &closed);
        connect(datagrams.as_raw_fd(), &closed)?;
        // The previous peer may have refused the last message.
        let _ = send(datagrams.as_raw_fd(), BYTES, MsgFlags::empty());
    }
    Ok(())
}

/// One socket listens at one port after the other.
fn listening_elsewhere(count: u64) -> Outcome<()> {
    let listener: OwnedFd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    for _ in 0..count {
        listen(&listener, Backlog::new(5)?)?;
        nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both)?;
    }
    Ok(())
}

/// Three children send on sockets before these are closed.
fn shared_for_a_moment(count: u64) -> Outcome<()> {
    let sink = UdpSocket::bind(loopback(0))?;
    let board = Board::new()?;
    let sockets: Vec<UdpSocket> = (0..count)
        .map(|_| -> std::io::Result<UdpSocket> {
            let socket = UdpSocket::bind(loopback(0))?;
            socket.connect(sink.local_addr()?)?;
            socket.send(BYTES)?;
            Ok(socket)
        })
        .collect::<Result<_, _>>()?;
    let mut children = Children::default();
    for _ in 0..3 {
        children.fork(|| {
            let mut meetings = 0;
            for socket in &sockets {
                socket.send(BYTES)?;
            }
            board.meet(&mut meetings, 4);
            Ok(())
        })?;
    }
    let mut meetings = 0;
    board.meet(&mut meetings, 4);
    Ok(())
}

/// Opens `count` UDP sockets and sends a message on each, then on `more` further ones, and reports it. Holds
/// them until it reads another line.
pub fn many(orders: &Orders) -> Outcome<()> {
    let board = Board::new()?;
    say("ready")?;
    wait_for_line()?;
    let own = board.own(0);
    let open = || -> Outcome<OwnedFd> {
        let made = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        connect(made.as_raw_fd(), &SockaddrStorage::from(orders.address))?;
        Ok(made)
    };
    // Far below the number of descriptors that one process may have.
    const EACH: u64 = 8_192;
    let mut holders = Children::default();
    let mut left = orders.number("count", 1000);
    while left > 0 {
        let count = left.min(EACH);
        holders.fork(|| {
            for _ in 0..count {
                std::mem::forget(socket(
                    AddressFamily::Inet,
                    SockType::Datagram,
                    SockFlag::SOCK_CLOEXEC,
                    None,
                )?);
            }
            board.words[0].fetch_add(count, Ordering::AcqRel);
            Ok(())
        })?;
        left -= count;
    }
    let count = orders.number("count", 1000);
    wait_for(|| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        board.words[0].load(Ordering::Acquire) >= count
    });
    let mut held = Vec::new();
    say("full")?;
    wait_for_line()?;
    for _ in 0..orders.number("more", 100) {
        let made = open()?;
        own.sent(send(made.as_raw_fd(), BYTES, MsgFlags::empty())?);
        held.push(made);
    }
    board.report()?;
    say("done")?;
    wait_for_line()?;
    drop((held, holders));
    say("closed")?;
    end()
}
