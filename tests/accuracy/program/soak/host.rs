//! The program's other role: a process with a session of each engine, and with sessions that it opens and
//! closes repeatedly.

use super::super::engines::Engine;
use super::super::monitor;
use capture::internals::log::LogOptions;
use capture::internals::namespace::NamespaceChoice;
use capture::internals::session::Session;
use std::fs::read_dir;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tracing::Level;

/// The time that a short session is open before its second update.
const STAY: Duration = Duration::from_millis(700);

/// Signals received.
static SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_signal(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// The final report of a session.
struct Told {
    figures: monitor::Figures,
    stats: capture::internals::session::Stats,
    errors: Vec<String>,
}

/// Opens a session of each engine. If packets are captured, the session watches all network namespaces with
/// this filter. The engine `kernel` has no filter; its session watches its own namespace and the namespace of
/// this name.
///
/// Prints `ready`. All sessions update until a line is read, and then until everything is reported. Prints
/// `settled`, and for each engine the monitor's report. Finally prints `note TEXT`, `error TEXT` for each
/// line of a log at this level, `left TEXT` for everything that is left of the sessions after closing, and
/// `end`.
pub fn run(filter: &str, other: &str) {
    // SAFETY: the handler only adds to an atomic number.
    let action = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count_signal as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut())
    };
    assert_eq!(action, 0, "a handler can be set");
    let before = (threads(), descriptors());
    let is_over = Arc::new(AtomicBool::new(false));
    let sessions = Engine::ALL.map(|engine| open(engine, filter, other));
    println!("ready");
    let lasting = sessions.map(|(session, engine)| {
        let is_over = Arc::clone(&is_over);
        std::thread::spawn(move || follow(session, engine, &is_over))
    });
    let passing = {
        let (is_over, filter, other) = (Arc::clone(&is_over), filter.to_owned(), other.to_owned());
        std::thread::spawn(move || open_and_close(&filter, &other, &is_over))
    };
    monitor::read_line();
    is_over.store(true, Ordering::Relaxed);
    let told = lasting.map(|thread: JoinHandle<Told>| thread.join().unwrap());
    let (opened, mut errors) = passing.join().unwrap();
    println!("settled");
    for told in told {
        monitor::report(told.figures, &told.stats);
        errors.extend(told.errors);
    }
    println!(
        "note {opened} sessions were opened and closed beside them, {} signals came",
        SIGNALS.load(Ordering::Relaxed)
    );
    errors.iter().for_each(|text| println!("error {text}"));
    let after = (threads(), descriptors());
    if after != before {
        println!("left {after:?} threads and descriptors, of {before:?} before");
    }
    println!("end");
}

fn open(engine: Engine, filter: &str, other: &str) -> (Session, Engine) {
    let mut options = engine.options();
    options.capture.filter = engine.captures().then(|| filter.to_owned());
    options.capture.namespaces = match engine.captures() {
        true => NamespaceChoice::All,
        false => NamespaceChoice::Chosen(vec![format!("/run/netns/{other}").into()]),
    };
    options.log = LogOptions { queue: true, ..LogOptions::default() };
    let mut session = Session::open(options).unwrap();
    session.update().unwrap();
    let fault = engine.fault(&session.stats_reader().read());
    assert!(fault.is_none(), "{}: {}", engine.name(), fault.unwrap_or_default());
    (session, engine)
}

/// Updates a session once a second until `is_over` is set.
fn follow(mut session: Session, engine: Engine, is_over: &AtomicBool) -> Told {
    let mut figures = monitor::Figures::new();
    let mut errors = Vec::new();
    let mut once = |session: &mut Session| {
        std::thread::sleep(monitor::INTERVAL);
        monitor::update(session, &mut figures);
        errors.extend(take_errors(session, engine));
    };
    while !is_over.load(Ordering::Relaxed) {
        once(&mut session);
    }
    (0..monitor::SETTLING).for_each(|_| once(&mut session));
    let stats = session.stats_reader().read();
    figures.add_living(&session);
    Told { figures, stats, errors }
}

/// Opens sessions of all engines in turn, and closes each after two updates. Returns the number of sessions
/// and the errors that they logged.
fn open_and_close(filter: &str, other: &str, is_over: &AtomicBool) -> (u64, Vec<String>) {
    let (mut count, mut errors) = (0, Vec::new());
    for engine in Engine::ALL.into_iter().cycle() {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let (mut session, _) = open(engine, filter, other);
        std::thread::sleep(STAY);
        session.update().unwrap();
        errors.extend(take_errors(&session, engine));
        drop(session);
        std::thread::sleep(STAY);
        count += 1;
    }
    (count, errors)
}

fn take_errors(session: &Session, engine: Engine) -> Vec<String> {
    let lines = session.take_log_lines().into_iter().filter(|line| line.level == Level::ERROR);
    lines.map(|line| format!("{}: {}", engine.name(), line.text.replace('\n', " "))).collect()
}

fn threads() -> usize {
    read_dir("/proc/self/task").unwrap().count()
}

fn descriptors() -> usize {
    read_dir("/proc/self/fd").unwrap().count()
}
