//! CPU time of a process and of its threads, from `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Clock ticks of a second in what `/proc` shows (USER_HZ: 100 on all common architectures).
const TICKS: f64 = 100.0;

/// CPU seconds that a process has used, with those of its ended threads. They come in ticks of 10 ms; the kernel's
/// scheduler tells the living threads' time in nanoseconds, which counts where no thread has ended.
pub fn seconds(pid: i32) -> f64 {
    let in_ticks =
        fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|text| user_and_system(&text));
    in_ticks.unwrap_or(0.0).max(by_thread(pid).values().sum())
}

/// CPU seconds of the living threads but for the first, which sees to the process as a whole.
pub fn seconds_beside_first(pid: i32) -> f64 {
    let first = Path::new("/proc").join(pid.to_string()).join("task").join(pid.to_string());
    by_thread(pid).values().sum::<f64>() - thread(&first).map_or(0.0, |(_, seconds)| seconds)
}

/// CPU seconds of the living threads, by name.
pub fn by_thread(pid: i32) -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return all };
    for (name, seconds) in threads.flatten().filter_map(|entry| thread(&entry.path())) {
        *all.entry(name).or_default() += seconds;
    }
    all
}

/// Name and CPU seconds of a thread, unless it has ended meanwhile.
fn thread(directory: &Path) -> Option<(String, f64)> {
    let read = |name| fs::read_to_string(directory.join(name)).ok();
    let exact = read("schedstat").and_then(|text| on_cpu(&text));
    let seconds = exact.or_else(|| user_and_system(&read("stat")?))?;
    Some((read("comm")?.trim_end().to_owned(), seconds))
}

/// `utime` and `stime` of proc_pid_stat(5), which follow the name in parentheses.
fn user_and_system(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit(')').next()?.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some((next()? + next()?) as f64 / TICKS)
}

/// The first field of `schedstat`, nanoseconds on a CPU (Documentation/scheduler/sched-stats.rst of the kernel).
fn on_cpu(schedstat: &str) -> Option<f64> {
    let nanoseconds = schedstat.split_whitespace().next()?.parse::<u64>().ok()?;
    Some(nanoseconds as f64 / 1e9)
}
