//! The data of one process: its identity, one sample of its figures, and the record that is delivered.

use super::bits::bit_set;
use super::connection::Connections;
use super::proc_id::ProcId;
use super::traffic::Traffic;
use std::sync::Arc;

bit_set! {
    /// The groups of figures that are read for every process. Identity, state, threads, CPU time, page faults
    /// and start time come from the one read that is always made.
    SampleSet {
        /// Resident and virtual memory (`/proc/<pid>/statm`).
        MEMORY = 1;
        /// Bytes read and written (`/proc/<pid>/io`).
        IO = 2;
        /// Open descriptors (`/proc/<pid>/fd`).
        DESCRIPTORS = 4;
        /// The command line (`/proc/<pid>/cmdline`).
        COMMAND_LINE = 8;
        /// Context switches (`/proc/<pid>/status`).
        SWITCHES = 16;
        /// The control group (`/proc/<pid>/cgroup`).
        CGROUP = 32;
        /// The proportional share of resident memory (`/proc/<pid>/smaps_rollup`).
        PROPORTIONAL = 64;
    }
}

impl SampleSet {
    /// The default set: all groups except those that few callers need and that take one more read of `/proc`
    /// for each process. If figures do not come from `/proc`, context switches come with the others.
    pub const USUAL: SampleSet = SampleSet(
        SampleSet::ALL.0 & !SampleSet::SWITCHES.0 & !SampleSet::CGROUP.0 & !SampleSet::PROPORTIONAL.0,
    );
}

bit_set! {
    /// The figures of a record that are valid. A figure whose bit is clear could not be read or was not
    /// requested, and is 0. This differs from a valid figure of 0.
    Validity {
        /// CPU times, page faults, state, threads, parent and start time.
        CPU = 1;
        /// Resident and virtual memory.
        MEMORY = 2;
        /// Bytes read and written.
        IO = 4;
        /// Number of open descriptors.
        DESCRIPTORS = 8;
        /// The command line.
        COMMAND_LINE = 16;
        /// User and group ids.
        USER = 32;
        /// Bytes and packets sent and received. They are counted in the network namespace of the process, or
        /// some were counted for a socket of another namespace that it holds.
        NETWORK = 64;
        /// The CPU percentage: there was an earlier sample of the same process to compare with.
        CPU_PERCENT = 128;
        /// The counts over its flows. Flows were requested, and are recorded where the bytes of the process
        /// are counted.
        CONNECTIONS = 256;
        /// Context switches.
        SWITCHES = 512;
        /// The control group.
        CGROUP = 1024;
        /// Bytes that the process itself has fetched from storage and sent to it, without its children.
        OWN_BYTES = 2048;
        /// Bytes that the process itself has read and written by calls, without its children.
        OWN_CHARS = 4096;
        /// The proportional share of resident memory.
        PROPORTIONAL = 8192;
    }
}

/// Attributes of a process that change only at exec, at setuid, or when the process or its manager changes
/// them deliberately. All text is bytes as the kernel reported them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Identity {
    /// The process's name (`comm` of its thread group leader): at most 15 bytes, or 63 for kernel threads.
    pub name: Vec<u8>,
    /// The arguments, each terminated by NUL; empty for kernel threads. A process that is ending, or a
    /// zombie, keeps the arguments that were last read.
    pub command_line: Vec<u8>,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Name of the effective user, or its number in decimal if it has no name.
    pub user: Vec<u8>,
    /// Name of the effective group, or its number in decimal if it has no name.
    pub group: Vec<u8>,
    /// Name of the program's file; empty if it was not needed or is unknown. It distinguishes names that the
    /// kernel has truncated.
    pub program: Vec<u8>,
    /// Path of the control group, beginning with a slash; empty if it was not requested or is unknown.
    pub cgroup: Vec<u8>,
}

/// One reading of a process's figures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProcessSample {
    /// The process.
    pub id: ProcId,
    /// The parent's pid.
    pub parent: i32,
    /// The state's letter: R, S, D, Z, T, t, X, I (proc_pid_stat(5)).
    pub state: u8,
    /// Number of threads.
    pub threads: u32,
    /// CPU time in user mode, in clock ticks since the process started.
    pub user_ticks: u64,
    /// CPU time in kernel mode, in clock ticks since the process started.
    pub system_ticks: u64,
    /// Page faults that needed no access to storage, of all threads since the process started.
    pub minor_faults: u64,
    /// Page faults that needed access to storage.
    pub major_faults: u64,
    /// Resident set, in bytes.
    pub resident_bytes: u64,
    /// The part of the resident set that belongs to files or shared memory and that other processes may
    /// share, in bytes.
    pub shared_bytes: u64,
    /// Resident memory in bytes, with each page divided by the number of processes that share it.
    pub proportional_bytes: u64,
    /// Virtual memory, in bytes.
    pub virtual_bytes: u64,
    /// Bytes requested by read calls (`rchar`).
    pub read_chars: u64,
    /// Bytes passed to write calls (`wchar`).
    pub write_chars: u64,
    /// Bytes fetched from storage (`read_bytes`).
    pub read_bytes: u64,
    /// Bytes sent to storage (`write_bytes`).
    pub write_bytes: u64,
    /// The part of `read_chars` that does not come from children that the process has waited for.
    pub own_read_chars: u64,
    /// The part of `write_chars` that does not come from children that the process has waited for.
    pub own_write_chars: u64,
    /// The part of `read_bytes` that does not come from children that the process has waited for.
    pub own_read_bytes: u64,
    /// The part of `write_bytes` that does not come from children that the process has waited for.
    pub own_write_bytes: u64,
    /// Open descriptors.
    pub descriptors: u32,
    /// The number of times that the main thread waited and gave up the CPU (`voluntary_ctxt_switches`).
    pub voluntary_switches: u64,
    /// The number of times that the main thread was preempted (`nonvoluntary_ctxt_switches`).
    pub involuntary_switches: u64,
    /// The figures that could be read.
    pub valid: Validity,
}

impl ProcessSample {
    /// Returns a sample of a process whose figures could not be read.
    pub const fn unknown(id: ProcId) -> ProcessSample {
        ProcessSample {
            id,
            parent: 0,
            state: b'X',
            threads: 0,
            user_ticks: 0,
            system_ticks: 0,
            minor_faults: 0,
            major_faults: 0,
            resident_bytes: 0,
            shared_bytes: 0,
            proportional_bytes: 0,
            virtual_bytes: 0,
            read_chars: 0,
            write_chars: 0,
            read_bytes: 0,
            write_bytes: 0,
            own_read_chars: 0,
            own_write_chars: 0,
            own_read_bytes: 0,
            own_write_bytes: 0,
            descriptors: 0,
            voluntary_switches: 0,
            involuntary_switches: 0,
            valid: Validity(0),
        }
    }
}

/// A process as it is delivered: its identity, its latest sample, rates, and its network traffic.
#[derive(Clone, Debug)]
pub struct ProcessRecord {
    /// The latest sample.
    pub sample: ProcessSample,
    /// The identity.
    pub identity: Arc<Identity>,
    /// Share of the whole machine's CPU time between the two latest samples, 0-100; 0 in the first sample.
    pub cpu_percent: f64,
    /// Network traffic since the process was first seen.
    pub traffic: Traffic,
    /// The part of `traffic` whose owner is shared or guessed, in both directions, in bytes.
    pub uncertain_bytes: u64,
    /// The inode of the network namespace of its main thread, or of the last one before the process ended. It
    /// is 0 if it could not be read or was not requested.
    pub network_namespace: u64,
    /// Counts over its flows, if flows were requested and the process had any.
    pub connections: Option<Box<Connections>>,
    /// The valid figures: those of the sample, and those that only a record has.
    pub valid: Validity,
}

/// The processes to deliver. A process is delivered if it matches every list that is not empty.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Selection {
    /// Process ids.
    pub pids: Vec<i32>,
    /// User names, or user ids in decimal.
    pub users: Vec<Vec<u8>>,
    /// Process names, compared with `comm` byte by byte. A name longer than the kernel keeps applies to
    /// processes whose `comm` is its beginning. It is compared with the name of the program's file and with
    /// the file names in the first and second argument. The second argument is a script's name.
    pub names: Vec<Vec<u8>>,
}

/// The number of bytes of a name that the kernel keeps (`TASK_COMM_LEN` without the NUL).
pub const NAME_BYTES: usize = 15;

impl Selection {
    /// Returns true if a process with this pid and identity is delivered.
    pub fn matches(&self, pid: i32, identity: &Identity) -> bool {
        self.matches_pid(pid)
            && self.matches_user(identity)
            && (self.names.is_empty()
                || self.names.contains(&identity.name)
                || self.matches_whole_name(identity))
    }

    /// Returns true if the result depends on parts that `identity` may still lack: the command line and
    /// program of a process whose name is truncated.
    pub fn depends_on_whole_name(&self, pid: i32, identity: &Identity) -> bool {
        self.matches_pid(pid)
            && self.matches_user(identity)
            && !self.names.contains(&identity.name)
            && self.long_names(&identity.name).next().is_some()
    }

    /// Returns true if the selection has names that the kernel truncates.
    pub fn has_long_names(&self) -> bool {
        self.names.iter().any(|name| name.len() > NAME_BYTES)
    }

    fn matches_user(&self, identity: &Identity) -> bool {
        let is_user =
            |user: &Vec<u8>| *user == identity.user || user.as_slice() == identity.uid.to_string().as_bytes();
        self.users.is_empty() || self.users.iter().any(is_user)
    }

    /// Returns the names that the kernel would truncate to this one.
    fn long_names<'s>(&'s self, cut: &'s [u8]) -> impl Iterator<Item = &'s Vec<u8>> {
        let is_cut =
            |name: &&Vec<u8>| cut.len() == NAME_BYTES && name.len() > NAME_BYTES && name.starts_with(cut);
        self.names.iter().filter(is_cut)
    }

    fn matches_whole_name(&self, identity: &Identity) -> bool {
        let arguments = || identity.command_line.split(|&byte| byte == 0).take(2);
        let is_whole =
            |name: &Vec<u8>| *name == identity.program || arguments().any(|path| last_part(path) == name);
        self.long_names(&identity.name).any(is_whole)
    }

    /// Returns true if the list of pids is empty or contains `pid`.
    pub fn matches_pid(&self, pid: i32) -> bool {
        self.pids.is_empty() || self.pids.contains(&pid)
    }
}

/// Returns the part of a path after its last slash.
pub fn last_part(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { name: b"web".to_vec(), uid: 33, user: b"www-data".to_vec(), ..Identity::default() }
    }

    #[test]
    fn an_empty_selection_delivers_everything() {
        assert!(Selection::default().matches(7, &identity()));
    }

    #[test]
    fn every_list_must_agree() {
        let mut selection = Selection { names: vec![b"web".to_vec()], ..Selection::default() };
        assert!(selection.matches(7, &identity()));
        selection.users = vec![b"33".to_vec()];
        assert!(selection.matches(7, &identity()));
        selection.users = vec![b"root".to_vec(), b"www-data".to_vec()];
        assert!(selection.matches(7, &identity()));
        selection.pids = vec![8];
        assert!(!selection.matches(7, &identity()));
        assert!(!selection.matches(8, &Identity { name: b"other".to_vec(), ..identity() }));
    }

    #[test]
    fn long_names_are_compared_whole() {
        let long = b"a-very-long-program-name";
        let selection = Selection { names: vec![long.to_vec()], ..Selection::default() };
        let of = |command_line: &[u8], program: &[u8]| Identity {
            name: long[..15].to_vec(),
            command_line: command_line.to_vec(),
            program: program.to_vec(),
            ..identity()
        };
        assert!(selection.matches(7, &of(b"/bin/a-very-long-program-name\0-x\0", b"")));
        assert!(selection.matches(7, &of(b"/bin/sh\0./a-very-long-program-name\0", b"sh")), "a script");
        assert!(selection.matches(7, &of(b"other\0", long)), "it has another first argument");
        assert!(!selection.matches(7, &of(b"/bin/a-very-long-pro-other\0", b"a-very-long-pro-other")));
        assert!(!selection.matches(7, &of(b"x\0y\0a-very-long-program-name\0", b"x")));
        let renamed = Identity { name: b"short".to_vec(), ..of(b"", long) };
        assert!(!selection.matches(7, &renamed), "its name is another one");
        let cut = of(b"", b"");
        assert!(selection.depends_on_whole_name(7, &cut) && !selection.matches(7, &cut));
        assert!(!selection.depends_on_whole_name(7, &renamed) && selection.has_long_names());
    }

    #[test]
    fn bit_sets_hold_and_join() {
        let some = Validity::CPU | Validity::IO;
        assert!(some.has(Validity::IO) && !some.has(Validity::MEMORY) && Validity::ALL.has(some));
        assert_eq!(Validity::ALL.0, 16_383);
    }
}
