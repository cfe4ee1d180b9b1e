//! A server in which one process accepts the connections and another answers them; the first sends
//! them to the second.

use super::children::{Counts, Family, answer, shared_counts};
use super::{Orders, Outcome, Report, say, wait_for_line};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::io::{IoSlice, IoSliceMut};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::time::Instant;

/// Values of the order `acceptor`: the acceptor's action after it has sent a connection to the worker.
const CLOSES: u64 = 0;
const KEEPS: u64 = 1;
const EXITS: u64 = 2;

/// Runs a worker that has all connections, and an acceptor that reads none of their data; with [`EXITS`], an
/// acceptor for each connection.
pub fn server(orders: &Orders) -> Outcome<Report> {
    let own = &shared_counts()?[0];
    let (sending, receiving) = UnixDatagram::pair()?;
    let mut worker = Family::default();
    worker.fork(orders, || {
        loop {
            // The worker continues if a client has disappeared.
            let _ = answer(received(&receiving)?, own);
        }
    })?;
    drop(receiving);
    let listener = TcpListener::bind(&orders.address)?;
    let mut acceptor = Family::default();
    acceptor.fork(orders, || accept_all(orders, &listener, &sending))?;
    drop((listener, sending));
    say("ready")?;
    let began = Instant::now();
    wait_for_line()?;
    let processes = worker.children.iter().map(|&pid| (pid as u32, Counts::moved(own))).collect();
    Ok(Report { processes, took: began.elapsed(), failed: 0, held: vec![Box::new((worker, acceptor))] })
}

/// Runs the acceptor.
fn accept_all(orders: &Orders, listener: &TcpListener, to: &UnixDatagram) -> Outcome<()> {
    let how = orders.number("acceptor", CLOSES);
    let mut kept = Vec::new();
    loop {
        if how == EXITS {
            let mut once = Family::default();
            once.fork(orders, || pass_on(&listener.accept()?.0, to))?;
            once.wait();
            continue;
        }
        let stream = listener.accept()?.0;
        pass_on(&stream, to)?;
        kept.extend((how == KEEPS).then_some(stream));
    }
}

/// Sends a connection to the worker (unix(7)).
fn pass_on(stream: &TcpStream, to: &UnixDatagram) -> Outcome<()> {
    let descriptors = [stream.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(b".")], &message, MsgFlags::empty(), None)?;
    Ok(())
}

/// Returns the next connection that is sent.
fn received(from: &UnixDatagram) -> Outcome<TcpStream> {
    let mut room = nix::cmsg_space!(RawFd);
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut room), flags)?;
    let descriptor = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    let descriptor = descriptor.ok_or("a connection is sent with each byte")?;
    // SAFETY: the descriptor has just been received, and nothing else owns it.
    Ok(TcpStream::from(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}
