//! Tests of the parsers: lines copied from real machines, generated lines, random bytes, and the `procfs`
//! crate.

use super::*;
use procfs::{Current, FromRead, FromReadSI};
use proptest::prelude::*;

/// `/proc/1/stat` of a Debian 12 machine (Linux 6.1), read by root.
const SYSTEMD: &[u8] = b"1 (systemd) S 0 1 1 0 -1 4194560 47532 3417623 81 1242 61 163 4962 1894 20 0 1 0 8 \
    172371968 3181 18446744073709551615 94137386414080 94137386415000 140729361098000 0 0 0 671173123 4096 1260 \
    0 0 0 17 1 0 0 0 0 0 94137386430128 94137386430904 94137393639424 140729361100497 140729361100508 \
    140729361100508 140729361100781 0\n";

#[test]
fn a_line_of_a_real_machine() {
    let stat = stat(SYSTEMD).unwrap();
    assert_eq!((stat.pid, stat.name, stat.state, stat.parent), (1, &b"systemd"[..], b'S', 0));
    assert_eq!((stat.user_ticks, stat.system_ticks, stat.threads), (61, 163, 1));
    assert_eq!((stat.start_ticks, stat.virtual_bytes, stat.flags), (8, 172_371_968, 4_194_560));
    assert_eq!((stat.minor_faults, stat.major_faults), (47532, 81));
    assert_eq!(stat.layout, [94137386414080, 140729361098000]);
    assert!(stat.has_memory() && !stat.is_kernel_thread());
}

#[test]
fn kernel_threads_and_zombies_have_no_memory() {
    let thread =
        b"2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 3 0 0 20 0 1 0 8 0 0 18446744073709551615 0 0 0 0 0 0 \
        0 2147483647 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n";
    let parsed = stat(thread).unwrap();
    assert!(parsed.is_kernel_thread() && !parsed.has_memory());
    let zombie =
        b"99 (sh) Z 1 99 99 0 -1 4194316 0 0 0 0 0 0 0 0 20 0 1 0 51 0 0 18446744073709551615 0 0 0 0 0";
    let parsed = stat(zombie).unwrap();
    assert!(!parsed.is_kernel_thread() && !parsed.has_memory());
    assert_eq!(parsed.state, b'Z');
}

#[test]
fn older_kernels_write_fewer_fields() {
    let start = b"7 (a) R 1 7 7 0 -1 64 0 0 0 0 3 4 0 0 20 0 1 0 55 4096";
    let parsed = stat(start).unwrap();
    assert_eq!((parsed.start_ticks, parsed.virtual_bytes, parsed.layout), (55, 4096, [0; 2]));
    let cut = start.strip_suffix(b" 4096").unwrap();
    assert_eq!(stat(cut), None);
    assert_eq!(machine_ticks(b"cpu  1 2 3 4\nbtime 9\n"), Some(10));
}

#[test]
fn control_groups_are_told_by_hierarchy() {
    let text = b"12:cpu,cpuacct:/c\n1:name=systemd:/a:b ::\xff\n0::/user.slice\n";
    assert_eq!(cgroup(text, b""), Some(&b"/user.slice"[..]));
    assert_eq!(cgroup(text, b"name=systemd"), Some(&b"/a:b ::\xff"[..]));
    assert_eq!(cgroup(text, b"cpu"), None);
    assert_eq!(cgroup(b"0::/../..\n", b""), Some(&b"/../.."[..]), "seen from another cgroup namespace");
    assert_eq!((cgroup(b"", b""), cgroup(b"0::", b""), cgroup(b"0\n::x\n", b"")), (None, None, None));
    let own = std::fs::read("/proc/self/cgroup").unwrap();
    let theirs = procfs::ProcessCGroups::from_read(&own[..]).unwrap();
    for group in theirs {
        let path = cgroup(&own, group.controllers.join(",").as_bytes());
        assert_eq!(path, Some(group.pathname.as_bytes()));
    }
}

#[test]
fn context_switches_are_the_last_lines_of_the_status() {
    let text = b"Name:\tx\nvoluntary_ctxt_switches_of_nobody:\t9\nvoluntary_ctxt_switches:\t150\n\
        nonvoluntary_ctxt_switches:\t545\n";
    assert_eq!(switches(text), Some([150, 545]));
    assert_eq!(switches(b"nonvoluntary_ctxt_switches:\t545\n"), None);
    assert_eq!(switches(b"voluntary_ctxt_switches:\tx\nnonvoluntary_ctxt_switches:\t545\n"), None);
    let own = std::fs::read("/proc/self/status").unwrap();
    assert!(switches(&own).is_some());
}

#[test]
fn nonsense_is_refused() {
    for text in [
        &b""[..],
        b"\n",
        b"(",
        b")(",
        b"1 ()",
        b"1 (a) ",
        b"1 (a) RR 1 7 7 0 -1 64 0 0 0 0 3 4 0 0 20 0 1 0 55 4096",
        b"1 (a) 5 1 7 7 0 -1 64 0 0 0 0 3 4 0 0 20 0 1 0 55 4096",
        b"x (a) R 1 7 7 0 -1 64 0 0 0 0 3 4 0 0 20 0 1 0 55 4096",
        b"1 (a) R 1 7 7 0 -1 64 0 0 0 0 -3 4 0 0 20 0 1 0 55 4096",
        b"1 (a) R 1 7 7 0 -1 64 0 0 0 0 3 4 0 0 20 0 1 0 99999999999999999999 4096",
        b"99999999999 (a) R 1 7 7 0 -1 64 0 0 0 0 3 4 0 0 20 0 1 0 55 4096",
    ] {
        assert_eq!(stat(text), None, "{}", text.escape_ascii());
    }
    assert_eq!(statm(b"17"), None);
    assert_eq!(statm(b"17 x"), None);
    assert_eq!(io(b"rchar: 1\nwchar: 2\nread_bytes: 3\n"), None);
    assert_eq!(io(b"rchar: 1\nwchar: -2\nread_bytes: 3\nwrite_bytes: 4\n"), None);
    assert_eq!(machine_ticks(b"cpu  1 2 3\nbtime 9\n"), None);
    assert_eq!(machine_ticks(b"cpu  1 2 3 4 x\nbtime 9\n"), None);
    assert_eq!(machine_ticks(b"btime 5\n"), None);
    assert_eq!(memory_total(b"MemTotal: 17 MB\n"), None);
    assert_eq!(memory_total(b"MemFree: 17 kB\n"), None);
}

#[test]
fn machine_wide_figures() {
    let text = b"cpu  10 20 30 40 50 60 70 800 900 1000\ncpu0 1 1 1 1 1 1 1 0 0 0\nintr 5 6\nctxt 77\nbtime 1700000000\n";
    assert_eq!(machine_ticks(text), Some(280));
    assert_eq!(memory_total(b"MemTotal:       24684072 kB\nMemFree: 1 kB\n"), Some(24_684_072 * 1024));
}

#[test]
fn the_process_of_a_thread() {
    let text =
        b"Name:\ta\\nTgid:\t5\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t1234\nNgid:\t0\nPid:\t1240\n";
    assert_eq!(thread_group(text), Some(1234));
    assert_eq!(thread_group(b"Tgid:\tx\n"), None);
    assert_eq!(thread_group(b""), None);
}

#[test]
fn io_lines() {
    let text = b"rchar: 4292\nwchar: 0\nsyscr: 13\nsyscw: 0\nread_bytes: 8192\nwrite_bytes: 5\n\
        cancelled_write_bytes: 0\n";
    let expected = Io { read_chars: 4292, write_chars: 0, read_bytes: 8192, write_bytes: 5 };
    assert_eq!(io(text), Some(expected));
}

/// Every process of this machine, read once, is parsed here as by the `procfs` crate.
#[test]
fn all_live_processes_agree_with_the_procfs_crate() {
    let mut compared = 0;
    for process in procfs::process::all_processes().unwrap().flatten() {
        let file = |name: &str| std::fs::read(format!("/proc/{}/{name}", process.pid)).unwrap_or_default();
        let text = file("stat");
        // The crate accepts only text, so names that are not UTF-8 are left to the other tests.
        if text.is_empty() || std::str::from_utf8(&text).is_err() {
            continue;
        }
        let theirs = procfs::process::Stat::from_read(&text[..]).unwrap();
        let ours = stat(&text).unwrap();
        assert_eq!(ours.pid, theirs.pid);
        assert_eq!(ours.name, theirs.comm.as_bytes());
        assert_eq!(char::from(ours.state), theirs.state);
        assert_eq!(ours.parent, theirs.ppid);
        assert_eq!(ours.flags, u64::from(theirs.flags));
        assert_eq!((ours.user_ticks, ours.system_ticks), (theirs.utime, theirs.stime));
        assert_eq!(i64::from(ours.threads), theirs.num_threads);
        assert_eq!((ours.start_ticks, ours.virtual_bytes), (theirs.starttime, theirs.vsize));
        assert_eq!(ours.layout, [theirs.startcode, theirs.startstack]);
        let text = file("statm");
        if let (Some(ours), Ok(theirs)) = (statm(&text), procfs::process::StatM::from_read(&text[..])) {
            assert_eq!((ours.virtual_pages, ours.resident_pages), (theirs.size, theirs.resident));
        }
        let text = file("io");
        if let (Some(ours), Ok(theirs)) = (io(&text), procfs::process::Io::from_read(&text[..])) {
            assert_eq!((ours.read_chars, ours.write_chars), (theirs.rchar, theirs.wchar));
            assert_eq!((ours.read_bytes, ours.write_bytes), (theirs.read_bytes, theirs.write_bytes));
        }
        compared += 1;
    }
    assert!(compared > 0);
    assert_eq!(
        memory_total(&std::fs::read("/proc/meminfo").unwrap()).unwrap(),
        procfs::Meminfo::current().unwrap().mem_total
    );
    let text = std::fs::read("/proc/stat").unwrap();
    let theirs = procfs::KernelStats::from_read(&text[..], procfs::current_system_info()).unwrap();
    let cpu = &theirs.total;
    let optional = [cpu.iowait, cpu.irq, cpu.softirq].into_iter().flatten().sum::<u64>();
    let ticks = cpu.user + cpu.nice + cpu.system + cpu.idle + optional;
    assert_eq!(machine_ticks(&text), Some(ticks));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(text in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = (stat(&text), statm(&text), io(&text), machine_ticks(&text), memory_total(&text), thread_group(&text), switches(&text), cgroup(&text, b""));
    }

    /// Bytes of the format's own alphabet get further into the parsers than random ones, and do not make them
    /// panic either.
    #[test]
    fn near_misses_never_panic(text in "[0-9() \n:kBSRcputimeMTolwdbys_-]{0,300}") {
        let text = text.as_bytes();
        let _ = (stat(text), statm(text), io(text), machine_ticks(text), memory_total(text), thread_group(text));
    }

    #[test]
    fn a_written_line_is_read_back(
        pid in 1..=i32::MAX, parent in 0..=i32::MAX, threads in any::<u32>(), flags in any::<u32>(),
        name in proptest::collection::vec(1..=255u8, 0..64), state in prop::sample::select(&b"RSDZTtXI"[..]),
        times in any::<[u64; 4]>(), layout in any::<[u64; 2]>(), odd in any::<[i64; 4]>(),
    ) {
        let [user, system, start, size] = times;
        let mut line = format!("{pid} (").into_bytes();
        line.extend_from_slice(&name);
        line.extend_from_slice(format!(
            ") {} {parent} {} {} {} -1 {flags} 1 2 3 4 {user} {system} {} 6 -20 0 {threads} 0 {start} {size} 5 6 {} 0 {} \
             {} 7 8\n",
            char::from(state), odd[0], odd[1], odd[2], odd[3], layout[0], layout[1], "9 ".repeat(19),
        ).as_bytes());
        let expected = Stat {
            pid, name: &name, state, parent, flags: u64::from(flags), minor_faults: 1, major_faults: 3,
            has_waited: true,
            user_ticks: user, system_ticks: system,
            threads, start_ticks: start, virtual_bytes: size, layout,
        };
        prop_assert_eq!(stat(&line), Some(expected));
    }

    #[test]
    fn the_last_position_is_that_of_the_standard_library(text in "[a)]{0,3}[a-c]{0,100}") {
        let expected = text.as_bytes().iter().rposition(|&byte| byte == b')');
        prop_assert_eq!(last_position(text.as_bytes(), b')'), expected);
    }

    #[test]
    fn decimals_are_read_as_the_standard_library_reads_them(value in any::<u64>(), text in "[0-9a+ -]{0,22}") {
        prop_assert_eq!(decimal(value.to_string().as_bytes()), Some(value));
        let expected = if text.starts_with('+') { None } else { text.parse().ok() };
        prop_assert_eq!(decimal(text.as_bytes()), expected);
    }
}
