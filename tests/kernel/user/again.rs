//! Sockets that are connected more than once.

use super::processes::{Board, Children};
use super::{Orders, Outcome, end, say, wait_for_line};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, Shutdown, SockFlag, SockType, SockaddrStorage, accept, bind, connect,
    getsockname, listen, recv, send, setsockopt, shutdown, socket, sockopt,
};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Bytes sent to the first peer. The second peer gets twice as many, which still fit into a packet.
const BYTES: usize = 500;

/// Connects a socket to a second peer, over TCP (`tcp`) or UDP, in one of these ways:
///
/// - `kind=1`: tries a closed port first
/// - `kind=2`: connects to another peer after the first
/// - `kind=3`: dissolves the association in between
/// - `kind=4`: listens first, until it shuts the socket down
///
/// `second` is the second peer's port. Its address is that of the first, or with `other` another one; for
/// IPv6, only the prefix differs. With `mapped`, an IPv6 socket is used for IPv4. Sends to each peer that it
/// reaches.
pub fn run(orders: &Orders) -> Outcome<()> {
    if orders.number("old", 0) != 0 {
        return old_and_new(orders);
    }
    let is_tcp = orders.number("tcp", 0) != 0;
    let is_mapped = orders.number("mapped", 0) != 0;
    let board = Board::new()?;
    say("ready")?;
    wait_for_line()?;
    let own = board.own(0);
    let mut first = orders.address;
    let mut second = first;
    second.set_port(orders.number("second", first.port().into()) as u16);
    if orders.number("other", 0) != 0 {
        second.set_ip(other_address(first.ip()));
    }
    if is_mapped {
        (first, second) = (mapped(first), mapped(second));
    }
    let family = if first.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let kind = if is_tcp { SockType::Stream } else { SockType::Datagram };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    let descriptor = socket.as_raw_fd();
    let message = |bytes: usize| -> Outcome<()> {
        let text = format!("{:0width$}\n", 0, width = bytes - 1);
        own.sent(send(descriptor, text.as_bytes(), MsgFlags::empty())?);
        Ok(())
    };
    match orders.number("kind", 1) {
        1 => {
            let mut closed = first;
            closed.set_port(9);
            if connect(descriptor, &SockaddrStorage::from(closed)).is_ok() && is_tcp {
                return Err("the closed port is open".into());
            }
        }
        4 => {
            listen(&socket, Backlog::MAXCONN)?;
            shutdown(descriptor, Shutdown::Both)?;
        }
        kind => {
            connect(descriptor, &SockaddrStorage::from(first))?;
            message(BYTES)?;
            if kind == 3 {
                disconnect(descriptor)?;
            }
        }
    }
    connect(descriptor, &SockaddrStorage::from(second))?;
    message(2 * BYTES)?;
    board.report()?;
    if orders.number("short", 0) == 0 {
        end()?;
    } else {
        say("done")?;
    }
    drop(socket);
    Ok(())
}

fn disconnect(descriptor: i32) -> Outcome<()> {
    let nothing = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
    // SAFETY: the address has the stated length.
    let result = unsafe { libc::connect(descriptor, &raw const nothing, size_of::<libc::sockaddr>() as u32) };
    if result != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(())
}

/// Returns another address: 10.77.0.2 becomes 10.77.0.3, fd77::2 becomes fd78::2.
fn other_address(address: std::net::IpAddr) -> std::net::IpAddr {
    match address {
        std::net::IpAddr::V4(v4) => std::net::Ipv4Addr::from_bits(v4.to_bits() + 1).into(),
        std::net::IpAddr::V6(v6) => std::net::Ipv6Addr::from_bits(v6.to_bits() + (1 << 112)).into(),
    }
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        v6 => v6,
    }
}

/// Makes `rounds` connections to this program whose client resets them and reconnects from the same port. The
/// server still has the old connection's socket, which a child of the server then uses. Between the two
/// connections are `pause` milliseconds.
fn old_and_new(orders: &Orders) -> Outcome<()> {
    let board = Board::new()?;
    let listener = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&listener, sockopt::ReuseAddr, &true)?;
    bind(listener.as_raw_fd(), &SockaddrStorage::from(orders.address))?;
    listen(&listener, Backlog::MAXCONN)?;
    say("ready")?;
    wait_for_line()?;
    let own = board.own(0);
    let any = SocketAddr::new(orders.address.ip(), 0);
    let mut kept = Vec::new();
    for _ in 0..orders.number("rounds", 20) {
        let client = client_from(any, orders.address)?;
        let port: SockaddrStorage = getsockname(client.as_raw_fd())?;
        let old = accepted(&listener)?;
        send(old.as_raw_fd(), b"x", MsgFlags::empty())?;
        own.sent(1);
        reset(client)?;
        std::thread::sleep(Duration::from_millis(orders.number("pause", 0)));
        let from = SocketAddr::new(any.ip(), port.as_sockaddr_in().ok_or("no port")?.port());
        let client = client_from(from, orders.address)?;
        let new = accepted(&listener)?;
        own.sent(send(new.as_raw_fd(), &[7; BYTES], MsgFlags::empty())?);
        // The old socket changes hands while the new one lives, and ends.
        {
            let mut child = Children::default();
            let (descriptor, words) = (old.as_raw_fd(), &board.words[0]);
            let before = words.load(std::sync::atomic::Ordering::Acquire);
            child.fork(|| {
                let _ = recv(descriptor, &mut [0; 8], MsgFlags::MSG_DONTWAIT);
                let _ = recv(descriptor, &mut [0; 8], MsgFlags::MSG_DONTWAIT);
                words.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
                Ok(())
            })?;
            super::processes::wait_for(|| words.load(std::sync::atomic::Ordering::Acquire) > before);
        }
        drop(old);
        kept.push((client, new));
    }
    // From here on, the program sends only what the board counts.
    say("set")?;
    wait_for_line()?;
    for (_, new) in &kept {
        own.sent(send(new.as_raw_fd(), &[7; BYTES], MsgFlags::empty())?);
    }
    board.report()?;
    end()
}

fn client_from(from: SocketAddr, to: SocketAddr) -> Outcome<OwnedFd> {
    let client = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&client, sockopt::ReuseAddr, &true)?;
    bind(client.as_raw_fd(), &SockaddrStorage::from(from))?;
    connect(client.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(client)
}

fn accepted(listener: &OwnedFd) -> Outcome<OwnedFd> {
    let descriptor = accept(listener.as_raw_fd())?;
    // SAFETY: the kernel has just created the descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Ends a connection with a reset.
pub fn reset(socket: OwnedFd) -> Outcome<()> {
    setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    drop(socket);
    Ok(())
}
