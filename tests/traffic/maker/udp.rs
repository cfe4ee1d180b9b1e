//! UDP conversations of one process, each over a socket of its own, and the server that answers
//! over one socket.

use super::{Moved, Orders, Outcome, Report, say, wait_for_line};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{setsockopt, sockopt};
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Payload of a question and of its answer.
const DATAGRAM: u64 = 1200;

/// Buffer size for the datagrams that arrive while the other side has the CPU.
const BUFFER: usize = 4 << 20;

/// The time after which missing answers are given up.
const TIMEOUT: Duration = Duration::from_secs(1);

/// One socket, from its first question to its last answer.
struct Conversation {
    socket: UdpSocket,
    asked: u64,
    answered: u64,
    last: Instant,
}

struct Clients {
    server: SocketAddr,
    is_connected: bool,
    /// Questions in a conversation; 0 for no limit.
    length: u64,
    question: Vec<u8>,
    epoll: Epoll,
    places: Vec<Option<Conversation>>,
    moved: Moved,
    /// Conversations without any answer.
    failed: u64,
}

/// Sends `rate` questions a second for `milliseconds` over `sockets` sockets in turn, `connected` or
/// not. After `length` questions and as many answers a socket is closed, and a new one replaces it
/// at its next turn.
pub fn clients(orders: &Orders) -> Outcome<Report> {
    let rate = orders.number("rate", 100) as f64;
    let count = (rate * orders.number("milliseconds", 1000) as f64 / 1000.0) as u64;
    let sockets = orders.number("sockets", 1) as usize;
    let mut clients = Clients {
        server: orders.address.parse()?,
        is_connected: orders.number("connected", 1) == 1,
        length: orders.number("length", 0),
        question: vec![0x5a; orders.number("datagram", DATAGRAM) as usize],
        epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
        places: (0..sockets).map(|_| None).collect(),
        moved: Moved::default(),
        failed: 0,
    };
    say("ready")?;
    wait_for_line()?;
    let began = Instant::now();
    let due = |number: u64| Duration::from_secs_f64(number as f64 / rate);
    let mut turn = 0;
    loop {
        while turn < count && due(turn) <= began.elapsed() {
            clients.ask((turn % sockets as u64) as usize)?;
            turn += 1;
        }
        let deadline = if turn < count { due(turn) } else { due(count) + TIMEOUT };
        let left = deadline.saturating_sub(began.elapsed());
        if turn == count && (left.is_zero() || clients.has_all()) {
            break;
        }
        clients.hear(left)?;
    }
    let unanswered = clients.places.iter().flatten().filter(|conversation| conversation.answered == 0);
    let failed = clients.failed + unanswered.count() as u64;
    Ok(Report { failed, ..Report::own(clients.moved, began) }.holding(clients.places))
}

impl Clients {
    fn open(&mut self, place: usize) -> Outcome<Conversation> {
        let socket = UdpSocket::bind(if self.server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.set_nonblocking(true)?;
        if self.is_connected {
            socket.connect(self.server)?;
        }
        self.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, place as u64))?;
        self.moved.connections += 1;
        Ok(Conversation { socket, asked: 0, answered: 0, last: Instant::now() })
    }

    /// Sends the next question of a slot, unless the slot still waits for the last answers.
    fn ask(&mut self, place: usize) -> Outcome<()> {
        let mut conversation = match self.places[place].take() {
            Some(conversation) if self.length == 0 || conversation.asked < self.length => conversation,
            Some(waiting) if waiting.last.elapsed() < TIMEOUT => {
                self.places[place] = Some(waiting);
                return Ok(());
            }
            given_up => {
                self.failed += u64::from(given_up.is_some_and(|conversation| conversation.answered == 0));
                self.open(place)?
            }
        };
        let sent = match self.is_connected {
            true => conversation.socket.send(&self.question),
            false => conversation.socket.send_to(&self.question, self.server),
        };
        match sent {
            Ok(count) => self.moved.sent += count as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        conversation.asked += 1;
        conversation.last = Instant::now();
        self.places[place] = Some(conversation);
        Ok(())
    }

    /// Waits for answers, for at most `longest`, and receives them.
    fn hear(&mut self, longest: Duration) -> Outcome<()> {
        let timeout = EpollTimeout::try_from((longest.as_micros().div_ceil(1000) as u64).min(1000))?;
        let mut events = [EpollEvent::empty(); 64];
        let count = match self.epoll.wait(&mut events, timeout) {
            Err(Errno::EINTR) => 0,
            count => count?,
        };
        let mut answer = [0; 1 << 16];
        for event in &events[..count] {
            let place = &mut self.places[event.data() as usize];
            let Some(conversation) = place else { continue };
            while let Ok(count) = conversation.socket.recv(&mut answer) {
                self.moved.received += count as u64;
                conversation.answered += 1;
            }
            if self.length > 0 && conversation.answered == self.length {
                *place = None;
            }
        }
        Ok(())
    }

    fn has_all(&self) -> bool {
        self.places.iter().flatten().all(|conversation| conversation.asked == conversation.answered)
    }
}

/// Returns the server's socket, with buffers for bursts.
pub fn bound(orders: &Orders) -> Outcome<UdpSocket> {
    let socket = UdpSocket::bind(&orders.address)?;
    socket.set_nonblocking(true)?;
    // Exceeds the system's limit if permitted.
    if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &BUFFER)?;
    }
    Ok(socket)
}

/// Answers every datagram with one of the same length, over one socket, until a line can be read. With `peek`
/// it peeks at each before it receives it.
pub fn server(orders: &Orders) -> Outcome<Report> {
    let peeks = orders.number("peek", 0) == 1;
    let socket = bound(orders)?;
    say("ready")?;
    let began = Instant::now();
    let input = std::io::stdin();
    let mut moved = Moved { connections: 1, ..Moved::default() };
    let mut datagram = [0; 1 << 16];
    loop {
        let mut waited =
            [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(input.as_fd(), PollFlags::POLLIN)];
        poll(&mut waited, PollTimeout::NONE)?;
        let is_told = waited[1].any().unwrap_or(true);
        loop {
            if peeks && socket.peek_from(&mut datagram).is_err() {
                break;
            }
            let Ok((count, client)) = socket.recv_from(&mut datagram) else { break };
            moved.received += count as u64;
            // A full send buffer loses a datagram, as networks do.
            moved.sent += socket.send_to(&datagram[..count], client).unwrap_or(0) as u64;
        }
        if is_told {
            wait_for_line()?;
            return Ok(Report::own(moved, began));
        }
    }
}
