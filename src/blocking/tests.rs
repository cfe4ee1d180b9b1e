//! Tests with threads that wait in reads until a test releases them. Each test reads trees of its own.

use super::*;
use nix::errno::Errno;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PID: i32 = 7;

/// A read that returns once the gate is opened.
struct Gate {
    open: Option<Sender<()>>,
    opened: Arc<Mutex<Receiver<()>>>,
}

impl Gate {
    fn new() -> Gate {
        let (open, opened) = channel();
        Gate { open: Some(open), opened: Arc::new(Mutex::new(opened)) }
    }

    /// Returns the read.
    fn read(&self, tree: ProcTree) -> impl Fn() -> nix::Result<()> + Send + Sync + 'static {
        let opened = Arc::clone(&self.opened);
        move || {
            guarded(tree, PID, ReadKind::Memory, || {
                let _ = opened.lock().unwrap().recv();
                Ok(())
            })
        }
    }
}

fn until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn read_now(tree: ProcTree, kind: ReadKind) -> nix::Result<()> {
    Helper::of_errands("capture-test", || ()).call(move |()| guarded(tree, PID, kind, || Ok(()))).unwrap()
}

/// Counts the instances that exist.
struct Counted(Arc<AtomicU32>);

impl Counted {
    fn new(count: &Arc<AtomicU32>) -> Counted {
        count.fetch_add(1, Ordering::Relaxed);
        Counted(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[test]
fn a_helper_keeps_its_state_and_returns_results() {
    let mut helper = Helper::of_errands("capture-test", || 0);
    let mut add = |number: i32| {
        helper
            .call(move |sum| {
                *sum += number;
                *sum
            })
            .unwrap()
    };
    assert_eq!([add(3), add(4)], [3, 7]);
}

#[test]
fn a_panic_goes_on_in_the_caller() {
    let mut helper = Helper::of_errands("capture-test", || ());
    let panics = || helper.call(|()| std::panic::panic_any("spilt".to_owned()));
    assert_eq!(crate::thread::catch_quietly(panics).unwrap_err(), "spilt");
    helper.call(|()| ()).unwrap();
}

#[test]
fn a_thread_that_does_not_return_is_left_behind_and_ends_without_going_on() {
    let (tree, count) = (ProcTree(0xa1), Arc::new(AtomicU32::new(0)));
    let mut gate = Gate::new();
    let states = Arc::clone(&count);
    let mut helper = Helper::of_errands("capture-test", move || Counted::new(&states));
    let (read, went_on) = (gate.read(tree), Arc::new(AtomicU32::new(0)));
    let reached = Arc::clone(&went_on);
    let left = helper.call(move |_| {
        let _ = read();
        reached.fetch_add(1, Ordering::Relaxed);
    });
    assert!(matches!(left, Err(Abandoned::Reading)));
    // Another thread continues with a state of its own, and does not get stuck in the same read.
    let second = gate.read(tree);
    assert_eq!(helper.call(move |_| second()).unwrap(), Err(Errno::EAGAIN));
    assert_eq!(count.load(Ordering::Relaxed), 2);
    assert_eq!(read_now(tree, ReadKind::Memory), Err(Errno::EAGAIN));
    assert_eq!(read_now(tree, ReadKind::Process), Ok(()), "another kind of read");
    assert_eq!(read_now(ProcTree(0xa2), ReadKind::Memory), Ok(()), "another tree");
    gate.open = None;
    until(|| count.load(Ordering::Relaxed) == 1);
    assert_eq!(went_on.load(Ordering::Relaxed), 0);
    // The subject rests, and can then be read again.
    assert_eq!(read_now(tree, ReadKind::Memory), Err(Errno::EAGAIN));
    until(|| read_now(tree, ReadKind::Memory) == Ok(()));
}

#[test]
fn what_is_in_a_locked_root_is_not_read() {
    let tree = ProcTree(0xf1);
    let (open, opened) = channel::<()>();
    let opened = Mutex::new(opened);
    let wait = move || {
        let _ = opened.lock().unwrap().recv();
        Ok(())
    };
    let mut helper = Helper::of_errands("capture-test", || ());
    let left = helper.call(move |()| guarded(tree, 0, ReadKind::Root, wait));
    assert!(matches!(left, Err(Abandoned::Reading)));
    assert_eq!(read_now(tree, ReadKind::Process), Err(Errno::EAGAIN));
    drop(open);
    until(|| read_now(tree, ReadKind::Process) == Ok(()));
}

#[test]
fn a_subject_rests_longer_each_time() {
    let tree = ProcTree(0xb1);
    let mut rests = Vec::new();
    for _ in 0..2 {
        let mut gate = Gate::new();
        let read = gate.read(tree);
        let left = Helper::of_errands("capture-test", || ()).call(move |()| read());
        assert!(matches!(left, Err(Abandoned::Reading)));
        gate.open = None;
        let began = Instant::now();
        until(|| read_now(tree, ReadKind::Memory) == Ok(()));
        rests.push(began.elapsed());
    }
    assert!(rests[0] >= Duration::from_millis(900) && rests[1] >= Duration::from_millis(1900), "{rests:?}");
}

#[test]
fn a_slow_read_of_many_parts_is_waited_for() {
    let slow = |()| {
        guarded(ProcTree(0xc1), PID, ReadKind::Process, || {
            for _ in 0..40 {
                std::thread::sleep(Duration::from_millis(20));
                progress();
            }
            Ok(())
        })
    };
    let mut helper = Helper::of_errands("capture-test", || ());
    assert_eq!(helper.call(move |()| slow(())).unwrap(), Ok(()));
}

#[test]
fn who_has_waited_long_enough_reads_less() {
    let mut helper = Helper::new(
        "capture-test",
        || (),
        |(), read: &mut Vec<bool>| {
            let kinds = [ReadKind::Process, ReadKind::Root, ReadKind::Memory, ReadKind::Groups];
            *read = kinds.map(|kind| guarded(ProcTree(0xd1), PID, kind, || Ok(())).is_ok()).to_vec();
        },
    );
    let mut read = |hurry| helper.run(hurry, Vec::new()).unwrap();
    assert_eq!(read(Hurry::Locks), [true, true, false, false]);
    assert_eq!(read(Hurry::All), [false, true, false, false]);
    assert_eq!(read(Hurry::None), [true; 4]);
}

#[test]
fn a_supervised_thread_is_replaced_and_the_end_does_not_wait() {
    let (tree, count) = (ProcTree(0xe1), Arc::new(AtomicU32::new(0)));
    let mut gate = Gate::new();
    let (read, bodies) = (gate.read(tree), Arc::clone(&count));
    let body = move || {
        let _counted = Counted::new(&bodies);
        let _ = read();
        // A replacement thread, whose read is refused, has something else to do.
        let _ = guarded(ProcTree(0xe2), PID, ReadKind::Memory, || {
            read_until_ended(&bodies);
            Ok(())
        });
    };
    let mut thread = Supervised::start("capture-test", body, |_| ()).unwrap();
    until(|| thread.check(Instant::now()).unwrap());
    until(|| count.load(Ordering::Relaxed) == 2);
    assert!(!thread.join(), "it waits in the other read");
    count.fetch_add(ENDED, Ordering::Relaxed);
    gate.open = None;
    until(|| count.load(Ordering::Relaxed) == ENDED);
}

/// Added to a count to end the threads that it counts.
const ENDED: u32 = 1000;

fn read_until_ended(count: &AtomicU32) {
    until(|| count.load(Ordering::Relaxed) >= ENDED);
}
