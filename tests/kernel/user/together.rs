//! Three processes that share sockets: one sends alone, then the others take over at the same moment.

use super::processes::{Board, Children, pin};
use super::{Orders, Outcome, end, say, wait_for_line};
use std::io::Write;
use std::net::{TcpStream, UdpSocket};

/// The size of a message that one process sends alone, bytes, and the number of these messages.
const ALONE: usize = 1000;
const TIMES: usize = 20;
/// The size of a message that two processes send at the same moment, bytes.
const BOTH: usize = 100;

enum Socket {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Socket {
    fn send(&self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Socket::Udp(socket) => socket.send(bytes).map(drop),
            Socket::Tcp(stream) => (&*stream).write_all(bytes),
        }
    }
}

/// Runs three processes that share `sockets` sockets, over TCP with `tcp`. They exchange their parts in each
/// of `rounds`.
pub fn run(orders: &Orders) -> Outcome<()> {
    let is_tcp = orders.number("tcp", 0) != 0;
    let open = |_| -> std::io::Result<Socket> {
        if is_tcp {
            let stream = TcpStream::connect(orders.address)?;
            stream.set_nodelay(true)?;
            return Ok(Socket::Tcp(stream));
        }
        let socket = UdpSocket::bind(if orders.address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.connect(orders.address)?;
        Ok(Socket::Udp(socket))
    };
    let sockets = (0..orders.number("sockets", 300)).map(open).collect::<Result<Vec<_>, _>>()?;
    let board = Board::new()?;
    let rounds = orders.number("rounds", 3) as usize;
    say("ready")?;
    wait_for_line()?;
    let mut children = Children::default();
    for number in 1..3 {
        children.fork(|| take_part(board, number, rounds, &sockets))?;
    }
    take_part(board, 0, rounds, &sockets)?;
    board.report()?;
    end()
}

fn take_part(board: &Board, number: usize, rounds: usize, sockets: &[Socket]) -> Outcome<()> {
    let own = board.own(number);
    let mut meetings = 0;
    pin(number);
    for round in 0..rounds {
        let is_alone = number == round % 3;
        if is_alone {
            for socket in sockets {
                for _ in 0..TIMES {
                    socket.send(&[1; ALONE])?;
                    own.sent(ALONE);
                }
            }
        }
        board.meet(&mut meetings, 3);
        // Two processes take over from the third. For any two processes, there is a round in which they run
        // on different processors.
        for socket in sockets {
            board.meet(&mut meetings, 3);
            if !is_alone {
                socket.send(&[2; BOTH])?;
                own.sent(BOTH);
            }
        }
        board.meet(&mut meetings, 3);
    }
    Ok(())
}
