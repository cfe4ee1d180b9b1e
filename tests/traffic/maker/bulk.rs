//! Bulk transfers: one connection, or datagrams one way, at a rate or at full speed, for a number of
//! bytes or a time.

use super::{Moved, Orders, Outcome, Report, say, wait_for_line};
use nix::sys::socket::{SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Payload of a datagram, which fits a frame of 1500 bytes with either version of IP.
pub const DATAGRAM: usize = 1200;

/// A protocol number for experiments (RFC 3692).
const RAW_PROTOCOL: i32 = 253;
const RAW_PACKET: usize = 500;

pub fn tcp_sink(orders: &Orders) -> Outcome<Report> {
    let listener = TcpListener::bind(&orders.address)?;
    super::server::limit_segments(orders, &listener)?;
    say("ready")?;
    let stream = listener.accept()?.0;
    let began = Instant::now();
    let received = read_all(stream)?;
    Ok(Report::own(Moved { connections: 1, sent: 0, received }, began))
}

pub fn tcp_source(orders: &Orders) -> Outcome<Report> {
    let mut stream = connected(orders)?;
    say("ready")?;
    wait_for_line()?;
    let began = Instant::now();
    let sent = paced(orders, 1 << 16, |piece| stream.write_all(piece))?;
    // If the socket were closed, the kernel could send the FIN after the counters were read.
    stream.shutdown(std::net::Shutdown::Write)?;
    read_all(stream)?;
    Ok(Report::own(Moved { connections: 1, sent, received: 0 }, began))
}

/// Connects from the local port `from`, or from any.
fn connected(orders: &Orders) -> Outcome<TcpStream> {
    let address: SocketAddr = orders.address.parse()?;
    let socket = socket(super::exchange::family(address), SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let local = SocketAddr::new(any(address), orders.number("from", 0) as u16);
    bind(socket.as_raw_fd(), &SockaddrStorage::from(local))?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(TcpStream::from(socket))
}

/// Returns the unspecified address of the same family.
fn any(address: SocketAddr) -> IpAddr {
    if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// Receives until `bytes` have arrived or nothing has for two seconds: a flood may lose datagrams. With
/// `merged`, the kernel may deliver several at once (UDP_GRO).
pub fn udp_sink(orders: &Orders) -> Outcome<Report> {
    let bytes = orders.number("bytes", u64::MAX);
    let socket = UdpSocket::bind(&orders.address)?;
    setsockopt(&socket, sockopt::UdpGroSegment, &(orders.number("merged", 0) == 1))?;
    receive_all(&socket, bytes)
}

/// Receives the packets that [`raw_source`] sends.
pub fn raw_sink(orders: &Orders) -> Outcome<Report> {
    receive_all(&raw_socket()?, orders.number("bytes", u64::MAX))
}

fn receive_all(socket: &UdpSocket, bytes: u64) -> Outcome<Report> {
    say("ready")?;
    let began = Instant::now();
    let mut buffer = vec![0; 1 << 16];
    let mut received = 0;
    while received < bytes {
        match socket.recv(&mut buffer) {
            Ok(count) => received += count as u64,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error.into()),
        }
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    }
    Ok(Report::own(Moved { connections: 1, sent: 0, received }, began))
}

/// Sends datagrams, from the local port `from` or from any; with `segment`, sends pieces that the kernel or the
/// device cuts into datagrams with this payload (UDP_SEGMENT), `segments` at once.
pub fn udp_source(orders: &Orders) -> Outcome<Report> {
    let any = any(orders.address.parse()?);
    let socket = UdpSocket::bind((any, orders.number("from", 0) as u16))?;
    socket.set_broadcast(true)?;
    socket.connect(&orders.address)?;
    let segment = orders.number("segment", 0) as usize;
    let mut length = DATAGRAM;
    if segment > 0 {
        setsockopt(&socket, sockopt::UdpGsoSegment, &(segment as i32))?;
        length = segment * orders.number("segments", 32) as usize;
    }
    say("ready")?;
    wait_for_line()?;
    let began = Instant::now();
    let sent = paced(orders, length, |piece| match socket.send(piece) {
        // The receiver may have closed its socket; the datagram was sent nevertheless.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
        sent => sent.map(drop),
    })?;
    Ok(Report::own(Moved { connections: 1, sent, received: 0 }, began))
}

/// Sends packets of a protocol that has no ports, through a socket that is not connected.
pub fn raw_source(orders: &Orders) -> Outcome<Report> {
    let socket = raw_socket()?;
    say("ready")?;
    wait_for_line()?;
    let began = Instant::now();
    let sent = paced(orders, RAW_PACKET, |piece| socket.send_to(piece, &orders.address).map(drop))?;
    Ok(Report::own(Moved { connections: 1, sent, received: 0 }, began))
}

/// Returns a socket that sends and receives as a UDP socket does, but with a protocol of its own (raw(7)).
fn raw_socket() -> Outcome<UdpSocket> {
    // SAFETY: the call takes no pointers.
    let descriptor =
        unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, RAW_PROTOCOL) };
    if descriptor < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    // SAFETY: the call has just returned the descriptor, and nothing else owns it.
    Ok(UdpSocket::from(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

/// Sends `bytes` in pieces, for at most `milliseconds`, at `rate` bytes a second or, if that is
/// 0, at full speed.
pub fn paced(
    orders: &Orders,
    piece: usize,
    mut send: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> Outcome<u64> {
    let bytes = orders.number("bytes", u64::MAX);
    let rate = orders.number("rate", 0);
    let longest = Duration::from_millis(orders.number("milliseconds", 3_600_000));
    let piece = vec![0x5a; piece];
    let start = Instant::now();
    let mut sent = 0;
    while sent < bytes && start.elapsed() < longest {
        let length = piece.len().min((bytes - sent) as usize);
        send(&piece[..length])?;
        sent += length as u64;
        if rate > 0 {
            let due = Duration::from_secs_f64(sent as f64 / rate as f64);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
    Ok(sent)
}

pub fn read_all(mut stream: TcpStream) -> Outcome<u64> {
    let mut buffer = vec![0; 1 << 16];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(total),
            count => total += count as u64,
        }
    }
}
