//! A flood: minimal datagrams, one system call for each, as fast as one process can send them;
//! and its reader.

use super::{Moved, Orders, Outcome, Report, say, wait_for_line};
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// One byte of payload, so that bytes are datagrams.
const DATAGRAM: [u8; 1] = [0x5a];

/// Datagrams between two readings of the clock.
const STRIDE: u32 = 64;

/// The time without a datagram after the end until all datagrams under way count as read.
const SILENCE: Duration = Duration::from_millis(50);

/// Sends for `milliseconds`, on the CPU `cpu` if that is given.
pub fn source(orders: &Orders) -> Outcome<Report> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(&orders.address)?;
    stay_on(orders)?;
    say("ready")?;
    wait_for_line()?;
    let longest = Duration::from_millis(orders.number("milliseconds", 1000));
    let began = Instant::now();
    let mut sent = 0;
    while began.elapsed() < longest {
        for _ in 0..STRIDE {
            sent += socket.send(&DATAGRAM)? as u64;
        }
    }
    Ok(Report::own(Moved { connections: 1, sent, received: 0 }, began))
}

/// Reads until the order that the flood has ended, and then the remaining datagrams; a flood may
/// lose datagrams.
pub fn sink(orders: &Orders) -> Outcome<Report> {
    let socket = UdpSocket::bind(&orders.address)?;
    socket.set_read_timeout(Some(SILENCE))?;
    stay_on(orders)?;
    let is_over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&is_over);
    std::thread::spawn(move || {
        // Both a line and the end of the input end the flood.
        let _ = wait_for_line();
        told.store(true, Ordering::Relaxed);
    });
    say("ready")?;
    let began = Instant::now();
    let mut received = 0;
    let mut buffer = DATAGRAM;
    loop {
        match socket.recv(&mut buffer) {
            Ok(count) => received += count as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if is_over.load(Ordering::Relaxed) {
                    return Ok(Report::own(Moved { connections: 1, sent: 0, received }, began));
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Restricts this process to the CPU that the orders name: the scheduler's placement of two processes has
/// more effect on a flood's rate than the subject of the measurement.
fn stay_on(orders: &Orders) -> Outcome<()> {
    let cpu = orders.number("cpu", u64::MAX);
    if cpu == u64::MAX {
        return Ok(());
    }
    // SAFETY: the set consists of plain numbers, for which 0 is a valid value; the macro writes within it.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(usize::try_from(cpu)?.min(libc::CPU_SETSIZE as usize - 1), &mut set);
        set
    };
    // SAFETY: the pointer is to a set of this length, which the call only reads.
    if unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(())
}
