//! A host program of the library, under conditions that its arguments set: `probe_host [NAME=VALUE...]`.
//!
//! - `engine=kernel`: uses the engine `kernel`
//! - `probes=no`: loads no eBPF programs
//! - `locked=BYTES`: sets the limit of locked memory
//! - `refuse=ERRNO[:COMMAND]`: makes bpf(2) return this error, for all commands or only for COMMAND
//! - `rounds=NUMBER`: opens and closes a session this many times before it goes on
//! - `watch=PID`: counts the bytes that another process sends
//! - `sessions=NUMBER`: has this many sessions at the same time
//! - `forks=yes`: forks a child with its own session, which ends before the program is ready
//!
//! It prints `round DESCRIPTORS THREADS KIB` after some of the rounds and `made KIND ID...` for each round.
//! It then opens a session and prints `log TEXT` for each line of the log, `state STATE`, `programs BITS`,
//! `samples STATE`, `engine ENGINE`, `network BYTES` once its own traffic over loopback is counted or
//! `network none` if it is not, `watched BYTES` of the other process, and `ready`. A child prints
//! `child KIND ID...` with the objects that it has descriptors of, and `network BYTES`. At a line on its
//! standard input, the program closes the oldest session, and prints `network BYTES` for each that is left,
//! and `closed`. It ends when its standard input does.

mod conditions;

use capture::internals::config::{Engine, Options};
use capture::internals::log::LogOptions;
use capture::internals::model::Validity;
use capture::internals::session::Session;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::collections::VecDeque;
use std::error::Error;
use std::io::{BufRead, stdin};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The time after which the program stops waiting for traffic to be counted.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Rounds after which memory, descriptors and threads are stable.
const WARM_UP: u32 = 20;
/// The size of a datagram's payload, bytes.
const PAYLOAD: usize = 1000;

fn main() -> Outcome<()> {
    let mut probes = true;
    let mut engine = Engine::Pcap;
    let mut rounds = 0;
    let mut watched = None;
    let (mut sessions, mut forks) = (1, false);
    for argument in std::env::args().skip(1) {
        match argument.split_once('=') {
            Some(("engine", "kernel")) => engine = Engine::Kernel,
            Some(("engine", "pcap")) => engine = Engine::Pcap,
            Some(("probes", value)) => probes = value != "no",
            Some(("locked", value)) => conditions::limit_locked_memory(value.parse()?)?,
            Some(("refuse", value)) => conditions::refuse_bpf(value)?,
            Some(("rounds", value)) => rounds = value.parse()?,
            Some(("watch", value)) => watched = Some(value.parse()?),
            Some(("sessions", value)) => sessions = value.parse()?,
            Some(("forks", value)) => forks = value == "yes",
            _ => return Err(format!("{argument} is not an argument").into()),
        }
    }
    let log = LogOptions { queue: true, ..LogOptions::default() };
    let options = Options { engine, probes, log, ..Options::default() };
    if rounds > 0 {
        conditions::use_one_heap();
    }
    for round in 1..=rounds {
        let session = Session::open(options.clone())?;
        println!("made {}", conditions::own_objects()?.join(" "));
        drop(session);
        if round == WARM_UP || round == rounds {
            let [descriptors, threads, kib] = conditions::holdings()?;
            println!("round {descriptors} {threads} {kib}");
        }
    }

    let mut session = Session::open(options.clone())?;
    session.take_log_lines().iter().for_each(|line| println!("log {}", line.text));
    let stats = session.stats_reader().read();
    println!("state {:?}", stats.socket_probes);
    println!("programs {}", stats.socket_programs.0);
    println!("samples {:?}", stats.sample_probes);
    println!("engine {:?}", stats.engine);
    if forks {
        // SAFETY: no other thread holds locks, and the child only does what the library permits after a fork.
        match unsafe { fork() }? {
            ForkResult::Child => return in_child(options),
            ForkResult::Parent { child } => assert_eq!(waitpid(child, None)?, WaitStatus::Exited(child, 0)),
        }
    }
    say_counted(&mut session)?;
    if let Some(pid) = watched {
        println!("watched {}", count_other(&mut session, pid)?);
    }
    let mut left = VecDeque::from([session]);
    for _ in 1..sessions {
        left.push_back(Session::open(options.clone())?);
    }
    println!("ready");
    while stdin().lock().read_line(&mut String::new())? > 0 {
        drop(left.pop_front());
        left.iter_mut().try_for_each(say_counted)?;
        println!("closed");
    }
    Ok(())
}

/// Opens a session in a forked child, and prints its objects and counts.
fn in_child(options: Options) -> Outcome<()> {
    let mut session = Session::open(options)?;
    println!("child {}", conditions::own_objects()?.join(" "));
    say_counted(&mut session)?;
    drop(session);
    std::process::exit(0)
}

fn say_counted(session: &mut Session) -> Outcome<()> {
    match count_own(session)? {
        Some(bytes) => println!("network {bytes}"),
        None => println!("network none"),
    }
    Ok(())
}

/// Sends datagrams to itself until the session has credited some to it. Returns their bytes, or `None` if the
/// session's network figures are not valid. Bytes counted before the call are not included.
fn count_own(session: &mut Session) -> Outcome<Option<u64>> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let address = socket.local_addr()?;
    let own = i32::try_from(std::process::id())?;
    let deadline = Instant::now() + TIMEOUT;
    let mut before = None;
    while Instant::now() < deadline {
        socket.send_to(&[0; PAYLOAD], address)?;
        socket.recv_from(&mut [0; PAYLOAD])?;
        std::thread::sleep(Duration::from_millis(20));
        session.update()?;
        let record = session.processes().find(|record| record.sample.id.pid == own).ok_or("no own record")?;
        if !record.valid.has(Validity::NETWORK) {
            return Ok(None);
        }
        let counted = record.traffic.send_bytes.min(record.traffic.receive_bytes);
        if before.is_some_and(|before| counted > before) {
            return Ok(Some(counted));
        }
        before.get_or_insert(counted);
    }
    Ok(Some(0))
}

/// Waits until a process that sends all the time has sent something. Returns its bytes; 0 if none are
/// counted.
fn count_other(session: &mut Session, pid: i32) -> Outcome<u64> {
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        session.update()?;
        let record = session.processes().find(|record| record.sample.id.pid == pid);
        if let Some(bytes) = record.map(|record| record.traffic.send_bytes).filter(|&bytes| bytes > 0) {
            return Ok(bytes);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(0)
}
