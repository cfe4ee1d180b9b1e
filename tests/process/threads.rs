//! Processes with threads: many threads, ended threads, ended main threads, and threads that execute
//! another program.

use super::{Source, proc_file, root, sampled, sampler, stat_field};
use capture::internals::model::{Identity, ProcessRecord, SampleSet, Validity};
use capture::internals::process::IdentityReader;
use capture_test_support::children::{Child, Told};
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

const STACK: usize = 64 * 1024;
/// The number of bytes that each of many threads reads.
const READ: usize = 100;

/// Counts the threads that are done; every forked child has its own counter.
static DONE: AtomicUsize = AtomicUsize::new(0);
static ORDERED: AtomicUsize = AtomicUsize::new(0);

type Body = extern "C" fn(*mut c_void) -> i32;

/// Starts a thread in a forked child, where only system calls are allowed. Its stack is never freed.
fn start(body: Body, argument: usize) -> bool {
    let flags = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM;
    // SAFETY: the mapping is private memory of the new thread alone, which uses it as its stack,
    // from its end down.
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let stack = libc::mmap(std::ptr::null_mut(), STACK, protection, kind, -1, 0);
        stack != libc::MAP_FAILED
            && libc::clone(body, stack.byte_add(STACK), flags, argument as *mut c_void) > 0
    }
}

extern "C" fn sleep_for_ever(_: *mut c_void) -> i32 {
    loop {
        // SAFETY: a system call without arguments.
        unsafe { libc::pause() };
    }
}

/// Reads some bytes, then ends if its number is odd.
extern "C" fn read_some(number: *mut c_void) -> i32 {
    let mut bytes = [0u8; READ];
    // SAFETY: the path is a C string, and the buffer has the given length.
    unsafe {
        let zeros = libc::open(c"/dev/zero".as_ptr(), libc::O_RDONLY);
        libc::read(zeros, bytes.as_mut_ptr().cast(), bytes.len());
        libc::close(zeros);
    }
    DONE.fetch_add(1, SeqCst);
    if (number as usize).is_multiple_of(2) { sleep_for_ever(std::ptr::null_mut()) } else { 0 }
}

extern "C" fn run_sleep(_: *mut c_void) -> i32 {
    while ORDERED.load(SeqCst) == 0 {
        // SAFETY: a system call without arguments.
        unsafe { libc::sched_yield() };
    }
    let arguments = [c"sleep".as_ptr(), c"97".as_ptr(), std::ptr::null()];
    // SAFETY: the arguments are C strings that live during the call, followed by a null pointer.
    unsafe { libc::execv(c"/bin/sleep".as_ptr(), arguments.as_ptr()) }
}

fn wait_until(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until the process is idle, and compares all its figures with its files.
fn compare_with_files(source: Source, pid: i32) -> ProcessRecord {
    compare_with_files_of(source, pid, pid)
}

/// Does the same for a process whose main thread may have ended: the figures that all threads have in common
/// are in the files of thread `live`.
fn compare_with_files_of(source: Source, pid: i32, live: i32) -> ProcessRecord {
    let mut sampler = sampler(source, &[pid]);
    let mut record = sampled(&mut sampler, pid);
    wait_until(|| {
        let before = std::mem::replace(&mut record, sampled(&mut sampler, pid));
        before.sample == record.sample && record.sample.state != b'R'
    });
    let sample = &record.sample;
    let stat = proc_file(pid, "stat");
    assert_eq!(stat.rsplit_once(") ").unwrap().1.as_bytes()[0], sample.state);
    let of_stat = [10, 12, 14, 15, 20, 22].map(|number| stat_field(pid, number));
    let ours = [
        sample.minor_faults,
        sample.major_faults,
        sample.user_ticks,
        sample.system_ticks,
        sample.threads.into(),
        sample.id.start_ticks,
    ];
    assert_eq!(ours, of_stat);
    assert_eq!(sample.virtual_bytes, stat_field(live, 23));
    let line = |file: &str, key: &str| -> u64 {
        let text = proc_file(pid, file);
        text.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().parse().unwrap()
    };
    assert_eq!((sample.read_chars, sample.write_chars), (line("io", "rchar:"), line("io", "wchar:")));
    assert_eq!(
        (sample.read_bytes, sample.write_bytes),
        (line("io", "read_bytes:"), line("io", "write_bytes:"))
    );
    let switches = ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"].map(|key| line("status", key));
    assert_eq!([sample.voluntary_switches, sample.involuntary_switches], switches);
    let resident: u64 = proc_file(live, "statm").split(' ').nth(1).unwrap().parse().unwrap();
    assert_eq!(sample.resident_bytes, resident * procfs::page_size());
    let descriptors = std::fs::read_dir(format!("/proc/{live}/fd")).unwrap().count();
    assert_eq!(sample.descriptors as usize, descriptors);
    assert!(record.valid.has(Validity::MEMORY | Validity::DESCRIPTORS | Validity::COMMAND_LINE));
    assert_eq!(record.identity.command_line, std::fs::read(format!("/proc/{live}/cmdline")).unwrap());
    record
}

pub fn thousands_of_threads_are_summed_up(source: Source) {
    const THREADS: usize = 2000;
    let child = Child::new(|told| {
        DONE.store(0, SeqCst);
        let started = (0..THREADS).filter(|&number| start(read_some, number)).count();
        while DONE.load(SeqCst) < started {
            std::thread::yield_now();
        }
        told.next_step();
    });
    wait_until(|| stat_field(child.pid(), 20) as usize == THREADS / 2 + 1);
    let record = compare_with_files(source, child.pid());
    assert_eq!(record.sample.threads as usize, THREADS / 2 + 1);
    assert!(record.sample.read_chars >= (THREADS * READ) as u64, "also what ended threads have read");
    assert!(record.sample.user_ticks + record.sample.system_ticks > 0);
}

pub fn a_process_whose_main_thread_has_ended(source: Source) {
    let child = Child::new(|told: &Told| {
        start(sleep_for_ever, 0);
        told.next_step();
        // SAFETY: ends this thread only.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    });
    let pid = child.pid();
    let before = compare_with_files(source, pid);
    assert!(before.sample.threads == 2 && before.sample.virtual_bytes > 0);
    child.go();
    wait_until(|| proc_file(pid, "stat").contains(") Z "));
    let after = compare_with_files_of(source, pid, other_thread(pid));
    assert_eq!((after.sample.id, after.sample.threads, after.sample.state), (before.sample.id, 2, b'Z'));
    assert!(after.sample.resident_bytes > 0 && after.sample.descriptors > 2);
    assert_eq!(after.identity, before.identity);
    let (id, identity) = IdentityReader::default().read(&root(), pid, SampleSet::ALL).unwrap();
    let identity = Identity { program: Vec::new(), ..identity };
    assert_eq!((id, &identity), (after.sample.id, &*after.identity));
}

/// Returns the other thread of a process that has its main thread and one more.
fn other_thread(pid: i32) -> i32 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut numbers = threads.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap());
    numbers.find(|&number: &i32| number != pid).unwrap()
}

pub fn another_thread_runs_another_program(source: Source) {
    let child = Child::new(|told: &Told| {
        ORDERED.store(0, SeqCst);
        start(run_sleep, 0);
        told.next_step();
        ORDERED.store(1, SeqCst);
        sleep_for_ever(std::ptr::null_mut());
    });
    let pid = child.pid();
    let mut sampler = sampler(source, &[]);
    let before = sampled(&mut sampler, pid);
    assert_eq!(before.sample.threads, 2);
    child.go();
    let mut after = before.clone();
    wait_until(|| {
        after = sampled(&mut sampler, pid);
        after.identity.command_line == b"sleep\x0097\0"
    });
    assert_eq!((after.sample.id, after.sample.threads), (before.sample.id, 1));
    assert_eq!(after.identity.name, b"sleep");
    compare_with_files(source, pid);
}

/// Threads that start and end while they are counted neither hide their process nor decrease its counters.
pub fn threads_that_come_and_go(source: Source) {
    let child = Child::new(|told: &Told| {
        told.next_step();
        DONE.store(0, SeqCst);
        let mut started = 0;
        while start(read_some, 2 * started + 1) {
            started += 1;
            while DONE.load(SeqCst) + 20 < started {
                std::thread::yield_now();
            }
        }
    });
    child.go();
    let mut sampler = sampler(source, &[]);
    let mut last = sampled(&mut sampler, child.pid());
    let end = Instant::now() + Duration::from_secs(1);
    let mut seen = 0;
    while Instant::now() < end || seen < 20 {
        let record = sampled(&mut sampler, child.pid());
        let [now, then] = [&record.sample, &last.sample].map(|sample| {
            let ticks = sample.user_ticks + sample.system_ticks;
            [ticks, sample.minor_faults, sample.read_chars]
        });
        assert_eq!(record.sample.id, last.sample.id);
        assert!(now.iter().zip(then).all(|(now, then)| *now >= then), "{now:?} after {then:?}");
        (last, seen) = (record, seen + 1);
    }
    assert!(last.sample.read_chars > 0 && sampler.unreadable() == 0);
}

pub fn descriptors_are_counted_in_tables_of_all_sizes(source: Source) {
    let mut most = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes only to the structure.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut most) };
    for highest in [63, 64, 300, 1023, 8000, 9000, 20_000] {
        if highest >= most.rlim_max {
            continue;
        }
        let child = Child::new(|told| {
            let limit = libc::rlimit { rlim_cur: highest + 1, rlim_max: most.rlim_max };
            // SAFETY: the kernel reads only from the structure.
            unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
            for descriptor in (highest / 2..=highest).step_by(7).chain([highest]) {
                // SAFETY: a system call without pointers.
                unsafe { libc::dup2(0, descriptor as i32) };
            }
            told.next_step();
        });
        let record = compare_with_files(source, child.pid());
        assert!(u64::from(record.sample.descriptors) > highest / 14, "{highest}");
    }
}
