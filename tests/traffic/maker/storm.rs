//! Storms: as many flows as packets, from invented sources or from sockets that exist for a moment.

use super::frames::{Link, frame};
use super::{Moved, Orders, Outcome, Report, say, wait_for_line};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Payload of each datagram.
const DATAGRAM: [u8; 18] = [0x5a; 18];

/// Sends frames with one datagram each, each from another source.
pub fn frames(orders: &Orders) -> Outcome<Report> {
    let to: SocketAddrV4 = orders.address.parse()?;
    let link = Link::open()?;
    storm(orders, |number| {
        let [_, b, c, d] = number.to_be_bytes();
        let from = SocketAddrV4::new(Ipv4Addr::new(11, b, c, d), 1024 + (number % 60_000) as u16);
        link.send(&frame(from, to, &DATAGRAM))
    })
}

/// Opens a socket for each datagram, and closes it at once.
pub fn datagrams(orders: &Orders) -> Outcome<Report> {
    storm(orders, |_| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.send_to(&DATAGRAM, &orders.address).map(drop)
    })
}

/// Opens a socket for each attempt to connect, and closes it at once regardless of the result.
pub fn attempts(orders: &Orders) -> Outcome<Report> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
    let to = SockaddrStorage::from(orders.address.parse::<std::net::SocketAddr>()?);
    storm(orders, |_| {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        // The connection is refused, at once or later.
        let _ = connect(socket.as_raw_fd(), &to);
        Ok(())
    })
}

/// Calls `each` `count` times, at `rate` a second.
fn storm(orders: &Orders, mut each: impl FnMut(u32) -> std::io::Result<()>) -> Outcome<Report> {
    let (count, rate) = (orders.number("count", 10_000), orders.number("rate", 10_000));
    say("ready")?;
    wait_for_line()?;
    let began = Instant::now();
    for number in 0..count {
        each(u32::try_from(number)?)?;
        if number % 16 == 0 {
            let due = Duration::from_secs_f64(number as f64 / rate as f64);
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
    }
    let sent = count * DATAGRAM.len() as u64;
    Ok(Report::own(Moved { connections: count, sent, received: 0 }, began))
}
