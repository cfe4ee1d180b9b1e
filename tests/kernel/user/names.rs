//! Many short-lived processes that use a socket under one name and end under another.

use super::{Orders, Outcome, end, say, wait_for_line};
use nix::sys::prctl::set_name;
use nix::sys::socket::{MsgFlags, send};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, execv, fork};
use std::collections::VecDeque;
use std::ffi::CString;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};

/// The number of processes at the same time.
const AT_ONCE: usize = 12;
/// The two payloads of each process, of different lengths.
const FIRST: &[u8] = &[1; 300];
const SECOND: &[u8] = &[2; 200];

/// Runs `count` processes of three kinds, by the remainder of their pids divided by 3: 0 renames itself, 1
/// executes this program again and then renames itself, 2 only executes it.
pub fn run(orders: &Orders) -> Outcome<()> {
    say("ready")?;
    wait_for_line()?;
    let mut running = VecDeque::new();
    for _ in 0..orders.number("count", 100) {
        if running.len() == AT_ONCE {
            await_first(&mut running)?;
        }
        // SAFETY: this process has one thread, so that no lock is held in the child.
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

/// Waits for the process that was started first, and reports its counts.
fn await_first(running: &mut VecDeque<Pid>) -> Outcome<()> {
    let Some(pid) = running.pop_front() else { return Ok(()) };
    waitpid(pid, None)?;
    say(&format!("process {pid} 2 {} 0", FIRST.len() + SECOND.len()))
}

fn live(orders: &Orders) -> Outcome<()> {
    let pid = std::process::id();
    set_name(&CString::new(format!("early-{pid}"))?)?;
    // Each process uses its own port. If a port were reused soon, the capture could attribute its traffic to
    // the former user.
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
    // The kernel names the process after the last part of the path.
    execv(c"/proc/self/exe", &words)?;
    Ok(())
}

/// Runs the executed program's part of a process, with the inherited socket.
pub fn again(orders: &Orders) -> Outcome<()> {
    send(orders.number("socket", 0) as RawFd, SECOND, MsgFlags::empty())?;
    let pid = std::process::id();
    if pid % 3 == 1 {
        set_name(&CString::new(format!("late-{pid}"))?)?;
    }
    Ok(())
}
