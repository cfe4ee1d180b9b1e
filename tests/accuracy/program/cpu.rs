//! CPU time of a process and of its threads.

use std::collections::BTreeMap;
use std::fs;

/// Returns the CPU seconds that a process has used, including its ended threads, to the nanosecond
/// (clock_getcpuclockid(3)). Returns `None` if there is no such process.
pub fn seconds(pid: i32) -> Option<f64> {
    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both pointers are to variables of the types that the calls fill.
    let is_known = unsafe {
        libc::clock_getcpuclockid(pid, &mut clock) == 0 && libc::clock_gettime(clock, &mut time) == 0
    };
    is_known.then(|| time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}

/// Returns the CPU seconds of the living threads, by name.
pub fn by_thread(pid: i32) -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return all };
    for directory in threads.flatten().map(|entry| entry.path()) {
        let read = |name| fs::read_to_string(directory.join(name)).ok();
        // The thread may have ended meanwhile.
        let Some(name) = read("comm") else { continue };
        let seconds = read("schedstat").and_then(|text| on_cpu(&text)).unwrap_or(0.0);
        *all.entry(name.trim_end().to_owned()).or_default() += seconds;
    }
    all
}

/// Returns the first field of `schedstat`, nanoseconds on a CPU (Documentation/scheduler/sched-stats.rst of
/// the kernel), in seconds.
fn on_cpu(schedstat: &str) -> Option<f64> {
    let nanoseconds = schedstat.split_whitespace().next()?.parse::<u64>().ok()?;
    Some(nanoseconds as f64 / 1e9)
}
