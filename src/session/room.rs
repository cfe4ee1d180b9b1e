//! Checks that the process may have as much address space as a session can need.

use crate::config::{Engine, Options, Source};
use crate::error::{Code, Error, Result};
use crate::session::limits::FlowLimits;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};

/// Address space that glibc reserves for each thread that allocates (`HEAP_MAX_SIZE` of malloc/arena.c).
const HEAP_BYTES: u64 = 64 << 20;

/// Number of a session's threads that allocate, with engine `kernel` and with captured packets.
const THREADS: [u64; 2] = [6, 8];

/// The size of a flow in its table, and of its metrics if flows are recorded, rounded up.
const FLOW_BYTES: u64 = 160;
const COURSE_BYTES: u64 = 170;

/// Refuses to open a session that could reach a limit of the address space (`RLIMIT_AS`) later: then
/// allocating memory fails, which ends the process.
///
/// # Errors
/// Fails with `SystemResource`, whose text states the limit.
pub(super) fn check(options: &Options, limits: FlowLimits) -> Result<()> {
    let (limit, _) = getrlimit(Resource::RLIMIT_AS).unwrap_or((RLIM_INFINITY, RLIM_INFINITY));
    if limit == RLIM_INFINITY {
        return Ok(());
    }
    let (needed, taken) = (needed(options, limits), taken());
    if taken.saturating_add(needed) <= limit {
        return Ok(());
    }
    let [needed, taken, limit] = [needed, taken, limit].map(|bytes| bytes >> 20);
    Err(Error::new(
        Code::SystemResource,
        format!(
            "a session takes up to {needed} MB of address space, most of which is only reserved; the limit (RLIMIT_AS) is \
             {limit} MB, of which {taken} MB are in use"
        ),
    ))
}

fn needed(options: &Options, limits: FlowLimits) -> u64 {
    let flows = limits.held as u64;
    let captures = options.engine != Engine::Kernel && options.source != Source::None;
    let tables = if captures { flows * FLOW_BYTES } else { 0 };
    let courses = if captures && options.flows { flows * COURSE_BYTES } else { 0 };
    HEAP_BYTES * THREADS[usize::from(captures)] + tables + courses + options.packet_bytes as u64
}

/// Returns the address space of this process, proc_pid_statm(5); 0 if it cannot be read.
fn taken() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').next().and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| u64::try_from(size).ok());
    pages.saturating_mul(page.unwrap_or(4096))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_and_packets_take_more_where_packets_are_captured() {
        let usual = Options::default();
        let flows = Options { flows: true, ..Options::default() };
        let packets = Options { packet_bytes: 64 << 20, ..Options::default() };
        let kernel = Options { engine: Engine::Kernel, flows: true, ..Options::default() };
        let needed = |options: &Options| needed(options, FlowLimits::default());
        assert_eq!(needed(&usual), (512 << 20) + 160_000_000);
        assert_eq!(needed(&flows) - needed(&usual), 170_000_000);
        assert_eq!(needed(&packets) - needed(&usual), 64 << 20);
        assert_eq!(needed(&kernel), 384 << 20);
    }

    #[test]
    fn the_address_space_of_this_process_is_known() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        // Threads of other tests start and end.
        assert!(taken().abs_diff(kilobytes << 10) < 2 << 30, "{} and {kilobytes} kB", taken());
    }
}
