//! CPU time of a process and of its threads, from `/proc`.

use std::collections::BTreeMap;
use std::fs;

/// Clock ticks of a second in what `/proc` shows (USER_HZ, the same on every architecture that Rust's std knows).
const TICKS: f64 = 100.0;

/// CPU seconds that a process has used, with those of its ended threads.
pub fn seconds(pid: i32) -> f64 {
    fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|text| parse(&text)).unwrap_or(0.0)
}

/// CPU seconds of each living thread, by name.
pub fn by_thread(pid: i32) -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return all };
    for thread in threads.flatten() {
        let read = |name| fs::read_to_string(thread.path().join(name));
        // A thread may end meanwhile.
        if let (Ok(name), Ok(stat)) = (read("comm"), read("stat")) {
            *all.entry(name.trim_end().to_owned()).or_default() += parse(&stat).unwrap_or(0.0);
        }
    }
    all
}

/// `utime` and `stime` of proc_pid_stat(5), which follow the name in parentheses.
fn parse(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit(')').next()?.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some((next()? + next()?) as f64 / TICKS)
}
