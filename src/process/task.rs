//! Converts a process as reported by a walk over the kernel's tasks to the terms of `/proc`.

use super::reading::CoreFigures;
use crate::kernel::{Figures, RawProcess, Task, UNCOUNTED};
use crate::model::{ProcId, ProcessSample, SampleSet, Validity};
use crate::proc::SystemFacts;
use crate::proc::parse::Stat;

const NANOSECONDS: u64 = 1_000_000_000;

/// The thread is ending or has ended (`PF_EXITING`, include/linux/sched.h).
const ENDING: u32 = 4;

/// States of tasks (include/linux/sched.h).
const REPORTED: u32 = 0x7f;
const IDLE: u32 = 0x402;
const REPORTED_IDLE: u32 = 0x80;
/// Waiting for a lock of a real-time kernel, or frozen: reported as uninterruptible.
const HIDDEN: u32 = 0x1000 | 0x8000;
const UNINTERRUPTIBLE: u32 = 2;
/// The letters of the states (fs/proc/array.c, task_state_array), the first for no bit.
const LETTERS: [u8; 9] = *b"RSDTtXZPI";

/// CPU time in both modes, nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuTimes {
    pub user_ns: u64,
    pub system_ns: u64,
}

impl CpuTimes {
    /// Returns the times that `/proc` would report now, unless these are less than the times that the library
    /// reported before.
    ///
    /// The kernel divides the time that the scheduler has measured in the proportion that the tick has
    /// sampled, and keeps the values that it reported last, so that neither part ever goes backwards. It does
    /// not know the values that the library reports, so the library keeps these itself.
    pub fn told(raw: &RawProcess, before: CpuTimes) -> CpuTimes {
        let kernels = CpuTimes { user_ns: raw.reported_user_ns, system_ns: raw.reported_system_ns };
        let now = kernels.adjusted(&raw.figures);
        if now.user_ns >= before.user_ns && now.system_ns >= before.system_ns {
            now
        } else {
            before.adjusted(&raw.figures)
        }
    }

    /// Raises the times of files that are read in between to at least the times reported before, and the next
    /// reported times to at least these: the kernel may have divided the time differently.
    pub fn keep_up(&mut self, stat: &mut Stat<'_>, hertz: u64) {
        let parts =
            [(&mut self.user_ns, &mut stat.user_ticks), (&mut self.system_ns, &mut stat.system_ticks)];
        for (told_ns, now) in parts {
            *now = ticks(*told_ns, hertz).max(*now);
            *told_ns = nanoseconds(*now, hertz).max(*told_ns);
        }
    }

    /// Implements cputime_adjust() of kernel/sched/cputime.c, with `self` as the times that were reported
    /// last.
    fn adjusted(self, figures: &Figures) -> CpuTimes {
        let runtime = figures.runtime_ns;
        if self.user_ns.saturating_add(self.system_ns) >= runtime {
            return self;
        }
        let share = match (figures.user_ns, figures.system_ns) {
            (_, 0) => 0,
            (0, _) => runtime,
            (user, system) => {
                let sampled = u128::from(user) + u128::from(system);
                (u128::from(system) * u128::from(runtime) / sampled) as u64
            }
        };
        let system_ns = share.max(self.system_ns);
        let user_ns = runtime.saturating_sub(system_ns);
        if user_ns < self.user_ns {
            return CpuTimes { user_ns: self.user_ns, system_ns: runtime - self.user_ns };
        }
        CpuTimes { user_ns, system_ns }
    }
}

/// Returns the contents that `/proc/<pid>/stat` would have, except the CPU times, which are those of `cpu`.
pub fn core<'t>(task: &Task<'t>, cpu: CpuTimes, facts: &SystemFacts) -> CoreFigures<'t> {
    let raw = task.raw;
    let hertz = facts.ticks_per_second;
    let stat = Stat {
        pid: number(raw.pid),
        name: task.name,
        state: letter(raw.state, raw.exit_state),
        parent: number(raw.parent),
        flags: raw.flags.into(),
        user_ticks: ticks(cpu.user_ns, hertz),
        system_ticks: ticks(cpu.system_ns, hertz),
        minor_faults: raw.figures.minor_faults,
        major_faults: raw.figures.major_faults,
        has_waited: true,
        threads: raw.threads,
        start_ticks: ticks(raw.start_ns, hertz),
        virtual_bytes: raw.virtual_pages.saturating_mul(facts.page_size),
        layout: layout(raw),
    };
    CoreFigures { stat, owner: Some((raw.uid, raw.gid)) }
}

/// Returns true if the main thread has ended, or is about to, while other threads go on.
pub fn has_lost_main_thread(raw: &RawProcess) -> bool {
    raw.flags & ENDING != 0 && raw.threads > 1
}

/// Returns the traits that distinguish program images.
pub fn layout(raw: &RawProcess) -> [u64; 2] {
    [raw.image, 0]
}

/// The process's pid.
pub fn pid(raw: &RawProcess) -> i32 {
    number(raw.pid)
}

/// The id of the process.
pub fn id(raw: &RawProcess, facts: &SystemFacts) -> ProcId {
    ProcId { pid: number(raw.pid), start_ticks: start_ticks(raw.start_ns, facts) }
}

/// Converts the start of a process, nanoseconds since boot, to the ticks of `/proc`.
pub fn start_ticks(start_ns: u64, facts: &SystemFacts) -> u64 {
    ticks(start_ns, facts.ticks_per_second)
}

/// Returns true if a process's descriptors are still to be counted.
pub fn lacks_descriptors(raw: &RawProcess, what: SampleSet) -> bool {
    what.has(SampleSet::DESCRIPTORS) && raw.descriptors == UNCOUNTED
}

/// Adds the groups of figures in `what` to a sample.
pub fn add_figures(raw: &RawProcess, what: SampleSet, facts: &SystemFacts, sample: &mut ProcessSample) {
    if what.has(SampleSet::MEMORY) {
        sample.virtual_bytes = raw.virtual_pages.saturating_mul(facts.page_size);
        sample.resident_bytes = raw.resident_pages.saturating_mul(facts.page_size);
        sample.shared_bytes = raw.shared_pages.saturating_mul(facts.page_size);
        sample.valid |= Validity::MEMORY;
    }
    if what.has(SampleSet::IO) {
        sample.read_chars = raw.figures.read_chars;
        sample.write_chars = raw.figures.write_chars;
        sample.read_bytes = raw.figures.read_bytes;
        sample.write_bytes = raw.figures.write_bytes;
        sample.valid |= Validity::IO;
        add_own_io(raw, sample);
    }
    // They are always present, whether requested or not.
    sample.voluntary_switches = raw.voluntary_switches;
    sample.involuntary_switches = raw.involuntary_switches;
    sample.valid |= Validity::SWITCHES;
    if what.has(SampleSet::DESCRIPTORS) && raw.descriptors != UNCOUNTED {
        sample.descriptors = raw.descriptors;
        sample.valid |= Validity::DESCRIPTORS;
    }
}

/// Adds the I/O of the process itself.
fn add_own_io(raw: &RawProcess, sample: &mut ProcessSample) {
    sample.own_read_bytes = raw.figures.read_bytes.saturating_sub(raw.children_read_bytes);
    sample.own_write_bytes = raw.figures.write_bytes.saturating_sub(raw.children_write_bytes);
    sample.valid |= Validity::OWN_BYTES;
    if raw.has_mixed_io == 0 {
        sample.own_read_chars = raw.figures.read_chars.saturating_sub(raw.children_read_chars);
        sample.own_write_chars = raw.figures.write_chars.saturating_sub(raw.children_write_chars);
        sample.valid |= Validity::OWN_CHARS;
    }
}

/// Converts a pid, which the kernel keeps below 2^22.
fn number(raw: u32) -> i32 {
    i32::try_from(raw).unwrap_or_default()
}

/// Returns the time after so many ticks, rounded up, so that [`ticks`] of it returns no less.
fn nanoseconds(ticks: u64, hertz: u64) -> u64 {
    let ns = (u128::from(ticks) * u128::from(NANOSECONDS)).div_ceil(u128::from(hertz.max(1)));
    ns.try_into().unwrap_or(u64::MAX)
}

fn ticks(ns: u64, hertz: u64) -> u64 {
    if hertz != 0 && NANOSECONDS.is_multiple_of(hertz) {
        // As the kernel does if its ticks are whole nanoseconds.
        return ns / (NANOSECONDS / hertz);
    }
    (u128::from(ns) * u128::from(hertz) / u128::from(NANOSECONDS)) as u64
}

/// Returns the letter of a state, as the kernel's task_state_index() finds it.
fn letter(state: u32, exit_state: u32) -> u8 {
    let mut reported = (state | exit_state) & REPORTED;
    if state & IDLE == IDLE {
        reported = REPORTED_IDLE;
    }
    if state & HIDDEN != 0 {
        reported = UNINTERRUPTIBLE;
    }
    let index = u32::BITS - reported.leading_zeros();
    LETTERS.get(index as usize).copied().unwrap_or(b'X')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn raw(told: [u64; 2], figures: [u64; 3]) -> RawProcess {
        let [user_ns, system_ns, runtime_ns] = figures;
        RawProcess {
            reported_user_ns: told[0],
            reported_system_ns: told[1],
            figures: Figures { user_ns, system_ns, runtime_ns, ..Figures::default() },
            ..RawProcess::default()
        }
    }

    fn told(told: [u64; 2], figures: [u64; 3], before: [u64; 2]) -> [u64; 2] {
        let before = CpuTimes { user_ns: before[0], system_ns: before[1] };
        let now = CpuTimes::told(&raw(told, figures), before);
        [now.user_ns, now.system_ns]
    }

    #[test]
    fn files_in_between_do_not_set_times_back() {
        let mut cpu = CpuTimes { user_ns: 51_000_000, system_ns: 59_000_000 };
        let task = Task { raw: &RawProcess::default(), name: b"", cgroups: None };
        let facts = SystemFacts { page_size: 4096, ticks_per_second: 100, descriptors_by_size: true };
        let mut stat = Stat { user_ticks: 4, system_ticks: 6, ..core(&task, cpu, &facts).stat };
        cpu.keep_up(&mut stat, 100);
        assert_eq!((stat.user_ticks, stat.system_ticks), (5, 6));
        assert_eq!((cpu.user_ns, cpu.system_ns), (51_000_000, 60_000_000));
        assert_eq!(told([0, 0], [1, 1, 112_000_000], [cpu.user_ns, cpu.system_ns]), [52_000_000, 60_000_000]);
        let mut late = Stat { user_ticks: u64::MAX, ..stat };
        cpu.keep_up(&mut late, 100);
        assert_eq!(cpu.user_ns, u64::MAX, "as far as it goes");
    }

    #[test]
    fn the_measured_time_is_divided_as_it_was_sampled() {
        assert_eq!(told([0, 0], [30, 10, 100], [0, 0]), [75, 25]);
        assert_eq!(told([0, 0], [5, 0, 100], [0, 0]), [100, 0]);
        assert_eq!(told([0, 0], [0, 5, 100], [0, 0]), [0, 100]);
        assert_eq!(told([0, 0], [0, 0, 100], [0, 0]), [100, 0], "not sampled yet: taken for user's");
        let week = 7 * 86_400 * NANOSECONDS;
        assert_eq!(told([0, 0], [64 * week, 64 * week, 128 * week], [0, 0]), [64 * week, 64 * week]);
    }

    #[test]
    fn what_the_kernel_told_before_is_not_taken_back() {
        assert_eq!(told([0, 40], [30, 10, 100], [0, 0]), [60, 40]);
        assert_eq!(told([80, 0], [30, 10, 100], [0, 0]), [80, 20]);
        assert_eq!(told([60, 40], [30, 10, 100], [0, 0]), [60, 40], "nothing has been added");
    }

    #[test]
    fn what_was_told_by_us_is_not_taken_back_either() {
        assert_eq!(told([0, 0], [10, 10, 30], [0, 20]), [10, 20]);
        assert_eq!(told([5, 0], [10, 10, 30], [20, 0]), [20, 10]);
        assert_eq!(told([15, 15], [10, 10, 30], [10, 10]), [15, 15], "the kernel's own word counts");
    }

    #[test]
    fn letters_are_those_of_the_kernel() {
        let letters = [
            (0, 0, b'R'),
            (1, 0, b'S'),
            (2, 0, b'D'),
            (0x102, 0, b'D'),
            (4, 0, b'T'),
            (8, 0, b't'),
            (0x80, 0x10, b'X'),
            (0x80, 0x20, b'Z'),
            (0x40, 0, b'P'),
            (0x402, 0, b'I'),
            (0x1000, 0, b'D'),
            (0x8000, 0, b'D'),
        ];
        for (state, exit_state, expected) in letters {
            assert_eq!(letter(state, exit_state) as char, expected as char, "{state:#x} {exit_state:#x}");
        }
    }

    #[test]
    fn times_are_told_in_ticks() {
        assert_eq!((ticks(19_999_999, 100), ticks(20_000_000, 100)), (1, 2));
        assert_eq!(ticks(u64::MAX, 100), u64::MAX / 10_000_000);
        assert_eq!((ticks(976_562, 1024), ticks(976_563, 1024), ticks(7, 0)), (0, 1, 0));
    }

    proptest! {
        #[test]
        fn times_never_go_backwards(steps in proptest::collection::vec(
            (0u64..1000, 0u64..1000, 0u64..2000, any::<bool>()), 1..50,
        )) {
            let (mut figures, mut kernels, mut ours) = ([0; 3], [0; 2], [0; 2]);
            for (user, system, runtime, is_read) in steps {
                figures = [figures[0] + user, figures[1] + system, figures[2] + runtime];
                if is_read {
                    // Another process reads `/proc`.
                    kernels = told(kernels, figures, [0, 0]);
                }
                let now = told(kernels, figures, ours);
                prop_assert!(now[0] >= ours[0] && now[1] >= ours[1], "{now:?} after {ours:?}");
                prop_assert_eq!(now[0] + now[1], figures[2]);
                ours = now;
            }
        }
    }
}
