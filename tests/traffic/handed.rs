//! Connections that are passed to another process while they are open: once a recheck finds the new process,
//! their bytes are credited to it.

use super::{V4, Watch, with_lab};
use capture::internals::model::{Traffic, Unowned};
use capture_test_support::lab::{Counted, Host, Lab, Maker, die_with_this};
use capture_test_support::requirements::has_tools;
use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

/// The time limit, far longer than the few seconds after which an owner is rechecked.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A server of one connection. It reads until it receives a line. Then it passes the connection on; the
/// process that has it reports so, reads the rest, and ends with it.
const SERVER: &str = r#"
import os, select, socket, sys
how, address, port = sys.argv[1:]

def serve(connection):
    print("serving", os.getpid(), flush=True)
    while connection.recv(1 << 16):
        pass
    os._exit(0)

def by_message(pair):
    _, descriptors, _, _ = socket.recv_fds(pair, 1, 1)
    serve(socket.socket(fileno=descriptors[0]))

# Somebody is there to wait for the one that ends.
if how == "exit" and os.fork() != 0:
    os.wait()
    os._exit(0)
listener = socket.create_server((address, int(port)))
mine, its = socket.socketpair()
if how == "message" and os.fork() == 0:
    listener.close()
    by_message(its)
print("ready", os.getpid(), flush=True)
connection, _ = listener.accept()
while sys.stdin not in select.select([sys.stdin, connection], [], [])[0]:
    connection.recv(1 << 16)
sys.stdin.readline()
if how == "message":
    socket.send_fds(mine, [b"x"], [connection.fileno()])
elif os.fork() == 0:
    serve(connection)
if how == "exit":
    os._exit(0)
if how != "keep":
    connection.close()
sys.stdin.read()
"#;

/// Returns the server's pid from its output.
fn number(line: &str, word: &str) -> i32 {
    let words: Vec<&str> = line.split(' ').collect();
    assert_eq!((words.len(), words[0]), (2, word), "{line:?}");
    words[1].parse().unwrap()
}

/// Opens a connection from the other host, which this process holds.
fn connect(lab: &Lab, target: &str) -> TcpStream {
    let connect = || {
        lab.enter(Host::A);
        TcpStream::connect(target).unwrap()
    };
    std::thread::scope(|scope| scope.spawn(connect).join().unwrap())
}

/// Returns the bytes of both directions since `before`.
fn since(now: Counted, before: Counted) -> (u64, u64) {
    let (now, before) = (now.both(), before.both());
    (now.0 - before.0, now.1 - before.1)
}

fn bytes(traffic: Option<&Traffic>) -> (u64, u64) {
    traffic.map_or((0, 0), |traffic| (traffic.send_bytes, traffic.receive_bytes))
}

/// The connection is credited to the first process as long as that process serves it. A while after it was
/// passed on, all bytes are credited to the other process.
fn handed_on(how: &str, port: u16) {
    if !has_tools(&["python3"]) {
        return;
    }
    with_lab(|lab| {
        lab.count_port(Host::B, "tcp", port);
        let mut watch = Watch::on(&lab, Host::B);
        let mut command = die_with_this(Command::new("python3"));
        let mut server = Maker::start_of(command.args(["-c", SERVER, how, V4, &port.to_string()]));
        let parent = number(&server.line(), "ready");
        let mut stream = connect(&lab, &format!("{V4}:{port}"));
        stream.set_nodelay(true).unwrap();
        stream.write_all(&[7; 100_000]).unwrap();
        watch.wait_for_traffic(|traffic| traffic.get(&parent).is_some_and(|own| own.receive_bytes > 100_000));
        let first = lab.counted(Host::B);
        watch.wait_for_traffic(|traffic| bytes(traffic.get(&parent)) == first.both());

        server.start();
        let other = number(&server.line(), "serving");
        assert_ne!(parent, other);
        let (handed, deadline) = (Instant::now(), Instant::now() + TIMEOUT);
        while !watch.traffic().contains_key(&other) {
            assert!(Instant::now() < deadline, "{how}: {:?}", watch.traffic());
            stream.write_all(&[7; 100]).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            watch.update();
        }
        println!("  {how}: known after {:?}", handed.elapsed());
        let so_far = lab.counted(Host::B);
        let all = |watch: &Watch| {
            let ended = watch.session.stats_reader().read().bytes.unowned[Unowned::OwnerEnded as usize];
            watch.traffic().values().map(Traffic::bytes).sum::<u64>() + ended
        };
        let whole = |counted: Counted| counted.both().0 + counted.both().1;
        let settle = |watch: &mut Watch, counted: Counted| {
            let deadline = Instant::now() + TIMEOUT;
            while all(watch) != whole(counted) {
                assert!(Instant::now() < deadline, "{how}: {:?}, truth {counted:?}", watch.traffic());
                std::thread::sleep(Duration::from_millis(50));
                watch.update();
            }
        };
        settle(&mut watch, so_far);
        let then = watch.traffic();
        assert!(bytes(then.get(&parent)).1 >= first.both().1, "what came before stays where it was");

        // The bytes that the kernel counts from now on belong only to the other process.
        (0..50).for_each(|_| stream.write_all(&[7; 40_000]).unwrap());
        std::thread::sleep(Duration::from_millis(200));
        let end = lab.counted(Host::B);
        assert!(since(end, so_far).1 > 2_000_000);
        settle(&mut watch, end);
        let now = watch.traffic();
        assert_eq!(now.get(&parent), then.get(&parent), "{how}: the first one has it no more");
        let (sent, received) = bytes(then.get(&other));
        let expected = (sent + since(end, so_far).0, received + since(end, so_far).1);
        assert_eq!(bytes(now.get(&other)), expected, "{how}");
        assert_eq!(now.len(), 2, "{now:?}");
        drop(stream);
        server.end();
    });
}

#[test]
fn a_server_that_forks_and_closes_leaves_the_bytes_to_its_child_root() {
    handed_on("close", 7021);
}

#[test]
fn a_server_that_forks_and_ends_leaves_the_bytes_to_its_child_root() {
    handed_on("exit", 7022);
}

#[test]
fn a_descriptor_that_is_sent_takes_its_bytes_along_root() {
    handed_on("message", 7023);
}

#[test]
fn a_connection_that_a_child_goes_on_sharing_is_the_childs_root() {
    handed_on("keep", 7024);
}
