//! Connections that only stay open, and the descriptors that they take.

use super::children::Family;
use super::{Orders, Outcome};
use std::any::Any;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};

/// Descriptors that are kept for other than idle connections.
const DESCRIPTORS_FOR_WORK: u64 = 500;

/// At the client: opens the `idle` connections of the orders. This process holds as many as it may have descriptors
/// for, a child the rest. They last as long as what is returned.
pub fn connect(orders: &Orders) -> Outcome<Vec<Box<dyn Any>>> {
    let (here, elsewhere) = shared(orders)?;
    let address: SocketAddr = orders.address.parse()?;
    let connect = |address: SocketAddr, count: u64| -> Outcome<Vec<TcpStream>> {
        Ok((0..count).map(|_| TcpStream::connect(address)).collect::<Result<_, _>>()?)
    };
    let mut held: Vec<Box<dyn Any>> = Vec::new();
    if elsewhere > 0 {
        // Before this process has its own: the child would have them, too.
        held.push(Box::new(child(orders, || connect(beside(address), elsewhere))?));
    }
    held.push(Box::new(connect(address, here)?));
    Ok(held)
}

/// At the server: has a child accept those of the `idle` connections that this process cannot have.
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

/// How many idle connections this process holds, and how many a child.
fn shared(orders: &Orders) -> Outcome<(u64, u64)> {
    let wanted = orders.number("idle", 0);
    let possible = allow_descriptors()?.saturating_sub(DESCRIPTORS_FOR_WORK);
    Ok((wanted.min(possible), wanted.saturating_sub(possible)))
}

/// The address that children speak at.
fn beside(mut address: SocketAddr) -> SocketAddr {
    address.set_port(address.port() + 1);
    address
}

/// A child that holds what it has made; returns when it has.
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
    // Else a child that fails would never be noticed.
    drop(telling);
    hearing.read_exact(&mut [0])?;
    Ok(family)
}

/// Thousands of connections need as many descriptors; going beyond the hard limit takes a privilege. Returns how many
/// are allowed.
pub fn allow_descriptors() -> Outcome<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a whole structure of the type that the call fills.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let hard = limit.rlim_max;
    for wanted in [hard.max(100_000), hard] {
        let limit = libc::rlimit { rlim_cur: wanted, rlim_max: wanted };
        // SAFETY: as above; the call only reads.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } == 0 {
            return Ok(wanted);
        }
    }
    Err(std::io::Error::last_os_error().into())
}
