//! The network namespaces of processes, as the BPF iterator over tasks reports them.

use super::Source;
use capture::internals::kernel::load_tasks;
use capture::internals::model::SampleSet;
use capture_test_support::children::Child;
use nix::sched::{CloneFlags, unshare};
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;

/// Returns the namespace inode from `/proc`; 0 if the process no longer exists or has begun to exit.
fn by_proc(pid: u32) -> u32 {
    std::fs::metadata(format!("/proc/{pid}/ns/net")).map_or(0, |file| file.ino() as u32)
}

#[test]
fn a_walk_tells_every_process_its_network_namespace_root() {
    if !Source::Tasks.is_there() {
        return;
    }
    let child = Child::new(|told| {
        let _ = unshare(CloneFlags::CLONE_NEWNET);
        told.next_step();
    });
    let zombie = Child::sleeping();
    zombie.kill();
    let mut walks = load_tasks(SampleSet::ALL).unwrap();
    let mut told = HashMap::new();
    walks.walk(&mut |task| told.extend([(task.raw.pid, task.raw.network_namespace)])).unwrap();
    let [own, other] = [std::process::id(), child.pid() as u32].map(by_proc);
    assert_ne!(own, other);
    assert_eq!(told[&std::process::id()], own);
    assert_eq!(told[&(child.pid() as u32)], other);
    assert_eq!(told[&(zombie.pid() as u32)], 0, "it has none any more");
    let compared: Vec<_> = told.iter().map(|(&pid, &told)| (pid, told, by_proc(pid))).collect();
    let wrong: Vec<_> = compared.iter().filter(|(_, told, now)| told != now && *now != 0).collect();
    // Processes of other tests change their namespaces meanwhile.
    assert!(wrong.len() <= 2 && compared.len() > 3, "{wrong:?}");
}
