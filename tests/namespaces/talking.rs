//! Processes that communicate with each other: further instances of this program, which run the ignored test
//! below in a namespace.

use super::lab::Container;
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, ChildStdout, Command, Stdio};

/// Bytes of each answer. It fits into a packet, so that counters inside the host see the packets that
/// the wire carries.
const ANSWER: usize = 1300;

/// A server or client process. It keeps its sockets until it is dropped, so that the owners of all that it
/// has sent and received can be found.
pub struct Talker {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Talker {
    /// Starts a server that answers at `address` by TCP and UDP, in a container or in the calling
    /// thread's namespace.
    pub fn serve(inside: Option<&Container>, address: &str) -> Talker {
        Talker::start(inside, &format!("serve {address}"))
    }

    /// Starts a client that sends `count` requests to `address`, from `port` for UDP, and waits
    /// for the answers.
    pub fn ask(inside: Option<&Container>, address: &str, count: usize, length: usize, port: u16) -> Talker {
        Talker::start(inside, &format!("ask {address} {count} {length} {port}"))
    }

    /// Starts a client in a container that makes `count` connections, each with a question and an answer, and
    /// then ends. It resets the connections, so that no packets follow.
    pub fn ask_and_end(inside: &Container, address: &str, count: usize, length: usize) -> Talker {
        Talker::start(Some(inside), &format!("brief {address} {count} {length}"))
    }

    fn start(inside: Option<&Container>, what: &str) -> Talker {
        let program = std::env::current_exe().unwrap();
        let mut command = match inside {
            None => Command::new(program),
            Some(container) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", container.path().display())).arg(program);
                command
            }
        };
        command.args(["--exact", "talking::talk", "--ignored", "--nocapture"]).env("NAMESPACES_TALK", what);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut talker = Talker { child, output };
        talker.wait("ready");
        talker
    }

    /// Starts the requests, and waits until all answers have arrived.
    pub fn go(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        self.wait("done");
    }

    /// Returns its process id: nsenter becomes the program that it starts.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn wait(&mut self, word: &str) {
        let mut line = String::new();
        while line.trim_end() != word {
            line.clear();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "it ended before it was {word}");
        }
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "run as a child by tests of sessions"]
fn talk() {
    let Ok(what) = std::env::var("NAMESPACES_TALK") else { return };
    let words: Vec<&str> = what.split(' ').collect();
    let address: SocketAddr = words[1].parse().unwrap();
    let numbers: Vec<usize> = words[2..].iter().map(|word| word.parse().unwrap()).collect();
    let _kept = match words[0] {
        "serve" => serve(address),
        "brief" => return ask_and_end(address, numbers[0], numbers[1]),
        _ => ask(address, numbers[0], numbers[1], numbers[2]),
    };
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

fn say(word: &str) {
    println!("\n{word}");
    std::io::stdout().flush().unwrap();
}

/// The sockets that must stay open.
type Kept = (Option<TcpStream>, Option<UdpSocket>);

fn serve(address: SocketAddr) -> Kept {
    let (listener, udp) = (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut buffer = vec![0; 1 << 16];
                while stream.read(&mut buffer).unwrap_or(0) > 0 {
                    let _ = stream.write_all(&[1; ANSWER]);
                }
                // The connection stays open until the process ends.
                std::thread::park();
            });
        }
    });
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((_, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&[1; 500], from);
        }
    });
    say("ready");
    (None, None)
}

fn ask_and_end(address: SocketAddr, count: usize, length: usize) {
    say("ready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    for _ in 0..count {
        let mut tcp = TcpStream::connect(address).unwrap();
        tcp.write_all(&vec![1; length]).unwrap();
        tcp.read_exact(&mut [0; ANSWER]).unwrap();
        let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&tcp, sockopt::Linger, &at_once).unwrap();
    }
    say("done");
}

fn ask(address: SocketAddr, count: usize, length: usize, port: usize) -> Kept {
    say("ready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    let any = if address.is_ipv4() { "0.0.0.0" } else { "[::]" };
    let udp = UdpSocket::bind(format!("{any}:{port}")).unwrap();
    udp.connect(address).unwrap();
    let mut tcp = TcpStream::connect(address).unwrap();
    let question = vec![1; length];
    let mut answer = [0; ANSWER];
    for _ in 0..count {
        tcp.write_all(&question).unwrap();
        tcp.read_exact(&mut answer).unwrap();
        udp.send(&question).unwrap();
        udp.recv(&mut answer).unwrap();
    }
    let _ = tcp.shutdown(Shutdown::Write);
    say("done");
    (Some(tcp), Some(udp))
}
