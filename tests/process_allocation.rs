//! Samples that find nothing new do not allocate.

// Helpers of tests fail loudly, as tests do.
#![allow(clippy::unwrap_used)]

use capture::internals::kernel::load_tasks;
use capture::internals::model::{SampleSet, Selection};
use capture::internals::proc::{ProcRoot, SystemFacts};
use capture::internals::process::Sampler;
use capture_test_support::children::Child;
use capture_test_support::proc_tree::ProcTree;
use capture_test_support::requirements::{is_root, left_out};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, with a count of the current thread's allocations.
struct Counting;

// SAFETY: all work is delegated to the system's allocator. The counter is a plain cell of the thread that
// needs neither allocation nor destruction. Growing goes through `alloc` by default and is counted there.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's guarantees about the layout are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc` above with this layout, and therefore from the
        // system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn the_steady_state_allocates_nothing() {
    let tree = ProcTree::empty();
    let write = |name: &str, text: &str| tree.write(name, text);
    write("meminfo", "MemTotal: 2048 kB\n");
    for pid in 1..=200 {
        std::fs::create_dir_all(tree.path().join(format!("{pid}/fd/0"))).unwrap();
        write(&format!("{pid}/cmdline"), "a\0b\0");
        write(&format!("{pid}/statm"), "2 1 0 0 0 0 0\n");
        write(&format!("{pid}/cgroup"), "0::/a\n");
        write(&format!("{pid}/io"), "rchar: 1\nwchar: 2\nread_bytes: 3\nwrite_bytes: 4\n");
    }
    let facts = SystemFacts { page_size: 4096, ticks_per_second: 100, descriptors_by_size: false };
    let root = ProcRoot::with_facts(tree.path(), facts).unwrap();
    write("stat", "cpu  1 1 1 1 1 1 1\nbtime 5\n");
    let mut sampler = Sampler::new(root, SampleSet::ALL, Selection::default()).unwrap();
    // More rounds than it takes to reread every command line.
    for round in 0..40 {
        for pid in 1..=200 {
            let line = format!("{pid} (a) S 1 1 1 0 -1 0 0 0 0 0 {round} 0 0 0 20 0 1 0 5 8192 2 9 1 1 1\n");
            write(&format!("{pid}/stat"), &line);
        }
        write("stat", &format!("cpu  {} 0 0 0 0 0 0\nbtime 5\n", 1000 * (round + 1)));
        let before = ALLOCATIONS.get();
        sampler.sample().unwrap();
        let allocations = ALLOCATIONS.get() - before;
        assert_eq!(allocations > 0, round == 0, "{allocations} in round {round}");
        assert_eq!(sampler.processes().filter(|process| process.sample.user_ticks == round).count(), 200);
    }
}

/// The machine's other processes may grow in number and need more room at any time, though not for ever.
#[test]
fn the_steady_state_of_walks_over_tasks_allocates_nothing_root() {
    if !cfg!(feature = "ebpf") || !is_root() {
        return;
    }
    let tasks = match load_tasks(SampleSet::ALL) {
        Ok(tasks) => tasks,
        Err(reason) => return left_out(&format!("there are no walks over all tasks: {reason}")),
    };
    let children: Vec<Child> = (0..50).map(|_| Child::sleeping()).collect();
    let pids: Vec<i32> = children.iter().map(Child::pid).collect();
    let root = ProcRoot::open("/proc".as_ref()).unwrap();
    let mut sampler = Sampler::new(root, SampleSet::ALL, Selection { pids, ..Selection::default() }).unwrap();
    sampler.take_from(tasks);
    let allocated: Vec<usize> = (0..40)
        .map(|_| {
            let before = ALLOCATIONS.get();
            sampler.sample().unwrap();
            ALLOCATIONS.get() - before
        })
        .collect();
    assert_eq!(sampler.processes().count(), children.len());
    assert!(allocated[0] > 0 && allocated.iter().filter(|&&count| count == 0).count() >= 30, "{allocated:?}");
}
