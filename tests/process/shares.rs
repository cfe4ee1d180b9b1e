//! Figures that involve several processes: memory that they share, and I/O that the kernel adds
//! to the parent's.

use super::{Source, proc_file, sampled, sampler};
use capture::internals::model::{ProcessRecord, Validity};
use capture_test_support::children::Child;
use std::time::{Duration, Instant};

/// Returns the values of a file with lines such as `name: value`.
fn values<const N: usize>(pid: i32, file: &str, names: [&str; N]) -> [u64; N] {
    let text = proc_file(pid, file);
    let value =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_string();
    names.map(|name| value(name).trim_end_matches(" kB").parse().unwrap())
}

const IO: [&str; 4] = ["rchar:", "wchar:", "read_bytes:", "write_bytes:"];

fn own_io(record: &ProcessRecord) -> [u64; 4] {
    let sample = &record.sample;
    [sample.own_read_chars, sample.own_write_chars, sample.own_read_bytes, sample.own_write_bytes]
}

/// Writes some pages to a file, which may be on a disk.
fn write_pages(file: i32, pages: usize) {
    let page = [7u8; 4096];
    for _ in 0..pages {
        // SAFETY: the buffer has the given length.
        unsafe { libc::write(file, page.as_ptr().cast(), page.len()) };
    }
}

/// The process writes two pages, and a child that it waits for writes a hundred. The I/O of a thread is in a
/// file of its own, and the process has only one thread.
pub fn io_of_children_that_were_waited_for(source: Source) {
    let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = std::os::fd::AsRawFd::as_raw_fd(&file);
    let child = Child::new(|told| {
        write_pages(file, 2);
        told.next_step();
        // SAFETY: both processes make only system calls.
        unsafe {
            match libc::fork() {
                0 => {
                    write_pages(file, 100);
                    libc::_exit(0);
                }
                grandchild => libc::waitpid(grandchild, std::ptr::null_mut(), 0),
            }
        };
        told.next_step();
    });
    let pid = child.pid();
    let mut sampler = sampler(source, &[pid]);
    let before = sampled(&mut sampler, pid);
    assert!(before.valid.has(Validity::IO | Validity::OWN_CHARS | Validity::OWN_BYTES));
    assert_eq!(own_io(&before), values(pid, "io", IO));
    assert_eq!(before.sample.own_write_chars, 2 * 4096 + 1, "and a byte for us");
    child.step();
    let after = sampled(&mut sampler, pid);
    let sample = &after.sample;
    let all = [sample.read_chars, sample.write_chars, sample.read_bytes, sample.write_bytes];
    assert_eq!(all, values(pid, "io", IO));
    assert!(sample.write_chars > 102 * 4096, "with the child's");
    let known = [Validity::OWN_CHARS, Validity::OWN_BYTES].map(|bit| after.valid.has(bit));
    match source {
        Source::Files => assert_eq!((known, own_io(&after)), ([false; 2], [0; 4])),
        Source::Tasks => {
            assert_eq!((known, own_io(&after)), ([true; 2], values(pid, &format!("task/{pid}/io"), IO)));
            assert_eq!(sample.own_write_chars, 2 * 4096 + 2);
        }
    }
}

/// Memory that a process shares with two children is in the resident set of each, and a third of it in the
/// proportional set of each.
pub fn shared_memory_is_told_apart(source: Source) {
    const SHARED: usize = 64 << 20;
    let child = Child::new(|told| {
        // SAFETY: the mapping has the given length, and all accesses are within it; all processes make
        // only system calls.
        unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let kind = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
            let memory = libc::mmap(std::ptr::null_mut(), SHARED, protection, kind, -1, 0);
            for _ in 0..2 {
                if libc::fork() == 0 {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    for at in (0..SHARED).step_by(4096) {
                        memory.byte_add(at).cast::<u8>().read_volatile();
                    }
                    told.next_step();
                    libc::_exit(0);
                }
            }
        }
        told.next_step();
    });
    // The parent and one child may be done already; any of the three may read the orders.
    let pid = child.pid();
    let children = || proc_file(pid, &format!("task/{pid}/children"));
    let deadline = Instant::now() + Duration::from_secs(20);
    let pss = || values(pid, "smaps_rollup", ["Pss:"])[0] * 1024;
    while pss() > SHARED as u64 / 2 {
        assert!(Instant::now() < deadline, "{}", children());
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut pids: Vec<i32> = children().split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    pids.push(pid);
    assert_eq!(pids.len(), 3);
    let mut sampler = sampler(source, &pids);
    let (mut resident, mut proportional) = (0, 0);
    for pid in pids {
        let record = sampled(&mut sampler, pid);
        let sample = &record.sample;
        assert!(record.valid.has(Validity::MEMORY | Validity::PROPORTIONAL));
        let shared: u64 = proc_file(pid, "statm").split(' ').nth(2).unwrap().parse().unwrap();
        assert_eq!(sample.shared_bytes, shared * procfs::page_size());
        assert!(sample.shared_bytes >= SHARED as u64 && sample.shared_bytes <= sample.resident_bytes);
        // Program pages are shared with any other processes that exist at this moment.
        let theirs = values(pid, "smaps_rollup", ["Pss:"])[0] * 1024;
        assert!(
            sample.proportional_bytes.abs_diff(theirs) < 1 << 20,
            "{} {theirs}",
            sample.proportional_bytes
        );
        assert!(sample.proportional_bytes > SHARED as u64 / 3 - (1 << 20));
        resident += sample.resident_bytes;
        proportional += sample.proportional_bytes;
    }
    assert!(resident >= 3 * SHARED as u64 && proportional < 2 * SHARED as u64, "{resident} {proportional}");
}
