//! Checks that everything exists that a command names: scripts, options, targets, tests, scenarios.

use super::extract::is_setting;
use capture_test_support::commands::{finish, text_of};
use capture_test_support::programs::source;
use std::fs::{read_dir, read_to_string};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// Stands for any name of its kind.
const ANY: &str = "NAME";

/// Returns what does not exist of that which a command names.
pub fn problems(command: &str) -> Vec<String> {
    let unquoted = command.replace(['\'', '"'], "");
    let words: Vec<&str> = unquoted.split_whitespace().collect();
    // Wrappers take only options and settings of their own before the command.
    let is_wrapper = |word: &&&str| ["sudo", "env", "-E"].contains(*word) || is_setting(word);
    let begin = words.iter().take_while(is_wrapper).count();
    let problem = match words[begin..] {
        ["cargo", subcommand, ref arguments @ ..] => of_cargo(subcommand, arguments),
        [program, ref arguments @ ..] if program.trim_start_matches("./").starts_with("scripts/") => {
            of_script(program.trim_start_matches("./"), arguments)
        }
        ref others => Some(format!("{} cannot be checked", others.join(" "))),
    };
    problem.map(|problem| format!("{command}: {problem}")).into_iter().collect()
}

fn of_script(script: &str, arguments: &[&str]) -> Option<String> {
    let path = source(script);
    let is_executable =
        |path: &Path| path.metadata().is_ok_and(|file| file.permissions().mode() & 0o111 != 0);
    if !is_executable(&path) {
        return Some(format!("there is no {script}"));
    }
    let help = finish(Command::new(&path).arg("--help"));
    for (at, argument) in arguments.iter().enumerate() {
        let before = at.checked_sub(1).map(|at| arguments[at]);
        match (before, argument) {
            (_, option) if option.starts_with('-') => {
                if !has_word(&help, option) {
                    return Some(format!("{script} has no option {option}"));
                }
            }
            (Some("--scenario"), pattern) => {
                let scenarios = sources(&source("tests/accuracy/program"));
                if pattern
                    .split('*')
                    .any(|part| !scenarios.contains(&format!("\"{part}")) && !part.is_empty())
                {
                    return Some(format!("no scenario {pattern}"));
                }
            }
            (Some("--engine"), engine) => {
                if !has_word(&help, &format!("\"{engine}\"")) {
                    return Some(format!("no engine {engine}"));
                }
            }
            (_, part) if script == "scripts/test" => {
                let parts = finish(Command::new(&path).arg("--list"));
                if !parts.lines().any(|line| line.split(' ').next() == Some(part)) {
                    return Some(format!("{script} has no part {part}"));
                }
            }
            (Some(_), _) => {}
            (None, argument) => return Some(format!("{script} takes no {argument}")),
        }
    }
    None
}

fn of_cargo(subcommand: &str, arguments: &[&str]) -> Option<String> {
    let end = arguments.iter().position(|word| *word == "--").unwrap_or(arguments.len());
    let (own, others) = (&arguments[..end], arguments.get(end + 1..).unwrap_or_default());
    let help_of = |name| text_of(&Command::new(env!("CARGO")).args([name, "--help"]).output().unwrap());
    // Clippy passes on the options of `cargo check`, which its own help does not repeat.
    let help = help_of(subcommand) + &if subcommand == "clippy" { help_of("check") } else { String::new() };
    if let Some(option) = own.iter().find(|word| word.starts_with('-') && !has_word(&help, word)) {
        return Some(format!("cargo {subcommand} has no option {option}"));
    }
    let mut tests = "lib".to_owned();
    let mut files = sources(&source("src"));
    let mut filters = Vec::new();
    for (at, word) in own.iter().enumerate().filter(|(_, word)| !word.starts_with('-')) {
        match (at.checked_sub(1).map(|at| own[at]), *word) {
            (Some("--test" | "--bench"), ANY) => {}
            (Some(kind @ ("--test" | "--bench")), name) => {
                let folder = source(if kind == "--test" { "tests" } else { "benches" });
                let (file, main) = (folder.join(format!("{name}.rs")), folder.join(name).join("main.rs"));
                if !file.exists() && !main.exists() {
                    return Some(format!("there is no {} {name}", kind.trim_start_matches('-')));
                }
                tests = name.to_owned();
                files = read_to_string(file).unwrap_or_default() + &sources(&folder.join(name));
            }
            (_, filter) => filters.push(filter),
        }
    }
    if subcommand != "test" {
        return None;
    }
    let takes = |option: &str| {
        // No option may be given twice.
        let list = (option != "--list").then_some("--list");
        let listing = Command::new(std::env::current_exe().unwrap()).arg(option).args(list).output();
        listing.unwrap().status.success()
    };
    for word in others {
        match word.starts_with('-') {
            true if takes(word) => {}
            true => return Some(format!("test binaries have no option {word}")),
            false => filters.push(word),
        }
    }
    let names: Vec<&str> = files.lines().filter_map(name_in).collect();
    let missing = filters.into_iter().find(|filter| !names.iter().any(|name| name.contains(*filter)));
    missing.map(|filter| format!("{tests} has no test {filter}"))
}

/// Returns the name of the function or the module that begins in a line: filters match both.
fn name_in(line: &str) -> Option<&str> {
    let words = ["pub mod ", "mod ", "fn "].iter().find_map(|word| line.trim_start().strip_prefix(word));
    words?.split(|character: char| !character.is_alphanumeric() && character != '_').next()
}

/// Returns true if a text has a word that is not a part of another one.
fn has_word(text: &str, word: &str) -> bool {
    let is_inside =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
    let bytes = text.as_bytes();
    let mut all = text.match_indices(word);
    all.any(|(at, _)| {
        !is_inside(at.checked_sub(1).and_then(|at| bytes.get(at))) && !is_inside(bytes.get(at + word.len()))
    })
}

/// Returns the text of all Rust sources below a directory.
fn sources(directory: &Path) -> String {
    let mut text = String::new();
    for entry in read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text += &sources(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text += &read_to_string(path).unwrap();
        }
    }
    text
}
