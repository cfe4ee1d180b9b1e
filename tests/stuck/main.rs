//! Processes whose reads in `/proc` do not return: sessions continue, close, report which figures they do not
//! know, and read such a process again once the reads return.

// Helpers of tests fail loudly, as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod made_up;
mod victim;

use capture::internals::blocking::abandoned;
use capture::internals::config::{Engine, Options, Source};
use capture::internals::error::Code;
use capture::internals::model::{ProcessRecord, SampleSet, Validity};
use capture::internals::session::Session;
use capture_test_support::children::Child;
use std::sync::mpsc::channel;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use victim::{Victim, returns};

/// The time limit, far longer than anything here takes.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Lets one test run at a time, because waiting threads are counted for the whole program.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work` on a thread of its own, and asserts that it returns.
fn bounded<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (report, reported) = channel();
    std::thread::spawn(move || report.send(work()));
    reported.recv_timeout(TIMEOUT).unwrap_or_else(|_| panic!("{what} does not return"))
}

fn update(session: Session) -> Session {
    bounded("an update", move || {
        let mut session = session;
        session.update().unwrap();
        session
    })
}

fn record(session: &Session, pid: i32) -> Option<ProcessRecord> {
    session.processes().find(|record| record.sample.id.pid == pid).cloned()
}

/// Waits until `is_so` returns true, with updates in between.
fn until(mut session: Session, what: &str, is_so: impl Fn(&Session) -> bool) -> Session {
    let deadline = Instant::now() + TIMEOUT;
    while !is_so(&session) {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
        session = update(session);
    }
    session
}

/// Returns the number of the library's threads and of this program's descriptors.
fn held() -> (usize, usize) {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    let threads = names.filter(|name| name.starts_with("capture-")).count();
    (threads, std::fs::read_dir("/proc/self/fd").unwrap().count())
}

/// Waits until the library holds no more threads and descriptors than before.
fn settle(before: (usize, usize)) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let now = held();
        if now.0 <= before.0 && now.1 <= before.1 && abandoned() == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{now:?} threads and descriptors after {before:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Returns options for each way to sample and to count.
fn ways() -> Vec<Options> {
    let tasks = Options { sample: SampleSet::ALL, ..Options::default() };
    vec![
        Options { probes: false, source: Source::None, ..tasks.clone() },
        Options { source: Source::None, ..tasks.clone() },
        Options { probes: false, ..tasks.clone() },
        tasks.clone(),
        Options { engine: Engine::Kernel, ..tasks },
    ]
}

/// Checks the record of a healthy process beside a stuck one.
fn check_healthy(session: &Session, child: &Child) {
    let seen = record(session, child.pid()).unwrap();
    let wanted =
        Validity::CPU | Validity::MEMORY | Validity::IO | Validity::DESCRIPTORS | Validity::COMMAND_LINE;
    assert!(seen.valid.has(wanted), "{:?}", seen.valid);
    let path = |name: &str| format!("/proc/{}/{name}", child.pid());
    assert_eq!(seen.identity.command_line, std::fs::read(path("cmdline")).unwrap());
    assert_eq!(seen.sample.descriptors as usize, std::fs::read_dir(path("fd")).unwrap().count());
}

/// Makes a process stuck, and releases it, while each kind of session samples it.
fn sessions_go_on(kind: &'static str, file: &'static str, check: fn(&Session, &ProcessRecord)) {
    let _alone = alone();
    for options in ways() {
        let what = format!("{kind}, {options:?}");
        let before = held();
        let child = Child::sleeping();
        let Some(mut victim) = Victim::new(kind) else { return };
        assert!(!returns(victim.pid(), file), "{file} can be read of a stuck process");
        let pid = victim.pid();
        let mut session = bounded("opening", move || Session::open(options).unwrap());
        for _ in 0..3 {
            session = update(session);
            check_healthy(&session, &child);
            if let Some(seen) = record(&session, pid) {
                check(&session, &seen);
            }
        }
        victim.release();
        session = until(session, &what, |session| {
            let seen = record(session, pid);
            let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
            let wanted = Validity::COMMAND_LINE | Validity::IO | Validity::CPU | Validity::DESCRIPTORS;
            seen.is_some_and(|seen| seen.valid.has(wanted) && seen.identity.command_line == text)
        });
        bounded("closing", move || drop(session));
        drop((victim, child));
        settle(before);
    }
}

#[test]
fn a_process_whose_memory_is_locked_has_no_command_line_root() {
    sessions_go_on("memory", "cmdline", |_, seen| {
        assert!(!seen.valid.has(Validity::COMMAND_LINE), "{:?}", seen.valid);
        assert_eq!(seen.identity.command_line, b"");
        assert!(seen.valid.has(Validity::CPU | Validity::MEMORY | Validity::IO | Validity::DESCRIPTORS));
    });
}

#[test]
fn a_process_that_hangs_in_exec_is_known_by_walks_only_root() {
    sessions_go_on("exec", "io", |session, seen| {
        let walks =
            session.stats_reader().read().sample_probes == capture::internals::model::ProbeState::Active;
        if walks {
            assert!(seen.valid.has(Validity::CPU | Validity::MEMORY | Validity::IO), "{:?}", seen.valid);
        } else {
            assert_eq!(seen.valid.0 & !Validity::NETWORK.0, 0);
        }
    });
}

#[test]
fn a_process_whose_descriptors_cannot_be_listed_stops_no_search_for_owners_root() {
    sessions_go_on("listing", "fd", |_, seen| assert!(seen.valid.has(Validity::CPU | Validity::IO)));
}

#[test]
fn closing_does_not_wait_for_a_process_that_stays_stuck_root() {
    let _alone = alone();
    let before = held();
    let Some(mut victim) = Victim::new("exec") else { return };
    let mut threads = 0;
    for round in 0..5 {
        for options in ways() {
            let session = bounded("opening", move || Session::open(options).unwrap());
            let session = update(session);
            bounded("closing", move || drop(session));
        }
        if round == 0 {
            threads = abandoned();
        }
    }
    assert!(threads >= 1 && abandoned() == threads, "{} after {threads}", abandoned());
    victim.release();
    drop(victim);
    settle(before);
}

#[test]
fn figures_that_were_known_are_not_valid_any_more_root() {
    let _alone = alone();
    let before = held();
    let options = Options { probes: false, source: Source::None, ..Options::default() };
    let mut session = Session::open(options).unwrap();
    session = update(session);
    let Some(mut victim) = Victim::known("exec", |victim| {
        session.update().unwrap();
        assert!(record(&session, victim.pid()).unwrap().valid.has(Validity::CPU | Validity::IO));
    }) else {
        return;
    };
    let pid = victim.pid();
    session = update(session);
    let seen = record(&session, pid).expect("it lives");
    assert_eq!((seen.valid, seen.sample.valid), (Validity(0), Validity(0)));
    assert_eq!(
        (seen.sample.user_ticks, seen.sample.descriptors, seen.identity.command_line.len()),
        (0, 0, 0)
    );
    victim.release();
    session = until(session, "it is read again", |session| {
        record(session, pid).is_some_and(|seen| seen.valid.has(Validity::CPU | Validity::IO))
    });
    bounded("closing", move || drop(session));
    drop(victim);
    settle(before);
}

#[test]
fn a_tree_that_cannot_be_listed_fails_updates_until_it_can_root() {
    let _alone = alone();
    let before = held();
    let mut opened = None;
    let Some(mut victim) = Victim::known("tree", |victim| {
        let root = victim.tree();
        let options = Options { probes: false, source: Source::None, proc_root: root, ..Options::default() };
        let session = update(Session::open(options).unwrap());
        assert!(record(&session, victim.pid()).is_some());
        opened = Some(session);
    }) else {
        return;
    };
    let session = bounded("an update", move || {
        let mut session = opened.unwrap();
        for _ in 0..3 {
            let error = session.update().unwrap_err();
            assert_eq!(error.code, Code::ProcessOpenDirectory, "{error}");
        }
        session
    });
    assert_eq!(abandoned(), 1);
    victim.release();
    let pid = victim.pid();
    let session = bounded("an update", move || {
        let mut session = session;
        let deadline = Instant::now() + TIMEOUT;
        while session.update().is_err() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(50));
        }
        session
    });
    assert!(record(&session, pid).unwrap().valid.has(Validity::CPU));
    bounded("closing", move || drop(session));
    drop(victim);
    settle(before);
}
