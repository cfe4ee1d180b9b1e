//! The host's conditions that the arguments set, and its resources.

use super::Outcome;
use nix::sys::resource::{Resource, setrlimit};
use std::collections::BTreeSet;
use std::fs::{read_dir, read_to_string};

/// Sets the limit of locked memory.
pub fn limit_locked_memory(bytes: u64) -> Outcome<()> {
    Ok(setrlimit(Resource::RLIMIT_MEMLOCK, bytes, bytes)?)
}

/// Makes bpf(2) return an error from now on: `ERRNO`, or `ERRNO:COMMAND` for one command only. Both are
/// numbers.
pub fn refuse_bpf(what: &str) -> Outcome<()> {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_UNLESS_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    // Offsets in `struct seccomp_data`: the number of the call, and the lower half of its first argument.
    const CALL: u32 = 0;
    const FIRST_ARGUMENT: u32 = if cfg!(target_endian = "little") { 16 } else { 20 };
    let (errno, command) =
        what.split_once(':').map_or((what, None), |(errno, command)| (errno, Some(command)));
    let command = command.map(str::parse::<u32>).transpose()?;
    let step = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    let allow = step(RETURN, 0, libc::SECCOMP_RET_ALLOW);
    let refuse = step(RETURN, 0, libc::SECCOMP_RET_ERRNO | errno.parse::<u32>()?);
    let call = libc::SYS_bpf as u32;
    let mut steps = match command {
        None => vec![step(LOAD_WORD, 0, CALL), step(JUMP_UNLESS_EQUAL, 1, call), refuse, allow],
        Some(command) => vec![
            step(LOAD_WORD, 0, CALL),
            step(JUMP_UNLESS_EQUAL, 3, call),
            step(LOAD_WORD, 0, FIRST_ARGUMENT),
            step(JUMP_UNLESS_EQUAL, 1, command),
            refuse,
            allow,
        ],
    };
    let filter = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the call takes only numbers.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the filter and its steps outlive the call, which copies them.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    Ok(())
}

/// Returns the eBPF programs, maps, links and type descriptions that threads of this process have descriptors
/// of, as words of kind and number (proc_pid_fdinfo(5)).
pub fn own_objects() -> Outcome<Vec<String>> {
    let mut found = BTreeSet::new();
    // The library's threads have their own descriptor table.
    for thread in read_dir("/proc/self/task")? {
        let Ok(descriptors) = read_dir(thread?.path().join("fdinfo")) else { continue };
        for entry in descriptors {
            // The descriptor of the directory itself is closed by now.
            let Ok(text) = read_to_string(entry?.path()) else { continue };
            for line in text.lines() {
                if let Some((kind @ ("prog_id" | "map_id" | "link_id" | "btf_id"), number)) =
                    line.split_once(":\t")
                {
                    found.insert(format!("{kind} {number}"));
                }
            }
        }
    }
    Ok(found.into_iter().collect())
}

/// Makes all threads allocate from one heap. Otherwise the memory that the allocator keeps grows for a while
/// with every round in which more threads allocate at the same time than before.
pub fn use_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes only numbers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

/// Returns the number of descriptors and of threads of the process, and its resident memory in KiB.
pub fn holdings() -> Outcome<[usize; 3]> {
    // The freed memory that the allocator keeps changes from round to round.
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes only a number.
    unsafe {
        libc::malloc_trim(0)
    };
    let status = read_to_string("/proc/self/status")?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib = resident.trim().trim_end_matches(" kB").parse()?;
    // A thread that has ended may still be listed for a moment.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    let threads = || read_dir("/proc/self/task").map(Iterator::count);
    while threads()? > 1 && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Ok([read_dir("/proc/self/fd")?.count(), threads()?, kib])
}
