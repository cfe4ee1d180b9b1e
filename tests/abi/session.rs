//! The session interface in use, and both interfaces for a user without privileges.

use crate::tools::{Link, Program, has_tool, is_root};
use std::os::unix::fs::PermissionsExt;

fn run(scenario: &str) {
    let program = Program::new("session.c");
    let folder = program.folder().to_owned();
    program.run(&[scenario.as_ref(), folder.as_os_str()]);
}

#[test]
fn opens_with_defaults_and_tells_everything() {
    run("defaults");
}

#[test]
fn delivers_the_processes_that_were_selected() {
    run("selections");
}

#[test]
fn marks_what_was_skipped() {
    run("skipping");
}

#[test]
fn its_descriptor_can_be_polled() {
    run("descriptor");
}

#[test]
fn its_statistics_can_be_read_during_an_update() {
    run("statistics");
}

#[test]
fn its_log_is_handed_over_on_the_callers_thread() {
    run("log_handler");
}

#[test]
fn hands_over_as_many_packets_as_were_asked_for() {
    run("packet_limit");
}

#[test]
fn reads_a_savefile_and_tells_its_end() {
    run("savefile");
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
