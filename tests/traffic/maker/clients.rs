//! Short TCP connections of one long-lived process, opened at an even rate regardless of the earlier ones.

use super::exchange::family;
use super::server::{CLIENT_CLOSES, SERVER_CLOSES};
use super::{Moved, Orders, Outcome, REQUEST, RESPONSE, Report, say, wait_for_line};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, sockopt};
use nix::sys::socket::{SockFlag, SockType, SockaddrStorage, bind, connect, send, socket};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// The time limit for the last connections, from the last opening.
const TIMEOUT: Duration = Duration::from_secs(5);

struct Connection {
    socket: OwnedFd,
    server_closes: bool,
    is_asked: bool,
    received: u64,
}

struct Clients {
    address: SocketAddr,
    /// The local port of the first connection; each further one uses the next port. 0 leaves the
    /// choice to the kernel.
    first_port: u64,
    closes_first: bool,
    request: Vec<u8>,
    response: u64,
    epoll: Epoll,
    open: HashMap<RawFd, Connection>,
    moved: Moved,
    failed: u64,
    scrap: Vec<u8>,
}

/// Makes `rate` connections a second for `milliseconds`, each with a request and a response of the given
/// lengths, while `idle` further connections stay open. The client closes every other connection first, and
/// the server the rest; with `client-closes`, the client closes all of them first.
pub fn run(orders: &Orders) -> Outcome<Report> {
    let address: SocketAddr = orders.address.parse()?;
    let rate = orders.number("rate", 100) as f64;
    let count = (rate * orders.number("milliseconds", 1000) as f64 / 1000.0) as u64;
    let idle = super::idle::connect(orders)?;
    let mut clients = Clients {
        address,
        first_port: orders.number("first-port", 0),
        closes_first: orders.number("client-closes", 0) == 1,
        request: vec![0x5a; orders.number("request", REQUEST) as usize],
        response: orders.number("response", RESPONSE),
        epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
        open: HashMap::new(),
        moved: Moved::default(),
        failed: 0,
        scrap: vec![0; 1 << 16],
    };
    say("ready")?;
    wait_for_line()?;
    let began = Instant::now();
    let due = |number: u64| Duration::from_secs_f64(number as f64 / rate);
    let mut opened = 0;
    loop {
        while opened < count && due(opened) <= began.elapsed() {
            clients.open(opened)?;
            opened += 1;
        }
        let deadline = if opened < count { due(opened) } else { due(count) + TIMEOUT };
        let left = deadline.saturating_sub(began.elapsed());
        if opened == count && (clients.open.is_empty() || left.is_zero()) {
            break;
        }
        clients.turn(left)?;
    }
    let unfinished = clients.open.values();
    clients.moved.received += unfinished.map(|connection| connection.received).sum::<u64>();
    let failed = clients.failed + clients.open.len() as u64;
    let report = Report { failed, ..Report::own(clients.moved, began) };
    Ok(report.holding(idle).holding(clients.open))
}

impl Clients {
    fn open(&mut self, number: u64) -> Outcome<()> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(family(self.address), SockType::Stream, flags, None)?;
        if self.first_port > 0 {
            let mut local: SocketAddr =
                if self.address.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
            local.set_port((self.first_port + number) as u16);
            nix::sys::socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            bind(socket.as_raw_fd(), &SockaddrStorage::from(local))?;
        }
        self.moved.connections += 1;
        match connect(socket.as_raw_fd(), &SockaddrStorage::from(self.address)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(_) => {
                self.failed += 1;
                return Ok(());
            }
        }
        let descriptor = socket.as_raw_fd();
        let event = EpollEvent::new(EpollFlags::EPOLLOUT, descriptor as u64);
        self.epoll.add(socket.as_fd(), event)?;
        let server_closes = number % 2 == 1 && !self.closes_first;
        self.open.insert(descriptor, Connection { socket, server_closes, is_asked: false, received: 0 });
        Ok(())
    }

    /// Waits for an event, for at most `longest`, and handles it.
    fn turn(&mut self, longest: Duration) -> Outcome<()> {
        // Rounded up: a connection that is a fraction of a millisecond late is better than a busy loop.
        let timeout = EpollTimeout::try_from((longest.as_micros().div_ceil(1000) as u64).min(1000))?;
        let mut events = [EpollEvent::empty(); 64];
        let count = match self.epoll.wait(&mut events, timeout) {
            Err(Errno::EINTR) => 0,
            count => count?,
        };
        for event in &events[..count] {
            let descriptor = event.data() as RawFd;
            if !self.advance(descriptor)? {
                self.open.remove(&descriptor);
            }
        }
        Ok(())
    }

    /// Advances a connection as far as possible. Returns true if it stays open.
    fn advance(&mut self, descriptor: RawFd) -> Outcome<bool> {
        let Some(connection) = self.open.get_mut(&descriptor) else { return Ok(false) };
        if !connection.is_asked {
            self.request[0] = if connection.server_closes { SERVER_CLOSES } else { CLIENT_CLOSES };
            // An empty send buffer takes a request in one piece.
            match send(descriptor, &self.request, MsgFlags::MSG_NOSIGNAL) {
                Ok(count) if count == self.request.len() => self.moved.sent += count as u64,
                other => {
                    self.moved.sent += other.unwrap_or(0) as u64;
                    self.failed += 1;
                    return Ok(false);
                }
            }
            connection.is_asked = true;
            let mut event = EpollEvent::new(EpollFlags::EPOLLIN, descriptor as u64);
            self.epoll.modify(connection.socket.as_fd(), &mut event)?;
            return Ok(true);
        }
        loop {
            match nix::unistd::read(&connection.socket, &mut self.scrap) {
                Ok(0) => break,
                Ok(count) => connection.received += count as u64,
                Err(Errno::EAGAIN) => return Ok(true),
                Err(_) => break,
            }
            if connection.received >= self.response && !connection.server_closes {
                break;
            }
        }
        self.moved.received += connection.received;
        self.failed += u64::from(connection.received != self.response);
        Ok(false)
    }
}
