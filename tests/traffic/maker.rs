//! Makes traffic of a known kind in a process of its own: `traffic_maker tcp-sink|tcp-source|udp-sink|udp-source
//! ADDRESS:PORT BYTES BYTES_PER_SECOND`. It says `ready` when it listens or is connected, starts when it reads a line,
//! says `done` and the payload bytes it moved, and ends when its standard input does.

use std::error::Error;
use std::io::{BufRead, Read, Write, stdin, stdout};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Payload of a datagram: fits a frame of 1500 bytes with either version of IP.
const DATAGRAM: usize = 1200;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, address, bytes, rate] = arguments.as_slice() else {
        return Err("four arguments are wanted".into());
    };
    let (bytes, rate): (u64, u64) = (bytes.parse()?, rate.parse()?);
    let moved = match mode.as_str() {
        "tcp-sink" => {
            let listener = TcpListener::bind(address)?;
            say("ready")?;
            read_all(listener.accept()?.0)?
        }
        "tcp-source" => {
            let mut stream = TcpStream::connect(address)?;
            say("ready")?;
            wait_for_line()?;
            let moved = paced(bytes, rate, 1 << 16, |piece| stream.write_all(piece))?;
            // Closing would let the kernel send the end after the counters were read.
            stream.shutdown(std::net::Shutdown::Write)?;
            read_all(stream)?;
            moved
        }
        "udp-sink" => {
            let socket = UdpSocket::bind(address)?;
            say("ready")?;
            receive_all(&socket, bytes)?
        }
        "udp-source" => {
            let socket = UdpSocket::bind(if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" })?;
            socket.connect(address)?;
            say("ready")?;
            wait_for_line()?;
            paced(bytes, rate, DATAGRAM, |piece| match socket.send(piece) {
                // Nobody may listen any more; the datagram was sent all the same.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
                sent => sent.map(drop),
            })?
        }
        other => return Err(format!("{other} is no mode").into()),
    };
    say(&format!("done {moved}"))?;
    let mut rest = Vec::new();
    stdin().read_to_end(&mut rest)?;
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

/// Sends `bytes` in pieces, at `rate` bytes a second or, if that is 0, as fast as it goes.
fn paced(
    bytes: u64,
    rate: u64,
    piece: usize,
    mut send: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> Outcome<u64> {
    let piece = vec![0x5a; piece];
    let start = Instant::now();
    let mut sent = 0;
    while sent < bytes {
        let length = piece.len().min((bytes - sent) as usize);
        send(&piece[..length])?;
        sent += length as u64;
        if rate > 0 {
            let due = Duration::from_secs_f64(sent as f64 / rate as f64);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
    Ok(sent)
}

fn read_all(mut stream: TcpStream) -> Outcome<u64> {
    let mut buffer = vec![0; 1 << 16];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(total),
            count => total += count as u64,
        }
    }
}

/// Receives until `bytes` have come or nothing has for two seconds: a flood may lose datagrams.
fn receive_all(socket: &UdpSocket, bytes: u64) -> Outcome<u64> {
    let mut buffer = vec![0; 1 << 16];
    let mut total = 0;
    while total < bytes {
        total += socket.recv(&mut buffer)? as u64;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        if total < bytes && socket.peek(&mut buffer).is_err() {
            break;
        }
    }
    Ok(total)
}
