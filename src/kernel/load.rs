//! Loads objects into the kernel, attaches their eBPF programs, and reports the reason of a failure.

use super::object::{LoadedObject, Loader};
use super::program::Refused;
use super::syscall::{ITERATOR_CREATE, LINK_CREATE, PROGRAM_QUERY, TRACEPOINT_OPEN, bpf, make};
use super::types::KernelTypes;
use super::{Fault, permission};
use crate::error::exhausted;
use crate::model::ProbeState;
use aya::maps::MapData;
use aya_obj::generated::bpf_attach_type;
use aya_obj::programs::{CgroupSkbAttachType, CgroupSockAttachType};
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The attach point of an eBPF program.
#[derive(Clone, Copy, Debug)]
pub(super) enum AttachPoint {
    /// A tracepoint or a function of the kernel, by its name.
    Code(&'static str),
    /// The point at which the IP layer passes packets to, or takes them from, the sockets of all control
    /// groups.
    Packets(CgroupSkbAttachType),
    /// The point at which sockets of all control groups are created or released.
    Sockets(CgroupSockAttachType),
}

impl AttachPoint {
    /// Returns the name of the attach point in the kernel's code, if it is there.
    pub(super) fn point(self) -> Option<&'static str> {
        match self {
            AttachPoint::Code(name) => Some(name),
            AttachPoint::Packets(_) | AttachPoint::Sockets(_) => None,
        }
    }

    /// Attaches an eBPF program that was loaded for this attach point. Closing the result detaches it.
    fn link(self, program: BorrowedFd<'_>, cgroups: &File) -> io::Result<OwnedFd> {
        let kind = match self {
            AttachPoint::Code(_) => return link_to_code(program),
            AttachPoint::Packets(direction) => direction.into(),
            AttachPoint::Sockets(moment) => moment.into(),
        };
        let target = cgroups.as_raw_fd().unsigned_abs();
        let attributes = LinkAttr { target, ..LinkAttr::of(program, kind) };
        // SAFETY: the attributes contain no pointer.
        Ok(unsafe { make(LINK_CREATE, &attributes) }?)
    }

    /// Returns the error of attaching an eBPF program here, with its cause if that is another eBPF program.
    fn explain(self, error: io::Error, cgroups: &File) -> Box<dyn std::error::Error> {
        let kind: Option<bpf_attach_type> = match self {
            AttachPoint::Code(_) => None,
            AttachPoint::Packets(direction) => Some(direction.into()),
            AttachPoint::Sockets(moment) => Some(moment.into()),
        };
        let is_refused = error.raw_os_error() == Some(libc::EPERM);
        match kind.filter(|_| is_refused).and_then(|kind| exclusive_program(cgroups, kind)) {
            Some(number) => Box::new(Exclusive { number, source: error }),
            None => error.into(),
        }
    }
}

/// Attaches an eBPF program to the point in the kernel's code that it was loaded for. Closing the result
/// detaches it.
fn link_to_code(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// The part of `union bpf_attr` that this command takes.
    #[repr(C)]
    struct TracepointAttr {
        name: u64,
        program: u32,
        padding: u32,
    }
    let point = TracepointAttr { name: 0, program: program.as_raw_fd().unsigned_abs(), padding: 0 };
    // SAFETY: the attributes contain no pointer; the eBPF program has its attach point from its load.
    Ok(unsafe { make(TRACEPOINT_OPEN, &point) }?)
}

/// Returns the number of an eBPF program that allows no other at the root of the control groups (bpf(2),
/// BPF_PROG_QUERY).
fn exclusive_program(cgroups: &File, kind: bpf_attach_type) -> Option<u32> {
    /// The layout in `union bpf_attr`.
    #[repr(C)]
    struct QueryAttr {
        target: u32,
        kind: u32,
        flags: u32,
        attach_flags: u32,
        numbers: u64,
        count: u32,
        padding: u32,
    }
    /// BPF_F_ALLOW_MULTI.
    const ALLOWS_OTHERS: u32 = 2;
    let mut number = 0u32;
    let query = QueryAttr {
        target: cgroups.as_raw_fd().unsigned_abs(),
        kind: kind as u32,
        flags: 0,
        attach_flags: 0,
        numbers: (&raw mut number).addr() as u64,
        count: 1,
        padding: 0,
    };
    let query = std::cell::UnsafeCell::new(query);
    // SAFETY: the kernel writes at most one number to the address in `numbers`, and into the query itself,
    // which has no other reference.
    unsafe { bpf(PROGRAM_QUERY, &query) }.ok()?;
    let QueryAttr { attach_flags, count, .. } = query.into_inner();
    (count > 0 && attach_flags & ALLOWS_OTHERS == 0).then_some(number)
}

/// The error of an attach point where another eBPF program allows no other one.
#[derive(Debug)]
struct Exclusive {
    number: u32,
    source: io::Error,
}

impl fmt::Display for Exclusive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.number;
        write!(f, "eBPF program {number} is attached to the cgroup root and allows no other one")
    }
}

impl std::error::Error for Exclusive {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Loads an object into the kernel, without any of its eBPF programs.
///
/// # Errors
/// Fails if the kernel rejects it.
pub(super) fn load_object(loader: Loader<'_>, types: &KernelTypes) -> Result<LoadedObject, Fault> {
    // aya detects the kernel's features once for the process and mistakes a refusal for a missing feature.
    // Therefore the detection must not run while bpf(2) is not permitted.
    permission::try_out().map_err(|error| fault("bpf(2)", &error))?;
    loader.load(types).map_err(|error| fault("maps", &*error))
}

/// Loads an eBPF program of `object` and attaches it. The object keeps its link.
///
/// # Errors
/// Fails if the kernel rejects it.
pub(super) fn attach(
    object: &mut LoadedObject,
    name: &str,
    place: AttachPoint,
    types: &KernelTypes,
    cgroups: &File,
) -> Result<(), Fault> {
    let mut attach = || -> Result<(), Box<dyn std::error::Error>> {
        object.load_program(name, place.point(), types)?;
        if let Some(program) = object.program(name) {
            let link = place.link(program, cgroups).map_err(|error| place.explain(error, cgroups))?;
            object.keep(name, link);
        }
        Ok(())
    };
    attach().map_err(|error| fault(name, &*error))
}

/// Loads an eBPF program of `object` and attaches it to a tracepoint. The object keeps its link.
///
/// # Errors
/// Fails if the kernel rejects it.
pub(super) fn attach_to_tracepoint(
    object: &mut LoadedObject,
    name: &str,
    point: &str,
    types: &KernelTypes,
) -> Result<(), Fault> {
    object.load_program(name, Some(point), types).map_err(|error| fault(name, &*error))?;
    if let Some(program) = object.program(name) {
        let link = link_to_code(program).map_err(|error| fault(name, &error))?;
        object.keep(name, link);
    }
    Ok(())
}

/// Loads a BPF iterator.
///
/// # Errors
/// Fails if the kernel rejects it.
pub(super) fn load_iterator(
    object: &mut LoadedObject,
    name: &str,
    over: &str,
    types: &KernelTypes,
) -> Result<(), Fault> {
    object.load_program(name, Some(over), types).map_err(|error| fault(name, &*error))
}

/// Returns a link to a loaded BPF iterator. Any number of walks can be started through it: over all objects,
/// or over the entries of a map.
///
/// # Errors
/// Fails with the error of bpf(2).
pub(super) fn walk_link(object: &LoadedObject, name: &str, map: Option<&MapData>) -> Result<OwnedFd, Fault> {
    let program = object.program(name).ok_or_else(|| Fault {
        state: ProbeState::NotSupported,
        text: format!("{name}: the eBPF program is not loaded"),
    })?;
    // The beginning of `union bpf_iter_link_info`.
    let over = map.map(|map| map.fd().as_fd().as_raw_fd());
    let mut attributes = LinkAttr::of(program, bpf_attach_type::BPF_TRACE_ITER);
    if let Some(over) = &over {
        (attributes.over, attributes.over_length) =
            (std::ptr::from_ref(over) as u64, size_of_val(over) as u32);
    }
    // SAFETY: the target of the pointer lives until the end of this function.
    unsafe { make(LINK_CREATE, &attributes) }.map_err(|errno| fault(name, &io::Error::from(errno)))
}

/// Starts a walk. The walk proceeds as the caller reads from the result.
///
/// # Errors
/// Fails with the system's error number.
pub(super) fn start_walk(link: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let attributes = LinkAttr { descriptor: link.as_raw_fd().unsigned_abs(), ..LinkAttr::default() };
    // SAFETY: the attributes contain no pointer.
    unsafe { make(ITERATOR_CREATE, &attributes) }
}

/// Walks to the end with a BPF iterator that writes nothing.
///
/// # Errors
/// Fails with the error of bpf(2) or read(2).
pub(super) fn walk(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut objects = File::from(start_walk(link)?);
    loop {
        // Because nothing is written, a read proceeds to the end, or to the kernel's limit of a million
        // objects.
        match objects.read(&mut [0; 64]) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            result => return result.map(drop),
        }
    }
}

/// The part of `union bpf_attr` that the creation of links and walks takes.
#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    descriptor: u32,
    target: u32,
    kind: u32,
    flags: u32,
    over: u64,
    over_length: u32,
    padding: u32,
}

impl LinkAttr {
    fn of(program: BorrowedFd<'_>, kind: bpf_attach_type) -> LinkAttr {
        let descriptor = program.as_raw_fd().unsigned_abs();
        LinkAttr { descriptor, kind: kind as u32, ..LinkAttr::default() }
    }
}

/// Checks that the process numbers and start times that eBPF programs report are those of `/proc` here.
///
/// # Errors
/// Fails if they are not.
pub(super) fn check_numbers() -> Result<(), Fault> {
    // The first namespaces have these inode numbers in every kernel that supports such namespaces
    // (include/linux/proc_ns.h).
    let first = |path: &str, name: &str| std::fs::read_link(path).map(|link| link.as_os_str() == name);
    let text = if !first("/proc/self/ns/pid", "pid:[4026531836]").unwrap_or(false) {
        "the eBPF programs report processes by the pids of the initial PID namespace, which is not this one's"
    } else if !first("/proc/self/ns/time", "time:[4026531834]").unwrap_or(true) {
        "the eBPF programs report times since boot, which this time namespace has shifted"
    } else {
        return Ok(());
    };
    Err(Fault { state: ProbeState::PidNamespace, text: text.into() })
}

/// Returns the reason behind an error of the loader.
pub(super) fn fault(what: &str, error: &(dyn std::error::Error + 'static)) -> Fault {
    let mut text = what.to_owned();
    let (mut errno, mut is_refused, mut is_explained) = (None, false, false);
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        errno = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error).or(errno);
        let refusal = error.downcast_ref().map(refusal);
        is_refused |= refusal.is_some();
        is_explained |= error.is::<Exclusive>();
        let words = refusal.unwrap_or_else(|| error.to_string());
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    let obstacle = permission::obstacle();
    let state = state_of(errno, is_refused, obstacle.is_some());
    if state == ProbeState::NotPermitted && !is_explained {
        let otherwise = "the required capabilities are held; a filter of system calls, a security module, a user \
                         namespace or, before Linux 5.11, RLIMIT_MEMLOCK may prevent it";
        text = format!("{text}; {}", obstacle.as_deref().unwrap_or(otherwise));
    }
    if let Some(limit) = errno.and_then(exhausted) {
        text = format!("{text}; {limit}");
    }
    Fault { state, text }
}

/// Returns the state that an error of bpf(2) leads to. `is_refused` is set if the verifier returned the
/// error, and `has_obstacle` if an obstacle to the load is known.
fn state_of(errno: Option<i32>, is_refused: bool, has_obstacle: bool) -> ProbeState {
    match errno {
        Some(libc::ENOMEM) => ProbeState::NoMemory,
        Some(libc::EMFILE | libc::ENFILE) => ProbeState::NoDescriptor,
        // The error does not always say that a permission is missing: helpers that require a capability do
        // not exist for the verifier without it.
        _ if has_obstacle => ProbeState::NotPermitted,
        Some(libc::EPERM) => ProbeState::NotPermitted,
        // EACCES from the verifier means that the eBPF program does something that no eBPF program may do.
        Some(libc::EACCES) if !is_refused => ProbeState::NotPermitted,
        _ => ProbeState::NotSupported,
    }
}

/// Returns the kernel's reason for rejecting an eBPF program.
fn refusal(error: &Refused) -> String {
    // With another error, such as a missing resource, the verifier has no objection to the eBPF program.
    let is_judged =
        matches!(error.source.raw_os_error(), Some(libc::EACCES | libc::EINVAL | libc::EPERM | libc::E2BIG));
    let reason = last_word(&error.log).filter(|_| is_judged).map(|line| format!(": {line}"));
    format!("{error}: {}{}", error.source, reason.unwrap_or_default())
}

/// Returns the line of the verifier's log that names the reason: the last one before the statistics.
fn last_word(log: &str) -> Option<&str> {
    log.lines().rev().map(str::trim).find(|line| !line.is_empty() && !line.starts_with("processed "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_verifiers_last_word() {
        let log = "0: R1=ctx()\nunknown func f#7\nprocessed 1 insns (limit 1000000)\n\n";
        assert_eq!(last_word(log), Some("unknown func f#7"));
        assert_eq!(last_word("\n"), None);
    }

    /// Requires root, and a cgroup v2 hierarchy in which a group can be made.
    #[test]
    fn a_program_that_allows_no_other_is_named() {
        const ATTACH: libc::c_long = 8;
        const DETACH: libc::c_long = 9;
        const CGROUP_SKB: u32 = 8;
        let mounts = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(std::path::Path::new);
        let is_v2 = |path: &&std::path::Path| path.join("cgroup.subtree_control").exists();
        let name = format!("capture-load-{}", std::process::id());
        let made = mounts.into_iter().find(is_v2).map(|path| path.join(name));
        let Some(folder) = made.filter(|folder| std::fs::create_dir(folder).is_ok()) else {
            return capture_test_support::requirements::left_out("no control group can be made");
        };
        let group = File::open(&folder).unwrap();
        let kind = bpf_attach_type::BPF_CGROUP_INET_INGRESS;
        assert_eq!(exclusive_program(&group, kind), None);
        for (flags, is_exclusive) in [(2u32, false), (0, true)] {
            let program = permission::load_empty(CGROUP_SKB).unwrap();
            let [target, program_word] = [group.as_raw_fd(), program.as_raw_fd()].map(i32::unsigned_abs);
            let attach = [target, program_word, kind as u32, flags];
            // SAFETY: the attributes contain only numbers.
            unsafe { bpf(ATTACH, &attach) }.unwrap();
            assert_eq!(exclusive_program(&group, kind).is_some(), is_exclusive);
            let detach = [target, program_word, kind as u32, 0];
            // SAFETY: as above.
            unsafe { bpf(DETACH, &detach) }.unwrap();
        }
        std::fs::remove_dir(folder).unwrap();
        let source = io::Error::from_raw_os_error(libc::EPERM);
        let text = fault("capture_ingress", &Exclusive { number: 7, source }).text;
        assert!(text.contains("program 7 is attached") && !text.contains("security module"), "{text}");
    }

    #[test]
    fn the_state_follows_from_the_error() {
        for (errno, is_refused, has_obstacle, state) in [
            (Some(libc::ENOMEM), true, true, ProbeState::NoMemory),
            (Some(libc::EMFILE), false, true, ProbeState::NoDescriptor),
            (Some(libc::EPERM), false, false, ProbeState::NotPermitted),
            (Some(libc::EACCES), false, false, ProbeState::NotPermitted),
            (Some(libc::EACCES), true, false, ProbeState::NotSupported),
            (Some(libc::EINVAL), true, true, ProbeState::NotPermitted),
            (Some(libc::EINVAL), true, false, ProbeState::NotSupported),
            (Some(libc::ENOSYS), false, false, ProbeState::NotSupported),
            (None, false, false, ProbeState::NotSupported),
        ] {
            assert_eq!(state_of(errno, is_refused, has_obstacle), state, "{errno:?}");
        }
    }
}
