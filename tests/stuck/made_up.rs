//! More stuck processes than threads are left behind for, on a made-up tree: opening a pipe waits until somebody writes.

use super::{PATIENCE, alone, bounded, held, settle};
use capture::blocking::{MAX_ABANDONED, abandoned};
use capture::model::{SampleSet, Selection, Validity};
use capture::process::{ProcRoot, Sampler, SystemFacts};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

const PROCESSES: i32 = 60;
const STUCK: i32 = 40;

fn tree() -> tempfile::TempDir {
    let tree = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(tree.path().join(name), text).unwrap();
    write("meminfo", "MemTotal: 2048 kB\n");
    write("stat", "cpu  1 1 1 1 1 1 1\nbtime 5\n");
    for pid in 1..=PROCESSES {
        std::fs::create_dir_all(tree.path().join(format!("{pid}/fd/0"))).unwrap();
        write(
            &format!("{pid}/stat"),
            &format!("{pid} (a) S 1 1 1 0 -1 0 0 0 0 0 7 0 0 0 20 0 1 0 5 8192 2 9 1 1 1\n"),
        );
        write(&format!("{pid}/statm"), "2 1 0 0 0 0 0\n");
        write(&format!("{pid}/io"), "rchar: 1\nwchar: 2\nread_bytes: 3\nwrite_bytes: 4\n");
        let command_line = tree.path().join(format!("{pid}/cmdline"));
        if pid <= STUCK {
            mkfifo(&command_line, Mode::S_IRWXU).unwrap();
        } else {
            std::fs::write(command_line, "a\0").unwrap();
        }
    }
    tree
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

/// How many processes have a command line, and how many all figures else.
fn known(sampler: &Sampler) -> (usize, usize) {
    let with = |bits: Validity| sampler.processes().filter(|record| record.valid.has(bits)).count();
    (
        with(Validity::COMMAND_LINE),
        with(Validity::CPU | Validity::MEMORY | Validity::IO | Validity::DESCRIPTORS),
    )
}

#[test]
fn no_more_threads_wait_than_there_may_be() {
    let _alone = alone();
    let before = held();
    let tree = tree();
    let mut one = sampled(sampler(tree.path()));
    let first = abandoned();
    assert!((1..MAX_ABANDONED).contains(&first), "{first} threads wait after one sample");
    let (_, others) = known(&one);
    assert_eq!(others, PROCESSES as usize, "only command lines wait");
    while abandoned() < MAX_ABANDONED {
        let waiting = abandoned();
        one = sampled(one);
        assert!(abandoned() > waiting);
    }
    // No process is read any more, and nothing is waited for, also by another one.
    one = sampled(one);
    assert_eq!((known(&one), one.processes().count()), ((0, 0), PROCESSES as usize));
    let path = tree.path().to_owned();
    let other = sampled(bounded("opening", move || sampler(&path)));
    assert_eq!(other.processes().count(), 0);
    drop(other);
    assert_eq!(abandoned(), MAX_ABANDONED);
    // Writers come, so that all reads return, and files in place of the pipes.
    for pid in 1..=STUCK {
        let (path, pipe) =
            (tree.path().join(format!("{pid}/cmdline")), tree.path().join(format!("pipe {pid}")));
        std::fs::rename(&path, &pipe).unwrap();
        std::fs::write(&path, "b\0").unwrap();
        let mut writer = std::fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
        writer.write_all(b"b\0").unwrap();
    }
    let deadline = Instant::now() + PATIENCE;
    while known(&one) != (PROCESSES as usize, PROCESSES as usize) {
        assert!(Instant::now() < deadline, "{:?}", known(&one));
        std::thread::sleep(std::time::Duration::from_millis(50));
        one = sampled(one);
    }
    drop(one);
    settle(before);
}
