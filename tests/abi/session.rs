//! The session interface in use, and both interfaces for an unprivileged user.

use crate::tools::{Link, Program, has_tools, is_root};

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
    run("session.c", "disabling");
}

#[test]
fn reads_more_when_asked() {
    run("session.c", "enabling");
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

#[test]
fn hands_over_flows_and_what_those_of_a_process_did() {
    run("session_flows.c", "flows");
}

#[test]
fn hands_over_no_flows_unasked() {
    run("session_flows.c", "nobody_asked");
}

#[test]
fn opens_for_nobody_as_root() {
    if is_root() && has_tools(&["setpriv"]) {
        Program::new("session.c").run_as_nobody("unprivileged");
    }
}

#[test]
fn the_classic_interface_opens_for_nobody_as_root() {
    if is_root() && has_tools(&["setpriv"]) {
        Program::linked("figures.c", Link::Itself).run_as_nobody("unprivileged");
    }
}
