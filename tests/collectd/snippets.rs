//! The project's configuration files as they are in `examples/collectd`, except for paths, addresses and
//! intervals.

use crate::build::Built;
use std::path::{Path, PathBuf};

/// Returns the directory of the configuration files.
pub fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/collectd")
}

/// Returns the text of a file with some parts replaced. Each replaced part must occur once.
#[track_caller]
pub fn changed(name: &str, changes: &[(&str, &str)]) -> String {
    let mut text = std::fs::read_to_string(examples().join(name)).unwrap();
    for (from, to) in changes {
        assert_eq!(text.matches(from).count(), 1, "{name} should hold {from:?} once");
        text = text.replace(from, to);
    }
    text
}

/// Returns the file `capture.conf` for this interval, with other changes. The hosts of a test are namespaces
/// of one kernel. Its engine would count in all of them, including those of other tests, so each host counts
/// only in its own.
#[track_caller]
pub fn capture(interval_s: u64, changes: &[(&str, &str)]) -> (&'static str, String) {
    let (interval, types) = (format!("Interval {interval_s}\n"), Built::get().types().display().to_string());
    let own = [
        ("Interval 10\n", interval.as_str()),
        ("/usr/share/collectd/capture-types.db", &types),
        ("# Namespaces ", "Namespaces "),
    ];
    ("capture.conf", changed("capture.conf", &[&own, changes].concat()))
}

/// Returns the file `capture.conf` with an interval of one second, for processes of one name.
#[track_caller]
pub fn capture_of(name: &str) -> (&'static str, String) {
    capture(1, &[("# Name \"/^(nginx|php-fpm)/\" ", &format!("Name \"{name}\" "))])
}

/// Returns the file `network-receiver.conf`.
pub fn receiver() -> (&'static str, String) {
    let types = Built::get().types().display().to_string();
    (
        "network-receiver.conf",
        changed("network-receiver.conf", &[("/usr/share/collectd/capture-types.db", &types)]),
    )
}

/// Writes `prometheus.yml` and the file that it includes, for these addresses and this interval.
pub fn write_prometheus_files(directory: &Path, targets: &[String], interval_s: u64) {
    std::fs::create_dir_all(directory).unwrap();
    let interval = format!("scrape_interval: {interval_s}s");
    let targets = targets.iter().map(|target| format!("\"{target}:9103\"")).collect::<Vec<_>>().join(", ");
    let changes = [("scrape_interval: 10s", interval.as_str()), ("\"localhost:9103\"", &targets)];
    std::fs::write(directory.join("prometheus.yml"), changed("prometheus.yml", &changes)).unwrap();
    std::fs::copy(examples().join("rules.yml"), directory.join("rules.yml")).unwrap();
}
