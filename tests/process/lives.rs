//! Many processes over their lifetime: churn, reused pids, CPU shares, and the fields that
//! other users may see.

use super::{Source, root, sampled, sampler, stat_field};
use capture::internals::model::{Identity, ProcId, ProcessRecord, SampleSet, Validity};
use capture::internals::process::{IdentityReader, proc_id, ticks_to_ns};
use capture_test_support::children::Child;
use capture_test_support::requirements::{is_root, left_out};
use procfs::CurrentSI;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The readings of one process by two readers, as text, so that they can be compared and printed.
struct Readings {
    id: ProcId,
    ours: String,
    theirs: String,
}

/// Returns the readings of every process that did not change between two samples, with what the `procfs`
/// crate read in between.
fn readings_of_steady_processes(
    source: Source,
    sampler: &mut capture::internals::process::Sampler,
) -> Vec<Readings> {
    let me = std::process::id() as i32;
    let records = |sampler: &mut capture::internals::process::Sampler| -> HashMap<ProcId, ProcessRecord> {
        sampler.sample().unwrap();
        sampler.processes().map(|record| (record.sample.id, record.clone())).collect()
    };
    let before = records(sampler);
    let theirs: Vec<_> = procfs::process::all_processes()
        .unwrap()
        .flatten()
        .filter_map(|process| {
            let stat = process.stat().ok()?;
            let status = process.status().ok()?;
            let command_line = std::fs::read(format!("/proc/{}/cmdline", process.pid)).ok()?;
            let descriptors = descriptors_in_proc(source, process.pid);
            Some((stat, status, command_line, process.statm().ok()?, process.io().ok(), descriptors))
        })
        .collect();
    let after = records(sampler);
    let mut readings = Vec::new();
    for (stat, status, command_line, statm, io, descriptors) in theirs {
        let id = ProcId { pid: stat.pid, start_ticks: stat.starttime };
        let (Some(record), Some(then)) = (after.get(&id), before.get(&id)) else {
            // It has started or ended meanwhile, which pids 1 and 2 never do.
            assert!(id.pid > 2, "{id:?} is missing");
            continue;
        };
        // Children of other tests may change undetected, because those tests check how soon a
        // change is detected.
        if record.sample != then.sample || !Arc::ptr_eq(&record.identity, &then.identity) || stat.ppid == me {
            continue;
        }
        // If the main thread has ended, the figures are those of another thread, and the crate's are those of
        // the main thread.
        if stat.state == 'Z' && stat.num_threads > 1 {
            continue;
        }
        let (sample, identity) = (&record.sample, &record.identity);
        let has_io = sample.valid.has(Validity::IO);
        let page = procfs::page_size();
        readings.push(Readings {
            id,
            ours: format!(
                "{:?}",
                (
                    (sample.state as char, sample.parent, sample.threads),
                    (sample.user_ticks, sample.system_ticks, sample.minor_faults, sample.major_faults),
                    (Some(sample.voluntary_switches), Some(sample.involuntary_switches)),
                    (identity.uid, identity.gid, String::from_utf8_lossy(&identity.name)),
                    (sample.state != b'Z').then_some(&identity.command_line),
                    (sample.virtual_bytes, sample.resident_bytes),
                    has_io.then_some((sample.read_chars, sample.write_chars)),
                    has_io.then_some((sample.read_bytes, sample.write_bytes)),
                    descriptors.map(|_| sample.descriptors as usize),
                )
            ),
            theirs: format!(
                "{:?}",
                (
                    (stat.state, stat.ppid, stat.num_threads),
                    (stat.utime, stat.stime, stat.minflt, stat.majflt),
                    (status.voluntary_ctxt_switches, status.nonvoluntary_ctxt_switches),
                    (status.euid, status.egid, stat.comm),
                    (sample.state != b'Z').then_some(&command_line),
                    (statm.size * page, statm.resident * page),
                    io.as_ref().map(|io| (io.rchar, io.wchar)),
                    io.as_ref().map(|io| (io.read_bytes, io.write_bytes)),
                    descriptors,
                )
            ),
        });
    }
    readings
}

/// Counts descriptors as the source is documented to do: by entries, or by the size of the directory, which
/// also counts numbers that calls in progress have reserved.
fn descriptors_in_proc(source: Source, pid: i32) -> Option<usize> {
    let path = format!("/proc/{pid}/fd");
    match source {
        Source::Files if root().facts().descriptors_by_size => {
            std::fs::metadata(path).ok().map(|of| of.len() as usize)
        }
        // The crate itself counts `.` and `..` for a process without descriptors.
        _ => std::fs::read_dir(path).ok().map(Iterator::count),
    }
}

/// A thread that waits in accept(2) has reserved a descriptor number.
pub fn reserved_descriptors_are_no_entries(source: Source) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let child = Child::new(|told| {
        told.next_step();
        let _ = listener.accept();
    });
    let path = format!("/proc/{}/fd", child.pid());
    let entries = std::fs::read_dir(&path).unwrap().count();
    let mut sampler = sampler(source, &[child.pid()]);
    assert_eq!(sampled(&mut sampler, child.pid()).sample.descriptors as usize, entries);
    child.go();
    let by_size = root().facts().descriptors_by_size;
    let deadline = Instant::now() + Duration::from_secs(20);
    while by_size && std::fs::metadata(&path).unwrap().len() as usize == entries {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    let expected = entries + usize::from(source == Source::Files && by_size);
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), entries);
    assert_eq!(sampled(&mut sampler, child.pid()).sample.descriptors as usize, expected);
}

/// A process may open and close something between the two samples, or be between two system calls, and leave
/// no trace of it in either: readings that differ are repeated, and only a process that always differs is an
/// error of the library.
pub fn all_live_processes_agree_with_the_procfs_crate(source: Source) {
    let mut sampler = sampler(source, &[]);
    let mut agreed = HashSet::new();
    let mut differing = Vec::new();
    for round in 0..10 {
        if round > 0 {
            std::thread::sleep(Duration::from_millis(100));
        }
        let readings = readings_of_steady_processes(source, &mut sampler);
        agreed.extend(readings.iter().filter(|reading| reading.ours == reading.theirs).map(|one| one.id));
        differing = readings.into_iter().filter(|reading| !agreed.contains(&reading.id)).collect();
        if differing.is_empty() {
            break;
        }
    }
    let differing: Vec<String> =
        differing.iter().map(|one| format!("{:?}\n  {}\n  {}", one.id, one.ours, one.theirs)).collect();
    assert!(differing.is_empty(), "{}", differing.join("\n"));
    assert!(!agreed.is_empty());
}

/// Ticks of a process and of the machine; the process's are read between two readings of the machine's.
#[derive(Debug)]
struct Ticks {
    process: u64,
    machine: [u64; 2],
}

fn ticks(pid: i32) -> Ticks {
    let machine = || {
        let cpu = procfs::KernelStats::current().unwrap().total;
        let optional = [cpu.iowait, cpu.irq, cpu.softirq].into_iter().flatten().sum::<u64>();
        cpu.user + cpu.nice + cpu.system + cpu.idle + optional
    };
    let before = machine();
    Ticks { process: stat_field(pid, 14) + stat_field(pid, 15), machine: [before, machine()] }
}

pub fn the_share_of_a_busy_process(source: Source) {
    let child = Child::new(|told| {
        told.next_step();
        loop {
            std::hint::spin_loop();
        }
    });
    child.go();
    let mut sampler = sampler(source, &[child.pid()]);
    // Readings before and after each sample are the bounds of the values that it can have read.
    let readings: Vec<(Ticks, ProcessRecord, Ticks)> = (0..2)
        .map(|_| {
            std::thread::sleep(Duration::from_millis(700));
            (ticks(child.pid()), sampled(&mut sampler, child.pid()), ticks(child.pid()))
        })
        .collect();
    let [(early, first, late), (then_early, second, then_late)] = &readings[..] else { unreachable!() };
    assert!(!first.valid.has(Validity::CPU_PERCENT) && first.cpu_percent == 0.0);
    assert!(second.valid.has(Validity::CPU_PERCENT) && second.cpu_percent > 0.0);
    let share = |process: u64, machine: u64| process as f64 * 100.0 / machine as f64;
    let least = share(then_early.process - late.process, then_late.machine[1] - early.machine[0]);
    let most = share(then_late.process - early.process, then_early.machine[0] - late.machine[1]);
    assert!((least..=most).contains(&second.cpu_percent), "{readings:?}");
}

pub fn a_reused_pid_starts_from_zero(source: Source) {
    if !is_root() {
        return;
    }
    let mut first = Child::sleeping();
    let pid = first.pid();
    let mut sampler = sampler(source, &[]);
    let old = sampled(&mut sampler, pid).sample.id;
    sampler.get_mut(&old).unwrap().traffic.send_bytes = 4711;
    first.kill();
    first.reap();
    // The start time has the resolution of a tick: a new tick must begin.
    std::thread::sleep(Duration::from_nanos(2 * ticks_to_ns(1, root().facts().ticks_per_second)));
    let _second = match fork_with_pid(pid) {
        Ok(child) => child,
        Err(error) => return left_out(&format!("a pid cannot be chosen: {error}")),
    };
    let record = sampled(&mut sampler, pid);
    assert!(record.sample.id != old && record.traffic.send_bytes == 0 && record.cpu_percent == 0.0);
    assert!(!record.valid.has(Validity::CPU_PERCENT));
    let ended = sampler.take_ended();
    let ended = ended.iter().find(|ended| ended.sample.id == old).unwrap();
    assert_eq!(ended.traffic.send_bytes, 4711);
}

/// Starts a sleeping child with this pid, which must be free (clone3(2), `set_tid`).
fn fork_with_pid(pid: i32) -> std::io::Result<Child> {
    // SAFETY: all bits zero are valid for the structure, which consists of integers only.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.set_tid = std::ptr::from_ref(&pid) as u64;
    arguments.set_tid_size = 1;
    // SAFETY: without CLONE_VM this is a fork; the child makes only system calls.
    match unsafe { libc::syscall(libc::SYS_clone3, &arguments, size_of_val(&arguments)) } {
        -1 => Err(std::io::Error::last_os_error()),
        0 => loop {
            // SAFETY: a system call without arguments.
            unsafe { libc::pause() };
        },
        child => Ok(Child::adopt(child as i32)),
    }
}

/// Samples succeed while 300 processes a second start and end, without a pause between samples.
pub fn churn_never_fails_a_sample(source: Source) {
    let me = std::process::id() as i32;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let spawner = scope.spawn(|| {
            let began = Instant::now();
            let mut count = 0u32;
            while began.elapsed() < Duration::from_secs(5) {
                if count.is_multiple_of(4) {
                    assert!(std::process::Command::new("true").status().unwrap().success());
                } else {
                    Child::ending();
                }
                count += 1;
                let next = began + count * Duration::from_micros(3333);
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            over.store(true, Relaxed);
        });
        let mut sampler = sampler(source, &[]);
        let mut seen = 0;
        while !over.load(Relaxed) && !spawner.is_finished() {
            sampler.sample().unwrap();
            seen += sampler.take_ended().iter().filter(|ended| ended.sample.parent == me).count();
            let ids: Vec<ProcId> = sampler.processes().map(|record| record.sample.id).collect();
            assert!(ids.is_sorted_by(|a, b| a.pid < b.pid));
        }
        assert!(seen > 0);
        assert_eq!(sampler.unreadable(), 0);
        spawner.join().unwrap();
    });
}

#[test]
fn another_user_is_told_what_cannot_be_read_root() {
    if !is_root() {
        return;
    }
    let child = Child::sleeping();
    let pid = child.pid();
    // The memory of the process grows until its program has been loaded.
    let mut all = sampled(&mut sampler(Source::Files, &[pid]), pid);
    loop {
        let before = std::mem::replace(&mut all, sampled(&mut sampler(Source::Files, &[pid]), pid));
        if all.sample.state == b'S' && before.sample == all.sample {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(all.valid.has(Validity::IO | Validity::DESCRIPTORS));
    // Privileges belong to a thread: this one gives up its own.
    let (by_size, listed) = std::thread::spawn(move || {
        // SAFETY: system calls without pointers.
        unsafe {
            libc::syscall(libc::SYS_setresgid, 65_534, 65_534, 65_534);
            libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534);
        }
        let facts = *root().facts();
        let listing = capture::internals::proc::SystemFacts { descriptors_by_size: false, ..facts };
        let older = capture::internals::proc::ProcRoot::with_facts("/proc".as_ref(), listing).unwrap();
        let selection = capture::internals::model::Selection { pids: vec![pid], ..Default::default() };
        let mut older = capture::internals::process::Sampler::new(older, SampleSet::ALL, selection).unwrap();
        (sampled(&mut sampler(Source::Files, &[pid]), pid), sampled(&mut older, pid))
    })
    .join()
    .unwrap();
    for record in [&by_size, &listed] {
        assert!(!record.valid.has(Validity::IO));
        assert_eq!((record.sample.read_chars, record.sample.write_chars), (0, 0));
        assert!(record.valid.has(Validity::CPU | Validity::MEMORY | Validity::USER | Validity::COMMAND_LINE));
        assert_eq!(record.identity, all.identity);
        assert_eq!(record.sample.resident_bytes, all.sample.resident_bytes);
    }
    assert!(!listed.valid.has(Validity::DESCRIPTORS) && listed.sample.descriptors == 0);
}

pub fn one_process_is_described_at_once(source: Source) {
    let mut child = Child::sleeping();
    let pid = child.pid();
    let record = sampled(&mut sampler(source, &[pid]), pid);
    let mut reader = IdentityReader::default();
    let (id, identity) = reader.read(&root(), pid, SampleSet::ALL).unwrap();
    let identity = Identity { program: record.identity.program.clone(), ..identity };
    assert_eq!((id, &identity), (record.sample.id, &*record.identity));
    let (_, without) = reader.read(&root(), pid, SampleSet::default()).unwrap();
    let program = without.program.clone();
    assert_eq!(without, Identity { program, command_line: Vec::new(), cgroup: Vec::new(), ..identity });
    let mut buffer = Vec::new();
    assert_eq!(proc_id(&root(), pid, &mut buffer), Some(id));
    child.kill();
    child.reap();
    assert_eq!(proc_id(&root(), pid, &mut buffer), None);
    assert!(reader.read(&root(), pid, SampleSet::ALL).is_none());
}
