//! Living inside somebody's process: nothing of the host's is touched, and no call at a bad moment does harm.
//!
//! Every program fails also when the library writes anything to its standard output or error.

use crate::tools::{Link, Program};

fn alone(scenario: &str) {
    let program = Program::linked("hosting.c", Link::Itself);
    let folder = program.folder().to_owned();
    program.run(&[scenario.as_ref(), folder.as_os_str()]);
}

#[test]
fn the_state_of_the_host_stays_as_it_is() {
    alone("host_state");
}

#[test]
fn loading_starts_nothing() {
    alone("loading");
}

#[test]
fn signals_reach_the_threads_of_the_host() {
    alone("signals");
}

#[test]
fn signals_interrupt_no_call() {
    alone("interrupted");
}

#[test]
fn can_be_loaded_again() {
    alone("reload");
}

#[test]
fn can_be_unloaded_while_it_captures() {
    alone("unload_while_open");
}

#[test]
fn may_be_left_open_at_the_end() {
    alone("leave_open");
}

#[test]
fn a_child_that_goes_into_the_background_opens_its_own() {
    alone("into_the_background");
}

fn together(scenario: &str) {
    Program::new("together.c").run(&[scenario]);
}

#[test]
fn updates_from_several_threads_lose_nothing() {
    together("several_threads");
}

#[test]
fn calls_from_several_threads_in_disorder() {
    together("disorder");
}

#[test]
fn classic_callbacks_that_call_back_are_refused() {
    together("from_classic_callbacks");
}

#[test]
fn session_handlers_that_call_back_are_refused() {
    together("from_session_handlers");
}

#[test]
fn forked_children_are_refused_and_open_their_own() {
    together("forks");
}

fn throwing(scenario: &str) {
    Program::new("throwing.cc").run(&[scenario]);
}

#[test]
fn exceptions_pass_through_the_classic_interface() {
    throwing("classic");
}

#[test]
fn an_exception_does_not_cost_the_others_their_figures() {
    throwing("others_come_later");
}

#[test]
fn exceptions_pass_through_the_session_interface() {
    throwing("session");
}

#[test]
fn exceptions_of_the_log_handler_pass_through() {
    throwing("log_lines");
}

fn as_a_guest(scenario: &str) {
    Program::new("guest.c").run(&[scenario]);
}

#[test]
fn thirty_two_kibibytes_of_stack_are_enough() {
    as_a_guest("small_stack");
}

#[test]
fn the_host_has_no_descriptor_but_the_one_it_asks_for() {
    as_a_guest("own_table");
}

#[test]
fn a_host_that_closes_all_descriptors_does_no_harm() {
    as_a_guest("closefrom");
}

#[test]
fn children_forked_during_an_opening_inherit_nothing() {
    as_a_guest("children");
}
