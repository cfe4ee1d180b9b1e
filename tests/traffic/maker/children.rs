//! Many processes: short-lived clients, the workers of a server, and idle processes.

use super::server::{CLIENT_CLOSES, SERVER_CLOSES};
use super::{Moved, Orders, Outcome, REQUEST, RESPONSE, Report, name_by_pid, say, wait_for_line};
use std::collections::HashMap;
use std::ffi::c_void;
use std::fs::File;
use std::io::{Error, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The time limit for the last clients.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The number of workers of the pre-fork server.
const WORKERS: usize = 8;

/// Forked processes, which are ended when this is dropped.
#[derive(Default)]
pub struct Family {
    pub children: Vec<i32>,
}

impl Family {
    /// Forks; the child runs `work` and ends.
    pub fn fork(&mut self, orders: &Orders, work: impl FnOnce() -> Outcome<()>) -> Outcome<()> {
        let parent = std::process::id();
        // SAFETY: this process has one thread, so that no lock is held in the child.
        match unsafe { libc::fork() } {
            -1 => Err(Error::last_os_error().into()),
            0 => {
                let status = match die_with(parent).and_then(|()| name_by_pid(orders)).and_then(|()| work()) {
                    Ok(()) => 0,
                    Err(_) => 1,
                };
                // SAFETY: ends the process without running the parent's exit handlers.
                unsafe { libc::_exit(status) }
            }
            child => {
                self.children.push(child);
                Ok(())
            }
        }
    }
}

impl Family {
    /// Waits until all have ended by themselves.
    pub fn wait(mut self) {
        for child in self.children.drain(..) {
            // SAFETY: without a pointer for the status, the call writes nothing.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        }
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        for &child in &self.children {
            // SAFETY: no pointers; the child belongs to this process and has not been waited for, so that its
            // pid is not reused.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
        for &child in &self.children {
            // SAFETY: without a pointer for the status, the call writes nothing.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        }
    }
}

/// Ends this process when its parent ends.
fn die_with(parent: u32) -> Outcome<()> {
    // SAFETY: this option takes a number and no pointers.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(Error::last_os_error().into());
    }
    match std::os::unix::process::parent_id() == parent {
        true => Ok(()),
        false => Err("the parent has ended".into()),
    }
}

/// Starts `rate` processes a second for `milliseconds`, each a separate program with one connection.
pub fn processes(orders: &Orders) -> Outcome<Report> {
    let rate = orders.number("rate", 20) as f64;
    let count = (rate * orders.number("milliseconds", 1000) as f64 / 1000.0) as u64;
    let program = std::env::current_exe()?;
    let parent = format!("parent={}", std::process::id());
    let named = format!("named={}", orders.number("named", 0));
    let mut running: HashMap<u32, Child> = HashMap::new();
    let mut ended = Vec::new();
    let mut failed = 0;
    say("ready")?;
    wait_for_line()?;
    let began = Instant::now();
    let due = |number: u64| Duration::from_secs_f64(number as f64 / rate);
    let mut started = 0;
    while started < count || !running.is_empty() {
        if began.elapsed() > due(count) + TIMEOUT {
            break;
        }
        while started < count && due(started) <= began.elapsed() {
            let closer = format!("server-closes={}", started % 2);
            let mut command = Command::new(&program);
            command.args(["one-client", &orders.address, &closer, &parent, &named]).stdin(Stdio::null());
            let child = command.spawn()?;
            running.insert(child.id(), child);
            started += 1;
        }
        running.retain(|&pid, child| match child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) if status.success() => {
                ended.push((pid, Moved { connections: 1, sent: REQUEST, received: RESPONSE }));
                false
            }
            _ => {
                // The process is reported nevertheless: any bytes that it moved are its own.
                ended.push((pid, Moved { connections: 1, ..Moved::default() }));
                failed += 1;
                false
            }
        });
        let next = due(started.min(count)).saturating_sub(began.elapsed());
        std::thread::sleep(next.clamp(Duration::from_micros(200), Duration::from_millis(5)));
    }
    failed += running.len() as u64;
    ended.extend(running.keys().map(|&pid| (pid, Moved { connections: 1, ..Moved::default() })));
    Ok(Report { processes: ended, took: began.elapsed(), failed, held: vec![Box::new(running)] })
}

/// Makes one connection, and ends.
pub fn one_client(orders: &Orders) -> Outcome<()> {
    die_with(orders.number("parent", 0) as u32)?;
    let server_closes = orders.number("server-closes", 0) == 1;
    let mut stream = TcpStream::connect(&orders.address)?;
    let mut request = vec![0x5a; REQUEST as usize];
    request[0] = if server_closes { SERVER_CLOSES } else { CLIENT_CLOSES };
    stream.write_all(&request)?;
    let mut response = vec![0; RESPONSE as usize];
    stream.read_exact(&mut response)?;
    if server_closes {
        stream.read_to_end(&mut response)?;
    }
    Ok(())
}

/// The counts of a worker so far, for its parent to read.
#[derive(Default)]
pub struct Counts {
    connections: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Counts {
    pub fn moved(&self) -> Moved {
        Moved {
            connections: self.connections.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
        }
    }
}

/// Makes a listening socket and workers that share it: each accepts a connection, answers, and
/// accepts the next.
pub fn prefork_server(orders: &Orders) -> Outcome<Report> {
    let listener = TcpListener::bind(&orders.address)?;
    let counts = shared_counts()?;
    let mut family = Family::default();
    for own in counts {
        family.fork(orders, || {
            loop {
                // The worker continues if a client has disappeared.
                let _ = listener.accept().map(|(stream, _)| answer(stream, own));
            }
        })?;
    }
    say("ready")?;
    let began = Instant::now();
    wait_for_line()?;
    let processes =
        family.children.iter().map(|&pid| pid as u32).zip(counts.iter().map(Counts::moved)).collect();
    Ok(Report { processes, took: began.elapsed(), failed: 0, held: vec![Box::new(family)] })
}

/// Answers the request of a connection, and counts the bytes.
pub fn answer(mut stream: TcpStream, counts: &Counts) -> Outcome<()> {
    counts.connections.fetch_add(1, Ordering::Relaxed);
    let mut request = [0; REQUEST as usize];
    stream.read_exact(&mut request)?;
    counts.received.fetch_add(REQUEST, Ordering::Relaxed);
    stream.write_all(&[0xa5; RESPONSE as usize])?;
    counts.sent.fetch_add(RESPONSE, Ordering::Relaxed);
    if request[0] != SERVER_CLOSES {
        stream.read_to_end(&mut Vec::new())?;
    }
    // A shutdown ends the connection even if another process holds the socket.
    Ok(stream.shutdown(Shutdown::Both)?)
}

/// Returns memory that parent and children share.
pub fn shared_counts() -> Outcome<&'static [Counts]> {
    let length = WORKERS * size_of::<Counts>();
    // SAFETY: a new anonymous mapping at an address of the kernel's choice.
    let memory: *mut c_void = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if memory == libc::MAP_FAILED {
        return Err(Error::last_os_error().into());
    }
    // SAFETY: the pages are aligned, are never unmapped, and are filled with zeros, which are counts of zero.
    Ok(unsafe { std::slice::from_raw_parts(memory.cast::<Counts>(), WORKERS) })
}

/// Starts `count` processes that do nothing, with ten descriptors each, some of them sockets.
pub fn bystanders(orders: &Orders) -> Outcome<Report> {
    let mut family = Family::default();
    for _ in 0..orders.number("count", 1000) {
        family.fork(orders, || {
            let udp = UdpSocket::bind("127.0.0.1:0")?;
            let local = (UnixDatagram::pair()?, UnixDatagram::pair()?);
            let files = (File::open("/dev/null")?, File::open("/dev/null")?);
            // In addition to standard input, output and error.
            let _descriptors = (udp, local, files);
            loop {
                std::thread::park();
            }
        })?;
    }
    say("ready")?;
    let began = Instant::now();
    wait_for_line()?;
    Ok(Report { processes: Vec::new(), took: began.elapsed(), failed: 0, held: vec![Box::new(family)] })
}
