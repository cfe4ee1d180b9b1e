//! Processes that start, send and end at the same moment, found without eBPF programs.

use super::nat::Way;
use super::{Watch, with};
use capture::internals::model::Unowned;
use capture_test_support::lab::{Host, Lab, die_with_this};
use capture_test_support::requirements::has_tools;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PROCESSES: usize = 30;
const BYTES: usize = 262_144;
/// The number of these processes that must be found: a process that ends before any other thread gets a CPU
/// cannot be seen.
const ENOUGH: usize = 28;
/// On a busy machine, the early lookup thread may get no CPU for as long as the processes live.
const ATTEMPTS: usize = 5;

/// Prints the processes' pids, and starts them all at once when it reads a line.
const PROGRAM: &str = "
import os, socket, sys
count, length = int(sys.argv[1]), int(sys.argv[2])
wait, go = os.pipe()
children = []
for _ in range(count):
    pid = os.fork()
    if pid == 0:
        os.close(go)
        os.read(wait, 1)
        s = socket.create_connection(('10.77.0.2', 7080))
        s.sendall(bytes(length))
        s.shutdown(socket.SHUT_WR)
        s.recv(1)
        os._exit(0)
    children.append(pid)
print(*children, flush=True)
sys.stdin.readline()
os.close(go)
for pid in children: os.waitpid(pid, 0)
print('done', flush=True)
";

/// Runs a burst. Returns the number of processes that are credited with all that they sent, once the
/// others have nothing.
fn whole_ones(lab: &Lab, watch: &mut Watch) -> usize {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", lab.name(Host::A), "python3", "-c", PROGRAM]);
    command.args([PROCESSES.to_string(), BYTES.to_string()]);
    let mut program = die_with_this(command).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(program.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let pids: Vec<i32> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
    watch.update();
    program.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "done\n");
    assert!(program.wait().unwrap().success());
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        watch.update();
        let traffic = watch.traffic();
        let sent = |pid: &i32| traffic.get(pid).map_or(0, |traffic| traffic.send_bytes as usize);
        // Headers are about 1 % of it.
        let has_all = |pid: &&i32| (BYTES..BYTES + BYTES / 10).contains(&sent(pid));
        let (found, with_bytes) =
            (pids.iter().filter(has_all).count(), pids.iter().filter(|pid| sent(pid) > 0).count());
        if found == PROCESSES {
            return found;
        }
        if watch.session.stats_reader().read().bytes.unowned[Unowned::Pending as usize] == 0
            && with_bytes == found
            && found > 0
            || Instant::now() > deadline
        {
            assert_eq!(with_bytes, found, "what is found is whole");
            println!("  {found} of {PROCESSES}");
            return found;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn processes_that_send_at_the_same_moment_have_their_bytes_root() {
    if !has_tools(&["python3"]) {
        return;
    }
    with(super::nat::lab, |lab| {
        let listener = super::counting::on(&lab, Host::B, || TcpListener::bind("10.77.0.2:7080").unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || stream.read_to_end(&mut Vec::new()).unwrap());
            }
        });
        let mut watch = Watch::with(&lab, Host::A, Way::Portable.options());
        let is_found = (0..ATTEMPTS).any(|_| whole_ones(&lab, &mut watch) >= ENOUGH);
        assert!(is_found, "{ENOUGH} of {PROCESSES} were found in no burst");
    });
}
