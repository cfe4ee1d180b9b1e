//! Tests of the sampler on fixtures in which every figure is known.

use super::*;
use crate::model::{ProcessSample, Validity};
use crate::proc::SystemFacts;
use crate::process::identity::COMMAND_LINE_LIMIT;
use capture_test_support::proc_tree::ProcTree;
use std::path::PathBuf;

#[path = "sampler_cgroup_tests.rs"]
mod cgroups;
#[path = "sampler_task_tests.rs"]
mod tasks;

const FACTS: SystemFacts = SystemFacts { page_size: 4096, ticks_per_second: 100, descriptors_by_size: false };
const KERNEL_THREAD: u32 = 0x0020_0000;
const NO_EXEC_YET: u32 = 0x40;

/// A fixture of `/proc`.
struct SampleTree(ProcTree);

/// The properties of a fixture's process that tests vary.
#[derive(Clone, Copy)]
struct Made {
    pid: i32,
    name: &'static [u8],
    state: char,
    flags: u32,
    ticks: [u64; 2],
    start: u64,
    memory: u64,
    stack: u64,
}

const MADE: Made = Made {
    pid: 7,
    name: b"made",
    state: 'S',
    flags: 0,
    ticks: [0; 2],
    start: 500,
    memory: 8192,
    stack: 1000,
};

impl SampleTree {
    fn new() -> SampleTree {
        let tree = SampleTree(ProcTree::empty());
        tree.machine(1000);
        tree.write("meminfo", "MemTotal:       2048 kB\nMemFree: 1 kB\n");
        tree
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.file(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        self.0.write(name, text);
    }

    fn machine(&self, ticks: u64) {
        self.write("stat", format!("cpu  {ticks} 0 0 0 0 0 0 0 0 0\nbtime 1700000000\n"));
    }

    fn process(&self, made: Made) {
        let Made { pid, name, state, flags, ticks: [user, system], start, memory, stack } = made;
        std::fs::create_dir_all(self.path(&format!("{pid}/fd"))).unwrap();
        let mut line = format!("{pid} (").into_bytes();
        line.extend_from_slice(name);
        line.extend_from_slice(
            format!(
                ") {state} 1 1 1 0 -1 {flags} 91 0 92 0 {user} {system} 0 0 20 0 3 0 {start} {memory} 2 9 1 1 {stack}\n"
            )
            .as_bytes(),
        );
        self.write(&format!("{pid}/stat"), line);
        self.write(&format!("{pid}/statm"), "2 1 1 0 0 0 0\n");
        self.write(&format!("{pid}/smaps_rollup"), "0-1 ---p 0 00:00 0 [rollup]\nRss: 4 kB\nPss: 3 kB\n");
        let io = "rchar: 11\nwchar: 22\nsyscr: 1\nsyscw: 2\nread_bytes: 33\nwrite_bytes: 44\n";
        self.write(&format!("{pid}/io"), io);
        self.write(
            &format!("{pid}/status"),
            "voluntary_ctxt_switches:\t55\nnonvoluntary_ctxt_switches:\t66\n",
        );
    }

    fn remove(&self, name: &str) {
        self.0.remove(name);
    }

    fn sampler(&self, what: SampleSet, selection: Selection) -> Sampler {
        let root = ProcRoot::with_facts(self.0.path(), FACTS).unwrap();
        Sampler::new(root, what, selection).unwrap()
    }

    fn everything(&self) -> Sampler {
        self.sampler(SampleSet::ALL, Selection::default())
    }
}

fn only(sampler: &Sampler) -> &ProcessRecord {
    let mut processes = sampler.processes();
    let record = processes.next().unwrap();
    assert!(processes.next().is_none());
    record
}

fn pids(sampler: &Sampler) -> Vec<i32> {
    sampler.processes().map(|record| record.sample.id.pid).collect()
}

#[test]
fn all_figures_are_read() {
    let tree = SampleTree::new();
    tree.process(Made { ticks: [12, 34], ..MADE });
    tree.write("7/cmdline", "made\0-x\0");
    tree.write("7/fd/0", "");
    tree.write("7/fd/1", "");
    tree.write("7/cgroup", "0::/group\n");
    tree.write("uptime", "not a process");
    std::fs::create_dir(tree.path("12x")).unwrap();
    let mut sampler = tree.everything();
    sampler.sample().unwrap();
    let record = only(&sampler);
    let sample = &record.sample;
    assert_eq!(sample.id, ProcId { pid: 7, start_ticks: 500 });
    assert_eq!((sample.parent, sample.state, sample.threads), (1, b'S', 3));
    assert_eq!((sample.user_ticks, sample.system_ticks), (12, 34));
    assert_eq!((sample.virtual_bytes, sample.resident_bytes), (8192, 4096));
    assert_eq!((sample.shared_bytes, sample.proportional_bytes), (4096, 3072));
    assert_eq!(
        (sample.read_chars, sample.write_chars, sample.read_bytes, sample.write_bytes),
        (11, 22, 33, 44)
    );
    assert_eq!(sample.descriptors, 2);
    assert_eq!((sample.minor_faults, sample.major_faults), (91, 92));
    assert_eq!((sample.voluntary_switches, sample.involuntary_switches), (55, 66));
    assert_eq!(record.identity.name, b"made");
    assert_eq!(record.identity.command_line, b"made\0-x\0");
    assert_eq!(record.identity.cgroup, b"/group");
    assert_eq!(record.identity.uid, nix::unistd::geteuid().as_raw());
    let everything_but =
        Validity::ALL.0 & !(Validity::CPU_PERCENT | Validity::NETWORK | Validity::CONNECTIONS).0;
    assert_eq!((record.valid, sample.valid), (Validity(everything_but), Validity(everything_but)));
    assert_eq!((sampler.machine().memory_bytes, sampler.machine().cpu_ticks), (2048 * 1024, 1000));
    assert_eq!(sampler.unreadable(), 0);
}

#[test]
fn the_cpu_share_is_of_the_time_between_two_samples() {
    let tree = SampleTree::new();
    let mut sampler = tree.everything();
    let mut share = |ticks, machine| {
        tree.machine(machine);
        tree.process(Made { ticks, ..MADE });
        sampler.sample().unwrap();
        let record = only(&sampler);
        record.valid.has(Validity::CPU_PERCENT).then_some(record.cpu_percent)
    };
    assert_eq!(share([100, 100], 1000), None, "nothing to compare with");
    assert_eq!(share([130, 120], 1200), Some(25.0));
    assert_eq!(share([130, 120], 1300), Some(0.0));
    assert_eq!(share([110, 130], 1400), Some(10.0), "what went backwards stood still");
    assert_eq!(share([150, 150], 1400), None, "no time has passed");
    assert_eq!(share([150, 150], 1300), None, "time went backwards");
    assert_eq!(share([900, 900], 1400), Some(100.0), "nothing has more than everything");
}

#[test]
fn a_reused_pid_is_another_process() {
    let tree = SampleTree::new();
    tree.process(Made { ticks: [50, 0], ..MADE });
    let mut sampler = tree.everything();
    sampler.sample().unwrap();
    let old = ProcId { pid: 7, start_ticks: 500 };
    let new = ProcId { pid: 7, start_ticks: 900 };
    sampler.get_mut(&old).unwrap().traffic.send_bytes = 77;
    assert!(sampler.get_mut(&new).is_none());

    tree.machine(2000);
    tree.process(Made { ticks: [60, 0], start: 900, name: b"new", ..MADE });
    sampler.sample().unwrap();
    let record = only(&sampler);
    assert_eq!((record.sample.id, record.traffic.send_bytes, record.cpu_percent), (new, 0, 0.0));
    assert!(!record.valid.has(Validity::CPU_PERCENT));
    assert_eq!(record.identity.name, b"new");
    sampler.get_mut(&old).unwrap().traffic.send_bytes += 1;
    let ended = sampler.take_ended();
    assert_eq!(ended.len(), 1);
    let last = &ended[0];
    assert_eq!((last.sample.id, last.sample.user_ticks, last.traffic.send_bytes), (old, 50, 78));
    assert!(sampler.take_ended().is_empty() && sampler.get_mut(&old).is_none());
}

#[test]
fn the_ended_wait_until_the_next_sample() {
    let tree = SampleTree::new();
    for pid in [9, 10, 100, 11] {
        tree.process(Made { pid, ..MADE });
    }
    let mut sampler = tree.everything();
    sampler.sample().unwrap();
    assert_eq!(pids(&sampler), [9, 10, 11, 100]);
    tree.remove("100");
    tree.remove("9");
    tree.process(Made { pid: 12, ..MADE });
    sampler.sample().unwrap();
    assert_eq!(pids(&sampler), [10, 11, 12]);
    assert_eq!(sampler.ended().iter().map(|record| record.sample.id.pid).collect::<Vec<_>>(), [9, 100]);
    sampler.sample().unwrap();
    assert!(sampler.ended().is_empty());
    assert_eq!(pids(&sampler), [10, 11, 12]);
}

#[test]
fn what_cannot_be_read_is_not_valid() {
    let tree = SampleTree::new();
    tree.process(MADE);
    tree.remove("7/io");
    tree.remove("7/status");
    tree.write("7/statm", "nonsense");
    tree.write("7/smaps_rollup", "Rss: 4 kB\n");
    tree.remove("7/fd");
    let mut sampler = tree.everything();
    sampler.sample().unwrap();
    let record = only(&sampler);
    assert_eq!(record.valid, Validity::CPU | Validity::USER);
    assert_eq!(
        (record.sample.read_chars, record.sample.resident_bytes, record.sample.descriptors),
        (0, 0, 0)
    );
    tree.process(MADE);
    sampler.sample().unwrap();
    assert!(only(&sampler).valid.has(Validity::IO | Validity::MEMORY | Validity::DESCRIPTORS));
}

#[test]
fn what_is_not_asked_for_is_not_read() {
    let tree = SampleTree::new();
    tree.process(MADE);
    tree.write("7/cmdline", "made\0");
    let mut sampler = tree.sampler(SampleSet::IO, Selection::default());
    sampler.sample().unwrap();
    let record = only(&sampler);
    let own = Validity::OWN_CHARS | Validity::OWN_BYTES;
    assert_eq!(record.valid, Validity::CPU | Validity::USER | Validity::IO | own, "no child was waited for");
    assert_eq!((record.sample.virtual_bytes, record.sample.read_chars), (0, 11));
    assert!(record.identity.command_line.is_empty());
}

#[test]
fn one_odd_process_does_not_fail_the_others() {
    let tree = SampleTree::new();
    for pid in 1..=4 {
        tree.process(Made { pid, ticks: [5, 0], ..MADE });
    }
    tree.write("2/stat", "2 (odd) nonsense");
    tree.write("3/stat", std::fs::read(tree.path("4/stat")).unwrap());
    let mut sampler = tree.everything();
    sampler.sample().unwrap();
    assert_eq!((pids(&sampler), sampler.unreadable()), (vec![1, 4], 2));
    tree.write("4/stat", "");
    sampler.sample().unwrap();
    assert_eq!((pids(&sampler), sampler.unreadable()), (vec![1, 4], 5));
    assert_eq!(sampler.processes().last().unwrap().sample.user_ticks, 5);
    tree.remove("4/stat");
    sampler.sample().unwrap();
    assert_eq!(pids(&sampler), [1]);
}

#[test]
fn an_unreadable_machine_has_no_shares_and_all_else() {
    let tree = SampleTree::new();
    tree.process(MADE);
    tree.remove("stat");
    tree.remove("meminfo");
    let mut sampler = tree.everything();
    let mut share = |ticks, machine: Option<u64>| {
        match machine {
            Some(ticks) => tree.machine(ticks),
            None => tree.remove("stat"),
        }
        tree.process(Made { ticks, ..MADE });
        sampler.sample().unwrap();
        let record = only(&sampler);
        assert!(record.valid.has(Validity::CPU | Validity::MEMORY) && record.sample.user_ticks == ticks[0]);
        record.valid.has(Validity::CPU_PERCENT).then_some(record.cpu_percent)
    };
    tree.machine(1000);
    assert_eq!(share([10, 0], None), None);
    assert_eq!(share([20, 0], Some(1000)), None, "there is nothing to compare with");
    assert_eq!(share([30, 0], Some(1100)), Some(10.0));
    assert_eq!(share([40, 0], None), None);
    assert_eq!(share([50, 0], Some(1200)), None);
    assert_eq!(share([60, 0], Some(1300)), Some(10.0));
}

#[test]
fn names_select() {
    let tree = SampleTree::new();
    tree.process(Made { pid: 1, ..MADE });
    tree.process(Made { pid: 2, name: b"other", ..MADE });
    tree.write("2/cmdline", "other\0");
    let mut sampler =
        tree.sampler(SampleSet::ALL, Selection { names: vec![b"made".to_vec()], ..Selection::default() });
    sampler.sample().unwrap();
    assert_eq!(pids(&sampler), [1]);
    let other = ProcId { pid: 2, start_ticks: 500 };
    let record = sampler.get_mut(&other).unwrap();
    assert_eq!((record.sample.read_chars, record.sample.valid), (0, Validity::CPU | Validity::USER));
    assert!(record.identity.command_line.is_empty());

    tree.process(Made { pid: 2, ..MADE });
    tree.process(Made { pid: 1, name: b"fled", ..MADE });
    tree.machine(2000);
    sampler.sample().unwrap();
    assert_eq!(pids(&sampler), [2]);
    let record = only(&sampler);
    assert_eq!(record.identity.command_line, b"other\0");
    assert!(record.valid.has(Validity::IO | Validity::CPU_PERCENT | Validity::COMMAND_LINE));

    tree.process(Made { pid: 3, name: b"other", ..MADE });
    sampler.sample().unwrap();
    for pid in ["1", "2", "3"] {
        tree.remove(pid);
    }
    sampler.sample().unwrap();
    let ended: Vec<i32> = sampler.ended().iter().map(|record| record.sample.id.pid).collect();
    assert_eq!(ended, [1, 2], "the end of one that was delivered is told, although it was renamed");
}

#[test]
fn users_and_pids_select() {
    let tree = SampleTree::new();
    for pid in 1..=5 {
        tree.process(Made { pid, ..MADE });
    }
    let uid = nix::unistd::geteuid();
    let select = |users: &[String], pids: &[i32]| {
        let users = users.iter().map(|user| user.clone().into_bytes()).collect();
        let selection = Selection { users, pids: pids.to_vec(), names: Vec::new() };
        let mut sampler = tree.sampler(SampleSet::ALL, selection);
        sampler.sample().unwrap();
        self::pids(&sampler)
    };
    assert_eq!(select(&[uid.to_string()], &[]), [1, 2, 3, 4, 5]);
    let name = nix::unistd::User::from_uid(uid).unwrap().unwrap().name;
    assert_eq!(select(&[name], &[5]), [5]);
    assert!(select(&["nobody has this name".into()], &[]).is_empty());
    assert_eq!(select(&[], &[4, 99, 2, 4, -1, 0]), [2, 4]);
    tree.write("2/status", "Name:\tmade\nTgid:\t4\nPid:\t2\n");
    assert_eq!(select(&[], &[4, 2]), [4], "a thread is not a process");
}

#[test]
fn the_command_line_is_read_again_within_sixteen_samples() {
    let tree = SampleTree::new();
    tree.process(MADE);
    tree.write("7/cmdline", "one\0");
    let mut sampler = tree.everything();
    sampler.sample().unwrap();
    tree.write("7/cmdline", "two\0");
    let mut identities = vec![only(&sampler).identity.clone()];
    for _ in 0..16 {
        sampler.sample().unwrap();
        identities.push(only(&sampler).identity.clone());
    }
    assert_eq!(identities[16].command_line, b"two\0");
    identities.dedup_by(|a, b| std::sync::Arc::ptr_eq(a, b));
    assert_eq!(identities.len(), 2, "an identity is replaced only when it changes");
}

#[test]
fn an_exec_is_noticed_at_once() {
    let tree = SampleTree::new();
    let mut sampler = tree.everything();
    let mut command_line = |made, text: &str| {
        tree.process(made);
        tree.write("7/cmdline", text);
        sampler.sample().unwrap();
        let record = only(&sampler);
        (record.identity.name.clone(), record.identity.command_line.clone())
    };
    let forked = Made { flags: NO_EXEC_YET, ..MADE };
    // Sixteen samples of the same kind would read it again in any case, so every step is one sample.
    assert_eq!(command_line(forked, "parent\0"), (b"made".to_vec(), b"parent\0".to_vec()));
    assert_eq!(command_line(MADE, "child\0").1, b"child\0", "the flag has changed");
    let moved = Made { stack: 2000, ..MADE };
    assert_eq!(command_line(moved, "").1, b"", "not there yet");
    assert_eq!(command_line(moved, "again\0").1, b"again\0");
    let renamed = Made { name: b"new", ..moved };
    assert_eq!(command_line(renamed, "named\0"), (b"new".to_vec(), b"named\0".to_vec()));
    let zombie = Made { state: 'Z', memory: 0, stack: 0, ..renamed };
    assert_eq!(command_line(zombie, "").1, b"named\0", "the last one is kept");
}

#[test]
fn long_and_unended_command_lines() {
    let tree = SampleTree::new();
    tree.process(MADE);
    for (length, expected) in [
        (COMMAND_LINE_LIMIT - 2, COMMAND_LINE_LIMIT - 1),
        (COMMAND_LINE_LIMIT - 1, COMMAND_LINE_LIMIT),
        (COMMAND_LINE_LIMIT, COMMAND_LINE_LIMIT),
        (COMMAND_LINE_LIMIT * 2, COMMAND_LINE_LIMIT),
    ] {
        tree.write("7/cmdline", vec![b'x'; length]);
        let mut sampler = tree.everything();
        sampler.sample().unwrap();
        let text = &only(&sampler).identity.command_line;
        assert_eq!(
            (text.len(), text.last(), text.iter().filter(|&&byte| byte == 0).count()),
            (expected, Some(&0), 1)
        );
    }
}

#[test]
fn kernel_threads_have_neither_memory_nor_arguments() {
    let tree = SampleTree::new();
    tree.process(Made { flags: KERNEL_THREAD, memory: 0, name: b"kworker/u4:2-events_unbound", ..MADE });
    tree.write("7/cmdline", "never read\0");
    let mut sampler = tree.everything();
    sampler.sample().unwrap();
    let record = only(&sampler);
    assert_eq!(record.sample.resident_bytes, 0);
    assert!(record.valid.has(Validity::MEMORY | Validity::COMMAND_LINE | Validity::IO));
    assert_eq!(record.identity.name, b"kworker/u4:2-events_unbound");
    assert!(record.identity.command_line.is_empty());
}
