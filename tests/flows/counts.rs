//! Counts of processes, their bounds, and the absence of both if flows are not requested.

use crate::watch::Watch;
use crate::with_lab;
use capture::internals::config::Options;
use capture::internals::model::{Connections, ProcessRecord, Validity};
use capture_test_support::lab::Host;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

const CONNECTIONS: u64 = 40;
const QUESTIONS: u64 = 5;

/// Serves the given number of connections and answers each question, then waits for a line and ends.
const SERVER: &str = r#"
import socket, sys
listener = socket.create_server(("127.0.0.1", 0), backlog=64)
print(listener.getsockname()[1], flush=True)
for _ in range(int(sys.argv[1])):
    stream, _ = listener.accept()
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while stream.recv(64):
        stream.send(b"answer")
    stream.close()
print("done", flush=True)
sys.stdin.readline()
"#;

/// Connects, asks and closes; then waits for a line and ends.
const CLIENT: &str = r#"
import socket, sys
port, connections, questions = map(int, sys.argv[1:])
for _ in range(connections):
    stream = socket.create_connection(("127.0.0.1", port))
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(questions):
        stream.send(b"question")
        stream.recv(64)
    stream.close()
print("done", flush=True)
sys.stdin.readline()
"#;

/// Connects one socket repeatedly, first in vain, then to a listener; then waits for a line and ends.
const RECONNECTING: &str = r#"
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
stream = socket.socket()
stream.bind(("127.0.0.1", 0))
for _ in range(3):
    assert stream.connect_ex(("127.0.0.1", 1)) != 0
stream.connect(listener.getsockname())
listener.accept()[0].close()
stream.close()
print("done", flush=True)
sys.stdin.readline()
"#;

struct Program {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Program {
    fn start(text: &str, arguments: &[String]) -> Program {
        let mut child = Command::new("python3")
            .args(["-c", text])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Program { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

fn counts(record: &ProcessRecord) -> [u64; 6] {
    let Connections { connects, accepts, closes, sends, receives, response } =
        record.connections.as_deref().copied().unwrap_or_default();
    [connects, accepts, closes, sends, receives, response.total()]
}

#[test]
fn processes_have_done_what_they_did_root() {
    with_lab(|lab, engine| {
        let mut watch = Watch::on(lab, Host::A, engine);
        let mut server = Program::start(SERVER, &[CONNECTIONS.to_string()]);
        let arguments = [server.line(), CONNECTIONS.to_string(), QUESTIONS.to_string()];
        let mut client = Program::start(CLIENT, &arguments);
        assert_eq!((client.line().as_str(), server.line().as_str()), ("done", "done"));
        let all = CONNECTIONS * QUESTIONS;
        // Data that a server receives after it has answered counts as a response, too: all but the first
        // question of each connection.
        let of_client = [CONNECTIONS, 0, CONNECTIONS, all, all, all];
        let of_server = [0, CONNECTIONS, CONNECTIONS, all, all, all - CONNECTIONS];
        let pids = [client.pid(), server.pid()];
        watch.until("the counts of both", |watch| {
            let seen = pids.map(|pid| {
                let record = watch.session.processes().find(|record| record.sample.id.pid == pid)?;
                assert!(record.valid.has(Validity::CONNECTIONS));
                Some(counts(record))
            });
            for (seen, expected) in seen.iter().zip([of_client, of_server]) {
                assert!(seen.iter().flatten().zip(expected).all(|(seen, most)| *seen <= most), "{seen:?}");
            }
            (seen == [Some(of_client), Some(of_server)]).then_some(())
        });
        client.end();
        server.end();
        watch.until("the end of both", |watch| {
            pids.iter().all(|pid| watch.removed.contains_key(pid)).then_some(())
        });
        for (pid, expected) in pids.into_iter().zip([of_client, of_server]) {
            assert_eq!(counts(&watch.removed[&pid]), expected, "figures survive the process");
        }
        watch.until("the ends of all flows", |watch| {
            let of = |pid| {
                watch.ended.iter().filter(|it| it.owner.is_some_and(|it| it.process.pid == pid)).count()
                    as u64
            };
            (pids.map(of) == [CONNECTIONS, CONNECTIONS]).then_some(())
        });
    });
}

#[test]
fn a_socket_that_connects_again_counts_each_time_root() {
    with_lab(|lab, engine| {
        let mut watch = Watch::on(lab, Host::A, engine);
        let mut program = Program::start(RECONNECTING, &[]);
        assert_eq!(program.line(), "done");
        let pid = program.pid();
        program.end();
        watch.until("the end of it", |watch| watch.removed.contains_key(&pid).then_some(()));
        assert_eq!(counts(&watch.removed[&pid])[0], 4);
    });
}

#[test]
fn records_of_ended_flows_are_bounded_root() {
    const FLOWS: u64 = 20_000;
    const LIMIT: usize = 1_000;
    with_lab(|lab, engine| {
        let options = Options { flows: true, engine, ended_flow_limit: Some(LIMIT), ..Options::default() };
        let mut watch = Watch::with(lab, Host::A, options);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        for _ in 0..FLOWS / 2 {
            let mut client = TcpStream::connect(target).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            server.write_all(b"hello").unwrap();
            drop(server);
            assert_eq!(client.read_to_end(&mut Vec::new()).unwrap(), 5);
        }
        let stats = watch.session.stats_reader();
        watch.until("the end of all", |watch| {
            assert!(watch.session.flows().count() <= FLOWS as usize);
            (watch.ended.len() as u64 + stats.read().lost_flows == FLOWS).then_some(())
        });
        assert!(stats.read().lost_flows > 0, "there were more than there was room for between two updates");
        let ids: std::collections::HashSet<u64> = watch.ended.iter().map(|record| record.id).collect();
        assert_eq!(ids.len(), watch.ended.len(), "each is told of once");
    });
}

#[test]
fn without_being_asked_nothing_is_recorded_root() {
    with_lab(|lab, engine| {
        let mut watch = Watch::with(lab, Host::A, Options { engine, ..Options::default() });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        drop(listener.accept().unwrap());
        drop(client);
        let pid = std::process::id() as i32;
        let own = watch.until("traffic", |watch| {
            let own = watch.session.processes().find(|record| record.sample.id.pid == pid)?;
            (!own.traffic.is_empty()).then(|| own.clone())
        });
        assert!(own.connections.is_none() && !own.valid.has(Validity::CONNECTIONS));
        assert_eq!((watch.session.flows().count(), watch.ended.len()), (0, 0));
    });
}
