//! What the host takes of the machine while it runs: memory of its own, descriptors, threads.

use super::Checks;
use std::fs;

/// How much memory may grow from the third quarter of the time to the last, when all tables have their size; and where they
/// have not, since less time has passed.
const GROWTH: u64 = 2 << 20;
const EARLY_GROWTH: u64 = 8 << 20;
const EARLY_SECONDS: usize = 600;

/// What a process has at one moment.
#[derive(Clone, Copy)]
struct Vital {
    /// Resident memory of its own: no files, and no rings, which are shared with the kernel.
    bytes: u64,
    /// Descriptors in all tables that its threads have, those that several share once for each of them.
    descriptors: u64,
    threads: u64,
}

/// What a process has had so far.
pub struct Vitals {
    pid: i32,
    taken: Vec<Vital>,
}

impl Vitals {
    pub fn new(pid: i32) -> Vitals {
        Vitals { pid, taken: Vec::new() }
    }

    /// Looks once more.
    pub fn take(&mut self) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("the host lives");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("proc_pid_status(5)");
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).expect("the host lives");
        let tasks: Vec<_> = tasks.flatten().map(|task| task.path()).collect();
        // One may end meanwhile.
        let descriptors =
            |task: &std::path::PathBuf| fs::read_dir(task.join("fd")).map_or(0, Iterator::count);
        self.taken.push(Vital {
            bytes: kilobytes << 10,
            descriptors: tasks.iter().map(descriptors).sum::<usize>() as u64,
            threads: tasks.len() as u64,
        });
    }

    /// The latest, in words.
    pub fn last(&self) -> String {
        let Vital { bytes, descriptors, threads } = self.taken.last().expect("one was taken");
        format!("{:.1} MB, {descriptors} descriptors of {threads} threads", *bytes as f64 / 1e6)
    }

    /// Whether anything has grown: the least of the last quarter of the time against that of the third.
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
