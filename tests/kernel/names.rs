//! Processes that live between two updates are reported with their last names.

use crate::lab::{Host, Maker};
use crate::watching::{B, Done, Watch, options, said_until, user, with_lab};
use capture::internals::config::Engine;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PORT: u16 = 7960;
const PROCESSES: u64 = 400;
/// The number of makers of such processes at the same time.
const MAKERS: usize = 2;
/// Time between two updates. Most of the processes live for less.
const INTERVAL: Duration = Duration::from_millis(300);

/// Returns the name that a process gave itself last, or that of the program that it executed: see
/// `user/names.rs`.
fn last_name(pid: i32) -> String {
    if pid % 3 == 2 { "exe".to_owned() } else { format!("late-{pid}") }
}

/// Keeps all processors busy until `is_over` is set.
fn keep_busy<'s>(scope: &'s std::thread::Scope<'s, '_>, is_over: &'s AtomicBool) {
    for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
    }
}

fn all_have_their_last_names(engine: Engine) {
    with_lab(|lab| {
        let drain = user(lab, Host::B, "drain", &format!("{B}:{PORT}"), &[("segment", 1_000)]);
        let mut watch = Watch::new(lab, options(engine));
        let make = || user(lab, Host::A, "names", &format!("{B}:{PORT}"), &[("count", PROCESSES)]);
        let mut makers: Vec<Maker> = (0..MAKERS).map(|_| make()).collect();
        let is_over = AtomicBool::new(false);
        let done: Vec<Done> = std::thread::scope(|scope| {
            keep_busy(scope, &is_over);
            makers.iter_mut().for_each(Maker::start);
            let said: Vec<_> =
                makers.iter_mut().map(|maker| scope.spawn(|| said_until(maker, "done"))).collect();
            while !said.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                std::thread::sleep(INTERVAL);
                watch.update();
            }
            is_over.store(true, Ordering::Relaxed);
            said.into_iter().flat_map(|said| said.join().unwrap()).collect()
        });
        assert_eq!(done.len(), PROCESSES as usize * MAKERS);
        watch.until("all processes have their bytes", |watch| {
            done.iter().all(|one| watch.traffic(one.pid).send_bytes == one.datagrams())
        });
        let others: Vec<_> = done
            .iter()
            .map(|one| (last_name(one.pid), watch.record(one.pid).unwrap()))
            .filter(|(name, record)| record.identity.name != name.as_bytes())
            .map(|(name, record)| {
                (name, String::from_utf8_lossy(&record.identity.name).into_owned(), record.valid)
            })
            .collect();
        println!("  {engine:?}: {} of {} have other names", others.len(), done.len());
        assert!(others.is_empty(), "{others:?}");
        drop(drain);
    });
}

/// Regression: two thirds had the names that they had when they opened their sockets or when they executed a
/// program.
#[test]
fn short_processes_have_their_last_names_of_the_kernels_engine_root() {
    all_have_their_last_names(Engine::Kernel);
}

#[test]
fn short_processes_have_their_last_names_while_packets_are_captured_root() {
    all_have_their_last_names(Engine::Pcap);
}
