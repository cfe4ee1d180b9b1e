//! A program that uses sockets in ways that are hard to count:
//! `socket_user MODE ADDRESS:PORT [NAME=NUMBER...]`.
//!
//! It prints `ready` after its preparations, and goes on when it reads a line. Then it prints
//! `process PID CALLS SENT RECEIVED` for each of its processes: messages sent, and bytes of payload. After
//! that it prints `done`. It ends with all of its processes when its standard input ends.

mod again;
mod churn;
mod hammer;
mod handing;
mod names;
mod processes;
mod reading;
mod together;

use std::error::Error;
use std::io::{BufRead, Read, Write, stdin, stdout};
use std::net::SocketAddr;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The parsed arguments.
struct Orders {
    address: SocketAddr,
    numbers: Vec<(String, u64)>,
}

impl Orders {
    /// Returns the number of that name, or `otherwise` if there is none.
    fn number(&self, name: &str, otherwise: u64) -> u64 {
        self.numbers.iter().find(|(found, _)| found == name).map_or(otherwise, |&(_, number)| number)
    }
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
    let orders =
        Orders { address: address.parse()?, numbers: arguments.map(number).collect::<Outcome<_>>()? };
    allow_descriptors()?;
    match mode.as_str() {
        "together" => together::run(&orders)?,
        "handing" => handing::run(&orders)?,
        "ping-pong" => handing::ping_pong(&orders)?,
        "churn" => churn::run(&orders)?,
        "many" => churn::many(&orders)?,
        "again" => again::run(&orders)?,
        "reading" => reading::run(&orders)?,
        "hammer" => hammer::run(&orders)?,
        "names" => names::run(&orders)?,
        "names-again" => names::again(&orders)?,
        "drain" => reading::drain(&orders)?,
        other => return Err(format!("{other} is no mode").into()),
    }
    Ok(())
}

/// Raises the limit of descriptors as far as possible.
fn allow_descriptors() -> Outcome<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // Only root may raise the hard limit.
    let wanted = most.max(400_000);
    if setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_err() {
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
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

/// Reports that everything is done, and waits for the end of the standard input.
fn end() -> Outcome<()> {
    say("done")?;
    stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
