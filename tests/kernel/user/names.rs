//! Many short processes that use a socket under one name and end under another.

use super::{Orders, Outcome, end, say, wait_for_line};
use nix::sys::prctl::set_name;
use nix::sys::socket::{MsgFlags, send};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, execv, fork};
use std::collections::VecDeque;
use std::ffi::CString;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};

/// Processes at the same time.
const AT_ONCE: usize = 12;
/// What each process sends, a length of its own for each time.
const FIRST: &[u8] = &[1; 300];
const SECOND: &[u8] = &[2; 200];

/// `count` processes, of three kinds by the remainder of their numbers: those of 0 give themselves another name, those of 1
/// execute this program again and then do, those of 2 only execute it.
pub fn run(orders: &Orders) -> Outcome<()> {
    say("ready")?;
    wait_for_line()?;
    let mut running = VecDeque::new();
    for _ in 0..orders.number("count", 100) {
        if running.len() == AT_ONCE {
            await_first(&mut running)?;
        }
        // SAFETY: this process has one thread, so that the child finds no lock held.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => running.push_back(child),
            ForkResult::Child => {
                let status = match live(orders) {
                    Ok(()) => 0,
                    Err(error) => {
                        eprintln!("a short process: {error}");
                        1
                    }
                };
                std::process::exit(status);
            }
        }
    }
    while !running.is_empty() {
        await_first(&mut running)?;
    }
    end()
}

/// Reports what the process that was started first has done.
fn await_first(running: &mut VecDeque<Pid>) -> Outcome<()> {
    let Some(pid) = running.pop_front() else { return Ok(()) };
    waitpid(pid, None)?;
    say(&format!("process {pid} 2 {} 0", FIRST.len() + SECOND.len()))
}

fn live(orders: &Orders) -> Outcome<()> {
    let pid = std::process::id();
    set_name(&CString::new(format!("early-{pid}"))?)?;
    // A port of its own: what the capture sees of one that is used again soon may be its former user's.
    let port = (10_000 + pid % 50_000) as u16;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    socket.connect(orders.address)?;
    socket.send(FIRST)?;
    if pid.is_multiple_of(3) {
        socket.send(SECOND)?;
        return Ok(set_name(&CString::new(format!("late-{pid}"))?)?);
    }
    let descriptor = socket.as_raw_fd();
    nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
    let words = ["socket_user", "names-again", &orders.address.to_string(), &format!("socket={descriptor}")]
        .map(CString::new);
    let words = words.into_iter().collect::<Result<Vec<_>, _>>()?;
    // The kernel names the process by the last part of the path.
    execv(c"/proc/self/exe", &words)?;
    Ok(())
}

/// What a process does as the program that it has executed, with the socket that it has.
pub fn again(orders: &Orders) -> Outcome<()> {
    send(orders.number("socket", 0) as RawFd, SECOND, MsgFlags::empty())?;
    let pid = std::process::id();
    if pid % 3 == 1 {
        set_name(&CString::new(format!("late-{pid}"))?)?;
    }
    Ok(())
}
