//! The cost of sampling relative to the bare system calls: CPU time of a whole sample, from `/proc` and from
//! the BPF iterator over tasks, compared with a floor that only opens, reads and closes the same files of the
//! same processes, and with the `procfs` crate for the same facts.
//!
//! The floor consists of bare libc calls with reused buffers and precomputed paths; it does not list,
//! parse or keep anything. Samplers and floor alternate in every round, and the median of the rounds'
//! ratios is printed. CPU time is that of getrusage(2), user and system. The processes are forks of this
//! program that sleep.

// A measurement that cannot be made must fail loudly.
#![allow(clippy::expect_used)]

mod common {
    pub mod processes;
}

use capture::internals::kernel::{Fault, load_tasks};
use capture::internals::model::{SampleSet, Selection};
use capture::internals::proc::ProcRoot;
use capture::internals::process::Sampler;
use common::processes::{Floor, Sleepers, cpu_of, median};
use std::path::Path;

const SIZES: [usize; 2] = [2_000, 10_000];
const ROUNDS: usize = 21;

fn main() {
    // Cargo passes `--bench` to measure; otherwise this only checks that the benchmark still runs.
    let measuring = std::env::args().any(|argument| argument == "--bench");
    let (sizes, rounds) = if measuring { (&SIZES[..], ROUNDS) } else { (&[50][..], 2) };
    for &size in sizes {
        let sleepers = Sleepers::start(size);
        measure(size, rounds);
        drop(sleepers);
    }
}

fn measure(size: usize, rounds: usize) {
    let figures = SampleSet::MEMORY | SampleSet::IO | SampleSet::DESCRIPTORS;
    let files = figures | SampleSet::COMMAND_LINE;
    let no_cgroups = files | SampleSet::SWITCHES;
    let everything = no_cgroups | SampleSet::CGROUP;
    let mut contenders = vec![
        Contender::new("sampler, everything", sampling(sampler(everything))),
        Contender::new("sampler, no cgroups", sampling(sampler(no_cgroups))),
        Contender::new("sampler, no switches either", sampling(sampler(files))),
        Contender::new("sampler, figures only", sampling(sampler(figures))),
        Contender::new("procfs crate", Box::new(by_procfs)),
    ];
    for (name, what) in [("task iterator, no cgroups", no_cgroups), ("task iterator, everything", everything)]
    {
        match sampler_of_tasks(what) {
            Ok(sampler) => contenders.insert(0, Contender::new(name, sampling(sampler))),
            Err(reason) => println!("no task iterator: {reason}"),
        }
    }
    let mut floor = Floor::new();
    let mut floor_cost = Vec::new();
    for round in 0..rounds + 2 {
        for contender in &mut contenders {
            // Each contender has its own run of the floor, alternately before and after it.
            let (cost, base) = if round % 2 == 0 {
                let base = cpu_of(|| floor.run());
                (cpu_of(&mut contender.run), base)
            } else {
                let cost = cpu_of(&mut contender.run);
                (cost, cpu_of(|| floor.run()))
            };
            // The first rounds fill tables and caches.
            if round >= 2 {
                contender.cost.push(cost);
                contender.ratio.push(cost / base);
                floor_cost.push(base);
            }
        }
    }
    println!("{size} processes, median of {rounds} rounds");
    println!("  {:<28}{:>8.2} ms", "floor", median(&mut floor_cost));
    for contender in &mut contenders {
        let (cost, ratio) = (median(&mut contender.cost), median(&mut contender.ratio));
        println!("  {:<28}{cost:>8.2} ms  {ratio:>5.3} x the floor", contender.name);
    }
}

struct Contender {
    name: &'static str,
    run: Box<dyn FnMut()>,
    cost: Vec<f64>,
    ratio: Vec<f64>,
}

impl Contender {
    fn new(name: &'static str, run: Box<dyn FnMut()>) -> Contender {
        Contender { name, run, cost: Vec::new(), ratio: Vec::new() }
    }
}

fn sampler(what: SampleSet) -> Sampler {
    let root = ProcRoot::open(Path::new("/proc")).expect("proc is mounted");
    Sampler::new(root, what, Selection::default()).expect("proc can be read")
}

fn sampler_of_tasks(what: SampleSet) -> Result<Sampler, Fault> {
    let mut sampler = sampler(what);
    sampler.take_from(load_tasks(what)?);
    Ok(sampler)
}

fn sampling(mut sampler: Sampler) -> Box<dyn FnMut()> {
    Box::new(move || {
        sampler.sample().expect("proc can be sampled");
        std::hint::black_box(sampler.processes().count());
    })
}

fn by_procfs() {
    for process in procfs::process::all_processes().expect("proc can be listed").flatten() {
        let owner = process.uid();
        let _ =
            std::hint::black_box((process.stat(), process.statm(), process.io(), process.fd_count(), owner));
    }
}
