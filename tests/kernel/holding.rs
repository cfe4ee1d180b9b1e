//! Sockets that several processes held before the session was opened, processes whose effective user differs
//! from the real one, and the kernel's own sockets.

use crate::lab::{Host, Lab, Maker, die_with_this};
use crate::watching::{B, UDP_HEADERS, Watch, count_all, options, truth, with_lab, without_offloads};
use capture::internals::config::Engine;
use capture::internals::model::{Quality, Unowned};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, sendto, socket};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

/// A Python program whose two processes hold one connection that neither ever uses. It prints both pids.
const HOLDERS: &str = r#"
import os, socket, sys, time
connection = socket.create_connection(("10.77.0.2", 7800))
time.sleep(0.1)
child = os.fork()
if child == 0:
    time.sleep(1000)
print(os.getpid(), child, flush=True)
sys.stdin.readline()
os.kill(child, 9)
os.wait()
"#;

fn listen_on_b(lab: &Lab) -> TcpListener {
    let bind = || {
        lab.enter(Host::B);
        TcpListener::bind((B, 7800)).unwrap()
    };
    std::thread::scope(|scope| scope.spawn(bind).join().unwrap())
}

/// Returns the pids of the holders, the elder first, and the other end of their connection.
fn holders(lab: &Lab, listener: &TcpListener) -> (Maker, [i32; 2], TcpStream) {
    lab.enter(Host::A);
    let mut command = die_with_this(Command::new("python3"));
    let mut holders = Maker::start_of(command.args(["-c", HOLDERS]));
    let (stream, _) = listener.accept().unwrap();
    let line = holders.line();
    let pids: Vec<i32> = line.split(' ').map(|pid| pid.parse().unwrap()).collect();
    (holders, [pids[0], pids[1]], stream)
}

/// The name of the following test, and the variable that tells it that it has a process to itself.
const HELD_BEFORE: &str =
    "holding::a_socket_that_several_held_before_is_the_youngest_holders_and_shared_root";
const ALONE: &str = "CAPTURE_TEST_ALONE";

/// Regression: such a connection was credited to the oldest holder, with quality exact. The sessions of other
/// tests would already have their eBPF programs running, which see the process that opens the connection. The
/// test therefore runs in its own process.
#[test]
fn a_socket_that_several_held_before_is_the_youngest_holders_and_shared_root() {
    if std::env::var_os(ALONE).is_none() {
        let mut alone = Command::new(std::env::current_exe().unwrap());
        let status = alone
            .args(["--exact", HELD_BEFORE, "--nocapture"])
            .env(ALONE, "1")
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success());
        return;
    }
    with_lab(|lab| {
        without_offloads(lab);
        count_all(lab);
        let listener = listen_on_b(lab);
        for engine in [Engine::Pcap, Engine::Kernel] {
            let (mut program, [elder, younger], mut stream) = holders(lab, &listener);
            let before = truth(lab);
            let mut watch = Watch::new(lab, options(engine));
            let owned = || watch.stats().bytes.owned;
            let owned_before = owned();
            stream.write_all(&[7; 20_000]).unwrap();
            let flow_is_shared = |watch: &Watch| {
                let mut flows = watch.session.flows();
                flows.any(|flow| {
                    flow.remote.port == 7800
                        && flow.owner.is_some_and(|owner| {
                            owner.process.pid == younger && owner.quality == Quality::Shared
                        })
                })
            };
            watch.until("the flow is the younger's", flow_is_shared);
            // With the engine `kernel`, this is so when the flow ends, since neither process reads.
            program.start();
            program.line();
            drop(stream);
            program.end();
            let after = truth(lab);
            let sums = (after.0 - before.0, after.1 - before.1);
            watch.until("all is the younger's", |watch| {
                let found = watch.traffic(younger);
                let ended = watch.unowned(Unowned::OwnerEnded);
                let of_both = found.send_bytes + found.receive_bytes;
                of_both + ended == sums.0 + sums.1 && found.receive_bytes >= 20_000
            });
            assert!(watch.traffic(elder).is_empty(), "{engine:?}: {:?}", watch.traffic(elder));
            let owned = watch.stats().bytes.owned;
            let of_younger = watch.traffic(younger).bytes();
            assert!(owned[Quality::Shared as usize] - owned_before[Quality::Shared as usize] >= of_younger);
            assert_eq!(watch.record(younger).unwrap().uncertain_bytes, of_younger);
        }
    });
}

/// Forks a process with these real and effective users that sends a datagram and ends.
fn send_as(real: u32, effective: u32) -> i32 {
    let to = SockaddrIn::new(10, 77, 0, 2, 7801);
    // SAFETY: the child only makes system calls until it ends.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            // SAFETY: the call takes only numbers; the process has one thread.
            unsafe { libc::syscall(libc::SYS_setresuid, real, effective, 0) };
            let made = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None);
            let _ = made.map(|made| sendto(made.as_raw_fd(), &[7; 500], &to, MsgFlags::empty()));
            // SAFETY: _exit(2) ends the process without running any code of the parent's.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            waitpid(child, None).unwrap();
            child.as_raw()
        }
    }
}

/// Processes that no sample ever sees are reported with their effective user. Regression: they were reported
/// with their real user.
#[test]
fn a_short_process_is_told_with_its_effective_user_root() {
    with_lab(|lab| {
        for engine in [Engine::Kernel, Engine::Pcap] {
            let mut watch = Watch::new(lab, options(engine));
            for (real, effective) in [(65_534, 0), (0, 65_534), (1, 2)] {
                let pid = send_as(real, effective);
                watch.until("it is told", |watch| watch.record(pid).is_some());
                let record = watch.record(pid).unwrap();
                assert_eq!(record.identity.uid, effective, "{engine:?}: {record:?}");
                assert_eq!(record.traffic.send_bytes, 500 + UDP_HEADERS);
            }
        }
    });
}

/// A Python program that sends echo requests from host B (raw(7)), and reports when all have been answered.
const PING: &str = r#"
import socket, struct
ping = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
for number in range(500):
    body = struct.pack("!BBHHH", 8, 0, 0, 77, number) + bytes(1000)
    total = sum(struct.unpack("!%dH" % (len(body) // 2), body))
    total = (total & 0xffff) + (total >> 16)
    total = ~((total & 0xffff) + (total >> 16)) & 0xffff
    ping.sendto(body[:2] + struct.pack("!H", total) + body[4:], ("10.77.0.1", 0))
    while ping.recv(2000)[20] != 0:
        pass
print("answered", flush=True)
"#;

/// The kernel answers by itself, with its own socket, in the context of whatever process happens to run.
#[test]
fn what_the_kernel_answers_is_no_processs_root() {
    with_lab(|lab| {
        let mut watch = Watch::new(lab, options(Engine::Kernel));
        let before = watch.unowned(Unowned::NoPorts);
        lab.count(Host::A, "meta l4proto icmp", "meta l4proto 200");
        let mut command = lab.command(Host::B, "python3");
        let mut ping = Maker::start_of(command.args(["-c", PING]));
        assert_eq!(watch.while_running(&mut ping, "answered"), []);
        let sent = lab.counted(Host::A).out_to;
        assert_eq!(sent, 500 * 1_042, "the counters have seen it");
        watch.update();
        // The bytes of other namespaces, which other tests fill with traffic, are not included. This
        // namespace has sent packets of the kernel's neighbour protocols.
        let found = watch.unowned(Unowned::NoPorts) - before;
        assert!((sent..sent + 2_000).contains(&found), "{found} of {sent}");
        assert_eq!(watch.all(), [].into());
    });
}

/// The kernel also creates the TCP sockets of an MPTCP socket. They are credited to the process that has the
/// latter.
#[test]
fn what_goes_by_several_paths_is_the_processs_root() {
    with_lab(|lab| {
        without_offloads(lab);
        count_all(lab);
        let mut watch = Watch::new(lab, options(Engine::Kernel));
        let _server = lab.maker(Host::B, "serial-server", "10.77.0.2:7802", &[("multipath", 1)]);
        let numbers = [("rate", 50), ("milliseconds", 500)];
        let mut clients = lab.maker(Host::A, "multipath-clients", "10.77.0.2:7802", &numbers);
        clients.start();
        assert_eq!(clients.finish().failed, 0);
        let truth = truth(lab);
        assert!(truth.0 > 10 * 4_096);
        watch.until("all is the clients'", |watch| {
            let found = watch.traffic(clients.pid());
            (found.send_bytes, found.receive_bytes) == truth
        });
        assert_eq!(watch.all().len(), 1);
    });
}
