//! The classic interface, used by programs that do not include our header and open the library themselves.

use crate::tools::{Link, Program};

fn run(scenario: &str) {
    Program::linked("classic.c", Link::Itself).run(&[scenario]);
}

#[test]
fn callbacks_come_in_order_once_and_on_the_callers_thread() {
    run("order_of_calls");
}

#[test]
fn codes_are_as_published() {
    run("codes");
}

#[test]
fn an_ended_process_comes_with_its_last_bytes() {
    run("last_figures");
}

#[test]
fn as_many_packets_come_as_were_asked_for() {
    run("packet_counts");
}

#[test]
fn packets_of_ipv4_are_shown_whole() {
    run("packets_v4");
}

#[test]
fn packets_of_ipv6_are_shown_whole() {
    run("packets_v6");
}

#[test]
fn packets_of_tcp_are_shown_in_their_own_direction() {
    run("packets_tcp");
}

#[test]
fn either_callback_may_be_missing() {
    run("missing_callbacks");
}

#[test]
fn figures_of_the_program_itself() {
    Program::linked("figures.c", Link::Itself).run(&["self", "two words ", "-x=\"y\""]);
}

#[test]
fn figures_of_another_process_are_exact() {
    Program::linked("figures.c", Link::Itself).run(&["other"]);
}

#[test]
fn cpu_time_is_shared_out() {
    Program::linked("figures.c", Link::Itself).run(&["cpu"]);
}
