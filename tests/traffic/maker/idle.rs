//! Connections that only stay open, and the descriptors that they need.

use super::children::Family;
use super::{Orders, Outcome};
use std::any::Any;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};

/// Descriptors that are reserved for purposes other than idle connections.
const DESCRIPTORS_FOR_WORK: u64 = 500;

/// Opens the `idle` connections of the orders at the client. This process holds as many as its descriptor
/// limit permits, and a child the rest. They last as long as the returned value.
pub fn connect(orders: &Orders) -> Outcome<Vec<Box<dyn Any>>> {
    let (here, elsewhere) = shared(orders)?;
    let address: SocketAddr = orders.address.parse()?;
    let connect = |address: SocketAddr, count: u64| -> Outcome<Vec<TcpStream>> {
        Ok((0..count).map(|_| TcpStream::connect(address)).collect::<Result<_, _>>()?)
    };
    let mut held: Vec<Box<dyn Any>> = Vec::new();
    if elsewhere > 0 {
        // The child is forked before this process opens its own connections, which the child would inherit.
        held.push(Box::new(child(orders, || connect(beside(address), elsewhere))?));
    }
    held.push(Box::new(connect(address, here)?));
    Ok(held)
}

/// Makes a child at the server accept the `idle` connections beyond this process's limit.
pub fn accept(orders: &Orders) -> Outcome<Option<Family>> {
    let (_, elsewhere) = shared(orders)?;
    if elsewhere == 0 {
        return Ok(None);
    }
    let listener = TcpListener::bind(beside(orders.address.parse()?))?;
    let mut family = Family::default();
    family.fork(orders, || {
        let _held = (0..elsewhere).map(|_| listener.accept()).collect::<Result<Vec<_>, _>>()?;
        loop {
            std::thread::park();
        }
    })?;
    Ok(Some(family))
}

/// Returns the number of idle connections that this process holds, and the number that a child holds.
fn shared(orders: &Orders) -> Outcome<(u64, u64)> {
    let wanted = orders.number("idle", 0);
    let possible = allow_descriptors()?.saturating_sub(DESCRIPTORS_FOR_WORK);
    Ok((wanted.min(possible), wanted.saturating_sub(possible)))
}

/// Returns the address that children use.
fn beside(mut address: SocketAddr) -> SocketAddr {
    address.set_port(address.port() + 1);
    address
}

/// Forks a child that holds the result of `make`; returns once it is made.
fn child<T>(orders: &Orders, make: impl FnOnce() -> Outcome<T>) -> Outcome<Family> {
    let (mut hearing, telling) = std::io::pipe()?;
    let mut family = Family::default();
    family.fork(orders, || {
        let _held = make()?;
        std::io::Write::write_all(&mut &telling, b".")?;
        loop {
            std::thread::park();
        }
    })?;
    // Otherwise the failure of a child would never be noticed.
    drop(telling);
    hearing.read_exact(&mut [0])?;
    Ok(family)
}

/// Raises the descriptor limit for thousands of connections; exceeding the hard limit needs a privilege.
/// Returns the new limit.
pub fn allow_descriptors() -> Outcome<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a whole structure of the type that the call fills.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let hard = limit.rlim_max;
    for wanted in [hard.max(100_000), hard] {
        let limit = libc::rlimit { rlim_cur: wanted, rlim_max: wanted };
        // SAFETY: the pointer is to a whole structure of this type, which the call only reads.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } == 0 {
            return Ok(wanted);
        }
    }
    Err(std::io::Error::last_os_error().into())
}
