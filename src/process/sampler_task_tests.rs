//! Tests of the sampler on simulated walks over tasks, beside a fixture.

use super::*;
use crate::kernel::{CgroupPaths, Figures, GivenName, RawProcess, Task, UNCOUNTED};
use crate::model::ProbeState;
use crate::sync::Mutex;
use std::sync::Arc;

const TICK: u64 = 10_000_000;

/// The tasks that the next walk reports, or the reason why it fails half-way.
#[derive(Default, Debug)]
struct Script {
    tasks: Vec<(RawProcess, &'static [u8])>,
    /// Control groups whose paths are known, by number.
    cgroups: Vec<(u64, &'static str)>,
    fault: Option<Fault>,
}

#[derive(Clone, Default, Debug)]
pub(super) struct Walks(Arc<Mutex<Script>>);

impl TaskSource for Walks {
    fn walk(&mut self, each: &mut dyn FnMut(&Task<'_>)) -> std::result::Result<(), Fault> {
        let script = self.0.lock();
        let told = if script.fault.is_some() { 1 } else { script.tasks.len() };
        let cgroups: Option<&dyn CgroupPaths> = Some(&*script);
        script.tasks.iter().take(told).for_each(|(raw, name)| each(&Task { raw, name, cgroups }));
        script.fault.clone().map_or(Ok(()), Err)
    }

    fn given_name(&self, _pid: u32) -> Option<GivenName> {
        None
    }
}

impl CgroupPaths for Script {
    fn path(&self, number: u64) -> Option<Vec<u8>> {
        self.cgroups.iter().find(|(known, _)| *known == number).map(|(_, path)| path.as_bytes().to_vec())
    }
}

impl Walks {
    pub(super) fn know(&self, cgroup: u64, path: &'static str) {
        self.0.lock().cgroups.push((cgroup, path));
    }

    pub(super) fn tell(&self, tasks: &[RawProcess]) {
        self.0.lock().tasks = tasks.iter().map(|raw| (*raw, &b"made"[..])).collect();
    }
}

fn sampler(tree: &SampleTree, selection: Selection) -> (Sampler, Walks) {
    let walks = Walks::default();
    let mut sampler = tree.sampler(SampleSet::ALL, selection);
    sampler.take_from(Box::new(walks.clone()));
    (sampler, walks)
}

/// Returns the process of [`MADE`] with the figures that the fixture's files give it.
pub(super) fn task() -> RawProcess {
    let me = nix::unistd::geteuid().as_raw();
    RawProcess {
        pid: 7,
        parent: 1,
        threads: 3,
        state: 1,
        uid: me,
        gid: nix::unistd::getegid().as_raw(),
        start_ns: 500 * TICK + 7,
        image: 4,
        figures: Figures {
            user_ns: 3 * TICK,
            system_ns: TICK,
            runtime_ns: 40 * TICK,
            read_chars: 11,
            write_chars: 22,
            read_bytes: 33,
            write_bytes: 44,
            minor_faults: 91,
            major_faults: 92,
        },
        virtual_pages: 2,
        resident_pages: 1,
        shared_pages: 1,
        ..RawProcess::default()
    }
}

#[test]
fn both_sources_make_the_same_record() {
    let tree = SampleTree::new();
    tree.process(Made { ticks: [30, 10], ..MADE });
    tree.write("7/cmdline", "made\0-x\0");
    let mut files = tree.sampler(SampleSet::USUAL | SampleSet::PROPORTIONAL, Selection::default());
    files.sample().unwrap();
    let (mut tasks, walks) = sampler(&tree, Selection::default());
    walks.tell(&[task()]);
    tasks.sample().unwrap();
    let (theirs, ours) = (only(&files), only(&tasks));
    assert_eq!(ours.identity, theirs.identity);
    assert_eq!(ours.valid, theirs.valid | Validity::SWITCHES);
    assert_eq!(ProcessSample { valid: theirs.sample.valid, ..ours.sample }, theirs.sample);
}

#[test]
fn what_was_not_asked_for_is_not_told() {
    let tree = SampleTree::new();
    let mut sampler = tree.sampler(SampleSet::MEMORY, Selection::default());
    let walks = Walks::default();
    sampler.take_from(Box::new(walks.clone()));
    tree.process(MADE);
    walks.tell(&[task()]);
    sampler.sample().unwrap();
    let record = only(&sampler);
    assert_eq!(record.valid, Validity::CPU | Validity::USER | Validity::MEMORY | Validity::SWITCHES);
    assert_eq!((record.sample.resident_bytes, record.sample.read_chars), (4096, 0));
}

#[test]
fn io_of_children_is_taken_out_where_it_can_be() {
    let (tree, mut figures) = (SampleTree::new(), task().figures);
    (figures.read_chars, figures.write_chars) = (1000, 2000);
    (figures.read_bytes, figures.write_bytes) = (4096, 8192);
    let waited = RawProcess {
        figures,
        children_read_chars: 900,
        children_write_chars: 1800,
        children_read_bytes: 4096,
        children_write_bytes: 512,
        ..task()
    };
    tree.process(MADE);
    let (mut sampler, walks) = sampler(&tree, Selection::default());
    let mut own = |raw: RawProcess| {
        walks.tell(&[raw]);
        sampler.sample().unwrap();
        let sample = only(&sampler).sample;
        let known = [Validity::OWN_CHARS, Validity::OWN_BYTES].map(|bit| sample.valid.has(bit));
        let chars = (sample.own_read_chars, sample.own_write_chars);
        (known, chars, (sample.own_read_bytes, sample.own_write_bytes))
    };
    assert_eq!(own(waited), ([true, true], (100, 200), (0, 7680)));
    let mixed = RawProcess { has_mixed_io: 1, ..waited };
    assert_eq!(own(mixed), ([false, true], (0, 0), (0, 7680)), "ended threads have a part of the rest");
}

#[test]
fn a_command_line_is_read_again_when_the_program_changes_or_may_have_written_to_it() {
    let tree = SampleTree::new();
    tree.process(MADE);
    let (mut sampler, walks) = sampler(&tree, Selection::default());
    let mut sampled = |raw: RawProcess, text: &str, times: usize| {
        tree.write("7/cmdline", text);
        walks.tell(&[raw]);
        (0..times).for_each(|_| sampler.sample().unwrap());
        String::from_utf8(only(&sampler).identity.command_line.clone()).unwrap()
    };
    assert_eq!(sampled(task(), "one\0", 1), "one\0");
    assert_eq!(sampled(task(), "two\0", 20), "one\0", "it has not run, so that it cannot have written it");
    let mut other = RawProcess { image: 5, ..task() };
    assert_eq!(sampled(other, "three\0", 1), "three\0", "an exec is noticed at once");
    other.figures.runtime_ns += 1;
    assert_eq!(sampled(other, "four\0", 16), "four\0", "it has run");
    let zombie = RawProcess { state: 0x80, exit_state: 0x20, virtual_pages: 0, ..other };
    assert_eq!(sampled(zombie, "", 16), "four\0");
}

#[test]
fn pids_users_and_names_select() {
    let tree = SampleTree::new();
    (1..=9).for_each(|pid| tree.process(Made { pid, ..MADE }));
    let tasks: Vec<_> = (1..=9).map(|pid| RawProcess { pid, uid: pid % 3, ..task() }).collect();
    let select = |selection: Selection| {
        let (mut sampler, walks) = sampler(&tree, selection);
        walks.tell(&tasks);
        sampler.sample().unwrap();
        pids(&sampler)
    };
    assert_eq!(select(Selection { pids: vec![8, 3, 77], ..Selection::default() }), [3, 8]);
    assert_eq!(select(Selection { users: vec![b"2".to_vec()], ..Selection::default() }), [2, 5, 8]);
    assert_eq!(select(Selection { names: vec![b"made".to_vec()], ..Selection::default() }).len(), 9);
    assert!(select(Selection { names: vec![b"other".to_vec()], ..Selection::default() }).is_empty());
}

#[test]
fn any_order_will_do_and_pids_are_reused() {
    let tree = SampleTree::new();
    for pid in [3, 5, 9] {
        tree.process(Made { pid, ..MADE });
    }
    let (mut sampler, walks) = sampler(&tree, Selection::default());
    let of = |pid| RawProcess { pid, ..task() };
    walks.tell(&[of(9), of(3), of(5)]);
    sampler.sample().unwrap();
    assert_eq!(pids(&sampler), [3, 5, 9]);
    tree.remove("9");
    walks.tell(&[RawProcess { start_ns: 900 * TICK, ..of(5) }, of(3)]);
    sampler.sample().unwrap();
    assert_eq!(pids(&sampler), [3, 5]);
    let ended: Vec<_> = sampler.ended().iter().map(|record| record.sample.id).collect();
    assert_eq!(ended, [5, 9].map(|pid| ProcId { pid, start_ticks: 500 }));
    // A process that a walk has missed is looked up before it is dropped.
    walks.tell(&[RawProcess { start_ns: 900 * TICK, ..of(5) }]);
    sampler.sample().unwrap();
    assert_eq!(pids(&sampler), [3, 5]);
}

#[test]
fn a_process_that_no_walk_tells_is_read_from_its_files() {
    let tree = SampleTree::new();
    for pid in [1, 5, 9] {
        tree.process(Made { pid, ticks: [70, 80], ..MADE });
    }
    let (mut sampler, walks) = sampler(&tree, Selection::default());
    let ticks = |sampler: &Sampler| -> Vec<u64> {
        sampler.processes().map(|record| record.sample.user_ticks).collect()
    };
    for _ in 0..3 {
        walks.tell(&[5, 9].map(|pid| RawProcess { pid, ..task() }));
        sampler.sample().unwrap();
        assert_eq!((pids(&sampler), ticks(&sampler)), (vec![1, 5, 9], vec![70, 30, 30]));
    }
    tree.remove("1");
    walks.tell(&[RawProcess { pid: 9, ..task() }]);
    tree.remove("5");
    sampler.sample().unwrap();
    assert_eq!(pids(&sampler), [9]);
    assert_eq!(sampler.ended().iter().map(|record| record.sample.id.pid).collect::<Vec<_>>(), [1, 5]);
}

#[test]
fn files_tell_what_a_walk_could_not() {
    let tree = SampleTree::new();
    tree.process(Made { ticks: [70, 80], ..MADE });
    tree.write("7/fd/0", "");
    tree.write("7/cmdline", "made\0");
    let (mut sampler, walks) = sampler(&tree, Selection::default());
    walks.tell(&[RawProcess { descriptors: UNCOUNTED, ..task() }]);
    sampler.sample().unwrap();
    let record = only(&sampler);
    assert_eq!((record.sample.descriptors, record.sample.user_ticks), (1, 30));
    assert!(record.valid.has(Validity::DESCRIPTORS));

    let identity = Arc::clone(&record.identity);
    tree.write("7/cmdline", "not looked at\0");
    walks.tell(&[RawProcess { torn: 1, figures: Figures::default(), ..task() }]);
    sampler.sample().unwrap();
    let record = only(&sampler);
    assert_eq!(
        (record.sample.user_ticks, record.sample.system_ticks, record.sample.read_chars),
        (70, 80, 11)
    );
    assert!(Arc::ptr_eq(&identity, &record.identity), "the program is known to be the same");
}

#[test]
fn a_walk_that_fails_leaves_the_files() {
    let tree = SampleTree::new();
    for pid in [3, 5] {
        tree.process(Made { pid, ticks: [70, 80], ..MADE });
    }
    let (mut sampler, walks) = sampler(&tree, Selection::default());
    walks.tell(&[3, 5].map(|pid| RawProcess { pid, ..task() }));
    sampler.sample().unwrap();
    assert!(sampler.take_fault().is_none());
    let fault = Fault { state: ProbeState::NoMemory, text: "no room".into() };
    walks.0.lock().fault = Some(fault.clone());
    sampler.sample().unwrap();
    assert_eq!((sampler.take_fault(), sampler.take_fault()), (Some(fault), None));
    let ticks = |sampler: &Sampler| -> Vec<u64> {
        sampler.processes().map(|record| record.sample.user_ticks).collect()
    };
    assert_eq!((pids(&sampler), ticks(&sampler)), (vec![3, 5], vec![30, 70]));
    walks.0.lock().fault = None;
    sampler.sample().unwrap();
    assert_eq!(ticks(&sampler), [70, 70], "it is not tried again");
    assert!(sampler.ended().is_empty());
}
