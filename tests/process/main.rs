//! Sampling of real processes, compared with the kernel, `ps` and the `procfs` crate.

// Helpers of tests fail loudly, as tests do.
#![allow(clippy::unwrap_used)]

mod cgroups;
mod lives;
mod networks;
mod restricted;
mod sessions;
mod shares;
mod threads;

use capture::internals::kernel::load_tasks;
use capture::internals::model::{ProcessRecord, SampleSet, Selection, Validity};
use capture::internals::proc::ProcRoot;
use capture::internals::process::Sampler;
use capture_test_support::children::Child;
use capture_test_support::requirements::{is_root, left_out};
use std::ffi::{CStr, CString, OsStr};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn root() -> ProcRoot {
    ProcRoot::open(Path::new("/proc")).unwrap()
}

/// The source of the figures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    Files,
    Tasks,
}

impl Source {
    /// Returns true if this source is available, and reports it if not.
    fn is_there(self) -> bool {
        if self == Source::Files {
            return true;
        }
        if !cfg!(feature = "ebpf") || !is_root() {
            return false;
        }
        let loaded = load_tasks(SampleSet::ALL);
        if let Err(reason) = &loaded {
            left_out(&format!("there are no walks over all tasks: {reason}"));
        }
        loaded.is_ok()
    }
}

/// Makes a test of each function with each source of figures.
macro_rules! with_each_source {
    ($($test:path as $from_files:ident, $from_tasks_root:ident;)*) => {
        $(
            #[test]
            fn $from_files() {
                $test(Source::Files);
            }

            #[test]
            fn $from_tasks_root() {
                if Source::Tasks.is_there() {
                    $test(Source::Tasks);
                }
            }
        )*
    };
}

fn sampler(source: Source, pids: &[i32]) -> Sampler {
    let selection = Selection { pids: pids.to_vec(), ..Selection::default() };
    let mut sampler = Sampler::new(root(), SampleSet::ALL, selection).unwrap();
    if source == Source::Tasks {
        sampler.take_from(load_tasks(SampleSet::ALL).unwrap());
    }
    sampler
}

fn sampled(sampler: &mut Sampler, pid: i32) -> ProcessRecord {
    sampler.sample().unwrap();
    sampler.processes().find(|record| record.sample.id.pid == pid).unwrap().clone()
}

fn proc_file(pid: i32, name: &str) -> String {
    String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/{name}")).unwrap()).into_owned()
}

/// Two programs whose names the kernel truncates to the same one, and a script with such a name.
fn long_names_select(source: Source) {
    let directory = tempfile::tempdir().unwrap();
    let [wanted, other, script] =
        ["a-very-long-program-name", "a-very-long-program-other", "a-very-long-program-name.sh"]
            .map(|name| directory.path().join(name));
    let text = directory.path().join("text");
    std::fs::write(&text, "#!/bin/sh\nread line\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&text, mode).unwrap();
    copy(Path::new("/bin/sleep"), &wanted);
    copy(Path::new("/bin/sleep"), &other);
    copy(&text, &script);
    let start = |path: &Path, first: &str| {
        let mut command = std::process::Command::new(path);
        let stdin = std::process::Stdio::piped();
        std::os::unix::process::CommandExt::arg0(&mut command, first).arg("100").stdin(stdin).spawn().unwrap()
    };
    let mut children = [
        start(&wanted, "a-very-long-program-name"),
        start(&wanted, "another first argument"),
        start(&other, "a-very-long-program-other"),
        start(&script, "a-very-long-program-name.sh"),
    ];
    let pids = children.each_ref().map(|child| child.id() as i32);
    let selecting = |names: &[&str]| {
        let names = names.iter().map(|name| name.as_bytes().to_vec()).collect();
        let selection = Selection { names, ..Selection::default() };
        let mut sampler = Sampler::new(root(), SampleSet::MEMORY, selection).unwrap();
        if source == Source::Tasks {
            sampler.take_from(load_tasks(SampleSet::MEMORY).unwrap());
        }
        // A process in the middle of an exec has no arguments yet.
        std::thread::sleep(Duration::from_millis(100));
        let mut found = Vec::new();
        for _ in 0..2 {
            sampler.sample().unwrap();
            let records = sampler.processes().inspect(|record| assert!(record.valid.has(Validity::MEMORY)));
            found = records.map(|record| record.sample.id.pid).filter(|pid| pids.contains(pid)).collect();
        }
        found.sort_unstable();
        found
    };
    let sorted = |places: &[usize]| {
        let mut pids: Vec<i32> = places.iter().map(|&place| pids[place]).collect();
        pids.sort_unstable();
        pids
    };
    assert_eq!(selecting(&["a-very-long-program-name"]), sorted(&[0, 1]));
    assert_eq!(selecting(&["a-very-long-program-other", "x"]), sorted(&[2]));
    assert_eq!(selecting(&["a-very-long-program-name.sh"]), sorted(&[3]));
    assert_eq!(selecting(&["a-very-long-pro"]), sorted(&[0, 1, 2, 3]), "as the kernel cuts it");
    assert_eq!(selecting(&["a-very-long-pro-none"]), []);
    for child in &mut children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// Returns field `number` of `stat` (after the state), counted from 1 as in proc_pid_stat(5).
fn stat_field(pid: i32, number: usize) -> u64 {
    let text = proc_file(pid, "stat");
    let (_, fields) = text.rsplit_once(") ").unwrap();
    fields.split(' ').nth(number - 3).unwrap().parse().unwrap()
}

/// Copies a program in another process. A child that another test forks meanwhile would inherit the
/// descriptor that is open for writing, and the copy could not be executed.
fn copy(from: &Path, to: &Path) {
    assert!(std::process::Command::new("cp").arg("--").args([from, to]).status().unwrap().success());
}

const ODD_NAMES: [&CStr; 7] = [c"a b", c"(x", c"x) R 1 2", c"new\nline", c"\xff\xfe", c")", c""];

fn odd_names(source: Source) {
    for name in ODD_NAMES {
        let child = Child::new(|told| {
            let _ = nix::sys::prctl::set_name(name);
            told.next_step();
        });
        let record = sampled(&mut sampler(source, &[]), child.pid());
        assert_eq!(record.identity.name, name.to_bytes());
        assert_eq!(record.sample.parent, std::process::id() as i32);
        assert_eq!(record.sample.threads, 1);
    }
}

fn odd_names_of_programs(source: Source) {
    let directory = tempfile::tempdir().unwrap();
    for name in ODD_NAMES.into_iter().filter(|name| !name.is_empty()) {
        let program = directory.path().join(OsStr::from_bytes(name.to_bytes()));
        copy(Path::new("/bin/sleep"), &program);
        let program = CString::new(program.as_os_str().as_bytes()).unwrap();
        let arguments = [&*program, c"100"];
        let child = Child::new(|told| {
            told.next_step();
            let _ = nix::unistd::execv(&program, &arguments);
        });
        child.go();
        let mut sampler = sampler(source, &[child.pid()]);
        // An exec sets the name first and the arguments last: a record with the new name has either no
        // arguments or the new ones.
        let record = until(&mut sampler, child.pid(), |record| {
            record.identity.name == name.to_bytes() && !record.identity.command_line.is_empty()
        });
        let expected = [program.as_bytes_with_nul(), b"100\0"].concat();
        assert_eq!(record.identity.command_line, expected);
    }
}

/// Samples until `holds` returns true, which it must within ten seconds.
fn until(sampler: &mut Sampler, pid: i32, holds: impl Fn(&ProcessRecord) -> bool) -> ProcessRecord {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let record = sampled(sampler, pid);
        if holds(&record) {
            return record;
        }
        assert!(Instant::now() < deadline, "{record:?}");
    }
}

fn kernel_threads(source: Source) {
    if std::fs::read("/proc/2/comm").is_ok_and(|name| name == b"kthreadd\n") {
        let record = sampled(&mut sampler(source, &[2]), 2);
        assert_eq!(record.identity.name, b"kthreadd");
        assert!(record.identity.command_line.is_empty());
        assert_eq!((record.sample.resident_bytes, record.sample.virtual_bytes), (0, 0));
        assert!(record.valid.has(Validity::CPU | Validity::MEMORY | Validity::COMMAND_LINE));
    } else {
        left_out("kernel threads are not visible here");
    }
}

fn zombies(source: Source) {
    let mut child = Child::sleeping();
    let mut sampler = sampler(source, &[child.pid()]);
    let before = sampled(&mut sampler, child.pid());
    assert!(before.sample.resident_bytes > 0 && before.sample.state != b'Z');
    child.kill();
    let zombie = sampled(&mut sampler, child.pid());
    assert_eq!((zombie.sample.id, zombie.sample.state), (before.sample.id, b'Z'));
    assert_eq!((zombie.sample.resident_bytes, zombie.sample.virtual_bytes), (0, 0));
    assert!(zombie.valid.has(Validity::CPU | Validity::MEMORY | Validity::COMMAND_LINE));
    assert_eq!(zombie.identity, before.identity);
    let first_seen = sampled(&mut self::sampler(source, &[]), child.pid());
    assert_eq!(first_seen.identity.name, before.identity.name);
    child.reap();
    sampler.sample().unwrap();
    assert_eq!(sampler.processes().count(), 0);
    assert_eq!(sampler.take_ended()[0].sample.id, before.sample.id);
}

fn many_threads_are_one_process(source: Source) {
    let me = std::process::id() as i32;
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let stopped = Arc::new(std::sync::Mutex::new(stopped));
    let threads: Vec<_> = (0..100)
        .map(|_| {
            let stopped = stopped.clone();
            std::thread::spawn(move || stopped.lock().map(|stopped| stopped.recv()).is_ok())
        })
        .collect();
    let mut sampler = sampler(source, &[]);
    // Threads of other tests start and end meanwhile.
    let record = (0..1000).find_map(|_| {
        let before = stat_field(me, 20);
        let record = sampled(&mut sampler, me);
        (before == stat_field(me, 20) && u64::from(record.sample.threads) == before).then_some(record)
    });
    assert!(record.unwrap().sample.threads > 100);
    let thread = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| task.unwrap().file_name().to_str()?.parse().ok())
        .find(|&thread: &i32| thread != me)
        .unwrap();
    assert!(sampler.processes().all(|record| record.sample.id.pid != thread));
    let mut selecting = self::sampler(source, &[thread, me]);
    selecting.sample().unwrap();
    assert_eq!(selecting.processes().map(|record| record.sample.id.pid).collect::<Vec<_>>(), [me]);
    drop(stop);
    threads.into_iter().for_each(|thread| assert!(thread.join().unwrap()));
}

/// Needs root, like all tests that change their user.
fn a_change_of_user_is_noticed_at_once(source: Source) {
    if !is_root() {
        return;
    }
    let child = Child::new(|told| {
        told.next_step();
        // SAFETY: system calls without pointers.
        unsafe {
            libc::syscall(libc::SYS_setresgid, 23_456, 23_456, 23_456);
            libc::syscall(libc::SYS_setresuid, 12_345, 12_345, 12_345);
        }
        told.next_step();
    });
    let mut sampler = sampler(source, &[child.pid()]);
    let before = sampled(&mut sampler, child.pid());
    assert_eq!((before.identity.uid, before.identity.user.as_slice()), (0, &b"root"[..]));
    child.step();
    let file = std::fs::metadata(format!("/proc/{}/statm", child.pid())).unwrap();
    assert_eq!(file.uid(), 0, "a daemon that gave up root is not dumpable, so its files show root's");
    let after = sampled(&mut sampler, child.pid());
    assert_eq!((after.identity.uid, after.identity.gid), (12_345, 23_456));
    assert_eq!(
        (after.identity.user.as_slice(), after.identity.group.as_slice()),
        (&b"12345"[..], &b"23456"[..])
    );
    assert_eq!(after.sample.id, before.sample.id);
}

// The adopted child is waited for.
#[allow(clippy::zombie_processes)]
fn an_exec_keeps_the_process_and_changes_its_identity(source: Source) {
    // The shell runs `exec` when it reads a line: first another command line of the same program, then
    // another program.
    let script = "read x; exec sh -c 'read y; exec sleep 98'";
    let mut shell = std::process::Command::new("sh")
        .args(["-c", script])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let child = Child::adopt(shell.id() as i32);
    let mut input = shell.stdin.take().unwrap();
    let mut sampler = sampler(source, &[child.pid()]);
    let first = until(&mut sampler, child.pid(), |record| record.identity.command_line.ends_with(b"98'\0"));
    for expected in [&b"sh\0-c\0read y; exec sleep 98\0"[..], b"sleep\x0098\0"] {
        input.write_all(b"\n").unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::fs::read(format!("/proc/{}/cmdline", child.pid())).unwrap() != expected {
            assert!(Instant::now() < deadline);
        }
        // Takes one sample only, so that it is not the periodic rereading that finds the change.
        let record = sampled(&mut sampler, child.pid());
        assert_eq!(record.identity.command_line, expected);
        assert_eq!(record.sample.id, first.sample.id);
        let name = expected.split(|&byte| byte == 0).next().unwrap();
        assert_eq!(record.identity.name, name);
    }
}

fn an_overwritten_command_line_is_noticed_within_sixteen_samples(source: Source) {
    let start = stat_field(std::process::id() as i32, 48) as usize;
    let child = Child::new(|told| {
        told.next_step();
        // SAFETY: the first argument of this program is longer than one byte and is at this address, which is
        // the same in the child; nothing else in the child reads it.
        unsafe { (start as *mut u8).write_volatile(b'#') };
        told.next_step();
    });
    let mut sampler = sampler(source, &[child.pid()]);
    let before = sampled(&mut sampler, child.pid()).identity;
    child.step();
    let after = (0..16).map(|_| sampled(&mut sampler, child.pid()).identity).last().unwrap();
    assert_eq!(after.command_line, [b"#", &before.command_line[1..]].concat());
}

fn figures_are_those_of_ps_and_of_the_kernel(source: Source) {
    let directory = tempfile::tempdir().unwrap();
    let data = CString::new(directory.path().join("data").as_os_str().as_bytes()).unwrap();
    let child = Child::new(|told| {
        // SAFETY: the paths are C strings that live during the calls, and the buffer has the given length.
        unsafe {
            let file = libc::open(data.as_ptr(), libc::O_CREAT | libc::O_WRONLY, 0o600);
            libc::write(file, [7u8; 5000].as_ptr().cast(), 5000);
            libc::fsync(file);
            for _ in 0..37 {
                libc::dup(file);
            }
        }
        told.next_step();
    });
    let pid = child.pid();
    let facts = *root().facts();
    let record = until(&mut sampler(source, &[pid]), pid, |record| record.sample.state == b'S');
    let sample = &record.sample;

    let statm = proc_file(pid, "statm");
    let mut pages = statm.split(' ').map(|field| field.parse::<u64>().unwrap_or_default() * facts.page_size);
    assert_eq!((pages.next().unwrap(), pages.next().unwrap()), (sample.virtual_bytes, sample.resident_bytes));
    let io = proc_file(pid, "io");
    let io =
        |key: &str| -> u64 { io.lines().find_map(|line| line.strip_prefix(key)).unwrap().parse().unwrap() };
    assert_eq!((io("rchar: "), io("wchar: ")), (sample.read_chars, sample.write_chars));
    assert_eq!((io("read_bytes: "), io("write_bytes: ")), (sample.read_bytes, sample.write_bytes));
    assert!(sample.write_chars >= 5000);
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert!(descriptors > 37);
    assert_eq!(sample.descriptors as usize, descriptors);
    assert_eq!(stat_field(pid, 22), sample.id.start_ticks);

    let listing = capture::internals::proc::SystemFacts { descriptors_by_size: false, ..facts };
    let older = ProcRoot::with_facts(Path::new("/proc"), listing).unwrap();
    let selection = Selection { pids: vec![pid], ..Selection::default() };
    let mut older = Sampler::new(older, SampleSet::DESCRIPTORS, selection).unwrap();
    assert_eq!(sampled(&mut older, pid).sample.descriptors as usize, descriptors);

    let ps = ["-o", "uid=,rss=,nlwp=,stat=,ppid=,comm=", "-p", &pid.to_string()];
    let Ok(ps) = std::process::Command::new("ps").args(ps).output() else {
        return left_out("there is no ps");
    };
    let ps = String::from_utf8(ps.stdout).unwrap();
    let fields: Vec<&str> = ps.split_whitespace().collect();
    assert_eq!(fields[0], record.identity.uid.to_string());
    // ps reads it from counters that lag by some pages per CPU.
    let lag = 256 * 1024 * std::thread::available_parallelism().unwrap().get() as u64;
    assert!((fields[1].parse::<u64>().unwrap() * 1024).abs_diff(sample.resident_bytes) <= lag, "{ps}");
    assert_eq!(fields[2], sample.threads.to_string());
    assert_eq!(fields[3].as_bytes()[0], sample.state);
    assert_eq!(fields[4], sample.parent.to_string());
    assert_eq!(fields[5].as_bytes(), record.identity.name);
}

with_each_source! {
    odd_names as
        odd_names_from_files,
        odd_names_from_tasks_root;
    odd_names_of_programs as
        odd_names_of_programs_from_files,
        odd_names_of_programs_from_tasks_root;
    kernel_threads as
        kernel_threads_from_files,
        kernel_threads_from_tasks_root;
    zombies as
        zombies_from_files,
        zombies_from_tasks_root;
    many_threads_are_one_process as
        many_threads_are_one_process_from_files,
        many_threads_are_one_process_from_tasks_root;
    a_change_of_user_is_noticed_at_once as
        a_change_of_user_is_noticed_at_once_from_files_root,
        a_change_of_user_is_noticed_at_once_from_tasks_root;
    an_exec_keeps_the_process_and_changes_its_identity as
        an_exec_keeps_the_process_and_changes_its_identity_from_files,
        an_exec_keeps_the_process_and_changes_its_identity_from_tasks_root;
    an_overwritten_command_line_is_noticed_within_sixteen_samples as
        an_overwritten_command_line_is_noticed_within_sixteen_samples_from_files,
        an_overwritten_command_line_is_noticed_within_sixteen_samples_from_tasks_root;
    figures_are_those_of_ps_and_of_the_kernel as
        figures_are_those_of_ps_and_of_the_kernel_from_files,
        figures_are_those_of_ps_and_of_the_kernel_from_tasks_root;
    lives::all_live_processes_agree_with_the_procfs_crate as
        all_live_processes_agree_with_the_procfs_crate_from_files,
        all_live_processes_agree_with_the_procfs_crate_from_tasks_root;
    lives::the_share_of_a_busy_process as
        the_share_of_a_busy_process_from_files,
        the_share_of_a_busy_process_from_tasks_root;
    lives::a_reused_pid_starts_from_zero as
        a_reused_pid_starts_from_zero_from_files_root,
        a_reused_pid_starts_from_zero_from_tasks_root;
    lives::churn_never_fails_a_sample as
        churn_never_fails_a_sample_from_files,
        churn_never_fails_a_sample_from_tasks_root;
    lives::one_process_is_described_at_once as
        one_process_is_described_at_once_from_files,
        one_process_is_described_at_once_from_tasks_root;
    threads::thousands_of_threads_are_summed_up as
        thousands_of_threads_are_summed_up_from_files,
        thousands_of_threads_are_summed_up_from_tasks_root;
    shares::io_of_children_that_were_waited_for as
        io_of_children_that_were_waited_for_from_files,
        io_of_children_that_were_waited_for_from_tasks_root;
    shares::shared_memory_is_told_apart as
        shared_memory_is_told_apart_from_files,
        shared_memory_is_told_apart_from_tasks_root;
    long_names_select as long_names_select_from_files, long_names_select_from_tasks_root;
    lives::reserved_descriptors_are_no_entries as
        reserved_descriptors_are_no_entries_from_files,
        reserved_descriptors_are_no_entries_from_tasks_root;
    threads::a_process_whose_main_thread_has_ended as
        a_process_whose_main_thread_has_ended_from_files,
        a_process_whose_main_thread_has_ended_from_tasks_root;
    threads::another_thread_runs_another_program as
        another_thread_runs_another_program_from_files,
        another_thread_runs_another_program_from_tasks_root;
    threads::threads_that_come_and_go as
        threads_that_come_and_go_from_files,
        threads_that_come_and_go_from_tasks_root;
    threads::descriptors_are_counted_in_tables_of_all_sizes as
        descriptors_are_counted_in_tables_of_all_sizes_from_files,
        descriptors_are_counted_in_tables_of_all_sizes_from_tasks_root;
    cgroups::all_live_processes_are_where_the_kernel_says as
        all_live_processes_are_where_the_kernel_says_from_files,
        all_live_processes_are_where_the_kernel_says_from_tasks_root;
    cgroups::a_process_that_is_moved_is_told_where_it_is as
        a_process_that_is_moved_is_told_where_it_is_from_files_root,
        a_process_that_is_moved_is_told_where_it_is_from_tasks_root;
    cgroups::what_has_ended_keeps_the_path_of_a_group_that_is_removed as
        what_has_ended_keeps_the_path_of_a_group_that_is_removed_from_files_root,
        what_has_ended_keeps_the_path_of_a_group_that_is_removed_from_tasks_root;
    cgroups::a_namespace_of_its_own_changes_nothing as
        a_namespace_of_its_own_changes_nothing_from_files_root,
        a_namespace_of_its_own_changes_nothing_from_tasks_root;
    cgroups::a_containers_processes_are_told_by_the_hosts_path as
        a_containers_processes_are_told_by_the_hosts_path_from_files_root,
        a_containers_processes_are_told_by_the_hosts_path_from_tasks_root;
}
