//! Commands in the Markdown pages: each one runs, or its script, its options and its tests exist.
//!
//! A command of `README.md` or `CONTRIBUTING.md` that is not in the table below fails the test, so that a new one
//! is classified. The commands of the other pages are measurements and tests, which take long; they are only
//! checked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "so do tests fail")]

mod check;
mod extract;

use capture_test_support::commands::finish;
use capture_test_support::programs::source;
use capture_test_support::requirements::{has_root_and, has_tools};
use extract::{code, commands};
use std::fs::{read_to_string, write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Class of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    /// Takes long, installs, or changes the system or the sources: it is not run, but all that it names exists.
    Check,
    /// Runs in the source tree.
    Source,
    /// Runs in the directory of the agent that the README shows, with the library installed.
    Agent,
}

/// The commands of `README.md` and `CONTRIBUTING.md`.
const COMMANDS: &[(&str, Class)] = &[
    ("sudo ./scripts/demo", Class::Check),
    ("./scripts/demo", Class::Check),
    ("./scripts/test", Class::Check),
    ("./scripts/test --list", Class::Source),
    ("./scripts/test traffic collectd", Class::Check),
    ("./scripts/package", Class::Check),
    ("./scripts/prerequisites --tests --collectd", Class::Check),
    ("sudo ./scripts/install", Class::Check),
    ("sudo ./scripts/kernels", Class::Check),
    ("sudo ./scripts/accuracy --engine owners --engine kernel", Class::Check),
    ("./scripts/bpf", Class::Check),
    ("./scripts/bpf --check", Class::Check),
    ("scripts/accuracy", Class::Check),
    ("scripts/accuracy --peers --markdown", Class::Check),
    ("scripts/package", Class::Check),
    ("scripts/prerequisites", Class::Check),
    ("scripts/test", Class::Check),
    ("cargo build --release", Class::Check),
    ("cargo build --no-default-features", Class::Check),
    ("CAPTURE_UPDATE_HEADER=1 cargo build", Class::Check),
    ("cargo bench --bench NAME", Class::Check),
    ("cargo bench --bench probes", Class::Check),
    ("cargo bench --bench sampling", Class::Check),
    ("cargo clippy --workspace --all-targets -- -D warnings", Class::Check),
    ("cargo fmt --all", Class::Check),
    ("cargo test --bench NAME", Class::Check),
    ("cargo doc --open", Class::Check),
    ("cargo test --lib decode", Class::Source),
    ("cargo test --test abi", Class::Check),
    ("cargo test --test abi -- is_what_the_sources_say", Class::Source),
    ("cargo test --test kernel", Class::Check),
    ("cargo test --test replay", Class::Check),
    ("sudo -E env \"PATH=$PATH\" CAPTURE_REQUIRE_ALL=1 cargo test --test kernel", Class::Check),
    ("cc agent.c $(pkg-config --cflags --libs capture) -o agent", Class::Agent),
    ("pkg-config --static --libs capture", Class::Agent),
    (
        "sudo setcap cap_net_raw,cap_net_admin,cap_sys_ptrace,cap_dac_read_search,cap_bpf,cap_perfmon+ep ./agent",
        Class::Agent,
    ),
];

fn page(path: &str) -> String {
    read_to_string(source(path)).unwrap()
}

/// Returns the commands of the pages whose commands are classified one by one.
fn classified() -> Vec<(String, Class)> {
    let found = ["README.md", "CONTRIBUTING.md"].iter().flat_map(|path| commands(&page(path)));
    let class = |command: String| {
        let entry = COMMANDS.iter().find(|(text, _)| *text == command);
        let (_, class) =
            entry.unwrap_or_else(|| panic!("{command:?} is not classified in tests/pages/main.rs"));
        (command, *class)
    };
    found.map(class).collect()
}

#[test]
fn every_command_is_classified_and_no_entry_is_left_over() {
    let found = classified();
    for (text, _) in COMMANDS {
        assert!(found.iter().any(|(command, _)| command == text), "no page has {text:?} any more");
    }
}

#[test]
fn everything_that_commands_name_exists() {
    let of_pages = ["benches/README.md", "tests/README.md"].iter().flat_map(|path| commands(&page(path)));
    let checked = classified().into_iter().filter(|(_, class)| *class != Class::Agent);
    let problems: Vec<String> =
        of_pages.chain(checked.map(|(command, _)| command)).flat_map(|text| check::problems(&text)).collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn mistakes_in_commands_are_found() {
    for (command, problem) in [
        ("./scripts/unknown", "there is no scripts/unknown"),
        ("scripts/flood --unknown", "scripts/flood has no option --unknown"),
        ("scripts/accuracy --scenario 'unknown-*'", "no scenario unknown-*"),
        ("scripts/accuracy --engine unknown", "no engine unknown"),
        ("scripts/test unknown", "scripts/test has no part unknown"),
        ("sudo env A=1 cargo test --test unknown", "there is no test unknown"),
        ("cargo bench --bench unknown", "there is no bench unknown"),
        ("cargo test --test flows unknown", "flows has no test unknown"),
        ("cargo test --lib unknown_room", "lib has no test unknown_room"),
        ("cargo test -- --unknown", "test binaries have no option --unknown"),
        ("cargo build --unknown", "cargo build has no option --unknown"),
        ("unknown", "unknown cannot be checked"),
    ] {
        assert_eq!(check::problems(command), [format!("{command}: {problem}")]);
    }
}

#[test]
fn commands_are_found_in_blocks_and_in_text() {
    let text = "Run `cargo test\n--lib`, not `ls` or `CAPTURE_REQUIRE_ALL=1`.\n```sh\ncc a.c   # compiles\n\n```\n\
                ```text\n$ sudo ./x\noutput\n```\n```c\ncargo();\n```\n";
    assert_eq!(commands(text), ["cargo test --lib", "cc a.c", "sudo ./x"]);
}

#[test]
fn short_commands_run_in_the_source_tree() {
    for (command, _) in classified().into_iter().filter(|(_, class)| *class == Class::Source) {
        finish(shell(&command, &[]).current_dir(source("")));
    }
}

/// The agent of the README is compiled, linked and given capabilities as the README says.
#[test]
fn the_agent_of_the_readme_is_made_as_it_says_root() {
    if !has_root_and(&["setcap"]) || !has_tools(&["cc", "pkg-config"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let program = code(&page("README.md"), "c").into_iter().find(|code| code.contains("int main")).unwrap();
    write(at("agent.c"), program).unwrap();
    // The tests may run without sudo, because they are root already.
    std::fs::create_dir(at("bin")).unwrap();
    symlink("/usr/bin/env", at("bin/sudo")).unwrap();
    let mut install = Command::new(source("scripts/install"));
    install.arg("--artifacts").arg(artifacts()).env("PREFIX", at("prefix"));
    finish(&mut install);
    for (command, _) in classified().into_iter().filter(|(_, class)| *class == Class::Agent) {
        let mut shell = shell(&command, &[&at("bin")]);
        finish(shell.current_dir(directory.path()).env("PKG_CONFIG_PATH", at("prefix/lib/pkgconfig")));
    }
    assert!(at("agent").exists());
}

/// Returns a shell that runs a command, with these directories and that of cargo before all others.
fn shell(command: &str, directories: &[&Path]) -> Command {
    let cargo = Path::new(env!("CARGO")).parent().unwrap();
    let others = std::env::var_os("PATH").unwrap_or_default();
    let first = directories.iter().copied().chain([cargo]).map(Path::to_owned);
    let path = std::env::join_paths(first.chain(std::env::split_paths(&others))).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).env("PATH", path);
    shell
}

/// Returns the directory with the libraries that cargo built for this test.
fn artifacts() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().to_owned()
}
