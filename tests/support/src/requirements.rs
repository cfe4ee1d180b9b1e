//! Requirements of tests: root, tools, and features of the kernel.
//!
//! A test that lacks a requirement prints a line and passes. With CAPTURE_REQUIRE_ALL=1 it fails.

use std::path::Path;

/// Returns true if a test that lacks a requirement must fail.
pub fn requires_all() -> bool {
    std::env::var_os("CAPTURE_REQUIRE_ALL").is_some_and(|value| value == "1")
}

/// Reports that a test is left out and why; fails if all tests are required.
#[track_caller]
pub fn left_out(reason: &str) {
    assert!(!requires_all(), "required, but {reason}");
    eprintln!("left out: {reason}");
}

/// Returns true if this runs as root, and reports it if not.
#[track_caller]
pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        left_out("this user is not root");
    }
    root
}

/// Returns true if all tools are installed, and reports those that are not.
#[track_caller]
pub fn has_tools(tools: &[&str]) -> bool {
    let missing: Vec<&str> = tools.iter().copied().filter(|tool| !is_installed(tool)).collect();
    if !missing.is_empty() {
        left_out(&format!("{} cannot be found", missing.join(", ")));
    }
    missing.is_empty()
}

/// Returns true if this runs as root and all tools are installed, and reports what is missing.
#[track_caller]
pub fn has_root_and(tools: &[&str]) -> bool {
    is_root() && has_tools(tools)
}

/// Returns true if a file or device exists, and reports it if not.
#[track_caller]
pub fn has_file(path: &str) -> bool {
    let exists = Path::new(path).exists();
    if !exists {
        left_out(&format!("there is no {path}"));
    }
    exists
}

/// Returns true if `PATH` has this tool.
pub fn is_installed(tool: &str) -> bool {
    let directories = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&directories).any(|directory| directory.join(tool).exists())
}
