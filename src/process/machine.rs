//! Figures of the whole machine, to which those of processes are related.

use crate::error::{Code, Error, Result};
use crate::proc::ProcRoot;
use crate::proc::parse;
use nix::time::{ClockId, clock_gettime};
use std::ffi::CStr;

const NANOSECONDS: u64 = 1_000_000_000;

/// The machine as stated by `/proc/stat`, `/proc/meminfo` and its clocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Machine {
    /// Memory that the kernel manages (`MemTotal`), bytes.
    pub memory_bytes: u64,
    /// Nanoseconds from the epoch to boot. It changes when the system's clock is set.
    pub boot_time_ns: u64,
    /// CPU time of all processors since boot, idle time included, clock ticks; 0 if unknown.
    pub cpu_ticks: u64,
}

impl Machine {
    /// Reads the figures, and the reason if one is unknown. A container may hide these files or have replaced
    /// ones: then sysinfo(2) states the memory, and only the clocks state the boot time.
    pub fn read(root: &ProcRoot, buffer: &mut Vec<u8>) -> (Machine, Option<Error>) {
        let cpu_ticks = parsed(root, c"stat", buffer, parse::machine_ticks);
        let memory_bytes = parsed(root, c"meminfo", buffer, parse::memory_total).or_else(|error| {
            let memory = nix::sys::sysinfo::sysinfo().map_err(|_| error)?;
            Ok(memory.ram_total())
        });
        let machine = Machine {
            memory_bytes: memory_bytes.as_ref().copied().unwrap_or_default(),
            boot_time_ns: boot_time_ns().unwrap_or_default(),
            cpu_ticks: cpu_ticks.as_ref().copied().unwrap_or_default(),
        };
        (machine, cpu_ticks.err().or(memory_bytes.err()))
    }
}

/// Returns the time of boot by the realtime clock: the current difference of the clocks.
fn boot_time_ns() -> nix::Result<u64> {
    let now = |clock| -> nix::Result<u64> {
        let time = clock_gettime(clock)?;
        Ok(time.tv_sec().unsigned_abs() * NANOSECONDS + time.tv_nsec().unsigned_abs())
    };
    Ok(now(ClockId::CLOCK_REALTIME)?.saturating_sub(now(ClockId::CLOCK_BOOTTIME)?))
}

fn parsed<T>(
    root: &ProcRoot,
    path: &CStr,
    buffer: &mut Vec<u8>,
    parse: impl FnOnce(&[u8]) -> Option<T>,
) -> Result<T> {
    let name = || format!("{} of the proc filesystem", path.to_string_lossy());
    let text = root
        .read(path, buffer)
        .map_err(|errno| Error::system(Code::ProcessOpen, format_args!("reading {}", name()), errno))?;
    parse(text)
        .ok_or_else(|| Error::new(Code::ProcessFormat, format!("{} is not in the expected format", name())))
}

/// Converts clock ticks to nanoseconds; `u64::MAX` if they do not fit.
pub fn ticks_to_ns(ticks: u64, ticks_per_second: u64) -> u64 {
    let product = u128::from(ticks) * u128::from(NANOSECONDS);
    let ns = product.checked_div(u128::from(ticks_per_second)).unwrap_or_default();
    u64::try_from(ns).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_live_machine() {
        let root = ProcRoot::open(Path::new("/proc")).unwrap();
        let mut buffer = Vec::new();
        let (machine, fault) = Machine::read(&root, &mut buffer);
        assert_eq!(fault, None);
        let pages = nix::unistd::sysconf(nix::unistd::SysconfVar::_PHYS_PAGES).unwrap().unwrap();
        assert_eq!(machine.memory_bytes, pages.unsigned_abs() * root.facts().page_size);
        // The file states it in whole seconds.
        let text = std::fs::read_to_string("/proc/stat").unwrap();
        let seconds: u64 =
            text.lines().find_map(|line| line.strip_prefix("btime ")).unwrap().parse().unwrap();
        assert!((seconds * NANOSECONDS).abs_diff(machine.boot_time_ns) < 2 * NANOSECONDS);
        assert!(Machine::read(&root, &mut buffer).0.cpu_ticks >= machine.cpu_ticks);
    }

    #[test]
    fn what_is_missing_or_odd_is_named_and_the_rest_is_known() {
        let tree = tempfile::tempdir().unwrap();
        let root = ProcRoot::open(tree.path()).unwrap();
        let (live, _) = Machine::read(&ProcRoot::open(Path::new("/proc")).unwrap(), &mut Vec::new());
        let (machine, fault) = Machine::read(&root, &mut Vec::new());
        let fault = fault.unwrap();
        assert!(fault.code == Code::ProcessOpen && fault.text.contains("stat"), "{fault}");
        assert_eq!((machine.memory_bytes, machine.cpu_ticks), (live.memory_bytes, 0));
        assert!(machine.boot_time_ns.abs_diff(live.boot_time_ns) < NANOSECONDS);
        std::fs::write(tree.path().join("stat"), "cpu  1 2 3 4\nbtime 17\n").unwrap();
        std::fs::write(tree.path().join("meminfo"), "MemTotal: much\n").unwrap();
        let (machine, fault) = Machine::read(&root, &mut Vec::new());
        assert_eq!((machine.memory_bytes, machine.cpu_ticks, fault), (live.memory_bytes, 10, None));
        assert!(machine.boot_time_ns.abs_diff(live.boot_time_ns) < NANOSECONDS, "not what the file says");
    }

    #[test]
    fn ticks_are_told_in_nanoseconds() {
        assert_eq!(ticks_to_ns(0, 100), 0);
        assert_eq!(ticks_to_ns(250, 100), 2_500_000_000);
        assert_eq!(ticks_to_ns(1, 1024), 976_562);
        assert_eq!(ticks_to_ns(u64::MAX, 100), u64::MAX);
        assert_eq!(ticks_to_ns(5, 0), 0);
    }
}
