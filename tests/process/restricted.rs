//! Sessions with filtered system calls or a restricted `/proc`: they open and continue, missing figures are
//! not valid, and the log names the cause.

use capture::internals::config::{Options, Source};
use capture::internals::log::LogOptions;
use capture::internals::model::{ProcessRecord, Validity};
use capture::internals::session::Session;
use capture_test_support::requirements::{is_root, left_out};
use std::path::Path;
use std::process::Command;

/// The record of this process and the log of a session after its second update.
struct Seen {
    record: ProcessRecord,
    log: String,
}

fn open(source: Source, probes: bool) -> Session {
    let log = LogOptions { queue: true, ..LogOptions::default() };
    Session::open(Options { source, probes, log, ..Options::default() }).unwrap()
}

fn seen(session: &mut Session) -> Seen {
    session.update().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    session.update().unwrap();
    let log = session.take_log_lines().into_iter().map(|line| line.text + "\n").collect();
    let me = std::process::id() as i32;
    let record = session.processes().find(|record| record.sample.id.pid == me).unwrap().clone();
    let always = Validity::CPU | Validity::MEMORY | Validity::USER | Validity::COMMAND_LINE;
    assert!(record.valid.has(always) && record.sample.resident_bytes > 0, "{:?}", record.valid);
    Seen { record, log }
}

/// Makes a system call fail on this thread and on those that it starts: all calls, or those with `first` as
/// their first argument.
fn refuse(call: libc::c_long, first: Option<libc::c_int>, errno: libc::c_int) {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let jump = |k: u32, skipped: u8| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: 0,
        jf: skipped,
        k,
    };
    // struct seccomp_data: the system call number is its first member, and the first argument
    // is at offset 16.
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let fail = statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32);
    let allow = statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW);
    let mut filter = vec![statement(load, 0)];
    match first {
        Some(first) => filter.extend([jump(call as u32, 3), statement(load, 16), jump(first as u32, 1)]),
        None => filter.push(jump(call as u32, 1)),
    }
    filter.extend([fail, allow]);
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the filter and its instructions live during the calls, which only read them.
    let set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) == 0
    };
    assert!(set, "{}", std::io::Error::last_os_error());
}

#[test]
fn refused_sockets_and_programs_are_gone_without_root() {
    if !is_root() {
        return;
    }
    let socket = libc::SYS_socket;
    let cases = [
        (socket, Some(libc::AF_PACKET), libc::EPERM, "packet socket: EPERM"),
        (socket, Some(libc::AF_PACKET), libc::EAFNOSUPPORT, "packet socket: EAFNOSUPPORT"),
        (socket, Some(libc::AF_NETLINK), libc::EPERM, "netlink socket: EPERM"),
        (socket, Some(libc::AF_NETLINK), libc::EAFNOSUPPORT, "netlink socket: EAFNOSUPPORT"),
        (libc::SYS_bpf, None, libc::EPERM, "bpf(2): Operation not permitted"),
    ];
    for (call, first, errno, cause) in cases {
        // A filter belongs to a thread, and to the threads that it starts.
        let seen = std::thread::spawn(move || {
            refuse(call, first, errno);
            seen(&mut open(Source::Live, cfg!(feature = "ebpf")))
        });
        let Seen { record, log } = seen.join().unwrap();
        assert!(log.contains(cause) || call == libc::SYS_bpf && !cfg!(feature = "ebpf"), "{cause}: {log}");
        assert_eq!(record.valid.has(Validity::NETWORK), call == libc::SYS_bpf, "{cause}: {log}");
    }
}

/// Runs the ignored test of this name in a mount namespace, after a command that changes it. Returns false if
/// unshare(1) is unavailable.
fn in_mounts(name: &str, change: &str) -> bool {
    let script = format!("mount --make-rprivate / && {change} && exec \"$@\"");
    let inside = Command::new("unshare")
        .args(["-m", "sh", "-c", &script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .output();
    let Ok(inside) = inside else {
        left_out("there is no unshare(1)");
        return false;
    };
    let text = String::from_utf8_lossy(&inside.stdout) + String::from_utf8_lossy(&inside.stderr);
    assert!(inside.status.success() && text.contains("1 passed"), "{change}: {text}");
    true
}

#[test]
fn a_proc_that_shows_less_is_enough_root() {
    if !is_root() {
        return;
    }
    let made_up = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(made_up.path(), "cpu  1 2 3\n").unwrap();
    let bind = format!("mount --bind {} /proc/stat", made_up.path().display());
    let name = "restricted::inside_a_proc_that_shows_less";
    for change in ["mount -t proc -o subset=pid proc /proc", &bind] {
        in_mounts(name, change);
    }
    in_mounts("restricted::inside_a_proc_that_comes_to_show_less", "mount -t proc proc /proc");
    in_mounts("restricted::inside_a_proc_without_meminfo", "mount --bind /dev/null /proc/meminfo");
}

#[test]
#[ignore = "run in a mount namespace by a_proc_that_shows_less_is_enough_root"]
fn inside_a_proc_that_shows_less() {
    for probes in [false, cfg!(feature = "ebpf")] {
        let mut session = open(Source::Live, probes);
        let Seen { record, log } = seen(&mut session);
        assert!(!record.valid.has(Validity::CPU_PERCENT), "nothing tells the machine's time");
        assert!(record.valid.has(Validity::NETWORK), "{log}");
        assert!(log.contains("stat of the proc filesystem"), "{log}");
        let start = std::fs::metadata("/proc/self").unwrap();
        let start = std::os::unix::fs::MetadataExt::ctime(&start) as u64;
        let ours = session.units().start_time_ns(record.sample.id.start_ticks) / 1_000_000_000;
        assert!(start.abs_diff(ours) < 60, "{start} {ours}");
    }
}

#[test]
#[ignore = "run in a mount namespace by a_proc_that_shows_less_is_enough_root"]
fn inside_a_proc_without_meminfo() {
    let mut session = open(Source::None, false);
    let Seen { record, log } = seen(&mut session);
    assert!(record.valid.has(Validity::CPU_PERCENT), "{log}");
    let pages = nix::unistd::sysconf(nix::unistd::SysconfVar::_PHYS_PAGES).unwrap().unwrap() as f64;
    let expected = record.sample.resident_bytes as f64 * 100.0 / (pages * procfs::page_size() as f64);
    let ours = session.units().memory_percent(record.sample.resident_bytes);
    assert!((ours - expected).abs() < expected / 1e6, "{ours} {expected}");
}

#[test]
#[ignore = "run in a mount namespace by a_proc_that_shows_less_is_enough_root"]
fn inside_a_proc_that_comes_to_show_less() {
    let mut session = open(Source::None, false);
    assert!(seen(&mut session).record.valid.has(Validity::CPU_PERCENT));
    let remount = Command::new("mount").args(["-o", "remount,subset=pid", "/proc"]).status().unwrap();
    assert!(remount.success() && !Path::new("/proc/stat").exists());
    let Seen { record, log } = seen(&mut session);
    assert!(!record.valid.has(Validity::CPU_PERCENT) && log.contains("stat of the proc filesystem"), "{log}");
    assert!(Command::new("mount").args(["-o", "remount", "/proc"]).status().is_ok());
}
