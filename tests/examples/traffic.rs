//! Traffic on the loopback device whose size on the wire is known: this process sends to itself, and to
//! another process that does not answer.

use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

/// Bytes before the payload of a UDP datagram on the loopback device: Ethernet, IPv4 and UDP headers.
const HEADERS: usize = 14 + 20 + 8;
/// Datagrams that go each way between two sockets of this process.
pub const PACKETS_EACH_WAY: usize = 200;
const LENGTH: usize = 200;
/// The bytes of these datagrams on the wire.
pub const BYTES_EACH_WAY: usize = PACKETS_EACH_WAY * (LENGTH + HEADERS);
/// Datagrams that go to the other process.
pub const PACKETS_AWAY: usize = 30;
const BYTES_AWAY: usize = PACKETS_AWAY * (LENGTH + HEADERS);
/// Bytes of all packets, each counted once.
pub const ALL_BYTES: usize = 2 * BYTES_EACH_WAY + BYTES_AWAY;

/// The sockets of the traffic, which stay open so that their owners can be found.
pub struct Traffic {
    _sockets: [UdpSocket; 3],
    listener: Child,
}

impl Traffic {
    /// Sends all of the traffic.
    pub fn make() -> Traffic {
        // A socket that only another process holds, as its standard input.
        let away = bound();
        let address = away.local_addr().unwrap();
        let mut command = Command::new("sleep");
        command.arg("600").stdin(Stdio::from(OwnedFd::from(away)));
        let listener = command.spawn().unwrap();
        // The command keeps this process's copy of the socket.
        drop(command);
        let to_listener = bound();
        to_listener.connect(address).unwrap();

        let (one, other) = (bound(), bound());
        one.connect(other.local_addr().unwrap()).unwrap();
        other.connect(one.local_addr().unwrap()).unwrap();
        let payload = [7; LENGTH];
        for _ in 0..PACKETS_EACH_WAY {
            for (from, to) in [(&one, &other), (&other, &one)] {
                from.send(&payload).unwrap();
                assert_eq!(to.recv(&mut [0; LENGTH + 1]).unwrap(), LENGTH);
            }
        }
        for _ in 0..PACKETS_AWAY {
            to_listener.send(&payload).unwrap();
        }
        Traffic { _sockets: [one, other, to_listener], listener }
    }

    /// Returns the pid, the bytes received and the bytes sent of each of the two processes, the one with
    /// more traffic first.
    pub fn expected(&self) -> [(u32, usize, usize); 2] {
        let received_and_sent = 2 * BYTES_EACH_WAY;
        [
            (std::process::id(), received_and_sent, received_and_sent + BYTES_AWAY),
            (self.listener.id(), BYTES_AWAY, 0),
        ]
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        let _ = self.listener.kill();
        let _ = self.listener.wait();
    }
}

fn bound() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").unwrap()
}
