//! The session interface in use, and both interfaces for a user without privileges.

use crate::tools::{Link, Program, has_tool, is_root};
use std::os::unix::fs::PermissionsExt;

fn run(source: &str, scenario: &str) {
    let program = Program::new(source);
    let folder = program.folder().to_owned();
    program.run(&[scenario.as_ref(), folder.as_os_str()]);
}

#[test]
fn opens_with_defaults_and_tells_everything() {
    run("session.c", "defaults");
}

#[test]
fn delivers_the_processes_that_were_selected() {
    run("session.c", "selections");
}

#[test]
fn marks_what_was_skipped() {
    run("session.c", "skipping");
}

#[test]
fn its_descriptor_can_be_polled() {
    run("session.c", "descriptor");
}

#[test]
fn its_statistics_can_be_read_during_an_update() {
    run("session.c", "statistics");
}

#[test]
fn its_log_is_handed_over_on_the_callers_thread() {
    run("session_data.c", "log_handler");
}

#[test]
fn hands_over_as_many_packets_as_were_asked_for() {
    run("session_data.c", "packet_limit");
}

#[test]
fn reads_a_savefile_and_tells_its_end() {
    run("session_data.c", "savefile");
}

/// Runs a program as nobody, without any capability, which only root can.
fn as_nobody(program: Program, scenario: &str) {
    let program = program.with_a_copy_of_the_library();
    let room = program.folder().join("room");
    std::fs::create_dir(&room).unwrap();
    std::fs::set_permissions(&room, PermissionsExt::from_mode(0o777)).unwrap();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
    program.run_under(&nobody, &[scenario.as_ref(), room.join("log").as_os_str()]);
}

#[test]
fn opens_for_nobody_as_root() {
    if is_root() && has_tool("setpriv") {
        as_nobody(Program::new("session.c"), "unprivileged");
    }
}

#[test]
fn the_classic_interface_opens_for_nobody_as_root() {
    if is_root() && has_tool("setpriv") {
        as_nobody(Program::linked("figures.c", Link::Itself), "unprivileged");
    }
}
