//! Loading objects into the kernel and attaching their programs, with the reason where that fails.

use super::Fault;
use super::permission;
use crate::model::ProbeState;
use aya::programs::{
    BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSock, Iter, ProgramError,
};
use aya::{Btf, BtfError, Ebpf, EbpfLoader, VerifierLogLevel};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Where a program is to be attached.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// A tracepoint of the kernel, by its name.
    Tracepoint(&'static str),
    /// Where the IP layer hands packets to the sockets of all control groups, or takes them from these.
    Packets(CgroupSkbAttachType),
    /// Where sockets of all control groups are made or released.
    Sockets,
}

/// Type information of the running kernel.
///
/// # Errors
/// The kernel does not offer it, or it cannot be read.
pub(super) fn kernel_types() -> Result<Btf, Fault> {
    Btf::from_sys_fs().map_err(|error| fault("the kernel's type information", &error))
}

/// The topmost directory of the cgroup v2 hierarchy: wherever it is mounted, else by a mount of its own that nobody else
/// sees and that ends when the descriptor is closed, which takes CAP_SYS_ADMIN.
///
/// # Errors
/// It is not mounted, or cannot be opened.
pub(super) fn open_cgroups() -> Result<File, Fault> {
    let missing = |text: String| Fault { state: ProbeState::NoCgroup, text };
    let mounts = std::fs::read("/proc/self/mountinfo")
        .map_err(|error| missing(format!("/proc/self/mountinfo cannot be read: {error}")))?;
    match cgroup_mount(&mounts) {
        Some(path) => File::open(&path)
            .map_err(|error| missing(format!("{} cannot be opened: {error}", path.display()))),
        None => mount_cgroups().map_err(|error| {
            missing(format!("no cgroup v2 hierarchy is mounted here, and it cannot be mounted: {error}"))
        }),
    }
}

/// A mount of the cgroup v2 hierarchy that is attached nowhere: fsopen(2), fsmount(2), Linux 5.2.
fn mount_cgroups() -> io::Result<File> {
    let opened = |result: libc::c_long| match i32::try_from(result) {
        // SAFETY: the kernel has just made the descriptor for us.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: the name ends with NUL and lives for the length of the call; 1 is FSOPEN_CLOEXEC.
    let context = opened(unsafe { libc::syscall(libc::SYS_fsopen, c"cgroup2".as_ptr(), 1) })?;
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: 6 is FSCONFIG_CMD_CREATE, which takes no key and no value.
    let created = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), 6, null, null, 0) };
    if created < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no pointers are passed; 1 is FSMOUNT_CLOEXEC.
    let mount = opened(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1, 0) })?;
    // Attaching takes a descriptor that is open for reading, and not only of the path.
    File::open(format!("/proc/self/fd/{}", mount.as_raw_fd()))
}

/// The mount point of the cgroup v2 hierarchy in a mountinfo file, proc_pid_mountinfo(5).
fn cgroup_mount(mounts: &[u8]) -> Option<PathBuf> {
    mounts.split(|&byte| byte == b'\n').find_map(|line| {
        let line = std::str::from_utf8(line).ok()?;
        let (fields, of_type) = line.split_once(" - ")?;
        (of_type.split(' ').next() == Some("cgroup2"))
            .then(|| Path::new(&fields.split(' ').nth(4)?.replace("\\040", " ")).to_owned().into())
            .flatten()
    })
}

/// Takes an object into the kernel, without any of its programs.
///
/// # Errors
/// The kernel refuses it.
pub(super) fn load_object(object: &[u8], types: &Btf, adapt: impl FnOnce(&mut EbpfLoader<'_>)) -> Result<Ebpf, Fault> {
    let mut loader = EbpfLoader::new();
    // What the verifier says comes with the error that it ends in.
    loader.btf(Some(types)).allow_unsupported_maps().verifier_log_level(VerifierLogLevel::DISABLE);
    adapt(&mut loader);
    loader.load(object).map_err(|error| fault("maps", &error))
}

/// Loads a program of `object` and attaches it; its link goes with the object.
///
/// # Errors
/// The kernel refuses it.
pub(super) fn attach(object: &mut Ebpf, name: &str, place: Place, types: &Btf, cgroups: &File) -> Result<(), Fault> {
    let attached = || -> Result<(), ProgramError> {
        let program = object.program_mut(name).ok_or(ProgramError::NotLoaded)?;
        match place {
            Place::Tracepoint(tracepoint) => {
                let program: &mut BtfTracePoint = program.try_into()?;
                program.load(tracepoint, types)?;
                program.attach()?;
            }
            Place::Packets(direction) => {
                let program: &mut CgroupSkb = program.try_into()?;
                program.load()?;
                program.attach(cgroups, direction, CgroupAttachMode::Single)?;
            }
            Place::Sockets => {
                let program: &mut CgroupSock = program.try_into()?;
                program.load()?;
                program.attach(cgroups, CgroupAttachMode::Single)?;
            }
        }
        Ok(())
    };
    let mut attached = attached;
    attached().map_err(|error| fault(name, &error))
}

/// Loads an iterator and opens what it writes; every opening walks once.
///
/// # Errors
/// The kernel refuses it.
pub(super) fn load_iterator(object: &mut Ebpf, name: &str, over: &str, types: &Btf) -> Result<(), Fault> {
    let mut load = || -> Result<(), ProgramError> {
        let program: &mut Iter = object.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()?;
        program.load(over, types)
    };
    load().map_err(|error| fault(name, &error))
}

/// Opens one walk of an iterator that was loaded.
///
/// # Errors
/// What bpf(2) returns.
pub(super) fn open_iterator(object: &mut Ebpf, name: &str) -> Result<File, Fault> {
    let mut open = || -> Result<File, Box<dyn std::error::Error>> {
        let program: &mut Iter = object.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()?;
        let link = program.attach()?;
        Ok(program.take_link(link)?.into_file()?)
    };
    open().map_err(|error| fault(name, &*error))
}

/// The reason behind an error of the loader.
pub(super) fn fault(what: &str, error: &(dyn std::error::Error + 'static)) -> Fault {
    let mut text = format!("{what}: {error}");
    let mut errno = None;
    let mut no_types = false;
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        errno = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error).or(errno);
        no_types |= error.downcast_ref::<BtfError>().is_some_and(|error| matches!(error, BtfError::FileError { .. }));
        cause = error.source();
        if let Some(deeper) = cause.map(ToString::to_string).filter(|deeper| !text.contains(deeper)) {
            text = format!("{text}: {deeper}");
        }
    }
    let state = match errno {
        Some(libc::EPERM | libc::EACCES) => ProbeState::NotPermitted,
        Some(libc::ENOMEM) => ProbeState::NoMemory,
        _ if no_types => ProbeState::NoTypes,
        _ => ProbeState::NotSupported,
    };
    if state == ProbeState::NotPermitted {
        text.push_str(&permission::explanation());
    }
    Fault { state, text }
}

