//! The host's use of resources while it runs: its own memory, descriptors, threads.

use super::Checks;
use std::fs;

/// The memory by which the host may grow from the third quarter of the time to the last: if all tables have
/// reached their size, and if they have not because less time has passed.
const GROWTH: u64 = 2 << 20;
const EARLY_GROWTH: u64 = 8 << 20;
const EARLY_SECONDS: usize = 600;

/// The resources of a process at one moment.
#[derive(Clone, Copy)]
struct Vital {
    /// Private resident memory: without files, and without rings, which are shared with the kernel.
    bytes: u64,
    /// Descriptors in the tables of all its threads. A table that several threads share counts once for each.
    descriptors: u64,
    threads: u64,
}

/// The samples of a process so far.
pub struct Vitals {
    pid: i32,
    taken: Vec<Vital>,
}

impl Vitals {
    pub fn new(pid: i32) -> Vitals {
        Vitals { pid, taken: Vec::new() }
    }

    /// Takes another sample.
    pub fn take(&mut self) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("the host lives");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("proc_pid_status(5)");
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).expect("the host lives");
        let tasks: Vec<_> = tasks.flatten().map(|task| task.path()).collect();
        // A thread may end meanwhile.
        let descriptors =
            |task: &std::path::PathBuf| fs::read_dir(task.join("fd")).map_or(0, Iterator::count);
        self.taken.push(Vital {
            bytes: kilobytes << 10,
            descriptors: tasks.iter().map(descriptors).sum::<usize>() as u64,
            threads: tasks.len() as u64,
        });
    }

    /// Returns the latest sample in words.
    pub fn last(&self) -> String {
        let Vital { bytes, descriptors, threads } = self.taken.last().expect("one was taken");
        format!("{:.1} MB, {descriptors} descriptors of {threads} threads", *bytes as f64 / 1e6)
    }

    /// Checks that nothing has grown: compares the minimum in the last quarter of the time with that in the
    /// third.
    pub fn check(&self, checks: &mut Checks) {
        let quarter = self.taken.len() / 4;
        let (third, last) = self.taken[self.taken.len() - 2 * quarter..].split_at(quarter);
        let least = |taken: &[Vital], of: fn(&Vital) -> u64| taken.iter().map(of).min().unwrap_or(0);
        let mut check = |what: &str, of: fn(&Vital) -> u64, allowed: u64| {
            let (before, after) = (least(third, of), least(last, of));
            println!("{what}: {before} in the third quarter, {after} in the last");
            checks.require(after <= before + allowed, format!("{what} grew from {before} to {after}"));
        };
        let growth = if self.taken.len() < EARLY_SECONDS { EARLY_GROWTH } else { GROWTH };
        check("bytes of memory", |vital| vital.bytes, growth);
        check("descriptors", |vital| vital.descriptors, 0);
        check("threads", |vital| vital.threads, 0);
    }
}
