//! The scheduling delay of a thread that wakes when there are more threads than processors.

use nix::errno::Errno;

/// `struct sched_attr` (linux/sched/types.h) in its first form.
#[repr(C)]
#[derive(Default)]
struct SchedAttributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// The minimum slice that the kernel grants, in nanoseconds (`__setparam_fair`, kernel/sched/syscalls.c).
const SHORTEST: u64 = 100_000;

/// A niceness whose weight exceeds that of nine normal threads.
const NICENESS: i32 = -10;

/// Makes the calling thread run soon after it wakes. It gets short slices, which require Linux 6.12 but no
/// privilege, and a larger share of the processor, which requires CAP_SYS_NICE. It is meant for a thread that
/// uses little of the processor.
///
/// # Errors
/// Fails with the errors of sched_getattr(2) and sched_setattr(2).
pub fn be_prompt() -> nix::Result<()> {
    let size = size_of::<SchedAttributes>() as u32;
    let mut attributes = SchedAttributes { size, ..SchedAttributes::default() };
    // SAFETY: the kernel writes at most the given size to the structure, which is exclusively borrowed for
    // the call.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    Errno::result(got)?;
    if attributes.policy != libc::SCHED_OTHER as u32 {
        // Another policy was set deliberately.
        return Ok(());
    }
    let niceness = attributes.nice;
    (attributes.size, attributes.runtime, attributes.nice) = (size, SHORTEST, niceness.min(NICENESS));
    match set(&attributes) {
        Err(Errno::EPERM) => set(&SchedAttributes { nice: niceness, ..attributes }),
        other => other,
    }
}

fn set(attributes: &SchedAttributes) -> nix::Result<()> {
    // SAFETY: the kernel reads a structure of the size that it states, which exists throughout the call.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(attributes), 0) };
    Errno::result(set).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_its_policy_and_is_no_nicer_than_before() {
        // SAFETY: the calls take only numbers.
        let niceness = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        let change = move || {
            let before = niceness();
            be_prompt().unwrap();
            // SAFETY: the call takes only a number.
            let policy = unsafe { libc::sched_getscheduler(0) };
            (policy, before, niceness())
        };
        let (policy, before, after) = std::thread::spawn(change).join().unwrap();
        assert_eq!(policy, libc::SCHED_OTHER);
        assert!(after == before || after == NICENESS, "{after}");
        // The niceness belongs to the thread alone.
        assert_eq!(niceness(), before);
    }
}
