//! Tests of control groups on fixtures, as stated by files and by walks over tasks.

use super::tasks::{Walks, task};
use super::*;
use crate::kernel::RawProcess;
use std::sync::Arc;

const ENDING: u32 = 0x4;
const V1: &str = "1:name=systemd:/of/systemd\n";

fn cgroup(sampler: &mut Sampler) -> Option<String> {
    sampler.sample().unwrap();
    let record = only(sampler);
    let path = String::from_utf8(record.identity.cgroup.clone()).unwrap();
    assert_eq!(path.is_empty(), !record.valid.has(Validity::CGROUP), "{path}");
    record.valid.has(Validity::CGROUP).then_some(path)
}

fn known(path: &str) -> Option<String> {
    Some(path.into())
}

#[test]
fn a_process_that_is_moved_is_noticed_at_once_and_keeps_the_rest() {
    let tree = SampleTree::new();
    tree.process(MADE);
    tree.write("7/cmdline", "made\0-x\0");
    tree.write("7/cgroup", "0::/one\n");
    let mut sampler = tree.everything();
    assert_eq!(cgroup(&mut sampler), known("/one"));
    let identity = Arc::clone(&only(&sampler).identity);
    assert_eq!(cgroup(&mut sampler), known("/one"));
    assert!(Arc::ptr_eq(&identity, &only(&sampler).identity));
    tree.write("7/cgroup", "0::/one/two\n");
    assert_eq!(cgroup(&mut sampler), known("/one/two"));
    assert_eq!(only(&sampler).identity.command_line, b"made\0-x\0");
    tree.process(Made { name: b"other", ..MADE });
    assert_eq!(cgroup(&mut sampler), known("/one/two"));
    tree.remove("7/cgroup");
    assert_eq!(cgroup(&mut sampler), None, "what cannot be read is not made up");
    tree.write("7/cgroup", "0::/three\n");
    assert_eq!(cgroup(&mut sampler), known("/three"));
    tree.remove("7");
    sampler.sample().unwrap();
    assert_eq!(sampler.ended()[0].identity.cgroup, b"/three");
    assert!(sampler.ended()[0].valid.has(Validity::CGROUP));
}

#[test]
fn without_being_asked_for_it_is_not_read() {
    let tree = SampleTree::new();
    tree.process(MADE);
    tree.write("7/cgroup", "0::/one\n");
    let mut sampler = tree.sampler(SampleSet::USUAL, Selection::default());
    assert_eq!(cgroup(&mut sampler), None);
    let walks = Walks::default();
    sampler.take_from(Box::new(walks.clone()));
    walks.tell(&[RawProcess { cgroup: 5, ..task() }]);
    assert_eq!(cgroup(&mut sampler), None);
}

#[test]
fn what_is_left_in_a_removed_group_has_the_path_that_it_had() {
    let tree = SampleTree::new();
    tree.process(MADE);
    tree.write("7/cgroup", "0::/gone (deleted)\n");
    let mut sampler = tree.everything();
    assert_eq!(cgroup(&mut sampler), known("/gone (deleted)"), "a process that goes on keeps its group");
    tree.process(Made { state: 'Z', flags: ENDING, ..MADE });
    assert_eq!(cgroup(&mut sampler), known("/gone"));
}

#[test]
fn where_version_2_is_not_mounted_systemds_own_hierarchy_tells() {
    let tree = SampleTree::new();
    tree.process(MADE);
    std::fs::create_dir(tree.path("self")).unwrap();
    tree.write("self/cgroup", "1:name=systemd:/\n0::/\n");
    tree.write("self/mountinfo", "25 1 0:23 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n");
    tree.write("7/cgroup", format!("{V1}0::/\n"));
    let mut sampler = tree.everything();
    assert_eq!(cgroup(&mut sampler), known("/of/systemd"));
    // A hierarchy of version 1 states the root for every ending process.
    tree.write("7/cgroup", "1:name=systemd:/\n");
    tree.process(Made { state: 'Z', flags: ENDING, ..MADE });
    assert_eq!(cgroup(&mut sampler), known("/of/systemd"));
    assert_eq!(cgroup(&mut tree.everything()), None, "nothing tells where it was");
    tree.write("self/mountinfo", "25 1 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
    tree.write("7/cgroup", format!("{V1}0::/of/all\n"));
    assert_eq!(cgroup(&mut tree.everything()), known("/of/all"));
    // A kernel on which it was never mounted has no line for it.
    tree.remove("self/cgroup");
    tree.process(MADE);
    tree.write("7/cgroup", V1);
    assert_eq!(cgroup(&mut tree.everything()), known("/of/systemd"));
}

#[test]
fn a_walk_saves_the_reading_of_files_as_long_as_the_group_is_the_same() {
    let tree = SampleTree::new();
    tree.process(MADE);
    let mut sampler = tree.everything();
    let walks = Walks::default();
    sampler.take_from(Box::new(walks.clone()));
    let mut sampled = |cgroup: u64, file: &str, torn: u32| {
        tree.write("7/cgroup", file);
        walks.tell(&[RawProcess { cgroup, torn, ..task() }]);
        super::cgroups::cgroup(&mut sampler)
    };
    assert_eq!(sampled(5, "0::/five\n", 0), known("/five"));
    assert_eq!(sampled(5, "0::/not looked at\n", 0), known("/five"));
    assert_eq!(sampled(6, "0::/six\n", 0), known("/six"));
    assert_eq!(sampled(5, "0::/five again\n", 0), known("/five again"));
    // Files that are read for another reason state a path that belongs to no number.
    assert_eq!(sampled(5, "0::/seven\n", 1), known("/seven"));
    assert_eq!(sampled(5, "0::/five\n", 0), known("/five"));
    // The number says nothing about a group of a hierarchy of version 1.
    assert_eq!(sampled(8, V1, 0), known("/of/systemd"));
    assert_eq!(sampled(8, "1:name=systemd:/moved\n", 0), known("/moved"));
    // The process is gone before its file can be read.
    tree.remove("7");
    walks.tell(&[RawProcess { cgroup: 9, ..task() }]);
    assert_eq!(super::cgroups::cgroup(&mut sampler), known("/moved"), "the last that is known");
    walks.know(9, "/nine");
    assert_eq!(super::cgroups::cgroup(&mut sampler), known("/nine"));
    walks.tell(&[RawProcess { cgroup: 9, start_ns: 0, ..task() }]);
    assert_eq!(super::cgroups::cgroup(&mut sampler), known("/nine"), "another process with its number");
}
