//! Loads the task eBPF programs, and reads their walks over all tasks.

use super::Fault;
use super::cgroups::{Cgroups, leave_out, namespace};
use super::given_names::{GivenNames, RENAME};
use super::load::{check_numbers, fault, load_iterator, load_object, start_walk, walk_link};
use super::object::{LoadedObject, Loader};
use super::shared::{PerProcess, Shared};
use super::task::{CgroupPaths, Figures, GivenName, RawProcess, Task, TaskSource};
use super::types::TypeCache;
use crate::model::{ProbeState, SampleSet};
use crate::thread::Context;
use aya::{Pod, include_bytes_aligned};
use hashbrown::HashMap;
use nix::errno::Errno;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use tracing::info;

/// The compiled eBPF programs.
static OBJECT: &[u8] = include_bytes_aligned!("probes/tasks.bpf.o");

/// The kind of objects that the BPF iterator walks over.
const OVER: &str = "task";

/// The kernel types that the eBPF programs need.
static TYPES: PerProcess<TypeCache> = PerProcess::new();

/// The descriptor table of the eBPF programs, the groups of figures that they report, and the cgroup
/// namespace in which paths begin if they are among the groups.
type TaskKey = (u64, u32, Option<u64>);

/// The eBPF programs of all sessions.
static PROGRAMS: PerProcess<Shared<TaskKey, TaskProgram>> = PerProcess::new();

/// The kinds of records.
const PROCESS: u32 = 1;
const THREAD: u32 = 2;
const KTHREAD_NAME: u32 = 3;

/// The groups of figures that the BPF iterator can leave out.
const GROUPS: [(SampleSet, u32); 4] =
    [(SampleSet::MEMORY, 1), (SampleSet::IO, 2), (SampleSet::DESCRIPTORS, 4), (SampleSet::CGROUP, 8)];

/// The maximum number of processors whose shares of the resident set are added up.
const MAX_PROCESSORS: u32 = 512;

/// The size of the buffer in bytes. The kernel returns eight pages of 4 KiB in one read, and the buffer holds
/// at least as much.
const READ_BYTES: usize = 64 * 1024;

/// The flag of a kernel thread (`PF_KTHREAD`, include/linux/sched.h).
const KERNEL_THREAD: u32 = 0x0020_0000;

/// A thread other than the main one.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct RawThread {
    kind: u32,
    pid: u32,
    sequence: u32,
    ended: u32,
    figures: Figures,
}

/// The name of a kernel thread.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct RawName {
    kind: u32,
    busy: u32,
    name: [u8; 64],
    work: [u8; 32],
}

// SAFETY: each type consists of integers, with no padding but named fields, so that every bit pattern is a
// value.
unsafe impl Pod for RawProcess {}
// SAFETY: as above.
unsafe impl Pod for RawThread {}
// SAFETY: as above.
unsafe impl Pod for RawName {}

const _: () =
    assert!(size_of::<RawProcess>() == 256 && size_of::<RawThread>() == 88 && size_of::<RawName>() == 104);

/// The sum over the threads of one process except the main one.
#[derive(Clone, Copy, Debug)]
struct Sum {
    figures: Figures,
    threads: u32,
    sequence: u32,
    torn: bool,
}

/// The loaded task eBPF programs. Dropping them unloads them.
struct TaskProgram {
    object: LoadedObject,
    cgroups: Option<Cgroups>,
    /// The names that processes were given, if the kernel accepts the eBPF program that records them.
    names: Option<GivenNames>,
}

impl TaskProgram {
    fn load(groups: u32, has_paths: bool) -> Result<TaskProgram, Fault> {
        let types = TYPES.get().get(OBJECT, [OVER, RENAME])?;
        let processors = processors()?;
        let mut loader = Loader::new(OBJECT);
        loader.set_global("groups", &groups).set_global("processors", &processors);
        if !has_paths {
            leave_out(&mut loader);
        }
        let mut object = load_object(loader, &types)?;
        load_iterator(&mut object, "capture_tasks", OVER, &types)?;
        let cgroups = has_paths.then(|| Cgroups::of(&mut object)).flatten();
        let names = GivenNames::attach(&mut object, &types)
            .inspect_err(|fault| info!("name changes between samples are not recorded: {fault}"))
            .ok();
        Ok(TaskProgram { object, cgroups, names })
    }
}

/// Walks over all tasks, for one session.
pub struct Tasks {
    program: Arc<TaskProgram>,
    link: OwnedFd,
    buffer: Vec<u8>,
    sums: HashMap<u32, Sum>,
    /// Processes with several threads, until the walk has reached all of these threads.
    held: Vec<RawProcess>,
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks").field("link", &self.link).finish_non_exhaustive()
    }
}

impl Tasks {
    /// Loads the eBPF programs for the groups of figures in `what`, unless another session has done so, and
    /// makes a first walk.
    ///
    /// # Errors
    /// Fails with the reason why they cannot work here.
    pub fn load(what: SampleSet) -> Result<Tasks, Fault> {
        check_numbers()?;
        let groups = GROUPS.iter().filter(|(set, _)| what.has(*set)).fold(0u32, |bits, (_, bit)| bits | bit);
        let has_paths = what.has(SampleSet::CGROUP);
        let key = (Context::table(), groups, has_paths.then(namespace).flatten());
        let program = PROGRAMS.get().get(key, || TaskProgram::load(groups, has_paths))?;
        let link = walk_link(&program.object, "capture_tasks", None)?;
        let mut tasks =
            Tasks { program, link, buffer: vec![0; READ_BYTES], sums: HashMap::new(), held: Vec::new() };
        tasks.check()?;
        tasks.program.cgroups.as_ref().map(Cgroups::keep_root);
        Ok(tasks)
    }

    /// Checks that a walk reports this process with its address space.
    fn check(&mut self) -> Result<(), Fault> {
        let (me, mut found) = (std::process::id(), false);
        self.walk(&mut |task| found |= task.raw.pid == me && task.raw.virtual_pages > 0)?;
        let text = "the BPF iterator over all tasks does not report this process".into();
        if found { Ok(()) } else { Err(Fault { state: ProbeState::NotSupported, text }) }
    }

    /// Processes one record. Returns its length, including the name that follows it.
    fn take(&mut self, start: usize, end: usize, each: &mut dyn FnMut(&Task<'_>)) -> Option<usize> {
        let bytes = self.buffer.get(start..end)?;
        let cgroups = paths(&self.program.cgroups);
        match u32::from_ne_bytes(*bytes.first_chunk()?) {
            PROCESS => {
                let process: RawProcess = read(bytes)?;
                if process.flags & KERNEL_THREAD != 0 {
                    let name: RawName = read(bytes.get(size_of::<RawProcess>()..)?)?;
                    let mut text = [0; 64];
                    let name = kernel_name(&name, &mut text);
                    each(&Task { raw: &process, name, cgroups });
                    return Some(size_of::<RawProcess>() + size_of::<RawName>());
                }
                if process.threads > 1 {
                    self.held.push(process);
                } else {
                    each(&Task { raw: &process, name: until_nul(&process.name), cgroups });
                }
                Some(size_of::<RawProcess>())
            }
            THREAD => {
                let thread: RawThread = read(bytes)?;
                self.add(&thread);
                Some(size_of::<RawThread>())
            }
            _ => None,
        }
    }

    fn add(&mut self, thread: &RawThread) {
        let blank = Sum { figures: Figures::default(), threads: 0, sequence: thread.sequence, torn: false };
        let sum = self.sums.entry(thread.pid).or_insert(blank);
        sum.figures.add(&thread.figures);
        sum.threads += 1;
        sum.torn |= thread.ended != 0 || thread.sequence != sum.sequence;
    }

    /// Reports the processes with several threads.
    fn report_held(&mut self, each: &mut dyn FnMut(&Task<'_>)) {
        let cgroups = paths(&self.program.cgroups);
        for process in &mut self.held {
            match self.sums.get(&process.pid) {
                // An ended thread changes the sequence, and a new one the number of threads.
                Some(sum)
                    if sum.threads == process.threads - 1
                        && sum.sequence == process.sequence
                        && !sum.torn =>
                {
                    process.figures.add(&sum.figures);
                }
                _ => process.torn = 1,
            }
            each(&Task { raw: process, name: until_nul(&process.name), cgroups });
        }
    }
}

impl TaskSource for Tasks {
    fn walk(&mut self, each: &mut dyn FnMut(&Task<'_>)) -> Result<(), Fault> {
        self.sums.clear();
        self.held.clear();
        let walk = start_walk(self.link.as_fd()).map_err(|errno| broken("opening", errno))?;
        let mut filled = 0;
        loop {
            let room = self.buffer.get_mut(filled..).unwrap_or_default();
            match nix::unistd::read(&walk, room) {
                Ok(0) => break,
                Ok(count) => filled += count,
                // The kernel pauses a walk that is long and has no output.
                Err(Errno::EINTR | Errno::EAGAIN) => continue,
                Err(errno) => return Err(broken("reading", errno)),
            }
            let mut start = 0;
            while let Some(length) = self.take(start, filled, each) {
                start += length;
            }
            if start == 0 {
                return Err(broken("parsing", Errno::EBADMSG));
            }
            self.buffer.copy_within(start..filled, 0);
            filled -= start;
        }
        self.report_held(each);
        Ok(())
    }

    fn given_name(&self, pid: u32) -> Option<GivenName> {
        self.program.names.as_ref()?.last(pid)
    }
}

fn broken(doing: &str, errno: Errno) -> Fault {
    fault(&format!("{doing} the BPF iterator over all tasks"), &std::io::Error::from(errno))
}

/// Returns the number of possible processors, for which the kernel keeps counters.
fn processors() -> Result<u32, Fault> {
    let count = aya::util::nr_cpus().map_err(|(file, error)| fault(file, &error))?;
    let text = || format!("{count} processors are possible; at most {MAX_PROCESSORS} are supported");
    u32::try_from(count)
        .ok()
        .filter(|&count| count <= MAX_PROCESSORS)
        .ok_or_else(|| Fault { state: ProbeState::NotSupported, text: text() })
}

fn paths(cgroups: &Option<Cgroups>) -> Option<&dyn CgroupPaths> {
    cgroups.as_ref().filter(|cgroups| cgroups.keep_root().is_some()).map(|cgroups| cgroups as _)
}

/// Reads the value at the start of `bytes`.
fn read<T: Pod>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: the slice is as long as the type, every bit pattern of the type is a value, and the read
    // requires no alignment.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Returns the bytes before the first NUL.
fn until_nul(text: &[u8]) -> &[u8] {
    text.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Returns the name of a kernel thread as proc_task_name() and wq_worker_comm() of the kernel compose it: at
/// most 63 bytes.
fn kernel_name<'t>(raw: &RawName, text: &'t mut [u8; 64]) -> &'t [u8] {
    debug_assert_eq!(raw.kind, KTHREAD_NAME);
    let (name, work) = (until_nul(&raw.name), until_nul(&raw.work));
    let mark: &[u8] = match (work, raw.busy) {
        (b"", _) => b"",
        (_, 0) => b"-",
        _ => b"+",
    };
    let mut length = 0;
    let bytes = name.iter().chain(mark).chain(work);
    for (to, &from) in text.iter_mut().take(63).zip(bytes) {
        *to = from;
        length += 1;
    }
    text.get(..length).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_kernel_threads_are_put_together() {
        let name = |name: &[u8], work: &[u8], busy| {
            let mut raw = RawName { kind: KTHREAD_NAME, busy, name: [0; 64], work: [0; 32] };
            raw.name[..name.len()].copy_from_slice(name);
            raw.work[..work.len()].copy_from_slice(work);
            kernel_name(&raw, &mut [0; 64]).to_vec()
        };
        assert_eq!(name(b"kthreadd", b"", 0), b"kthreadd");
        assert_eq!(name(b"kworker/0:1", b"events", 0), b"kworker/0:1-events");
        assert_eq!(name(b"kworker/0:1", b"events", 1), b"kworker/0:1+events");
        assert_eq!(name(&[b'x'; 50], &[b'y'; 32], 0), [&[b'x'; 50][..], b"-", &[b'y'; 12]].concat());
    }
}
