//! The library inside a foreign process: it changes nothing of the host's, and a call at a bad moment does no
//! harm.
//!
//! Every program also fails if the library writes anything to its standard output or standard error.

use crate::tools::{Link, Program, is_root, left_out};
use std::fs::{create_dir, remove_dir, write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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

#[test]
fn a_child_forked_before_the_closing_keeps_no_ring_as_root() {
    if is_root() {
        as_a_guest("closed_while_forked");
    }
}

#[test]
fn sixty_four_descriptors_are_enough_as_root() {
    if is_root() {
        as_a_guest("few_descriptors");
    }
}

#[test]
fn too_few_descriptors_have_a_code_of_their_own_as_root() {
    if is_root() {
        as_a_guest("too_few_descriptors");
    }
}

#[test]
fn too_little_address_space_has_a_code_of_its_own_as_root() {
    if is_root() {
        as_a_guest("little_address_space");
    }
}

#[test]
fn locked_memory_is_as_much_as_documented_as_root() {
    if is_root() {
        as_a_guest("locked");
    }
}

/// A control group with a memory limit.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// Returns `None` if no memory controller can be used.
    fn new(name: &str, bytes: u64) -> Option<MemoryGroup> {
        let name = format!("capture-test-{name}-{}", std::process::id());
        let hierarchies =
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        hierarchies.into_iter().find_map(|(root, limit)| {
            let folder = Path::new(root).join(&name);
            create_dir(&folder).ok()?;
            let group = MemoryGroup(folder);
            write(group.0.join(limit), bytes.to_string()).ok()?;
            Some(group)
        })
    }

    /// Runs a scenario inside the group. The environment tells the scenario how to leave the group.
    fn run(&self, scenario: &str) {
        let outside = self.0.with_file_name("cgroup.procs");
        let enter = "echo $$ >\"$0/cgroup.procs\" && CAPTURE_OTHER_GROUP=$1 && export CAPTURE_OTHER_GROUP && shift && exec \"$@\"";
        let (group, outside) = (self.0.display().to_string(), outside.display().to_string());
        Program::new("guest.c").run_under(&["sh", "-c", enter, &group, &outside], &[scenario]);
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // The kernel may still be tearing down the processes of the group.
        let deadline = Instant::now() + Duration::from_secs(10);
        while remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn sixty_four_mebibytes_of_memory_are_enough_as_root() {
    if !is_root() {
        return;
    }
    let Some(group) = MemoryGroup::new("counts", 64 << 20) else {
        left_out("no control group with a limit of memory can be made");
        return;
    };
    group.run("counts");
}

#[test]
fn a_group_of_sixty_four_mebibytes_outlives_the_flows_of_others_as_root() {
    if !is_root() {
        return;
    }
    let Some(group) = MemoryGroup::new("flows", 64 << 20) else {
        left_out("no control group with a limit of memory can be made");
        return;
    };
    group.run("amid_flows");
}
