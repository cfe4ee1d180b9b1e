//! Busy sockets whose slot for socket counters is taken by another busy socket lose no bytes.

use crate::lab::{Host, Lab, Maker};
use crate::watching::{B, Watch, count_all, options, truth, user, with_lab, without_offloads};
use capture::internals::config::Engine;

/// Functions of both Python programs below. Two sockets are rivals if their cookies (`SO_COOKIE`) determine
/// the same slot for socket counters: `SK_COUNTERS_CAPACITY` in src/kernel/probes/sockets.h.
const RIVALS: &str = r#"
import os, socket, struct, sys
PEER = ("10.77.0.2", 7960)

def slot(of):
    return struct.unpack("Q", of.getsockopt(socket.SOL_SOCKET, 57, 8))[0] % 1024

def rival(of):
    for _ in range(50_000):
        other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        if slot(other) == slot(of):
            other.connect(PEER)
            return other
        other.close()
    raise RuntimeError("no rival was found")

def ask(through, count):
    for _ in range(count):
        through.send(b"400\n")
        left = 400
        while left:
            left -= len(through.recv(left))

def opened(kind):
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    made.connect(PEER)
    return made
"#;

/// A Python program whose busy sockets end soon after a rival has taken their counters.
const ENDING: &str = r#"
sys.stdin.readline()
for _ in range(4):
    busy = opened(sys.argv[1])
    ask(busy, 200)
    other = rival(busy)
    ask(other, 200)
    busy.close()
    other.close()
print("done", flush=True)
sys.stdin.readline()
"#;

/// A Python program in which a child takes over a busy socket after a rival has taken its counters. It prints
/// both pids.
const TAKING_OVER: &str = r#"
sys.stdin.readline()
busy = opened(sys.argv[1])
ask(busy, 200)
other = rival(busy)
ask(other, 200)
child = os.fork()
if child == 0:
    ask(busy, 20)
    os._exit(0)
os.waitpid(child, 0)
print(os.getpid(), child, flush=True)
sys.stdin.readline()
"#;

fn start(lab: &Lab, program: &str, kind: &str) -> Maker {
    let mut command = lab.command(Host::A, "python3");
    let mut started = Maker::start_of(command.args(["-c", &[RIVALS, program].concat(), kind]));
    started.start();
    started
}

/// Regression: up to a second of such a socket's traffic was lost.
#[test]
fn a_socket_that_ends_after_a_rival_came_is_counted_whole_root() {
    with_lab(|lab| {
        without_offloads(lab);
        count_all(lab);
        let _peer = user(lab, Host::B, "drain", &format!("{B}:7960"), &[]);
        let mut watch = Watch::new(lab, options(Engine::Kernel));
        for kind in ["udp", "tcp"] {
            // The session reads nothing from the kernel meanwhile.
            let mut sockets = start(lab, ENDING, kind);
            assert_eq!(sockets.line(), "done");
            watch.until(&format!("{kind}: all {:?} are counted", truth(lab)), |watch| {
                watch.sums() == truth(lab)
            });
            sockets.end();
        }
    });
}

/// Regression: most of the parent's traffic was credited to the child.
#[test]
fn a_socket_that_is_taken_over_after_a_rival_came_is_each_ones_root() {
    with_lab(|lab| {
        without_offloads(lab);
        count_all(lab);
        let _peer = user(lab, Host::B, "drain", &format!("{B}:7960"), &[]);
        let mut watch = Watch::new(lab, options(Engine::Kernel));
        let mut both = start(lab, TAKING_OVER, "tcp");
        let line = both.line();
        let pids: Vec<i32> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        watch.until(&format!("all {:?} are counted", truth(lab)), |watch| watch.sums() == truth(lab));
        let [parent, child] = [0, 1].map(|at| watch.traffic(pids[at]));
        // 200 requests went through each of two sockets, and 20 from the child. Headers take less than 100
        // bytes.
        assert!(parent.receive_bytes > 400 * 400, "{parent:?} {child:?}");
        assert!(child.receive_bytes > 20 * 400 && child.receive_bytes < 30 * 500, "{parent:?} {child:?}");
        both.end();
    });
}
