//! Wrong arguments: every function rejects them with the documented code and a text that names them.

use crate::tools::{Program, has_tools, is_root};

/// Runs a scenario and passes it a folder for its files.
fn run(scenario: &str) {
    let program = Program::new("inputs.c");
    let folder = program.folder().to_owned();
    program.run(&[scenario.as_ref(), folder.as_os_str()]);
}

#[test]
fn of_the_classic_interface() {
    run("classic");
}

#[test]
fn of_the_classic_interface_that_only_look_wrong() {
    run("classic_allowed");
}

#[test]
fn in_the_options_of_a_session() {
    run("session_options");
}

#[test]
fn that_name_devices_as_root() {
    if is_root() {
        run("session_devices");
    }
}

#[test]
fn in_the_size_of_the_options() {
    run("session_sizes");
}

#[test]
fn of_the_other_calls_of_a_session() {
    run("session_calls");
}

#[test]
fn that_name_savefiles() {
    run("savefiles");
}

#[test]
fn every_code_has_words_and_no_other_number_has() {
    run("words");
}

#[test]
fn are_refused_for_nobody_too_as_root() {
    if is_root() && has_tools(&["setpriv"]) {
        Program::new("inputs.c").run_as_nobody("session_options");
        Program::new("inputs.c").run_as_nobody("classic");
    }
}
