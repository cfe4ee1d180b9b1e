//! Successive connections between the same endpoints within a batch of the capture.

use super::counting::expect;
use super::{Watch, options, with};
use capture::internals::config::{Engine, Options};
use capture_test_support::lab::{Host, Lab, Maker, die_with_this};
use capture_test_support::requirements::has_tools;

const CONNECTIONS: u64 = 20;
const PAYLOAD: u64 = 5_000;

/// A server and a client that reset every connection, so that its endpoints are free for the next one at
/// once. Each prints its number of connections and of bytes, and stays.
const PROGRAM: &str = r#"
import os, socket, struct, sys, time
count, payload = int(sys.argv[1]), int(sys.argv[2])
listener = socket.create_server(("127.0.0.1", 7081))
server = os.fork()
if server == 0:
    received = 0
    for _ in range(count):
        connection, _ = listener.accept()
        try:
            while data := connection.recv(1 << 16):
                received += len(data)
        except ConnectionResetError:
            pass
        connection.close()
    print(os.getpid(), received, flush=True)
    sys.stdin.read()
    os._exit(0)
listener.close()
print("ready", flush=True)
sys.stdin.readline()
for _ in range(count):
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.bind(("127.0.0.1", 7082))
    client.connect(("127.0.0.1", 7081))
    client.sendall(b"x" * payload)
    time.sleep(0.03)
    client.close()
sys.stdin.read()
"#;

fn every_connection_is_counted(engine: Engine, probes: bool) {
    if !has_tools(&["python3"]) {
        return;
    }
    with(Lab::new, |lab| {
        lab.count_port(Host::A, "tcp", 7081);
        let mut watch = Watch::with(&lab, Host::A, Options { probes, ..options(engine) });
        let mut command = lab.command(Host::A, "python3");
        command.args(["-c", PROGRAM, &CONNECTIONS.to_string(), &PAYLOAD.to_string()]);
        let mut program = Maker::start_of(&mut die_with_this(command));
        assert_eq!(program.line(), "ready");
        program.start();
        let line = program.line();
        let words: Vec<u64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        assert_eq!(words[1], CONNECTIONS * PAYLOAD, "the server has received all");
        // A packet that passes the output hook also passes the input hook.
        let counted = lab.counted(Host::A);
        let (sent, received) = (counted.out_to, counted.out_from);
        let (client, server) = (program.pid(), words[0] as i32);
        println!("  {counted:?}");
        expect(&mut watch, vec![(client, sent, received), (server, received, sent)]);
    });
}

#[test]
fn connections_in_turn_are_counted_without_programs_root() {
    every_connection_is_counted(Engine::Pcap, false);
}

#[test]
fn connections_in_turn_are_counted_with_programs_root() {
    every_connection_is_counted(Engine::Pcap, true);
}

#[test]
fn connections_in_turn_are_counted_by_the_kernel_root() {
    every_connection_is_counted(Engine::Kernel, true);
}
