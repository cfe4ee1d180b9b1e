//! However a host ends, nothing of its session is left in the kernel; after closing, nothing is left in the
//! host either.

use crate::hosting::{Host, Objects};
use crate::{at_best, may_run};
use std::time::Duration;

const RUN: &str = "exec \"$@\"";
/// Engine pcap, and engine kernel.
const ENGINES: [&[&str]; 2] = [&[], &["engine=kernel"]];
/// The number of hosts that are killed.
const KILLS: u32 = 20;
/// The step by which each host is killed later after its first object than the one before. All steps together
/// span the time that loading takes.
const STEP: Duration = Duration::from_millis(3);
/// The number of times that a session is opened and closed.
const ROUNDS: u32 = 200;
/// The memory that the allocator may hold more at the end than after the first rounds, KiB: two for each
/// round. Reading the kernel's types allocates and frees tens of megabytes. Some hundred KiB of fragments
/// remain, however many rounds there are.
const SLACK: usize = ROUNDS as usize * 2;

#[test]
fn closing_leaves_nothing_in_the_kernel_as_root() {
    if !may_run() {
        return;
    }
    for engine in ENGINES {
        let mut host = Host::ready(RUN, engine);
        assert_eq!(host.state(), at_best());
        let held = host.objects();
        assert_eq!(held.left(), held, "what is in use is there");
        if at_best() == "Active" {
            for kind in ["prog", "map", "link"] {
                assert!(held.count(kind) > 3, "{held:?}");
            }
        }
        host.close();
        assert_eq!(host.objects(), Objects::default());
        held.wait_for_end();
    }
}

#[test]
fn killing_leaves_nothing_in_the_kernel_as_root() {
    if !may_run() {
        return;
    }
    let mut all = Objects::default();
    let mut loading = 0;
    for (round, engine) in (0..KILLS).zip(ENGINES.iter().flat_map(|engine| [engine; 2]).cycle()) {
        // Half of the hosts are killed while they load, each at another point; the other half are killed in
        // use.
        let host = if round % 2 == 0 {
            let host = Host::start(RUN, engine);
            if at_best() == "Active" {
                host.wait_for_objects();
            }
            std::thread::sleep(STEP * round);
            host
        } else {
            Host::ready(RUN, engine)
        };
        let held = host.kill_at_once();
        assert!(round % 2 == 0 || held.is_empty() == (at_best() != "Active"), "{held:?}");
        loading += u32::from(round % 2 == 0 && !held.is_empty());
        all.extend(held);
    }
    assert!(loading > 0 || at_best() != "Active", "none of the early ones had begun to load");
    all.wait_for_end();
}

#[test]
fn rounds_that_capture_leave_nothing_as_root() {
    if may_run() {
        rounds_leave_nothing(ENGINES[0]);
    }
}

#[test]
fn rounds_in_which_the_kernel_counts_leave_nothing_as_root() {
    if may_run() {
        rounds_leave_nothing(ENGINES[1]);
    }
}

fn rounds_leave_nothing(engine: &[&str]) {
    let host = Host::ready(RUN, &[engine, &[&format!("rounds={ROUNDS}")]].concat());
    let holdings: Vec<Vec<usize>> = host
        .told("round")
        .map(|numbers| numbers.split(' ').map(|number| number.parse().unwrap()).collect())
        .collect();
    let [first, last] = &holdings[..] else { panic!("{holdings:?}") };
    assert_eq!(first[..2], last[..2], "descriptors and threads");
    assert!(last[2] <= first[2] + SLACK, "KiB: {holdings:?}");

    let mut made = Objects::default();
    for line in host.told("made") {
        let words: Vec<&str> = line.split(' ').collect();
        words.chunks_exact(2).for_each(|pair| made.add(pair[0], pair[1]));
    }
    let enough = if at_best() == "Active" { ROUNDS as usize } else { 0 };
    assert!(made.count("prog") >= enough && made.count("map") >= enough && made.count("link") >= enough);
    drop(host);
    made.wait_for_end();
}
