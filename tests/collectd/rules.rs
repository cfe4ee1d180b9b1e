//! Prometheus' own tool checks the project's configuration and plays its rules on artificial series.

use crate::snippets;
use capture_test_support::requirements::has_tools;
use std::path::Path;
use std::process::Command;

#[track_caller]
fn promtool(directory: &Path, arguments: &[&str]) {
    let output = Command::new("promtool").args(arguments).current_dir(directory).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "promtool {arguments:?}:\n{}", String::from_utf8_lossy(&text));
}

#[test]
fn promtool_accepts_configuration_and_rules() {
    if has_tools(&["promtool"]) {
        promtool(&snippets::examples(), &["check", "config", "prometheus.yml"]);
    }
}

#[test]
fn rules_say_what_they_should_of_series_that_are_known() {
    if !has_tools(&["promtool"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(snippets::examples().join("rules.yml"), directory.path().join("rules.yml")).unwrap();
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/collectd/rules_test.yml");
    std::fs::copy(cases, directory.path().join("rules_test.yml")).unwrap();
    promtool(directory.path(), &["test", "rules", "rules_test.yml"]);
}
