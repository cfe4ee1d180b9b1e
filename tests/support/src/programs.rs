//! The programs that tests run. They are packages of the workspace; cargo does not build them with a test
//! binary, so that each is built before its first use.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// Returns the program that makes traffic, built like the caller.
pub fn traffic_maker() -> PathBuf {
    program("traffic_maker")
}

/// Returns a program that does not use the library, built like the caller.
pub fn program(name: &str) -> PathBuf {
    built(name, &["--package", "capture-test-support"])
}

/// Returns a program that uses the library, built like the caller, with or without eBPF.
pub fn program_with_library(name: &str, has_ebpf: bool) -> PathBuf {
    // With a test among the targets, cargo chooses the features of all dependencies as it did for the caller.
    // Otherwise it would replace the library that tests use at the same time.
    let mut arguments = vec!["--package", "capture", "--package", "capture-test-programs", "--test", "rooms"];
    arguments.extend((!has_ebpf).then_some("--no-default-features"));
    built(name, &arguments)
}

/// Builds a program once and returns its path. CAPTURE_BUILT=1 states that it is built already: the machine of
/// scripts/kernels has no cargo.
fn built(name: &str, arguments: &[&str]) -> PathBuf {
    static BUILT: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = built.get(name) {
        return path.clone();
    }
    if std::env::var_os("CAPTURE_BUILT").is_none_or(|value| value != "1") {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--locked", "--bin", name]).args(arguments);
        build.args((!cfg!(debug_assertions)).then_some("--release"));
        assert!(build.current_dir(source("")).status().unwrap().success(), "{build:?}");
    }
    let path = output_directory().join(name);
    built.insert(name.to_owned(), path.clone());
    path
}

/// Returns the directory with the programs of the caller's profile. Test binaries and benchmarks are in the
/// directory `deps` below it.
fn output_directory() -> PathBuf {
    let mut directory = std::env::current_exe().unwrap();
    directory.pop();
    if directory.ends_with("deps") {
        directory.pop();
    }
    directory
}

/// Returns the path of a file of the source tree.
pub fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}
