//! Everything at the same time and at random: processes with threads that share sockets, fork, pass sockets
//! on, reconnect them and close them.

use super::again::reset;
use super::processes::{Board, Children};
use super::{Orders, Outcome, end, say, wait_for_line};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, connect, recv, send, socket,
};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use std::io::IoSlice;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

/// The number of processes, and of threads of each.
const PROCESSES: usize = 8;
const THREADS: usize = 8;
/// The number of answering ports, from that of the orders on.
const PORTS: u64 = 4;

/// A pseudo-random sequence of numbers (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % limit
    }
}

/// The sockets that all processes share.
struct Shared {
    datagrams: Vec<UdpSocket>,
    streams: Vec<TcpStream>,
    posts: Vec<(UnixDatagram, UnixDatagram)>,
    address: SocketAddr,
}

impl Shared {
    fn peer(&self, random: &mut Random) -> SocketAddr {
        let port = self.address.port() + random.below(PORTS) as u16;
        SocketAddr::new(self.address.ip(), port)
    }
}

/// Runs for `milliseconds`; `seed` starts the random sequence of actions.
pub fn run(orders: &Orders) -> Outcome<()> {
    let board = Board::new()?;
    let any = if orders.address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let datagrams = (0..3)
        .map(|_| -> std::io::Result<UdpSocket> {
            let socket = UdpSocket::bind(any)?;
            socket.connect(orders.address)?;
            Ok(socket)
        })
        .collect::<Result<_, _>>()?;
    let streams = (0..2)
        .map(|_| -> std::io::Result<TcpStream> {
            let stream = TcpStream::connect(orders.address)?;
            stream.set_nodelay(true)?;
            Ok(stream)
        })
        .collect::<Result<_, _>>()?;
    let posts = (0..PROCESSES).map(|_| UnixDatagram::pair()).collect::<Result<_, _>>()?;
    let shared = Shared { datagrams, streams, posts, address: orders.address };
    say("ready")?;
    wait_for_line()?;
    let until = Instant::now() + Duration::from_millis(orders.number("milliseconds", 10_000));
    let seed = orders.number("seed", 1);
    let mut children = Children::default();
    for number in 1..PROCESSES {
        children.fork(|| work(&shared, board, number, seed, until))?;
    }
    work(&shared, board, 0, seed, until)?;
    // The other processes end at the same time.
    std::thread::sleep(Duration::from_millis(1_500));
    board.report()?;
    end()
}

fn work(shared: &Shared, board: &Board, number: usize, seed: u64, until: Instant) -> Outcome<()> {
    board.own(number);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let mut random = Random(seed * 1_000_003 + (number * THREADS + thread) as u64 * 7919 + 1);
            scope.spawn(move || {
                while Instant::now() < until {
                    act(shared, number, &mut random);
                }
            });
        }
    });
    Ok(())
}

/// Returns a line of random length that requests a few bytes.
fn question(random: &mut Random) -> Vec<u8> {
    let mut line = format!("{} ", random.below(3) * random.below(1_200)).into_bytes();
    line.resize(line.len() + random.below(1_000) as usize, b'x');
    line.push(b'\n');
    line
}

/// Performs one action. Every failure is expected now and then.
fn act(shared: &Shared, number: usize, random: &mut Random) {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let udp = shared.datagrams[random.below(shared.datagrams.len() as u64) as usize].as_raw_fd();
    let tcp = shared.streams[random.below(shared.streams.len() as u64) as usize].as_raw_fd();
    let mut buffer = [0_u8; 2048];
    match random.below(100) {
        0..30 => drop(send(udp, &question(random), flags)),
        30..50 => drop(recv(udp, &mut buffer, flags)),
        50..65 => drop(send(tcp, &question(random), flags)),
        65..80 => drop(recv(tcp, &mut buffer, flags)),
        80..83 => drop(connect(udp, &SockaddrStorage::from(shared.peer(random)))),
        83 if random.below(10) == 0 => fork_one(shared, random, udp),
        84..90 => post(shared, random),
        90..94 => take_post(shared, number, random),
        _ => {
            if let Ok(own) = open(shared, random) {
                let _ = send(own.as_raw_fd(), &question(random), flags);
                std::thread::sleep(Duration::from_micros(random.below(300)));
                let _ = recv(own.as_raw_fd(), &mut buffer, flags);
                match random.below(3) {
                    0 => drop(reset(own)),
                    _ => drop(own),
                }
            }
        }
    }
}

fn open(shared: &Shared, random: &mut Random) -> Outcome<OwnedFd> {
    let kind = if random.below(2) == 0 { SockType::Stream } else { SockType::Datagram };
    let family = if shared.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let made = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    connect(made.as_raw_fd(), &SockaddrStorage::from(shared.peer(random)))?;
    Ok(made)
}

/// Forks a child that uses one of the shared sockets and ends at once.
fn fork_one(shared: &Shared, random: &mut Random, udp: RawFd) {
    let line = question(random);
    let to = SockaddrStorage::from(shared.peer(random));
    // SAFETY: the child only makes system calls until it ends.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            let mut buffer = [0_u8; 2048];
            let _ = send(udp, &line, MsgFlags::MSG_DONTWAIT);
            let _ = recv(udp, &mut buffer, MsgFlags::MSG_DONTWAIT);
            if let Ok(own) = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None) {
                let _ = connect(own.as_raw_fd(), &to);
                let _ = send(own.as_raw_fd(), &line, MsgFlags::MSG_DONTWAIT);
            }
            // SAFETY: _exit(2) ends the process without running any code of the parent's.
            unsafe { libc::_exit(0) }
        }
        Ok(ForkResult::Parent { child }) => drop(waitpid(child, None)),
        Err(_) => {}
    }
}

/// Sends a socket that was used once to another process.
fn post(shared: &Shared, random: &mut Random) {
    let to = random.below(PROCESSES as u64) as usize;
    let Ok(own) = open(shared, random) else { return };
    let _ = send(own.as_raw_fd(), &question(random), MsgFlags::MSG_NOSIGNAL);
    let descriptors = [own.into_raw_fd()];
    let message = [nix::sys::socket::ControlMessage::ScmRights(&descriptors)];
    let post = shared.posts[to].0.as_raw_fd();
    let _ =
        nix::sys::socket::sendmsg::<()>(post, &[IoSlice::new(b".")], &message, MsgFlags::MSG_DONTWAIT, None);
    let _ = nix::unistd::close(descriptors[0]);
}

/// Receives a socket, uses it and closes it.
fn take_post(shared: &Shared, number: usize, random: &mut Random) {
    let mut room = nix::cmsg_space!(RawFd);
    let mut byte = [0];
    let mut parts = [std::io::IoSliceMut::new(&mut byte)];
    let post = shared.posts[number].1.as_raw_fd();
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let Ok(message) = nix::sys::socket::recvmsg::<()>(post, &mut parts, Some(&mut room), flags) else {
        return;
    };
    let Ok(mut received) = message.cmsgs() else { return };
    let descriptor = received.find_map(|part| match part {
        nix::sys::socket::ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    let Some(descriptor) = descriptor else { return };
    // SAFETY: the descriptor has just been received, and nothing else owns it.
    let own = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let mut buffer = [0_u8; 2048];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let _ = recv(descriptor, &mut buffer, flags);
    let _ = send(descriptor, &question(random), flags);
    let _ = recv(descriptor, &mut buffer, flags);
    if random.below(4) == 0 {
        let _ = reset(own);
    }
}
