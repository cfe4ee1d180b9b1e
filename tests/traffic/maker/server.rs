//! A TCP server: one process that answers each request with as little CPU time as it can.

use super::exchange::family;
use super::{Moved, Orders, Outcome, REQUEST, RESPONSE, Report, say};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{Backlog, SockFlag, SockType, SockaddrStorage, sockopt};
use nix::sys::socket::{MsgFlags, accept4, bind, listen, send, setsockopt, socket};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Instant;

/// Values of the first byte of a request, which names the end that closes the connection first.
pub const CLIENT_CLOSES: u8 = b'c';
pub const SERVER_CLOSES: u8 = b's';

struct Connection {
    socket: OwnedFd,
    server_closes: bool,
    received: u64,
}

struct Server {
    listener: OwnedFd,
    request: u64,
    response: Vec<u8>,
    epoll: Epoll,
    open: HashMap<RawFd, Connection>,
    moved: Moved,
    scrap: Vec<u8>,
}

pub fn run(orders: &Orders) -> Outcome<Report> {
    let helper = super::idle::accept(orders)?;
    let mut server = Server::new(orders, listening(orders)?)?;
    say("ready")?;
    let began = Instant::now();
    server.serve()?;
    Ok(Report::own(server.moved, began).holding(helper).holding(server))
}

/// Sets the largest segment that a listener's connections accept, if the orders state one: the other ends
/// learn this limit and observe it.
pub fn limit_segments(orders: &Orders, listener: &impl AsFd) -> Outcome<()> {
    match orders.number("segment", 0) as u32 {
        0 => {}
        limit => setsockopt(listener, sockopt::TcpMaxSeg, &limit)?,
    }
    Ok(())
}

/// Makes the listening socket that the orders request: with `multipath` a Multipath TCP socket, with
/// `fast-open` one that accepts data with the SYN, with `segment` one that accepts no larger segments.
pub fn listening(orders: &Orders) -> Outcome<OwnedFd> {
    let address: SocketAddr = orders.address.parse()?;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let listener = match orders.number("multipath", 0) {
        0 => socket(family(address), SockType::Stream, flags, None)?,
        _ => super::ways::multipath_socket(address, libc::SOCK_NONBLOCK)?,
    };
    setsockopt(&listener, sockopt::ReuseAddr, &true)?;
    if orders.number("fast-open", 0) == 1 {
        super::ways::allow_fast_open(&listener)?;
    }
    limit_segments(orders, &listener)?;
    bind(listener.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&listener, Backlog::new(4096)?)?;
    Ok(listener)
}

impl Server {
    fn new(orders: &Orders, listener: OwnedFd) -> Outcome<Server> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, listener.as_raw_fd() as u64);
        epoll.add(&listener, event)?;
        Ok(Server {
            listener,
            request: orders.number("request", REQUEST),
            response: vec![0xa5; orders.number("response", RESPONSE) as usize],
            epoll,
            open: HashMap::new(),
            moved: Moved::default(),
            scrap: vec![0; 1 << 16],
        })
    }

    /// Answers until a line can be read.
    fn serve(&mut self) -> Outcome<()> {
        let input = std::io::stdin();
        self.epoll.add(&input, EpollEvent::new(EpollFlags::EPOLLIN, input.as_raw_fd() as u64))?;
        loop {
            let mut events = [EpollEvent::empty(); 64];
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Err(Errno::EINTR) => 0,
                count => count?,
            };
            for event in &events[..count] {
                let descriptor = event.data() as RawFd;
                if descriptor == input.as_raw_fd() {
                    return super::wait_for_line();
                } else if descriptor == self.listener.as_raw_fd() {
                    self.accept()?;
                } else if !self.advance(descriptor) {
                    self.open.remove(&descriptor);
                }
            }
        }
    }

    fn accept(&mut self) -> Outcome<()> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        loop {
            let descriptor = match accept4(self.listener.as_raw_fd(), flags) {
                Ok(descriptor) => descriptor,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::ECONNABORTED | Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            // SAFETY: the call has just returned the descriptor, and nothing else owns it.
            let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
            self.epoll.add(socket.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, descriptor as u64))?;
            self.moved.connections += 1;
            self.open.insert(descriptor, Connection { socket, server_closes: false, received: 0 });
        }
    }

    /// Advances a connection as far as possible. Returns true if it stays open.
    fn advance(&mut self, descriptor: RawFd) -> bool {
        let Some(connection) = self.open.get_mut(&descriptor) else { return false };
        let count = match nix::unistd::read(&connection.socket, &mut self.scrap) {
            Err(Errno::EAGAIN) => return true,
            Ok(0) | Err(_) => return false,
            Ok(count) => count as u64,
        };
        if connection.received == 0 {
            connection.server_closes = self.scrap[0] == SERVER_CLOSES;
        }
        connection.received += count;
        self.moved.received += count;
        if connection.received < self.request {
            return true;
        }
        // An empty send buffer takes a response in one piece.
        match send(descriptor, &self.response, MsgFlags::MSG_NOSIGNAL) {
            Ok(sent) => self.moved.sent += sent as u64,
            Err(_) => return false,
        }
        !connection.server_closes
    }
}
