//! Loading objects into the kernel and attaching their programs, with the reason where that fails.

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

/// Where a program is to be attached.
#[derive(Clone, Copy, Debug)]
pub(super) enum AttachPoint {
    /// A tracepoint or a function of the kernel, by its name.
    Code(&'static str),
    /// Where the IP layer hands packets to the sockets of all control groups, or takes them from these.
    Packets(CgroupSkbAttachType),
    /// Where sockets of all control groups are made or released.
    Sockets(CgroupSockAttachType),
}

impl AttachPoint {
    /// The name of the attach point in the kernel's code, if it is one.
    pub(super) fn point(self) -> Option<&'static str> {
        match self {
            AttachPoint::Code(name) => Some(name),
            AttachPoint::Packets(_) | AttachPoint::Sockets(_) => None,
        }
    }

    /// Attaches a program that was loaded for this place. Closing the result detaches it.
    fn link(self, program: BorrowedFd<'_>, cgroups: &File) -> io::Result<OwnedFd> {
        let kind = match self {
            AttachPoint::Code(_) => return link_to_code(program),
            AttachPoint::Packets(direction) => direction.into(),
            AttachPoint::Sockets(moment) => moment.into(),
        };
        let target = cgroups.as_raw_fd().unsigned_abs();
        let attributes = LinkAttr { target, ..LinkAttr::of(program, kind) };
        // SAFETY: no pointer is among the attributes.
        Ok(unsafe { make(LINK_CREATE, &attributes) }?)
    }

    /// The error of attaching a program here, with its cause if that is another program.
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

/// Attaches a program to the point in the kernel's code that it was loaded for. Closing the result detaches it.
fn link_to_code(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// The part of `union bpf_attr` that this takes.
    #[repr(C)]
    struct TracepointAttr {
        name: u64,
        program: u32,
        padding: u32,
    }
    let point = TracepointAttr { name: 0, program: program.as_raw_fd().unsigned_abs(), padding: 0 };
    // SAFETY: the attributes hold no pointer; the program knows its attach point.
    Ok(unsafe { make(TRACEPOINT_OPEN, &point) }?)
}

/// Returns the number of a program that allows no other at the root of the control groups, bpf(2), BPF_PROG_QUERY.
fn exclusive_program(cgroups: &File, kind: bpf_attach_type) -> Option<u32> {
    /// As in `union bpf_attr`.
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
    // SAFETY: the kernel writes at most one number where `numbers` says, and into the query itself, which nothing refers to.
    unsafe { bpf(PROGRAM_QUERY, &query) }.ok()?;
    let QueryAttr { attach_flags, count, .. } = query.into_inner();
    (count > 0 && attach_flags & ALLOWS_OTHERS == 0).then_some(number)
}

/// Another program keeps the place for itself.
#[derive(Debug)]
struct Exclusive {
    number: u32,
    source: io::Error,
}

impl fmt::Display for Exclusive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.number;
        write!(f, "program {number} is attached to the root of the control groups and allows no other one")
    }
}

impl std::error::Error for Exclusive {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Takes an object into the kernel, without any of its programs.
///
/// # Errors
/// The kernel refuses it.
pub(super) fn load_object(loader: Loader<'_>, types: &KernelTypes) -> Result<LoadedObject, Fault> {
    // aya detects the kernel's features once for the process and takes a refusal for a missing feature: this must not
    // happen while bpf(2) is not permitted.
    permission::try_out().map_err(|error| fault("bpf(2)", &error))?;
    loader.load(types).map_err(|error| fault("maps", &*error))
}

/// Loads a program of `object` and attaches it; its link goes with the object.
///
/// # Errors
/// The kernel refuses it.
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

/// Loads a program of `object` and attaches it to a tracepoint; its link goes with the object.
///
/// # Errors
/// The kernel refuses it.
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

/// Loads an iterator.
///
/// # Errors
/// The kernel refuses it.
pub(super) fn load_iterator(
    object: &mut LoadedObject,
    name: &str,
    over: &str,
    types: &KernelTypes,
) -> Result<(), Fault> {
    object.load_program(name, Some(over), types).map_err(|error| fault(name, &*error))
}

/// A link to an iterator that was loaded, through which any number of walks can be started: over all that there is, or
/// over the entries of a map.
///
/// # Errors
/// What bpf(2) returns.
pub(super) fn walk_link(object: &LoadedObject, name: &str, map: Option<&MapData>) -> Result<OwnedFd, Fault> {
    let program = object.program(name).ok_or_else(|| Fault {
        state: ProbeState::NotSupported,
        text: format!("{name}: the program is not loaded"),
    })?;
    // The beginning of union bpf_iter_link_info.
    let over = map.map(|map| map.fd().as_fd().as_raw_fd());
    let mut attributes = LinkAttr::of(program, bpf_attach_type::BPF_TRACE_ITER);
    if let Some(over) = &over {
        (attributes.over, attributes.over_length) =
            (std::ptr::from_ref(over) as u64, size_of_val(over) as u32);
    }
    // SAFETY: what is pointed at lives until the end of this function.
    unsafe { make(LINK_CREATE, &attributes) }.map_err(|errno| fault(name, &io::Error::from(errno)))
}

/// Starts a walk, which what is returned is read for.
///
/// # Errors
/// The system's error number.
pub(super) fn start_walk(link: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let attributes = LinkAttr { descriptor: link.as_raw_fd().unsigned_abs(), ..LinkAttr::default() };
    // SAFETY: no pointer is among the attributes.
    unsafe { make(ITERATOR_CREATE, &attributes) }
}

/// Walks to the end with a program that writes nothing.
///
/// # Errors
/// What opening the walk or read(2) returns.
pub(super) fn walk(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut objects = File::from(start_walk(link)?);
    loop {
        // As nothing is written, a read gets to the end, or as far as one may go: a million objects.
        match objects.read(&mut [0; 64]) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            result => return result.map(drop),
        }
    }
}

/// The part of `union bpf_attr` that making links and walks takes.
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

/// Whether the numbers that the kernel's programs tell, of processes and of their starts, are those of `/proc` here.
///
/// # Errors
/// They are not.
pub(super) fn check_numbers() -> Result<(), Fault> {
    // The first namespaces have these inode numbers in every kernel that has such (include/linux/proc_ns.h).
    let first = |path: &str, name: &str| std::fs::read_link(path).map(|link| link.as_os_str() == name);
    let text = if !first("/proc/self/ns/pid", "pid:[4026531836]").unwrap_or(false) {
        "the probes tell of processes by the numbers of the first PID namespace, which is not this one's"
    } else if !first("/proc/self/ns/time", "time:[4026531834]").unwrap_or(true) {
        "the probes tell times since boot, which this time namespace has shifted"
    } else {
        return Ok(());
    };
    Err(Fault { state: ProbeState::PidNamespace, text: text.into() })
}

/// The reason behind an error of the loader.
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
        let otherwise = "the capabilities that this needs are there; a filter of system calls, a security module, a user \
                         namespace or, before Linux 5.11, RLIMIT_MEMLOCK may forbid it";
        text = format!("{text}; {}", obstacle.as_deref().unwrap_or(otherwise));
    }
    if let Some(limit) = errno.and_then(exhausted) {
        text = format!("{text}; {limit}");
    }
    Fault { state, text }
}

/// What an error of bpf(2) comes down to; `is_refused` when the verifier returned it, `has_obstacle` when something is
/// known to stand in the way.
fn state_of(errno: Option<i32>, is_refused: bool, has_obstacle: bool) -> ProbeState {
    match errno {
        Some(libc::ENOMEM) => ProbeState::NoMemory,
        Some(libc::EMFILE | libc::ENFILE) => ProbeState::NoDescriptor,
        // What is not permitted is not always said to be: helpers that take a capability are not known without it.
        _ if has_obstacle => ProbeState::NotPermitted,
        Some(libc::EPERM) => ProbeState::NotPermitted,
        // From the verifier it means that the program does what no program may.
        Some(libc::EACCES) if !is_refused => ProbeState::NotPermitted,
        _ => ProbeState::NotSupported,
    }
}

/// What the kernel says of a program that it refuses.
fn refusal(error: &Refused) -> String {
    // Without a resource the verifier has nothing against the program.
    let is_judged =
        matches!(error.source.raw_os_error(), Some(libc::EACCES | libc::EINVAL | libc::EPERM | libc::E2BIG));
    let reason = last_word(&error.log).filter(|_| is_judged).map(|line| format!(": {line}"));
    format!("{error}: {}{}", error.source, reason.unwrap_or_default())
}

/// The line of the verifier's log that names the reason: the last but the statistics.
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

    /// Needs root, and a cgroup v2 hierarchy in which a group can be made.
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
            assert!(std::env::var_os("CAPTURE_REQUIRE_ALL").is_none(), "no control group can be made");
            return;
        };
        let group = File::open(&folder).unwrap();
        let kind = bpf_attach_type::BPF_CGROUP_INET_INGRESS;
        assert_eq!(exclusive_program(&group, kind), None);
        for (flags, is_exclusive) in [(2u32, false), (0, true)] {
            let program = permission::load_empty(CGROUP_SKB).unwrap();
            let [target, program_word] = [group.as_raw_fd(), program.as_raw_fd()].map(i32::unsigned_abs);
            let attach = [target, program_word, kind as u32, flags];
            // SAFETY: the attributes hold numbers only.
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
