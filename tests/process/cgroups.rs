//! Control groups of real processes, compared with the kernel's files.

use super::{Source, sampled, sampler};
use capture::internals::kernel::load_tasks;
use capture::internals::model::{SampleSet, Selection, Validity};
use capture::internals::proc::ProcRoot;
use capture::internals::process::Sampler;
use capture_test_support::children::{Child, Told};
use capture_test_support::group::{Group, told};
use capture_test_support::requirements::left_out;
use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Returns true if processes have groups in the unified hierarchy.
fn are_there() -> bool {
    let are_there = told(std::process::id() as i32).is_some();
    if !are_there {
        left_out("there are no cgroups of version 2");
    }
    are_there
}

/// Returns the pids of all processes.
fn live() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

pub fn all_live_processes_are_where_the_kernel_says(source: Source) {
    if !are_there() {
        return;
    }
    let mut sampler = sampler(source, &[]);
    let mut compared = 0;
    for _ in 0..2 {
        let before: HashMap<i32, Option<Vec<u8>>> = live().map(|pid| (pid, told(pid))).collect();
        sampler.sample().unwrap();
        for record in sampler.processes() {
            let pid = record.sample.id.pid;
            // Other programs may move their processes, and processes end: the kernel's current value counts
            // only if it has not changed since before.
            if let Some(path) = told(pid).filter(|path| !path.ends_with(b" (deleted)"))
                && before.get(&pid) == Some(&Some(path.clone()))
            {
                assert_eq!(path, record.identity.cgroup, "{pid}: {:?}", record.identity);
                assert!(record.valid.has(Validity::CGROUP));
                compared += 1;
            }
        }
    }
    assert!(compared > 2, "{compared}");
}

pub fn a_process_that_is_moved_is_told_where_it_is(source: Source) {
    let Some(first) = Group::new() else { return };
    let second = first.below(b"a b:\xff\\012 (deleted)");
    let mut child = Child::sleeping();
    let pid = child.pid();
    let mut sampler = sampler(source, &[pid]);
    let before = sampled(&mut sampler, pid);
    assert_eq!(Some(&before.identity.cgroup), told(pid).as_ref());
    for group in [&first, &second, &first, &second] {
        group.take(pid);
        for _ in 0..2 {
            let record = sampled(&mut sampler, pid);
            assert_eq!(record.identity.cgroup, group.path());
            assert_eq!(Some(&record.identity.cgroup), told(pid).as_ref());
            assert_eq!(record.identity.command_line, before.identity.command_line);
            assert!(record.valid.has(Validity::CGROUP));
        }
    }
    child.kill();
    child.reap();
    sampler.sample().unwrap();
    let ended = &sampler.ended()[0];
    assert_eq!(ended.identity.cgroup, second.path());
    assert!(ended.valid.has(Validity::CGROUP));
}

pub fn what_has_ended_keeps_the_path_of_a_group_that_is_removed(source: Source) {
    let Some(group) = Group::new() else { return };
    let child = Child::sleeping();
    let pid = child.pid();
    group.take(pid);
    let mut known = sampler(source, &[pid]);
    assert_eq!(sampled(&mut known, pid).identity.cgroup, group.path());
    child.kill();
    group.remove();
    assert!(told(pid).unwrap().ends_with(b" (deleted)"));
    assert_eq!(sampled(&mut known, pid).identity.cgroup, group.path());
    assert_eq!(sampled(&mut sampler(source, &[pid]), pid).identity.cgroup, group.path());
}

/// A process in a cgroup namespace of its own sees itself at its root.
pub fn a_namespace_of_its_own_changes_nothing(source: Source) {
    let Some(group) = Group::new() else { return };
    let child = Child::new(|told: &Told| {
        told.next_step();
        let _ = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP);
        told.next_step();
    });
    let pid = child.pid();
    group.take(pid);
    let mut sampler = sampler(source, &[pid]);
    assert_eq!(sampled(&mut sampler, pid).identity.cgroup, group.path());
    child.step();
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/cgroup")).unwrap();
    assert_ne!(namespace(&pid.to_string()), namespace("self"));
    assert_eq!(sampled(&mut sampler, pid).identity.cgroup, group.path());
    let below = group.below(b"below");
    below.take(pid);
    assert_eq!(sampled(&mut sampler, pid).identity.cgroup, below.path());
    drop(child);
}

/// The container's first process has its own PID and cgroup namespace; its group is reported as
/// seen from this one.
// The adopted child is waited for.
#[allow(clippy::zombie_processes)]
pub fn a_containers_processes_are_told_by_the_hosts_path(source: Source) {
    let Some(group) = Group::new() else { return };
    let script = "echo 0 >\"$1\" && exec unshare --cgroup --pid --fork --kill-child sleep 100";
    let container =
        Command::new("sh").args(["-c", script, "sh"]).arg(group.door()).stdin(Stdio::null()).spawn().unwrap();
    let container = Child::adopt(container.id() as i32);
    let mut sampler = sampler(source, &[]);
    let deadline = Instant::now() + Duration::from_secs(10);
    let first = loop {
        sampler.sample().unwrap();
        let is_first = |parent, name: &[u8]| parent == container.pid() && name == b"sleep";
        let mut records = sampler.processes();
        if let Some(first) = records.find(|it| is_first(it.sample.parent, &it.identity.name)) {
            break first.clone();
        }
        assert!(Instant::now() < deadline, "no process of the container is seen");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(first.identity.cgroup, group.path());
    assert_eq!(Some(&first.identity.cgroup), told(first.sample.id.pid).as_ref());
}

/// The BPF iterator over tasks knows processes that `/proc` does not show because they have just
/// ended or are hidden.
#[test]
fn a_walk_tells_where_processes_are_that_have_no_files_root() {
    let Some(group) = Group::new() else { return };
    if !Source::Tasks.is_there() {
        return;
    }
    let tree = tempfile::tempdir().unwrap();
    std::fs::write(tree.path().join("stat"), "cpu  1 1 1 1\nbtime 5\n").unwrap();
    std::fs::write(tree.path().join("meminfo"), "MemTotal: 2048 kB\n").unwrap();
    let child = Child::sleeping();
    group.take(child.pid());
    let selection = Selection { pids: vec![child.pid()], ..Selection::default() };
    let root = ProcRoot::open(tree.path()).unwrap();
    let mut sampler = Sampler::new(root, SampleSet::ALL, selection).unwrap();
    sampler.take_from(load_tasks(SampleSet::ALL).unwrap());
    let below = group.below("x".repeat(255).as_bytes());
    let deep = below.below("y".repeat(255).as_bytes());
    let deeper = deep.below("z".repeat(200).as_bytes());
    let deepest = deeper.below("w".repeat(100).as_bytes());
    for group in [&deeper, &deep, &below, &group] {
        group.take(child.pid());
        assert_eq!(sampled(&mut sampler, child.pid()).identity.cgroup, group.path());
    }
    // The path is longer than the eBPF program's buffer, and there is no file to read.
    deepest.take(child.pid());
    assert_eq!(sampled(&mut sampler, child.pid()).identity.cgroup, group.path(), "the last that is known");
}

/// A session in another cgroup namespace reports paths relative to it, as the kernel does.
#[test]
fn a_watcher_in_a_namespace_of_its_own_is_told_what_it_could_read_root() {
    let Some(group) = Group::new() else { return };
    let script = "echo 0 >\"$1\" && shift && exec unshare --cgroup \"$@\"";
    let inside = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(group.door())
        .arg(std::env::current_exe().unwrap())
        .arg("all_live_processes_are_where_the_kernel_says")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&inside.stdout);
    assert!(inside.status.success() && text.contains("2 passed"), "{text}");
}
