//! Figures of the whole machine that those of processes are set against.

use super::parse;
use super::root::ProcRoot;
use crate::error::{Code, Error, Result};
use std::ffi::CStr;

const NANOSECONDS: u64 = 1_000_000_000;

/// The machine as `/proc/stat` and `/proc/meminfo` state it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Machine {
    /// Memory that the kernel manages (`MemTotal`), bytes.
    pub memory_bytes: u64,
    /// Nanoseconds from the epoch to boot, exact to the second. Follows when the system's clock is set.
    pub boot_time_ns: u64,
    /// CPU time of all processors since boot, idle time included, clock ticks.
    pub cpu_ticks: u64,
}

impl Machine {
    /// Reads the figures.
    ///
    /// # Errors
    /// `ProcessOpen` when a file cannot be read, `ProcessFormat` when it is not in the format.
    pub fn read(root: &ProcRoot, buffer: &mut Vec<u8>) -> Result<Machine> {
        let stat = parsed(root, c"stat", buffer, parse::machine_stat)?;
        let memory_bytes = parsed(root, c"meminfo", buffer, parse::memory_total)?;
        let boot_time_ns = stat.boot_seconds.saturating_mul(NANOSECONDS);
        Ok(Machine { memory_bytes, boot_time_ns, cpu_ticks: stat.cpu_ticks })
    }
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
    parse(text).ok_or_else(|| Error::new(Code::ProcessFormat, format!("{} is not as expected", name())))
}

/// Clock ticks in nanoseconds; `u64::MAX` when there are too many to tell.
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
        let machine = Machine::read(&root, &mut buffer).unwrap();
        // sysinfo(2) states the same memory, and the clocks the same boot.
        let pages = nix::unistd::sysconf(nix::unistd::SysconfVar::_PHYS_PAGES).unwrap().unwrap();
        assert_eq!(machine.memory_bytes, pages.unsigned_abs() * root.facts().page_size);
        let clock = |id| {
            let time = nix::time::clock_gettime(id).unwrap();
            time.tv_sec() as u64 * NANOSECONDS + time.tv_nsec() as u64
        };
        let boot = clock(nix::time::ClockId::CLOCK_REALTIME) - clock(nix::time::ClockId::CLOCK_BOOTTIME);
        assert!(boot.abs_diff(machine.boot_time_ns) < 2 * NANOSECONDS);
        assert!(Machine::read(&root, &mut buffer).unwrap().cpu_ticks >= machine.cpu_ticks);
    }

    #[test]
    fn what_is_missing_or_odd_is_named() {
        let tree = tempfile::tempdir().unwrap();
        let root = ProcRoot::open(tree.path()).unwrap();
        let error = Machine::read(&root, &mut Vec::new()).unwrap_err();
        assert_eq!(error.code, Code::ProcessOpen);
        assert!(error.text.contains("stat"), "{error}");
        std::fs::write(tree.path().join("stat"), "cpu  1 2 3 4\nbtime 17\n").unwrap();
        std::fs::write(tree.path().join("meminfo"), "MemTotal: much\n").unwrap();
        let error = Machine::read(&root, &mut Vec::new()).unwrap_err();
        assert_eq!(error.code, Code::ProcessFormat);
        assert!(error.text.contains("meminfo"), "{error}");
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
