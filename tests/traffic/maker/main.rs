//! Makes traffic of a known kind in a process of its own: `traffic_maker MODE ADDRESS:PORT [NAME=NUMBER...]`.
//!
//! It prints `ready` once it listens, is connected or has set up what it needs, and starts when it reads a
//! line. At the end it prints `process PID CONNECTIONS SENT RECEIVED` for each process that moved something
//! (bytes of payload), then `done BYTES MILLISECONDS FAILED` with the number of connections that did not end
//! well; servers do so when they read another line. It ends when its standard input ends; connections that
//! are still open are closed then.

mod batches;
mod bulk;
mod children;
mod clients;
mod exchange;
mod flood;
mod frames;
mod idle;
mod passing;
mod server;
mod storm;
mod udp;
mod uring;
mod ways;
mod zero_copy;

use std::any::Any;
use std::error::Error;
use std::io::{BufRead, Read, Write, stdin, stdout};
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Bytes of a request and of its response over TCP, unless the arguments say otherwise.
const REQUEST: u64 = 4096;
const RESPONSE: u64 = 16384;

/// The arguments.
struct Orders {
    address: String,
    numbers: Vec<(String, u64)>,
}

impl Orders {
    /// Returns the number with this name, or `otherwise` if there is none.
    fn number(&self, name: &str, otherwise: u64) -> u64 {
        self.numbers.iter().find(|(found, _)| found == name).map_or(otherwise, |&(_, number)| number)
    }
}

/// The connections and bytes of one process.
#[derive(Clone, Copy, Default)]
struct Moved {
    connections: u64,
    sent: u64,
    received: u64,
}

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(mode), Some(address)) = (arguments.next(), arguments.next()) else {
        return Err("a mode and an address are wanted".into());
    };
    let number = |argument: String| -> Outcome<(String, u64)> {
        let (name, number) = argument.split_once('=').ok_or("NAME=NUMBER is wanted")?;
        Ok((name.to_owned(), number.parse()?))
    };
    let orders = Orders { address, numbers: arguments.map(number).collect::<Outcome<_>>()? };
    idle::allow_descriptors()?;
    name_by_pid(&orders)?;
    let report = match mode.as_str() {
        "tcp-sink" => bulk::tcp_sink(&orders)?,
        "tcp-source" => bulk::tcp_source(&orders)?,
        "udp-sink" => bulk::udp_sink(&orders)?,
        "udp-source" => bulk::udp_source(&orders)?,
        "flood-sink" => flood::sink(&orders)?,
        "flood-source" => flood::source(&orders)?,
        "raw-sink" => bulk::raw_sink(&orders)?,
        "raw-source" => bulk::raw_source(&orders)?,
        "tcp-clients" => clients::run(&orders)?,
        "tcp-server" => server::run(&orders)?,
        "udp-clients" => udp::clients(&orders)?,
        "udp-server" => udp::server(&orders)?,
        "processes" => children::processes(&orders)?,
        "one-client" => return children::one_client(&orders),
        "prefork-server" => children::prefork_server(&orders)?,
        "bystanders" => children::bystanders(&orders)?,
        "sendfile-source" => zero_copy::sendfile_source(&orders)?,
        "splice-server" => exchange::server(&orders, zero_copy::Splicing::new()?)?,
        "uring-clients" => exchange::clients(&orders, ring(&orders)?)?,
        "uring-server" => exchange::server(&orders, ring(&orders)?)?,
        "batch-clients" => batches::clients(&orders)?,
        "batch-server" => batches::server(&orders)?,
        "peek-server" => exchange::server(&orders, ways::Peeking)?,
        "frame-storm" => storm::frames(&orders)?,
        "datagram-storm" => storm::datagrams(&orders)?,
        "attempt-storm" => storm::attempts(&orders)?,
        "frame-source" => frames::source(&orders)?,
        "passing-server" => passing::server(&orders)?,
        "fast-open-clients" => exchange::clients(&orders, ways::FastOpen::default())?,
        "multipath-clients" => exchange::clients(&orders, ways::Multipath)?,
        "serial-server" => exchange::server(&orders, exchange::Usual)?,
        other => return Err(format!("{other} is no mode").into()),
    };
    for (pid, moved) in &report.processes {
        say(&format!("process {pid} {} {} {}", moved.connections, moved.sent, moved.received))?;
    }
    let all: u64 = report.processes.iter().map(|(_, moved)| moved.sent + moved.received).sum();
    say(&format!("done {all} {} {}", report.took.as_millis(), report.failed))?;
    let mut rest = Vec::new();
    stdin().read_to_end(&mut rest)?;
    Ok(())
}

/// The connections and bytes of all processes, and the duration.
struct Report {
    processes: Vec<(u32, Moved)>,
    took: Duration,
    failed: u64,
    /// Sockets and children that last as long as this process: their end is not part of the traffic.
    held: Vec<Box<dyn Any>>,
}

impl Report {
    /// Returns a report of this process for work that began at `began`.
    fn own(moved: Moved, began: Instant) -> Report {
        Report {
            processes: vec![(std::process::id(), moved)],
            took: began.elapsed(),
            failed: 0,
            held: Vec::new(),
        }
    }

    fn holding(mut self, held: impl Any) -> Report {
        self.held.push(Box::new(held));
        self
    }
}

/// Makes the ring that the orders request; with `polled`, a ring that the kernel polls.
fn ring(orders: &Orders) -> std::io::Result<uring::Ring> {
    uring::Ring::new(orders.number("polled", 0) == 1)
}

/// With the order `named`, names this process `maker-PID`, for tools that distinguish processes
/// by their names.
fn name_by_pid(orders: &Orders) -> Outcome<()> {
    if orders.number("named", 0) == 1 {
        let name = std::ffi::CString::new(format!("maker-{}", std::process::id()))?;
        // SAFETY: this option takes a pointer to text that ends with NUL, and only reads it.
        if unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) } != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
    }
    Ok(())
}

fn say(text: &str) -> Outcome<()> {
    let mut out = stdout();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

fn wait_for_line() -> Outcome<()> {
    stdin().lock().read_line(&mut String::new())?;
    Ok(())
}
