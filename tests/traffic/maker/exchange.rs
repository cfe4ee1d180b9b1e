//! Connections one after another, each with a request and its response, by any way of using sockets.

use super::server::{CLIENT_CLOSES, SERVER_CLOSES, listening};
use super::{Moved, Orders, Outcome, REQUEST, RESPONSE, Report, say, wait_for_line};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, SockaddrStorage};
use nix::sys::socket::{accept4, connect, recv, send, shutdown, socket};
use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// The limit of how much later than planned the last connection may begin.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A way of using sockets; its default methods make the usual calls.
pub trait Way {
    /// Opens a connection and sends the request over it.
    fn open(&mut self, address: SocketAddr, request: &[u8]) -> Result<OwnedFd> {
        let opened = socket(family(address), SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        connect(opened.as_raw_fd(), &SockaddrStorage::from(address))?;
        self.send_all(&opened, request)?;
        Ok(opened)
    }

    /// Accepts a waiting connection.
    fn accept(&mut self, listener: &OwnedFd) -> Result<OwnedFd> {
        let accepted = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: the call has just returned the descriptor, and nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(accepted) })
    }

    /// Sends some of the bytes.
    fn send(&mut self, socket: &OwnedFd, bytes: &[u8]) -> Result<usize> {
        Ok(send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)?)
    }

    /// Receives the available bytes, or waits for some.
    fn receive(&mut self, socket: &OwnedFd, buffer: &mut [u8]) -> Result<usize> {
        Ok(recv(socket.as_raw_fd(), buffer, MsgFlags::empty())?)
    }

    /// Returns true if a connection was really made in this way.
    fn is_so(&mut self, _: &OwnedFd) -> bool {
        true
    }

    /// Serves a connection: answers the request; the end that the request names closes first.
    fn serve(&mut self, socket: &OwnedFd, orders: &Orders, moved: &mut Moved) -> Result<()> {
        let mut scrap = vec![0; 1 << 16];
        let (mut received, mut closer) = (0, CLIENT_CLOSES);
        while received < orders.number("request", REQUEST) {
            let count = self.receive(socket, &mut scrap)?;
            if count == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if received == 0 {
                closer = scrap[0];
            }
            received += count as u64;
            moved.received += count as u64;
        }
        let response = vec![0xa5; orders.number("response", RESPONSE) as usize];
        self.send_all(socket, &response)?;
        moved.sent += response.len() as u64;
        while closer == CLIENT_CLOSES && self.receive(socket, &mut scrap)? > 0 {}
        Ok(())
    }

    /// Sends all of the bytes.
    fn send_all(&mut self, socket: &OwnedFd, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let count = self.send(socket, bytes)?;
            bytes = &bytes[count..];
        }
        Ok(())
    }
}

/// The usual use of sockets.
pub struct Usual;

impl Way for Usual {}

pub fn family(address: SocketAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// Makes `rate` connections a second for `milliseconds`, each after the end of the previous one. The client
/// closes every other connection first, and the server the rest; with `client-closes`, the client closes
/// all of them first.
pub fn clients(orders: &Orders, mut way: impl Way) -> Outcome<Report> {
    let address: SocketAddr = orders.address.parse()?;
    let rate = orders.number("rate", 100) as f64;
    let length = Duration::from_millis(orders.number("milliseconds", 1000));
    let count = (rate * length.as_secs_f64()) as u64;
    say("ready")?;
    wait_for_line()?;
    let (began, mut moved, mut failed) = (Instant::now(), Moved::default(), 0);
    for number in 0..count {
        let due = Duration::from_secs_f64(number as f64 / rate);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        if began.elapsed() > length + TIMEOUT {
            break;
        }
        moved.connections += 1;
        let server_closes = number % 2 == 1 && orders.number("client-closes", 0) == 0;
        let is_good = ask(orders, &mut way, address, server_closes, &mut moved);
        failed += u64::from(!is_good.unwrap_or(false));
    }
    Ok(Report { failed, ..Report::own(moved, began) })
}

/// Makes one connection. Returns true if it ended well.
fn ask(
    orders: &Orders,
    way: &mut impl Way,
    address: SocketAddr,
    server_closes: bool,
    moved: &mut Moved,
) -> Result<bool> {
    let mut request = vec![0x5a; orders.number("request", REQUEST) as usize];
    request[0] = if server_closes { SERVER_CLOSES } else { CLIENT_CLOSES };
    let socket = way.open(address, &request)?;
    moved.sent += request.len() as u64;
    let wanted = orders.number("response", RESPONSE);
    let (mut received, mut scrap) = (0, vec![0; 1 << 16]);
    while server_closes || received < wanted {
        let count = way.receive(&socket, &mut scrap)?;
        if count == 0 {
            break;
        }
        received += count as u64;
        moved.received += count as u64;
    }
    Ok(received == wanted && way.is_so(&socket))
}

/// Serves one connection after another until a line can be read.
pub fn server(orders: &Orders, mut way: impl Way) -> Outcome<Report> {
    let listener = listening(orders)?;
    say("ready")?;
    let (began, mut moved) = (Instant::now(), Moved::default());
    while is_called(&listener)? {
        let accepted = match way.accept(&listener) {
            Err(error) if is_passing(&error) => continue,
            accepted => accepted?,
        };
        moved.connections += 1;
        // The server continues if a client has disappeared.
        let _ = way.serve(&accepted, orders, &mut moved);
        // A shutdown ends the connection even if another process holds the socket.
        let _ = shutdown(accepted.as_raw_fd(), Shutdown::Both);
    }
    Ok(Report::own(moved, began))
}

/// Returns true if the next connection may be available despite the error.
fn is_passing(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted | ErrorKind::Interrupted)
}

/// Waits for a connection or a line. Returns false for a line, which is the end.
pub fn is_called(listener: &OwnedFd) -> Outcome<bool> {
    let input = std::io::stdin();
    let mut waited =
        [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(input.as_fd(), PollFlags::POLLIN)];
    poll(&mut waited, PollTimeout::NONE)?;
    if waited[1].any().unwrap_or(true) {
        wait_for_line()?;
        return Ok(false);
    }
    Ok(true)
}
