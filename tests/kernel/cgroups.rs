//! Control groups of processes that no sample ever sees. The groups are removed before the session can look
//! them up.

use crate::group::Group;
use crate::lab::{Host, Lab};
use crate::may_run;
use capture::internals::config::{Engine, Options};
use capture::internals::model::{ProbeState, ProcessRecord, SampleSet, Validity};
use capture::internals::session::Session;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, sendto, socket};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, write};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(20);

/// Runs a test with a session on host A, in a thread that may change its network namespace.
fn with_session(options: Options, test: impl FnOnce(Session) + Send) {
    let body = || {
        let lab = Lab::new();
        lab.enter(Host::A);
        let mut session = Session::open(options).unwrap();
        session.update().unwrap();
        test(session);
    };
    std::thread::scope(|scope| scope.spawn(body).join().unwrap());
}

/// Forks a process that joins the group, sends a datagram from there and ends. Returns after its end.
fn send_from(group: &Group) -> i32 {
    let door = File::options().write(true).open(group.door()).unwrap();
    let to = SockaddrIn::new(10, 77, 0, 2, 7000);
    // SAFETY: the child only makes system calls until it ends.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let _ = write(&door, b"0");
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

/// Updates until the process is reported as ended.
fn removed(session: &mut Session, pid: i32) -> ProcessRecord {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        session.update().unwrap();
        assert!(session.processes().all(|record| record.sample.id.pid != pid), "no sample is to see it");
        let found = session.take_removed().into_iter().find(|record| record.sample.id.pid == pid);
        if let Some(found) = found {
            return found;
        }
        let stats = session.stats_reader().read();
        assert!(Instant::now() < deadline, "{pid} is not told: {stats:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn with_cgroups(engine: Engine) -> Options {
    Options { engine, sample: SampleSet::USUAL | SampleSet::CGROUP, ..Options::default() }
}

/// Checks two nested groups, each with a process. Both the process and the group are gone before the session
/// updates.
fn a_process_between_two_updates(engine: Engine) {
    if !may_run() || !cfg!(feature = "ebpf") {
        return;
    }
    with_session(with_cgroups(engine), |mut session| {
        let stats = session.stats_reader().read();
        assert_eq!((stats.engine, stats.socket_probes), (engine, ProbeState::Active));
        let Some(outer) = Group::new() else { return };
        let inner = outer.below(b"a b:\xff (deleted)");
        for group in [&inner, &outer] {
            let pid = send_from(group);
            group.remove();
            let record = removed(&mut session, pid);
            assert_eq!(record.identity.cgroup, group.path(), "{record:?}");
            assert!(record.valid.has(Validity::CGROUP | Validity::USER));
            assert_eq!(record.traffic.send_packets, 1);
        }
    });
}

#[test]
fn a_process_between_two_updates_of_the_kernels_engine_root() {
    a_process_between_two_updates(Engine::Kernel);
}

#[test]
fn a_process_between_two_updates_of_the_capture_root() {
    a_process_between_two_updates(Engine::Pcap);
}

#[test]
fn without_being_asked_for_none_is_told_root() {
    if !may_run() || !cfg!(feature = "ebpf") {
        return;
    }
    let options = Options { engine: Engine::Kernel, ..Options::default() };
    with_session(options, |mut session| {
        let Some(group) = Group::new() else { return };
        let pid = send_from(&group);
        let record = removed(&mut session, pid);
        assert!(record.identity.cgroup.is_empty() && !record.valid.has(Validity::CGROUP), "{record:?}");
    });
}

/// Without eBPF programs, the library reads a program's cgroup when the program starts.
// The child is waited for.
#[allow(clippy::zombie_processes)]
#[test]
fn without_probes_a_program_is_asked_as_it_starts_root() {
    if !may_run() {
        return;
    }
    let options = Options { probes: false, ..with_cgroups(Engine::Pcap) };
    with_session(options, |mut session| {
        let Some(group) = Group::new() else { return };
        let program = "import socket, time\n\
                       s = socket.socket(type=socket.SOCK_DGRAM)\n\
                       s.sendto(bytes(500), ('10.77.0.2', 7000))\n\
                       time.sleep(1)";
        let script = "echo 0 >\"$1\" && exec python3 -c \"$2\"";
        let door = group.door();
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(door).arg(program).stdin(Stdio::null());
        let mut child = command.spawn().unwrap();
        assert!(child.wait().unwrap().success());
        group.remove();
        let record = removed(&mut session, child.id() as i32);
        assert_eq!(record.identity.cgroup, group.path(), "{record:?}");
        assert!(record.identity.name.starts_with(b"python3"));
    });
}

/// A watcher in another cgroup namespace gets paths relative to that namespace, as the kernel would show
/// them.
#[test]
fn a_watcher_in_a_namespace_of_its_own_is_told_paths_from_there_root() {
    if !may_run() {
        return;
    }
    let Some(group) = Group::new() else { return };
    let inside = Command::new("sh")
        .args(["-c", "echo 0 >\"$1\" && shift && exec unshare --cgroup \"$@\"", "sh"])
        .arg(group.door())
        .arg(std::env::current_exe().unwrap())
        .args(["--test-threads=1", "cgroups::a_process_between_two_updates"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&inside.stdout);
    assert!(inside.status.success() && text.contains("2 passed"), "{text}");
}
