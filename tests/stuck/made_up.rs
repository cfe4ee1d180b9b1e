//! More stuck processes than there may be abandoned threads, on a fixture: opening a FIFO waits for a writer.

use super::{TIMEOUT, alone, bounded, held, settle};
use capture::internals::blocking::{MAX_ABANDONED, MAX_FOR_LOCKS, abandoned};
use capture::internals::model::{SampleSet, Selection, Validity};
use capture::internals::proc::{ProcRoot, SystemFacts};
use capture::internals::process::Sampler;
use capture_test_support::proc_tree::{ProcTree, USER_TICKS};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

const PROCESSES: i32 = 60;
const STUCK: i32 = 40;

/// Makes a tree of processes; the file `pipe` of the first `stuck` processes cannot be read.
fn tree(pipe: &str, stuck: i32) -> ProcTree {
    let tree = ProcTree::new();
    for pid in 1..=PROCESSES {
        tree.process(pid, "a", 5, &[]);
        if pid <= stuck {
            let pipe = format!("{pid}/{pipe}");
            tree.remove(&pipe);
            mkfifo(&tree.file(&pipe), Mode::S_IRWXU).unwrap();
        }
    }
    tree
}

const IO: &str = "rchar: 1\nwchar: 2\nread_bytes: 3\nwrite_bytes: 4\n";

/// Makes all reads of the FIFOs return, and replaces the FIFOs by files.
fn release(tree: &Path, pipe: &str, text: &str) {
    for pid in 1..=STUCK {
        let (path, moved) = (tree.join(format!("{pid}/{pipe}")), tree.join(format!("pipe {pid}")));
        std::fs::rename(&path, &moved).unwrap();
        std::fs::write(&path, text).unwrap();
        let mut writer = std::fs::OpenOptions::new().read(true).write(true).open(&moved).unwrap();
        writer.write_all(text.as_bytes()).unwrap();
    }
}

/// Samples until `most` threads wait, at least one more each time, and then until everything is known
/// after the release.
fn fill_and_release(pipe: &str, text: &str, most: usize, check: impl Fn(&Sampler)) {
    let before = held();
    let tree = tree(pipe, STUCK);
    let mut one = sampled(sampler(tree.path()));
    let first = abandoned();
    assert!((1..=most).contains(&first), "{first} threads wait after one sample");
    while abandoned() < most {
        let waiting = abandoned();
        one = sampled(one);
        assert!(abandoned() > waiting);
    }
    for _ in 0..2 {
        one = sampled(one);
        assert_eq!(abandoned(), most);
        check(&one);
        check(&sampled(bounded("opening", {
            let path = tree.path().to_owned();
            move || sampler(&path)
        })));
    }
    release(tree.path(), pipe, text);
    let deadline = Instant::now() + TIMEOUT;
    while known(&one) != (PROCESSES as usize, PROCESSES as usize) {
        assert!(Instant::now() < deadline, "{:?}", known(&one));
        std::thread::sleep(std::time::Duration::from_millis(50));
        one = sampled(one);
    }
    drop(one);
    settle(before);
}

fn sampler(tree: &Path) -> Sampler {
    let facts = SystemFacts { page_size: 4096, ticks_per_second: 100, descriptors_by_size: false };
    let root = ProcRoot::with_facts(tree, facts).unwrap();
    Sampler::new(root, SampleSet::USUAL, Selection::default()).unwrap()
}

fn sampled(mut sampler: Sampler) -> Sampler {
    bounded("a sample", move || {
        sampler.sample().unwrap();
        sampler
    })
}

/// Returns the number of processes with a command line, and the number with all other figures.
fn known(sampler: &Sampler) -> (usize, usize) {
    let with = |bits: Validity| sampler.processes().filter(|record| record.valid.has(bits)).count();
    (
        with(Validity::COMMAND_LINE),
        with(Validity::CPU | Validity::MEMORY | Validity::IO | Validity::DESCRIPTORS),
    )
}

#[test]
fn command_lines_that_cannot_be_read_leave_all_figures() {
    let _alone = alone();
    fill_and_release("cmdline", "b\0", MAX_FOR_LOCKS, |sampler| {
        assert_eq!(known(sampler).1, PROCESSES as usize, "{:?}", known(sampler));
    });
}

#[test]
fn no_more_threads_wait_than_there_may_be() {
    let _alone = alone();
    fill_and_release("io", IO, MAX_ABANDONED, |sampler| assert_eq!(known(sampler), (0, 0)));
}

#[test]
fn a_process_that_ends_while_it_cannot_be_read_has_its_last_figures() {
    let _alone = alone();
    let before = held();
    let tree = tree("cmdline", 0);
    let mut one = sampled(sampler(tree.path()));
    let (stat, kept) = (tree.path().join("7/stat"), tree.path().join("kept"));
    std::fs::rename(&stat, &kept).unwrap();
    mkfifo(&stat, Mode::S_IRWXU).unwrap();
    one = sampled(one);
    let record = one.processes().find(|record| record.sample.id.pid == 7).unwrap();
    assert_eq!((record.valid, record.sample.user_ticks), (Validity(0), 0));
    let pipe = std::fs::OpenOptions::new().read(true).write(true).open(&stat).unwrap();
    std::fs::remove_dir_all(tree.path().join("7")).unwrap();
    drop(pipe);
    let deadline = Instant::now() + TIMEOUT;
    while one.ended().is_empty() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(std::time::Duration::from_millis(50));
        one = sampled(one);
    }
    let last = &one.ended()[0];
    assert_eq!((last.sample.id.pid, last.sample.user_ticks), (7, USER_TICKS));
    assert!(last.valid.has(Validity::CPU | Validity::IO | Validity::MEMORY));
    drop(one);
    settle(before);
}
