//! Sessions choose the source of their samples, and report the result of the choice.

use super::{Source, proc_file};
use capture::internals::config::{Engine, Options, Source as Packets};
use capture::internals::model::{ProbeState, ProcessRecord, SampleSet, Selection, Validity};
use capture::internals::session::Session;
use capture_test_support::children::Child;
use capture_test_support::requirements::{is_root, left_out};
use std::process::Command;
use std::time::Duration;

/// Returns options of a session that captures nothing.
fn options() -> Options {
    Options { source: Packets::None, ..Options::default() }
}

/// Returns the state of the sampling probes from the statistics, and the record of this process
/// after a sample.
fn sampled_by(options: Options) -> (ProbeState, ProcessRecord) {
    let mut session = Session::open(options).unwrap();
    session.update().unwrap();
    let me = std::process::id() as i32;
    let record = session.processes().find(|record| record.sample.id.pid == me).unwrap().clone();
    (session.stats_reader().read().sample_probes, record)
}

#[test]
fn a_session_samples_from_tasks_where_it_can_root() {
    if !is_root() || !Source::Tasks.is_there() {
        return;
    }
    let (state, record) = sampled_by(options());
    assert_eq!(state, ProbeState::Active);
    assert!(record.valid.has(Validity::SWITCHES | Validity::IO | Validity::DESCRIPTORS));
    let (state, record) = sampled_by(Options { probes: false, ..options() });
    assert_eq!(state, ProbeState::Off);
    assert!(!record.valid.has(Validity::SWITCHES), "these cost another read");
    let (_, record) = sampled_by(Options { probes: false, sample: SampleSet::ALL, ..options() });
    assert!(record.valid.has(Validity::SWITCHES) && record.sample.voluntary_switches > 0);
    let pids = vec![std::process::id() as i32];
    let few = Options { selection: Selection { pids, ..Selection::default() }, ..options() };
    assert_eq!(sampled_by(few).0, ProbeState::Off, "few files are read sooner than all tasks are");
}

/// Runs `work` on a thread with another user id and only these capabilities.
fn as_another_user<T: Send>(capabilities: u64, work: impl FnOnce() -> T + Send) -> T {
    let run = || {
        // Version 3 of the header, and this thread.
        let header = [0x2008_0522u32, 0];
        let [low, high] = [capabilities as u32, (capabilities >> 32) as u32];
        let data = [low, low, 0, high, high, 0];
        // SAFETY: system calls on this thread; the structures have the sizes of version 3.
        let done = unsafe {
            libc::prctl(libc::PR_SET_KEEPCAPS, 1);
            libc::syscall(libc::SYS_setresgid, 65_534, 65_534, 65_534);
            libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534);
            libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr())
        };
        assert_eq!(done, 0);
        work()
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())
}

#[test]
fn two_capabilities_are_enough_root() {
    const CAP_PERFMON: u64 = 1 << 38;
    const CAP_BPF: u64 = 1 << 39;
    if !is_root() || !Source::Tasks.is_there() {
        return;
    }
    let child = Child::sleeping();
    let pid = child.pid();
    let sampled = |options: Options| {
        let mut session = Session::open(options).unwrap();
        session.update().unwrap();
        let record = session.processes().find(|record| record.sample.id.pid == pid).unwrap().clone();
        (session.stats_reader().read().sample_probes, record)
    };
    let (state, record) = as_another_user(CAP_BPF | CAP_PERFMON, || sampled(options()));
    assert_eq!(state, ProbeState::Active);
    assert!(
        record.valid.has(Validity::IO | Validity::DESCRIPTORS | Validity::MEMORY | Validity::COMMAND_LINE)
    );
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert_eq!(record.sample.descriptors as usize, descriptors);
    assert!(proc_file(pid, "io").contains(&format!("rchar: {}\n", record.sample.read_chars)));
    for capabilities in [0, CAP_BPF, CAP_PERFMON] {
        let (state, record) = as_another_user(capabilities, || sampled(options()));
        assert_eq!(state, ProbeState::NotPermitted, "{capabilities:#x}");
        assert!(record.valid.has(Validity::CPU | Validity::MEMORY) && !record.valid.has(Validity::IO));
    }
}

/// Runs this test again in a PID namespace of its own.
#[test]
fn numbers_of_another_namespace_are_not_mixed_up_root() {
    const INSIDE: &str = "CAPTURE_TEST_INSIDE";
    if !is_root() {
        return;
    }
    if std::env::var_os(INSIDE).is_some() {
        let (state, record) = sampled_by(options());
        let expected = if cfg!(feature = "ebpf") { ProbeState::PidNamespace } else { ProbeState::NotBuilt };
        assert_eq!((state, record.sample.id.pid), (expected, std::process::id() as i32));
        return;
    }
    let name = "sessions::numbers_of_another_namespace_are_not_mixed_up_root";
    let inside = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(INSIDE, "1")
        .output();
    let Ok(inside) = inside else { return left_out("there is no unshare(1)") };
    let text = String::from_utf8_lossy(&inside.stdout);
    assert!(inside.status.success() && text.contains("1 passed"), "{text}");
    let tree = tempfile::tempdir().unwrap();
    std::fs::write(tree.path().join("stat"), "cpu  1 1 1 1\nbtime 5\n").unwrap();
    std::fs::write(tree.path().join("meminfo"), "MemTotal: 2048 kB\n").unwrap();
    let mut session = Session::open(Options { proc_root: tree.path().into(), ..options() }).unwrap();
    session.update().unwrap();
    assert_eq!(session.stats_reader().read().sample_probes, ProbeState::PidNamespace);
    assert_eq!(session.processes().count(), 0);
}

#[test]
fn start_times_are_by_the_clocks_and_stay() {
    let tree = tempfile::tempdir().unwrap();
    let set_boot = |seconds: u32| {
        let stat = format!("cpu  1 1 1 1\nbtime {seconds}\n");
        std::fs::write(tree.path().join("stat"), stat).unwrap();
    };
    set_boot(1_700_000_000);
    std::fs::write(tree.path().join("meminfo"), "MemTotal: 2048 kB\n").unwrap();
    let mut session = Session::open(Options { proc_root: tree.path().into(), ..options() }).unwrap();
    let started = session.units().start_time_ns(5);
    let clock = |id| Duration::from(nix::time::clock_gettime(id).unwrap());
    let boot = clock(nix::time::ClockId::CLOCK_REALTIME) - clock(nix::time::ClockId::CLOCK_BOOTTIME);
    let boot = u64::try_from(boot.as_nanos()).unwrap() + session.units().ticks_to_ns(5);
    assert!(started.abs_diff(boot) < 100_000_000, "not as the made-up file says");
    set_boot(1_700_003_600);
    session.update().unwrap();
    assert_eq!(session.units().start_time_ns(5), started);
}

/// Runs a shell that executes the script's command on order between two updates of a session, and ends before
/// the second. Returns its last record.
fn last_record_of(script: &str, options: Options) -> ProcessRecord {
    let mut command = Command::new("sh");
    let mut shell = command.args(["-c", script]).stdin(std::process::Stdio::piped()).spawn().unwrap();
    let pid = shell.id() as i32;
    let mut session = Session::open(options).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        session.update().unwrap();
        let known = session.processes().find(|record| record.sample.id.pid == pid).unwrap();
        if known.identity.name == b"sh" && known.identity.command_line.starts_with(b"sh\0-c\0") {
            break;
        }
        assert!(std::time::Instant::now() < deadline);
    }
    std::io::Write::write_all(shell.stdin.as_mut().unwrap(), b"go\n").unwrap();
    // The library learns of the change by an event, not by an update.
    std::thread::sleep(Duration::from_secs(1));
    drop(shell.stdin.take());
    shell.wait().unwrap();
    loop {
        session.update().unwrap();
        if let Some(removed) = session.take_removed().into_iter().find(|it| it.sample.id.pid == pid) {
            return removed;
        }
        assert!(std::time::Instant::now() < deadline);
    }
}

#[test]
fn what_a_process_became_after_the_last_sample_is_told_root() {
    if !is_root() {
        return;
    }
    let engine = |engine| Options { engine, ..Options::default() };
    let probes = cfg!(feature = "ebpf");
    for options in [
        Options { probes: false, ..Options::default() },
        Options { probes, ..engine(Engine::Pcap) },
        Options { probes, ..engine(Engine::Kernel) },
    ] {
        let way = format!("{:?} {}", options.engine, options.probes);
        let ended = last_record_of("read line; exec cat", options.clone());
        assert_eq!(
            (&ended.identity.name[..], &ended.identity.command_line[..]),
            (&b"cat"[..], &b"cat\0"[..]),
            "{way}"
        );
        let script = "read line; printf renamed >/proc/$$/comm; read line";
        let ended = last_record_of(script, options);
        assert_eq!(ended.identity.name, b"renamed", "{way}");
        assert!(ended.identity.command_line.starts_with(b"sh\0-c\0read"), "{way}");
        assert!(ended.valid.has(Validity::CPU | Validity::COMMAND_LINE), "{way}");
    }
}
