//! Traffic between the two namespaces of a lab, a known amount of each kind.

use capture_test_support::lab::{Host, Lab};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};

/// Makes the traffic, in namespaces that have no other traffic.
type Traffic = fn(&Lab);

/// Each kind of traffic with its name.
pub const TRAFFIC: [(&str, Traffic); 4] = [
    ("UDP, 100 bytes, flood", udp_flood),
    ("UDP, 100 bytes, answered", udp_answered),
    ("TCP, one request each", tcp_connections),
    ("TCP, bulk", tcp_bulk),
];

const DATAGRAMS: usize = 100_000;
const ANSWERED: usize = 50_000;
const CONNECTIONS: usize = 3_000;
const BULK: usize = 512 << 20;
const SERVER: &str = "10.77.0.2:5000";
const SMALL: [u8; 100] = [0; 100];

/// Runs a server in host B, and a client in host A once the server's socket is bound.
fn both<S: Send>(
    lab: &Lab,
    bind: impl FnOnce() -> S + Send,
    server: impl FnOnce(S) + Send,
    client: impl FnOnce() + Send,
) {
    std::thread::scope(|scope| {
        let (ready, wait) = std::sync::mpsc::channel();
        scope.spawn(move || {
            lab.enter(Host::B);
            let socket = bind();
            ready.send(()).expect("somebody waits");
            server(socket);
        });
        scope.spawn(move || {
            lab.enter(Host::A);
            wait.recv().expect("the server is there");
            client();
        });
    });
}

fn connected() -> UdpSocket {
    let socket = UdpSocket::bind("10.77.0.1:0").expect("a port");
    socket.connect(SERVER).expect("an address");
    socket
}

/// Sends datagrams that no process reads: it is enough that they arrive at a socket.
fn udp_flood(lab: &Lab) {
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let client = move || {
        let socket = connected();
        for _ in 0..DATAGRAMS {
            socket.send(&SMALL).expect("sent");
        }
        drop(done);
    };
    let until_sent = move |_socket| assert!(wait.recv().is_err());
    both(lab, || UdpSocket::bind(SERVER).expect("a port"), until_sent, client);
}

fn udp_answered(lab: &Lab) {
    let server = |socket: UdpSocket| {
        let mut buffer = SMALL;
        for _ in 0..ANSWERED {
            let (length, peer) = socket.recv_from(&mut buffer).expect("a datagram");
            socket.send_to(&buffer[..length], peer).expect("sent");
        }
    };
    let client = || {
        let (socket, mut buffer) = (connected(), SMALL);
        for _ in 0..ANSWERED {
            socket.send(&SMALL).expect("sent");
            socket.recv(&mut buffer).expect("an answer");
        }
    };
    both(lab, || UdpSocket::bind(SERVER).expect("a port"), server, client);
}

fn tcp_connections(lab: &Lab) {
    let server = |listener: TcpListener| {
        for stream in listener.incoming().take(CONNECTIONS) {
            let (mut stream, mut buffer) = (stream.expect("a connection"), SMALL);
            stream.read_exact(&mut buffer).expect("a request");
            stream.write_all(&buffer).expect("sent");
        }
    };
    let client = || {
        let mut buffer = SMALL;
        for _ in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(SERVER).expect("a connection");
            stream.write_all(&SMALL).expect("sent");
            stream.read_exact(&mut buffer).expect("an answer");
        }
    };
    both(lab, || TcpListener::bind(SERVER).expect("a port"), server, client);
}

fn tcp_bulk(lab: &Lab) {
    let server = |listener: TcpListener| {
        let (mut stream, _) = listener.accept().expect("a connection");
        std::io::copy(&mut stream, &mut std::io::sink()).expect("all of it");
    };
    let client = || {
        let mut stream = TcpStream::connect(SERVER).expect("a connection");
        let piece = vec![0; 128 << 10];
        for _ in 0..BULK / piece.len() {
            stream.write_all(&piece).expect("sent");
        }
    };
    both(lab, || TcpListener::bind(SERVER).expect("a port"), server, client);
}
